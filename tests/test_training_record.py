"""Records of trainings, with Snakemake's own benchmark file beside them or without."""

import json

import pytest

from vexkd.errors import InputError
from vexkd.evaluate import training_record

HEAD = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"


def test_a_benchmark_joins_the_record_in_seconds_and_bytes(tmp_path):
    (tmp_path / "provenance.json").write_text(json.dumps({"training_seconds": 90.0}))
    line = "95.5\t0:01:35\t750.00\t4000.0\t700.0\t720.0\t1.0\t2.0\t98.50\t94.07\n"
    (tmp_path / "benchmark.tsv").write_text(HEAD + line)
    measured = {"wall_seconds": 95.5, "memory_bytes": 786_432_000.0, "cpu_seconds": 94.07, "mean_load_percent": 98.5}
    assert training_record.read(tmp_path) == {"training_seconds": 90.0, "benchmark": measured}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, {}),
        ("", {}),
        (HEAD, {}),
        (HEAD + "0.21\t0:00:00" + "\tNA" * 8 + "\n", {"wall_seconds": 0.21}),
        ("anything\nelse\n", {}),
    ],
)
def test_what_snakemake_did_not_measure_is_left_out(tmp_path, text, found):
    (tmp_path / "provenance.json").write_text("{}")
    if text is not None:
        (tmp_path / "benchmark.tsv").write_text(text)
    assert training_record.read(tmp_path).get("benchmark", {}) == found


def test_a_broken_record_is_named(tmp_path):
    (tmp_path / "provenance.json").write_text("{")
    with pytest.raises(InputError, match=r"provenance\.json: this is not JSON"):
        training_record.read(tmp_path)
