"""The folder of an experiment: where its settings, prepared data, models and results stand.

    params.yaml                            what is asked for
    artifacts/{manifest.parquet, infos/, paste/, maps/}
    models/RUN/seedK/                      weights, curve, predictions ...     `Training`
    results/runs/RUN/                      merged settings, metrics ...        `RunResults`
    results/{tables, figures, settings}/, results/report.html
    scratch/, logs/, submissions/

Everything that reads or writes these files asks here for their paths. A workflow rule's pattern is the path of a run with the
name of a wildcard: `Experiment().training("{run}", "{seed}").weights`.

Verbs read params.yaml, but a job of Snakemake reads the copy of it that was frozen when Snakemake was called
(`vexkd.calls`): the variable VEXKD_CALL, which the workflow sets for its jobs, names the copy.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vexkd import settings
from vexkd.errors import InputError
from vexkd.settings import Params, Run

CALL = "VEXKD_CALL"
SENSORS = ("lidar", "camera")
TEST_VERSION = "v1.0-test"
_INFOS = ("samples", "sweeps", "cameras", "boxes")


@dataclass(frozen=True)
class RunResults:
    """`results/runs/RUN`: what git keeps of a run, over all of its seeds."""

    folder: Path

    @property
    def config(self) -> Path:
        """The merged settings of training."""
        return self.folder / "config.yaml"

    @property
    def inference(self) -> Path:
        """The merged settings of what follows training: thresholds, NMS, the split to score."""
        return self.folder / "inference.yaml"

    @property
    def metrics(self) -> Path:
        """Scores, mean and spread over seeds."""
        return self.folder / "metrics.json"

    def metrics_without(self, sensor: str) -> Path:
        """Scores where this sensor has failed."""
        return self.folder / f"metrics-without-{sensor}.json"

    @property
    def curve(self) -> Path:
        return self.folder / "curve.csv"

    @property
    def provenance(self) -> Path:
        return self.folder / "provenance.json"

    @property
    def resamples(self) -> Path:
        """Scores of resampled scenes, for intervals."""
        return self.folder / "resamples.json"

    @property
    def summary(self) -> Path:
        """Parameters and FLOPs."""
        return self.folder / "summary.json"

    @property
    def latency(self) -> Path:
        return self.folder / "latency.json"


@dataclass(frozen=True)
class Training:
    """`models/RUN/seedK`: what one training made, and what was predicted with it."""

    folder: Path

    @property
    def weights(self) -> Path:
        return self.folder / "weights.safetensors"

    @property
    def masks(self) -> Path:
        """The learned masks, where there are some."""
        return self.folder / "masks.safetensors"

    @property
    def curve(self) -> Path:
        return self.folder / "curve.csv"

    @property
    def provenance(self) -> Path:
        return self.folder / "provenance.json"

    @property
    def benchmark(self) -> Path:
        """Snakemake's record of time and memory."""
        return self.folder / "benchmark.tsv"

    @property
    def inspection(self) -> Path:
        """BEV maps of one keyframe, for the figures `energy` and `masks`."""
        return self.folder / "inspection.safetensors"

    def predictions(self, task: str, without: str | None = None) -> Path:
        """nuScenes' submission file, or packed maps of a run that segments. without: a sensor that has failed."""
        ending = "safetensors" if task == "segmentation" else "json"
        return self.folder / f"predictions{f'-without-{without}' if without else ''}.{ending}"


@dataclass(frozen=True)
class Submission:
    """`submissions/RUN/seedK`: predictions of nuScenes' test split, and the zip for its evaluation server."""

    folder: Path
    name: str

    @property
    def predictions(self) -> Path:
        return self.folder / "predictions.json"

    @property
    def zip(self) -> Path:
        return self.folder / f"{self.name}.zip"

    @property
    def note(self) -> Path:
        """What the zip was made from."""
        return self.folder / f"{self.name}.json"


