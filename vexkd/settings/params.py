"""The whole of a params.yaml: every row merged to a run, every name resolved, and what runs ask of each other checked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Len
from pydantic import Field, model_validator

from vexkd import provenance
from vexkd.errors import InputError
from vexkd.settings import checks
from vexkd.settings.base import NOTHING, PREPARATION, REPORT, TRAINING, Strict, marker
from vexkd.settings.data import Synthetic
from vexkd.settings.merge import BLOCKS, extends_others, merged_run, read
from vexkd.settings.messages import nearest, refuse_unknown, validated
from vexkd.settings.run import KINDS, Kind, Run
from vexkd.settings.yaml_text import dump

# The figures that are drawn only of rows that `figures` names. PICTURES have a file for each row, a distilled run.
FigureName = Literal["blocks", "missing-sensor", "latency", "camera", "errors", "energy", "masks"]
PICTURES = ("camera", "errors", "energy", "masks")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


class Reported(Strict):
    """A published score of a row, with its source; what is not known is null."""

    mAP: float | None = None
    NDS: float | None = None
    mIoU: float | None = None
    source: str


class Params(Strict):
    """The whole of params.yaml, checked: every row merged and every name resolved."""

    path: Annotated[str, NOTHING] = Field(description="the file, as errors name it")
    root: Annotated[str, NOTHING] = Field(
        description="folder of the raw data, whose content is compared, not its place"
    )
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Len(1), TRAINING]
    synthetic: Annotated[Synthetic | None, PREPARATION]
    runs: dict[str, Run]
    tables: Annotated[dict[str, list[str]], REPORT] = Field(description="rows of each table, by its name")
    reported: Annotated[dict[str, Reported], REPORT] = Field(description="published scores of rows")
    floors: Annotated[dict[str, Reported], REPORT] = Field(
        description="best published score of a student without a teacher; a gain over a baseline below it is marked"
    )
    figures: Annotated[dict[FigureName, list[str]], REPORT] = Field(
        description="rows of the figures that do not show every run"
    )
    raw: Annotated[dict[str, Any], NOTHING] = Field(repr=False, description="the content that all this was read from")

    @model_validator(mode="after")
    def _each_seed_once(self) -> Params:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: a seed is given twice, and its result would count twice; name each once")
        return self

    def run(self, name: str) -> Run:
        """The row of this name; an unknown one is refused with the nearest known name."""
        if name not in self.runs:
            raise InputError(f"{self.path}: there is no run named '{name}'{nearest(name, self.runs)}.")
        return self.runs[name]

    def table(self, name: str) -> list[str]:
        """The rows of this table; an unknown one is refused with the nearest known name."""
        if name not in self.tables:
            raise InputError(f"{self.path}: there is no table named '{name}'{nearest(name, self.tables)}.")
        return self.tables[name]


# Settings that nothing depends on, wherever they are recorded.
DECIDES_NOTHING = tuple(name for name, field in Params.model_fields.items() if marker(field) == NOTHING)
_SECTIONS = (*BLOCKS, *KINDS, *(name for name in Params.model_fields if name not in ("path", "runs", "raw")))


def load(path: Path | str = "params.yaml") -> Params:
    """Read and check a params.yaml, merging every row. Raises InputError that names the first bad key.

    Beside a dvc.yaml, a params.yaml that extends others is refused. DVC reads this one file: the parameters of its stages, the
    rows that it makes a stage for each, and what `dvc exp run --set-param` changes. It would miss changes in other files.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path}: there is no such settings file; go to the folder that holds it, or name that folder with -C."
        )
    if path.name == "params.yaml" and (path.parent / "dvc.yaml").is_file() and extends_others(path):
        raise InputError(
            f"{path}: extends: DVC reads this file alone, so `dvc repro` beside it would miss changes in the others and "
            "have no stages for their rows; write their settings into it, or move the experiment to a folder without "
            "dvc.yaml, as demo/full."
        )
    return parse(read(path), str(path))


def parse(raw: Any, path: str = "params.yaml") -> Params:
    """Check the content of a params.yaml; `path` is the name that errors show."""
    if not isinstance(raw, dict):
        raise InputError(f"{path}: the settings must be a mapping of keys to values; see the file in the repository.")
    refuse_unknown(raw, _SECTIONS, path)
    rows = _rows(raw, path)
    runs = {name: merged_run(name, kind, rows, raw, path) for name, (kind, _) in rows.items()}
    top = {key: raw.get(key) for key in ("root", "seeds", "synthetic")}
    if top["root"] and isinstance(top["root"], str):  # as every reader gets it: `~` expanded, no slash at the end
        top["root"] = str(Path(top["root"]).expanduser())
    named = {key: raw.get(key) or {} for key in ("tables", "reported", "floors", "figures")}
    params = validated(Params, {"path": path, **top, **named, "runs": runs, "raw": raw}, path)
    for problem in [*_between_runs(params), *_unknown_rows(params), *_unfit_pictures(params)]:
        raise InputError(f"{path}: {problem}.")
    return params


