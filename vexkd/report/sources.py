"""Which files each table, each figure and the page are made from, and which settings they show besides these files.

The rules declare what stands here as their inputs, the records hold its hashes (`vexkd.report.records`). Names of files are
those in an experiment's folder: `results/...`, `models/...`, `artifacts/infos`; `Places` finds them elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vexkd import provenance, seal
from vexkd.report import runs
from vexkd.settings import PICTURES, Params, Run

# What a table, and with it the page, also shows of a run where it has been measured.
MEASURED = ("summary.json", "latency.json")
INFOS, MAPS = "artifacts/infos", "artifacts/maps"
SENSORS = ("lidar", "camera")


@dataclass(frozen=True)
class Places:
    """Where results, models and prepared data stand, by default in the experiment's folder, the working directory."""

    results: Path = Path("results")
    models: Path = Path("models")
    infos: Path = Path(INFOS)
    maps: Path = Path(MAPS)

    def path(self, name: str) -> Path:
        """The file or folder of a name."""
        roots = {INFOS: self.infos, MAPS: self.maps}
        if name in roots:
            return Path(roots[name])
        top, _, rest = name.partition("/")
        return Path({"results": self.results, "models": self.models}[top]) / rest


@dataclass(frozen=True)
class Figure:
    """A figure of an experiment. kind: what is drawn. rows: the runs that it shows, one for a picture of a run."""

    kind: str
    rows: tuple[str, ...]


def figures(params: Params) -> dict[str, Figure]:
    """The figures that an experiment has, by the name of their files."""
    found = {"curves": Figure("curves", tuple(params.runs))}
    for name, run in params.runs.items():
        kind = "maps" if run.task == "segmentation" else "birdseye"
        found[f"{kind}-{name}"] = Figure(kind, (name,))
    if gaining := distilled_detectors(params):
        found["distillation"] = Figure("distillation", tuple(gaining))
    for kind, rows in params.figures.items():
        if kind in PICTURES:
            found |= {f"{kind}-{row}": Figure(kind, (row,)) for row in rows}
        elif rows:
            found[kind] = Figure(kind, tuple(rows))
    return found


def distilled_detectors(params: Params) -> list[str]:
    """The runs that the figure `distillation` shows."""
    return [name for name, run in params.runs.items() if run.student and run.task == "detection"]


def with_students(params: Params, names: Iterable[str]) -> list[str]:
    """These runs, and the students alone of the distilled ones."""
    rows = [params.run(name) for name in names]
    return list(dict.fromkeys([run.name for run in rows] + [run.student for run in rows if run.student]))


# ---- files


def of_table(name: str, params: Params, places: Places = Places()) -> list[str]:
    """A table reads the scores and records of its rows and of their students, and what was measured of its rows."""
    rows = params.table(name)
    needed = [
        f"results/runs/{run}/{file}"
        for run in with_students(params, rows)
        for file in ("metrics.json", "provenance.json", "resamples.json")
    ]
    return needed + measured(rows, params, places)


def measured(rows: Iterable[str], params: Params, places: Places = Places()) -> list[str]:
    """What is shown of these runs where it is there, or will be since a figure asks for it."""
    names = [f"results/runs/{run}/{file}" for run in dict.fromkeys(rows) for file in MEASURED]
    drawn = [f"results/runs/{run}/latency.json" for run in params.figures.get("latency", [])]
    return [name for name in names if name in drawn or places.path(name).is_file()]


def of_figure(name: str, params: Params) -> list[str]:
    """What a figure of `figures` reads."""
    figure, seed = figures(params)[name], params.seeds[0]
    if len(figure.rows) == 1 and figure.kind in {"birdseye", "maps", *PICTURES}:
        return of_picture(figure.kind, params.run(figure.rows[0]), seed)
    return of_chart(figure.kind, params)


def of_chart(kind: str, params: Params) -> list[str]:
    """What a figure of several runs reads."""
    rows, files = figures(params).get(kind, Figure(kind, ())).rows, ["metrics.json"]
    if kind == "curves":
        files = ["curve.csv"]
    elif kind == "distillation":
        rows, files = tuple(with_students(params, rows)), ["metrics.json", "provenance.json"]
    elif kind == "blocks":
        files += ["curve.csv"]
    elif kind == "latency":
        files += ["latency.json", "provenance.json"]
    elif kind == "missing-sensor":
        files += [f"metrics-without-{sensor}.json" for sensor in SENSORS]
    return [f"results/runs/{run}/{file}" for run in rows for file in files]


def of_picture(kind: str, run: Run, seed: int) -> list[str]:
    """What a figure of one sample reads, apart from the raw data that the infos name."""
    segments = run.task == "segmentation"
    return of_sample(kind, run.name, student=run.student, seed=seed, maps=segments)


def of_sample(kind: str, run: str, *, student: str | None = None, seed: int, maps: bool = False) -> list[str]:
    """As `of_picture`. maps: whether the run segments maps."""
    folder = f"models/{run}/seed{seed}"
    if kind == "maps":
        return [INFOS, MAPS, f"{folder}/predictions.safetensors", f"results/runs/{run}/metrics.json"]
    if kind in ("energy", "masks"):
        return [INFOS, *([MAPS] if kind == "masks" and maps else []), f"{folder}/inspection.safetensors"]
    compared = [run, student] if kind in ("camera", "errors") and student else [run]
    return [INFOS, *(f"models/{name}/seed{seed}/predictions.json" for name in compared)]


def of_page(params: Params, places: Places = Places()) -> list[str]:
    """What the page shows: of its runs and figures what is there."""
    files = ("metrics.json", "curve.csv", "provenance.json", "resamples.json")
    names = [f"results/runs/{run}/{file}" for run in params.runs for file in files]
    names += [f"results/figures/{figure}.{end}" for figure in figures(params) for end in ("png", "svg", "csv")]
    return [name for name in names if places.path(name).is_file()] + measured(params.runs, params, places)


# ---- settings


def table_settings(name: str, params: Params) -> str:
    """A hash of what a table shows of the settings."""
    rows = params.table(name)
    return provenance.digest(
        [seal.shared_settings(params)[f"table-{name}"], *_of_runs(with_students(params, rows), params)]
    )


def figure_settings(kind: str, params: Params) -> str:
    """A hash of what a figure of several runs shows of the settings."""
    rows = list(figures(params)[kind].rows)
    shown = [] if kind == "curves" else [params.run(name).training() for name in with_students(params, rows)]
    return provenance.digest([kind, rows, runs.dataset(params, rows), *shown])


def picture_settings(kind: str, *, sample: int | str | None = None) -> str:
    """A hash of what decides a figure of one sample besides the files. sample: the one that was asked for."""
    return provenance.digest([kind, sample])


def page_settings(params: Params) -> str:
    """A hash of what the page shows of the settings."""
    shared = {name: value for name, value in seal.shared_settings(params).items() if name.startswith("table-")}
    return provenance.digest([shared, params.seeds, list(figures(params)), *_of_runs(params.runs, params)])


def _of_runs(names: Iterable[str], params: Params) -> list[Any]:
    return [[params.run(name).training(), params.run(name).after_training()] for name in names]