@dataclass(frozen=True)
class Experiment:
    """The experiment in a folder, by default the working directory. Paths are relative where `folder` is."""

    folder: Path = Path()

    # ---- settings

    @property
    def settings_file(self) -> Path:
        """params.yaml; in a job of Snakemake the copy that was frozen for it."""
        call = os.environ.get(CALL)
        return (self.calls / call if call else self.folder) / "params.yaml"

    @property
    def calls(self) -> Path:
        """Folder of the frozen copies, one for each call of Snakemake."""
        return self.folder / ".snakemake" / "calls"

    @property
    def is_job(self) -> bool:
        """Whether this process is a job of Snakemake, with frozen settings."""
        return bool(os.environ.get(CALL))

    @cached_property
    def params(self) -> Params:
        """The settings. Raises InputError where they are missing or wrong."""
        file = self.settings_file
        if not file.is_file():
            if self.is_job:
                raise InputError(
                    f"{file}: there are no such frozen settings; unset {CALL}, which only jobs of Snakemake have."
                )
            where = "this folder" if self.folder == Path() else str(self.folder)
            raise InputError(
                f"{file}: there are no settings; {where} is no experiment: go to one, or name it with -C FOLDER."
            )
        return settings.load(file)

    # ---- data

    @property
    def root(self) -> Path:
        """nuScenes' folder."""
        return self.folder / self.params.root

    @property
    def version(self) -> str:
        """The folder of nuScenes' tables: that of all runs, which share one preparation."""
        return next(iter(self.params.runs.values())).data.version

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    @property
    def manifest(self) -> Path:
        """What `vexkd doctor` found: sizes and hashes of the raw data."""
        return self.artifacts / "manifest.parquet"

    @property
    def infos(self) -> Path:
        """Folder of the Parquet tables of keyframes, sweeps, cameras and boxes."""
        return self.artifacts / "infos"

    @property
    def infos_files(self) -> tuple[Path, ...]:
        return tuple(self.infos / f"{name}.parquet" for name in _INFOS)

    @property
    def paste(self) -> Path:
        """Folder of the database of objects to paste."""
        return self.artifacts / "paste"

    @property
    def paste_files(self) -> tuple[Path, ...]:
        return self.paste / "points.npy", self.paste / "index.parquet"

    @property
    def maps(self) -> Path:
        """Folder of the rasters of map segmentation."""
        return self.artifacts / "maps"

    @property
    def maps_files(self) -> tuple[Path, ...]:
        return self.maps / "rasters.npy", self.maps / "index.parquet"

    def backbone(self, run: Run) -> Path | None:
        """The published weights that the image backbone of a run starts from."""
        weights = run.camera.backbone.weights if run.camera is not None else None
        return self.folder / weights.file if weights is not None else None

    # ---- trainings

    @property
    def models(self) -> Path:
        return self.folder / "models"

    def training(self, run: str, seed: int | str) -> Training:
        """What the training of a run with a seed makes."""
        return Training(self.models / run / f"seed{seed}")

    @property
    def scratch(self) -> Path:
        """Resumable states; nothing in it is an output of a rule."""
        return self.folder / "scratch"

    @property
    def finished(self) -> Path:
        """Results of finished trainings, kept until Snakemake has accepted them."""
        return self.scratch / "finished"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    # ---- results

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def runs(self) -> Path:
        """Folder of `RunResults`."""
        return self.results / "runs"

    def run(self, name: str) -> RunResults:
        """What is kept of a run."""
        return RunResults(self.runs / name)

    def shared_settings(self, name: str) -> Path:
        """Settings that belong to no single run: town, data, paste, maps, table-NAME, figure-NAME."""
        return self.results / "settings" / f"{name}.yaml"

    @property
    def tables(self) -> Path:
        return self.results / "tables"

    @property
    def figures(self) -> Path:
        return self.results / "figures"

    @property
    def page(self) -> Path:
        return self.results / "report.html"

    # ---- nuScenes' test split

    @property
    def submissions(self) -> Path:
        return self.folder / "submissions"

    @property
    def test_manifest(self) -> Path:
        return self.submissions / "manifest.parquet"

    @property
    def test_infos(self) -> Path:
        return self.submissions / "infos"

    @property
    def test_infos_files(self) -> tuple[Path, ...]:
        return tuple(self.test_infos / f"{name}.parquet" for name in _INFOS)

    def submission(self, run: str, seed: int | str) -> Submission:
        """The submission of a run with a seed."""
        return Submission(self.submissions / run / f"seed{seed}", f"{run}-seed{seed}")


HERE = Experiment()  # the working directory; only for paths, since it would keep the settings of another time
