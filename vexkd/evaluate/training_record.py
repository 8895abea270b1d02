"""What is known of a finished training beside its weights: its own record, and what Snakemake measured of its job.

The rule's `benchmark:` file stands beside the weights, so that whatever keeps these keeps it; a training by hand has none.
It covers the last attempt only, start and end included; `training_seconds` of the record covers all attempts.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from vexkd.errors import InputError

BENCHMARK = "benchmark.tsv"
# Column of Snakemake's benchmark file -> key of the record and its unit in that column's.
_COLUMNS = {
    "s": ("wall_seconds", 1),
    "max_rss": ("memory_bytes", 2**20),  # resident, summed over the job's processes; Snakemake writes MiB
    "cpu_time": ("cpu_seconds", 1),
    "mean_load": ("mean_load_percent", 1),
}


def read(folder: Path) -> dict[str, Any]:
    """provenance.json in the folder of a seed, with `benchmark` where Snakemake left one."""
    path = folder / "provenance.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: this is not JSON ({str(error).rstrip('.')}); make the file again.") from error
    if not isinstance(record, dict):
        raise InputError(f"{path}: this is not the record of a training; train the run again.")
    measured = benchmark(folder / BENCHMARK)
    return record | {"benchmark": measured} if measured else record


def benchmark(path: Path) -> dict[str, float]:
    """The last line of a benchmark file in seconds, bytes and percent; without what Snakemake could not measure."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream, delimiter="\t"))
    values = {}
    for column, (key, unit) in _COLUMNS.items():
        try:
            values[key] = float(lines[-1][column]) * unit
        except (IndexError, KeyError, TypeError, ValueError):  # NA for a job that ended before the first look
            continue
    return values
