"""The GPU day: rows are written down one by one, failures say why, and the package loads where much is missing."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

from gpu_day.day import Day, Journal, run_rows  # noqa: E402

ABSENT = ("spconv", "cumm", "nuscenes", "dvc", "snakemake", "typer", "simplejpeg", "triton")
NEEDED = (
    "vexkd.settings",
    "vexkd.ops.sparse_conv",
    "vexkd.ops.bev_pool",
    "vexkd.ops.deformable_attention",
    "vexkd.models.bev_model",
    "vexkd.measure.forecast",
    "vexkd.measure.cost",
    "vexkd.measure.latency",
    "vexkd.train.session",
    "vexkd.synthetic.tables",
    "vexkd.evaluate.detection",
    "gpu_day.operations",
    "gpu_day.kernels",
    "gpu_day.trainings",
    "gpu_day.latency",
    "gpu_day.costs",
    "gpu_day.demo",
)


@pytest.fixture
def day(tmp_path):
    return Day(device=torch.device("cpu"), tiny=True, out=tmp_path, until=time.time() + 600)


def broken():
    raise ValueError("no such kernel\nand more lines")


def test_a_row_that_fails_says_why_and_the_next_goes_on(day):
    journal = Journal(day.out / "part.jsonl")
    run_rows(day, journal, [("a", broken), ("b", lambda: {"ms": 1.0})])
    rows = journal.rows()
    assert rows["a"] == {"failed": "ValueError: no such kernel"}
    assert rows["b"]["ms"] == 1.0


def test_what_has_a_result_is_not_run_again_and_a_cut_line_is_no_line(day):
    journal = Journal(day.out / "part.jsonl")
    run_rows(day, journal, [("a", lambda: {"ms": 1.0})])
    with journal.path.open("a") as stream:
        stream.write('{"row": "b", "ms"')
    run_rows(day, journal, [("a", broken)])
    assert list(journal.rows()) == ["a"]
    assert journal.rows()["a"]["ms"] == 1.0


def test_a_lost_gpu_ends_the_process_after_it_was_written_down(day):
    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    journal = Journal(day.out / "part.jsonl")
    with pytest.raises(SystemExit, match="illegal memory access"):
        run_rows(day, journal, [("a", lost), ("b", dict)])
    assert "illegal memory access" in journal.rows()["a"]["failed"]
    assert "b" not in journal.rows()


def test_rows_beyond_the_time_are_named(tmp_path):
    late = Day(device=torch.device("cpu"), tiny=True, out=tmp_path, until=time.time() - 1)
    journal = Journal(tmp_path / "part.jsonl")
    run_rows(late, journal, [("a", dict)])
    assert journal.rows() == {"a": {"skipped": "the part's time was up"}}


def test_the_package_loads_without_what_a_bare_machine_lacks():
    """Blocked in a process of its own, as modules that are loaded already would hide it."""
    code = f"import sys, importlib\nfor n in {ABSENT}: sys.modules[n] = None\nfor n in {NEEDED}: importlib.import_module(n)"
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}", "PATH": "/usr/bin:/bin"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=path)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.slow
def test_one_part_on_the_cpu_writes_its_report(tmp_path):
    command = [
        sys.executable,
        "benchmarks/gpu.py",
        "--device",
        "cpu",
        "--tiny",
        "--parts",
        "kernels",
        "--minutes",
        "10",
    ]
    result = subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    rows = json.loads((tmp_path / "gpu.json").read_text())["parts"]["kernels"]
    assert rows
    assert not [name for name, row in rows.items() if "failed" in row or "begun" in row]
    assert "| copy rate |" in (tmp_path / "gpu.md").read_text()
