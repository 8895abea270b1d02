"""What a finished run left in `results/runs/<run>/`, read for tables and figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vexkd import seal
from vexkd.errors import InputError
from vexkd.settings import Params

if TYPE_CHECKING:
    import pandas as pd

SYNTHETIC = "synthetic data (embedded town), not nuScenes"


def metrics(run: str, results: Path) -> dict[str, Any]:
    """metrics.json of a run: scores as fractions, errors in nuScenes' units; see `vexkd.evaluate.detection.collect`."""
    found = _json(run, results, "metrics.json")
    if not ({"mAP", "NDS"} <= set(found) or "mIoU" in found):
        raise _other(run, results, "metrics.json", "the scores of a run")
    return found


def origin(run: str, results: Path) -> dict[str, Any]:
    """provenance.json of a run: `seeds`, the training record of each seed, and `evaluation`."""
    found = _json(run, results, "provenance.json")
    seeds = found.get("seeds")
    records = [*seeds.values(), found.get("evaluation")] if isinstance(seeds, dict) and seeds else [None]
    if not all(isinstance(record, dict) for record in records) or any("device" not in each for each in records[:-1]):
        raise _other(run, results, "provenance.json", "the records of a run's trainings and evaluation")
    return found


def resamples(run: str, results: Path) -> dict[str, Any] | None:
    """resamples.json of a run: scores of resampled scenes by seed; see `vexkd.evaluate.resamples`. None where absent."""
    found = optional(run, results, "resamples.json")
    if found and not {"scenes", "draws", "generator_seed", "seeds"} <= set(found):
        raise _other(run, results, "resamples.json", "scores of resampled scenes")
    return found or None


def optional(run: str, results: Path, name: str) -> dict[str, Any]:
    """A JSON file of a run that not every run has; empty where it is not there."""
    return _json(run, results, name) if (Path(results) / "runs" / run / name).is_file() else {}


def summary(run: str, params: Params, results: Path) -> dict[str, Any]:
    """summary.json of a run; empty where it is not there or not of the model that the settings ask for now."""
    path = Path(results) / "runs" / run / "summary.json"
    return _json(run, results, path.name) if path.is_file() and is_of_model(run, params, path) else {}


def is_of_model(run: str, params: Params, path: Path) -> bool:
    """Whether a summary counted the model that a run has now; those of earlier versions do not say so."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    made = found.get("settings_digest") if isinstance(found, dict) else None
    return made == seal.model_digest(params, params.run(run))


def latency(run: str, results: Path, origin: dict[str, Any]) -> dict[str, Any]:
    """latency.json of a run; empty where it is not there or was not measured with the weights that were scored.

    origin: the run's provenance.json, which names these.
    """
    found = optional(run, results, "latency.json")
    scored = (origin["evaluation"].get("weights") or {}).values()
    return found if found.get("weights") in [files.get("weights.safetensors") for files in scored] else {}


def curve(run: str, results: Path) -> pd.DataFrame:
    """curve.csv of a run, with a `seed` column."""
    import pandas as pd  # slow to import, and the workflow, which asks for file names alone, has no need of it

    path = _file(run, results, "curve.csv")
    try:
        found = pd.read_csv(path)
        whole = {"seed", "step", "loss"} <= set(found) and all(map(pd.api.types.is_numeric_dtype, found.dtypes))
    except ValueError:  # pandas' own and UnicodeDecodeError are such
        whole = False
    if not whole:
        raise _other(run, results, "curve.csv", "the curve of a training")
    return found


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
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text
        raise InputError(f"{path}: this is not JSON ({error}); delete it and evaluate the run again.") from None
    if not isinstance(found, dict):
        raise _other(run, results, name, "a mapping")
    return found


def _other(run: str, results: Path, name: str, expected: str) -> InputError:
    """What to raise where a file of a run holds something else."""
    path = Path(results) / "runs" / run / name
    return InputError(f"{path}: this is not {expected}; delete it and evaluate the run again.")