def _rows(raw: dict[str, Any], path: str) -> dict[str, tuple[Kind, dict[str, Any]]]:
    """All rows by name, each with its kind. Raises InputError where one is no mapping, or its name is not allowed or taken."""
    rows: dict[str, tuple[Kind, dict[str, Any]]] = {}
    for kind in KINDS:
        if not isinstance(raw.get(kind) or {}, dict):
            raise InputError(f"{path}: {kind}: it must be a mapping of runs' names to their settings; write it as one.")
        for name, row in (raw.get(kind) or {}).items():
            where = f"{path}: {kind}.{name}"
            if not _NAME.fullmatch(str(name)):
                raise InputError(f"{where}: a run's name has small letters, digits and dashes only; rename it.")
            if name in rows:
                raise InputError(f"{where}: the name is taken by {rows[name][0]}.{name}; rename one of them.")
            if not isinstance(row or {}, dict):
                raise InputError(f"{where}: a run must be a mapping of settings; write it as one.")
            rows[name] = (kind, dict(row or {}))
    return rows


def _between_runs(params: Params) -> Iterator[str]:
    """What runs ask of each other: one set of map rasters for all, and teachers that have what a method reads."""
    yield from _other_rasters(params)
    for name, run in params.runs.items():
        if run.distill is None or run.teacher is None:
            continue
        teacher = params.runs[run.teacher]
        trouble = run.distill.trouble(task=run.task, student=run.head, teacher=teacher.head, fusion=teacher.fusion)
        if trouble is not None:
            yield f"distilled.{name}: distill.{trouble}"
        unlike = checks.unlike_teacher(run, teacher)
        if unlike is not None:
            yield f"distilled.{name}: {unlike}"


def _other_rasters(params: Params) -> Iterator[str]:
    """All runs read labels from the same map rasters, and a distilled run in the same square as its teacher."""
    runs = [run for run in params.runs.values() if run.map is not None]
    for run in runs:
        for key in ("cell", "edges"):
            first, other = getattr(runs[0].map, key), getattr(run.map, key)
            if other != first:
                yield (
                    f"{run.kind}.{run.name}.map.{key}: all runs share one set of map rasters, but this asks for {other} and "
                    f"{runs[0].name} for {first}; make them equal"
                )
        teacher = params.runs[run.teacher].map if run.teacher else None
        if teacher is not None and teacher.reach != run.map.reach:
            yield (
                f"{run.kind}.{run.name}.map.reach: student and teacher {run.teacher} must be taught the same labels; make "
                "their map.reach equal"
            )


def _unknown_rows(params: Params) -> Iterator[str]:
    """Rows of tables, figures and floors that are no runs."""
    lists = {f"tables.{table}": names for table, names in params.tables.items()}
    lists |= {f"figures.{figure}": names for figure, names in params.figures.items()}
    for where, names in {**lists, "floors": list(params.floors)}.items():
        for name in names:
            if name not in params.runs:
                yield f"{where}: there is no run named '{name}'{nearest(name, params.runs)}"


def _unfit_pictures(params: Params) -> Iterator[str]:
    """Rows that a picture cannot show: it compares a distilled run with its student in boxes, features or masks."""
    for figure in PICTURES:
        for name in params.figures.get(figure, []):
            if name not in params.runs:
                continue
            run, where = params.run(name), f"figures.{figure}: {name}"
            if run.distill is None or run.kind != "distilled":
                yield f"{where} is not distilled; list distilled runs"
            elif figure in ("camera", "errors") and run.task != "detection":
                yield f"{where} detects nothing; list distilled detectors"
            elif figure == "masks" and (run.distill.method is not None or run.distill.mask in ("none", "ones")):
                yield f"{where} distils everywhere or by a method's own masks; list runs with another mask"


def write_configs(params: Params, results: Path | str = "results") -> None:
    """Write `runs/<run>/{config,inference}.yaml` under `results` for every run, each only if its content changes.

    Training depends on the first file and prediction on the second, so that their content alone decides what is made again.
    """
    for name, run in params.runs.items():
        folder = Path(results) / "runs" / name
        provenance.write_text(folder / "config.yaml", dump(run.training()), only_if_changed=True)
        provenance.write_text(folder / "inference.yaml", dump(run.after_training()), only_if_changed=True)
