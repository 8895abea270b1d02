"""What a finished run left in `results/runs/<run>/`, read for tables and figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from vexkd.errors import InputError
from vexkd.params import Params

SYNTHETIC = "synthetic data (embedded town), not nuScenes"


def metrics(run: str, results: Path) -> dict[str, Any]:
    """metrics.json of a run: scores as fractions, errors in nuScenes' units; see `vexkd.evaluate.detection.collect`."""
    return _json(run, results, "metrics.json")


def origin(run: str, results: Path) -> dict[str, Any]:
    """provenance.json of a run: `seeds`, the training record of each seed, and `evaluation`."""
    return _json(run, results, "provenance.json")


def resamples(run: str, results: Path) -> dict[str, Any] | None:
    """resamples.json of a run: scores of resampled scenes by seed; see `vexkd.evaluate.resamples`. None where absent."""
    found = optional(run, results, "resamples.json")
    if found and not {"scenes", "draws", "generator_seed", "seeds"} <= set(found):
        path = Path(results) / "runs" / run / "resamples.json"
        raise InputError(f"{path}: these are no scores of resampled scenes; delete it and evaluate the run again.")
    return found or None


def optional(run: str, results: Path, name: str) -> dict[str, Any]:
    """A JSON file of a run that not every run has; empty where it is not there."""
    return _json(run, results, name) if (Path(results) / "runs" / run / name).is_file() else {}


def curve(run: str, results: Path) -> pd.DataFrame:
    """curve.csv of a run, with a `seed` column."""
    return pd.read_csv(_file(run, results, "curve.csv"))


def dataset(params: Params, names: list[str]) -> str:
    """The data set and split that these runs are scored on, in words; says so when it is synthetic."""
    used = sorted({f"{params.run(n).data.version}, split {params.run(n).data.val_split}" for n in names})
    if params.synthetic is not None:
        return f"{SYNTHETIC}, {'; '.join(used)}"
    return f"nuScenes {'; '.join(used)}"


def _file(run: str, results: Path, name: str) -> Path:
    path = Path(results) / "runs" / run / name
    if not path.is_file():
        raise InputError(f"{path}: run {run} has no results yet; make them with 'snakemake --cores all {path}'.")
    return path


def _json(run: str, results: Path, name: str) -> dict[str, Any]:
    path = _file(run, results, name)
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: this is not JSON ({error}); delete it and make it again.") from None
