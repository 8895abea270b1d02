"""What every task's evaluation shares: the files of a run's seeds in, means and spreads over seeds, curve, provenance out."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vexkd import provenance
from vexkd.errors import InputError
from vexkd.evaluate import training_record
from vexkd.experiment import Experiment


@dataclass(frozen=True)
class Seeds:
    """A finished run by seed: its folders, predictions and training records, and the curves of all seeds."""

    run: str
    folders: dict[str, Path]
    predictions: dict[str, Path]
    records: dict[str, dict[str, Any]]
    curve: pd.DataFrame


def read(run: str, experiment: Experiment, *, seeds: Sequence[int], predictions: str) -> Seeds:
    """The files of each training of a run: `predictions`, curve.csv, provenance.json. Raises InputError if one is missing."""
    folders = {str(seed): experiment.training(run, seed).folder for seed in seeds}
    if not folders:
        raise InputError(f"{run}: there are no seeds to collect; add at least one to 'seeds' in params.yaml.")
    for folder in folders.values():
        for file, verb in ((predictions, "predict"), ("curve.csv", "train"), ("provenance.json", "train")):
            if not (folder / file).is_file():
                raise InputError(f"{folder / file}: there is no such file; make it with 'vexkd {verb}' for run {run}.")
    curves = []
    for seed, folder in folders.items():
        curve = _curve(folder / "curve.csv")
        curves.append(curve.drop(columns="seed", errors="ignore").assign(seed=seed))
    joined = pd.concat(curves, ignore_index=True)
    return Seeds(
        run=run,
        folders=folders,
        predictions={seed: folder / predictions for seed, folder in folders.items()},
        records={seed: training_record.read(folder) for seed, folder in folders.items()},
        curve=joined[["seed", *(column for column in joined.columns if column != "seed")]],
    )


def _curve(path: Path) -> pd.DataFrame:
    """A training's curve as text, so that digits stay as they were written."""
    try:
        curve = pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError:  # pandas' own and UnicodeDecodeError are such
        curve = pd.DataFrame()
    if not {"step", "loss"} <= set(curve):
        raise InputError(f"{path}: this is not the curve of a training; train the run again.")
    return curve


def write(found: Seeds, metrics: dict[str, Any], experiment: Experiment, **facts: Any) -> None:
    """results/runs/<run>/{curve.csv, provenance.json, metrics.json}; facts: what the scoring's provenance says besides."""
    target = experiment.run(found.run)
    texts = {"curve.csv": found.curve.to_csv(index=False), "metrics.json": json.dumps(metrics, indent=2) + "\n"}
    resamples = target.resamples
    evaluation = provenance.record(
        **facts,
        files={
            **{name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()},
            **({resamples.name: provenance.file_digest(resamples)} if resamples.is_file() else {}),
        },
        predictions={seed: provenance.file_digest(path) for seed, path in found.predictions.items()},
        weights={seed: _weights_digests(folder) for seed, folder in found.folders.items()},
    )
    provenance.write_text(target.curve, texts["curve.csv"])
    provenance.write_json(target.provenance, {"run": found.run, "seeds": found.records, "evaluation": evaluation})
    provenance.write_text(target.metrics, texts["metrics.json"])


def summarise(scores: dict[str, dict[str, Any]], *, spread: Sequence[str]) -> dict[str, Any]:
    """Means over the seeds, then `n`, `spread` (sample standard deviations of these, None for one seed) and `seeds`.

    What is neither a number nor a mapping of such, a curve for instance, stays with its seed.
    """
    values = list(scores.values())
    deviations = combine([{name: value[name] for name in spread} for value in values], _deviation)
    return {**combine(values, _mean), "n": len(values), "spread": deviations, "seeds": scores}


def combine(values: list[Any], how: Callable[[list[float]], float | None]) -> Any:
    """`how` over the numbers that stand at the same place in equal nestings; None where any of them is None."""
    if isinstance(values[0], dict):
        return {key: combine([value[key] for value in values], how) for key in values[0] if key != "curve"}
    return None if any(value is None for value in values) else how(values)


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _deviation(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _weights_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each weights file of a seed."""
    return {path.name: provenance.file_digest(path) for path in sorted(folder.glob("weights*.safetensors"))}
