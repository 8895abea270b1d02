"""What finished runs left in `results/runs/<run>/`, each file read once: all that tables, figures and page show comes from here.

`Results(experiment).run(name)` is a run with its settings and files; a metric goes from `run.metrics` to a row of a table
(`vexkd.report.table_rows`) to its cell (`vexkd.report.table_text`), and nothing on the way reads a file.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vexkd import seal
from vexkd.errors import InputError
from vexkd.experiment import SENSORS, Experiment, RunResults
from vexkd.settings import Params, Run

if TYPE_CHECKING:
    import pandas as pd

SYNTHETIC = "synthetic data (embedded town), not nuScenes"
SCORES = {"detection": ("mAP", "NDS"), "segmentation": ("mIoU",)}  # of a task, in the order shown


class Results:
    """The results in an experiment's folder.

    params: the settings, where they are not to be read from the folder.
    """

    def __init__(self, experiment: Experiment, params: Params | None = None) -> None:
        self.experiment = experiment
        self.params = params if params is not None else experiment.params
        self._runs: dict[str, FinishedRun] = {}

    def run(self, name: str) -> FinishedRun:
        """A run, whether it has results or not. Raises InputError for a name that the settings do not have."""
        if name not in self._runs:
            self._runs[name] = FinishedRun(self.params.run(name), self)
        return self._runs[name]


class FinishedRun:
    """What is known of a run over all of its seeds.

    Each property reads its file at the first use. It raises InputError where the file is missing, unless it says otherwise,
    or holds something else.
    """

    def __init__(self, settings: Run, results: Results) -> None:
        self.settings = settings
        self.name = settings.name
        self.files: RunResults = results.experiment.run(settings.name)
        self.results = results

    @property
    def params(self) -> Params:
        """The settings of the whole experiment."""
        return self.results.params

    @property
    def student(self) -> FinishedRun | None:
        """The student of a distilled run, trained without a teacher."""
        return self.results.run(self.settings.student) if self.settings.student else None

    @property
    def is_finished(self) -> bool:
        """Whether the run has scores."""
        return self.files.metrics.is_file()

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """metrics.json: scores as fractions, errors in nuScenes' units; see `vexkd.evaluate.detection.collect`."""
        metrics = self._json(self.files.metrics)
        if not ({"mAP", "NDS"} <= set(metrics) or "mIoU" in metrics):
            raise _wrong_content(self.files.metrics, "the scores of a run")
        return metrics

    @cached_property
    def metrics_without(self) -> dict[str, dict[str, Any]]:
        """By sensor, the scores without it; only of sensors that have such scores."""
        paths = {sensor: self.files.metrics_without(sensor) for sensor in SENSORS}
        return {sensor: self._json(path) for sensor, path in paths.items() if path.is_file()}

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """provenance.json: `seeds`, the training record of each seed, and `evaluation`."""
        record = self._json(self.files.provenance)
        seeds = record.get("seeds")
        parts = [*seeds.values(), record.get("evaluation")] if isinstance(seeds, dict) and seeds else [None]
        if not all(isinstance(part, dict) for part in parts) or any("device" not in part for part in parts[:-1]):
            raise _wrong_content(self.files.provenance, "the records of a run's trainings and evaluation")
        return record

    @property
    def trainings(self) -> list[dict[str, Any]]:
        """The training record of each seed."""
        return list(self.provenance["seeds"].values())

    @cached_property
    def resamples(self) -> dict[str, Any] | None:
        """resamples.json: scores of resampled scenes by seed; see `vexkd.evaluate.resamples`. None where absent."""
        if not self.files.resamples.is_file():
            return None
        scores = self._json(self.files.resamples)
        if scores and not {"scenes", "draws", "generator_seed", "seeds"} <= set(scores):
            raise _wrong_content(self.files.resamples, "scores of resampled scenes")
        return scores or None

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json: parameters and FLOPs; empty where absent or not of the model that the settings ask for now."""
        path = self.files.summary
        return self._json(path) if path.is_file() and is_of_model(self.name, self.params, path) else {}

    @cached_property
    def latency(self) -> dict[str, Any]:
        """latency.json; empty where absent or measured with other weights than those that were scored."""
        if not self.files.latency.is_file():
            return {}
        latency = self._json(self.files.latency)
        scored = (self.provenance["evaluation"].get("weights") or {}).values()
        return latency if latency.get("weights") in [files.get("weights.safetensors") for files in scored] else {}

    @cached_property
    def curve(self) -> pd.DataFrame:
        """curve.csv, one line a logged step and seed."""
        import pandas as pd  # slow to import, and the workflow, which asks for file names alone, has no need of it

        path = self._present(self.files.curve)
        try:
            curve = pd.read_csv(path)
            whole = {"seed", "step", "loss"} <= set(curve) and all(map(pd.api.types.is_numeric_dtype, curve.dtypes))
        except ValueError:  # pandas' own and UnicodeDecodeError are such
            whole = False
        if not whole:
            raise _wrong_content(path, "the curve of a training")
        return curve

    def _present(self, path: Path) -> Path:
        if not path.is_file():
            raise InputError(
                f"{path}: run {self.name} has no results yet; make them with 'snakemake --cores all {path}'."
            )
        return path

    def _json(self, path: Path) -> dict[str, Any]:
        try:
            content = json.loads(self._present(path).read_text(encoding="utf-8"))
        except ValueError as error:  # no JSON, or no text
            raise InputError(f"{path}: this is not JSON ({error}); delete it and evaluate the run again.") from None
        if not isinstance(content, dict):
            raise _wrong_content(path, "a mapping")
        return content


def is_of_model(run: str, params: Params, path: Path) -> bool:
    """Whether a summary counted the model that a run has now; those of earlier versions do not say so."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    digest = summary.get("settings_digest") if isinstance(summary, dict) else None
    return digest == seal.model_digest(params, params.run(run))


def dataset(params: Params, names: list[str]) -> str:
    """The data set and split that these runs are scored on, in words; says so when it is synthetic."""
    used = sorted({f"{params.run(n).data.version}, split {params.run(n).data.val_split}" for n in names})
    if params.synthetic is not None:
        return f"{SYNTHETIC}, {'; '.join(used)}"
    return f"nuScenes {'; '.join(used)}"


def _wrong_content(path: Path, expected: str) -> InputError:
    """What to raise where a file of a run holds something else."""
    return InputError(f"{path}: this is not {expected}; delete it and evaluate the run again.")
