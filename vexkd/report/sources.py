"""Which files each table, each figure and the page are made from, and which settings they show besides these files.

The rules declare what stands here as their inputs, the records hold its hashes (`vexkd.report.records`). Names of files are
paths in an experiment's folder: `results/...`, `models/...`, `artifacts/infos`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vexkd import provenance, seal
from vexkd.experiment import HERE, SENSORS
from vexkd.report import results
from vexkd.settings import PICTURES, Params, Run

INFOS, MAPS = str(HERE.infos), str(HERE.maps)


@dataclass(frozen=True)
class Figure:
    """A figure of an experiment. kind: what is drawn. rows: the runs that it shows, one for a picture of a run."""

    kind: str
    rows: tuple[str, ...]

    @property
    def is_picture(self) -> bool:
        """Whether it shows one sample by one run."""
        return self.kind in {"birdseye", "maps", *PICTURES}


def figures(params: Params) -> dict[str, Figure]:
    """The figures that an experiment has, by the name of their files."""
    by_name = {"curves": Figure("curves", tuple(params.runs))}
    for name, run in params.runs.items():
        kind = "maps" if run.task == "segmentation" else "birdseye"
        by_name[f"{kind}-{name}"] = Figure(kind, (name,))
    if gaining := distilled_detectors(params):
        by_name["distillation"] = Figure("distillation", tuple(gaining))
    for kind, rows in params.figures.items():
        if kind in PICTURES:
            by_name |= {f"{kind}-{row}": Figure(kind, (row,)) for row in rows}
        elif rows:
            by_name[kind] = Figure(kind, tuple(rows))
    return by_name


def distilled_detectors(params: Params) -> list[str]:
    """The runs that the figure `distillation` shows."""
    return [name for name, run in params.runs.items() if run.student and run.task == "detection"]


def with_students(params: Params, names: Iterable[str]) -> list[str]:
    """These runs, and the students alone of the distilled ones."""
    rows = [params.run(name) for name in names]
    return list(dict.fromkeys([run.name for run in rows] + [run.student for run in rows if run.student]))


# ---- files


def of_table(name: str, params: Params, folder: Path = Path()) -> list[str]:
    """A table reads the scores and records of its rows and of their students, and what was measured of its rows."""
    rows = params.table(name)
    runs = [HERE.run(run) for run in with_students(params, rows)]
    needed = [str(path) for run in runs for path in (run.metrics, run.provenance, run.resamples)]
    return needed + measured(rows, params, folder)


def measured(rows: Iterable[str], params: Params, folder: Path = Path()) -> list[str]:
    """What is shown of these runs where it is there, or will be since a figure asks for it."""
    drawn = {HERE.run(run).latency for run in params.figures.get("latency", [])}
    paths = [path for run in dict.fromkeys(rows) for path in (HERE.run(run).summary, HERE.run(run).latency)]
    return [str(path) for path in paths if path in drawn or (folder / path).is_file()]


def of_figure(name: str, params: Params, *, seed: int | None = None) -> list[str]:
    """What a figure of `figures` reads. seed: of the weights that a picture shows, by default the first."""
    figure = figures(params)[name]
    if figure.is_picture:
        return of_picture(figure.kind, params.run(figure.rows[0]), params.seeds[0] if seed is None else seed)
    return of_chart(figure.kind, params)


def of_chart(kind: str, params: Params) -> list[str]:
    """What a figure of several runs reads."""
    rows = figures(params).get(kind, Figure(kind, ())).rows
    runs = [HERE.run(run) for run in (with_students(params, rows) if kind == "distillation" else rows)]
    files: list[Path] = []
    for run in runs:
        files += [run.curve] if kind == "curves" else [run.metrics]
        if kind == "distillation":
            files += [run.provenance]
        elif kind == "blocks":
            files += [run.curve]
        elif kind == "latency":
            files += [run.latency, run.provenance]
        elif kind == "missing-sensor":
            files += [run.metrics_without(sensor) for sensor in SENSORS]
    return [str(path) for path in files]


def of_picture(kind: str, run: Run, seed: int) -> list[str]:
    """What a figure of one sample reads, apart from the raw data that the infos name."""
    training = HERE.training(run.name, seed)
    if kind == "maps":
        return [INFOS, MAPS, str(training.predictions(run.task)), str(HERE.run(run.name).metrics)]
    if kind in ("energy", "masks"):
        labels = [MAPS] if kind == "masks" and run.task == "segmentation" else []
        return [INFOS, *labels, str(training.inspection)]
    compared = [run.name, run.student] if kind in ("camera", "errors") and run.student else [run.name]
    return [INFOS, *(str(HERE.training(name, seed).predictions("detection")) for name in compared)]


def of_page(params: Params, folder: Path = Path()) -> list[str]:
    """What the page shows: of its runs and figures what is there."""
    runs = [HERE.run(run) for run in params.runs]
    paths = [path for run in runs for path in (run.metrics, run.curve, run.provenance, run.resamples)]
    paths += [HERE.figures / f"{figure}.{end}" for figure in figures(params) for end in ("png", "svg", "csv")]
    return [str(path) for path in paths if (folder / path).is_file()] + measured(params.runs, params, folder)


# ---- settings


def table_settings(name: str, params: Params) -> str:
    """A hash of what a table shows of the settings."""
    rows = params.table(name)
    return provenance.digest(
        [seal.shared_settings(params)[f"table-{name}"], *_of_runs(with_students(params, rows), params)]
    )


def figure_settings(name: str, params: Params, *, sample: int | str | None = None) -> str:
    """A hash of what a figure shows of the settings; of a picture, of what decides it besides the files.

    sample: the one that was asked for.
    """
    kind, rows = figures(params)[name].kind, list(figures(params)[name].rows)
    if figures(params)[name].is_picture:
        return provenance.digest([kind, sample])
    shown = [] if kind == "curves" else [params.run(run).training() for run in with_students(params, rows)]
    return provenance.digest([kind, rows, results.dataset(params, rows), *shown])


def page_settings(params: Params) -> str:
    """A hash of what the page shows of the settings."""
    shared = {name: value for name, value in seal.shared_settings(params).items() if name.startswith("table-")}
    return provenance.digest([shared, params.seeds, list(figures(params)), *_of_runs(params.runs, params)])


def _of_runs(names: Iterable[str], params: Params) -> list[Any]:
    return [[params.run(name).training(), params.run(name).after_training()] for name in names]
