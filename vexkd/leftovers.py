"""What runs, seeds, tables and figures that params.yaml no longer has left in an experiment's folder, the working directory.

Only files that the workflow makes under these names count: what a user put beside them is neither listed nor removed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from vexkd import provenance, seal
from vexkd.experiment import HERE
from vexkd.settings import KINDS, PICTURES, FigureName, Params

LOCK = Path("dvc.lock")
_CURE = "`vexkd clean` lists all, `vexkd clean --remove` removes them"
_OF_RUN = {
    "config.yaml", "inference.yaml", "metrics.json", "metrics-without-lidar.json", "metrics-without-camera.json",
    "curve.csv", "provenance.json", "resamples.json", "summary.json", "latency.json",
}  # fmt: skip
_OF_SEED = re.compile(
    r"weights\.safetensors|curve\.csv|provenance\.json|benchmark\.tsv|masks\.safetensors|inspection\.safetensors"
    r"|predictions(-without-(lidar|camera))?\.(json|safetensors)"
)
_TABLE = re.compile(r"(?P<name>.+?)\.(csv|md|tex|provenance\.json)")
_FIGURE = re.compile(r"(?P<name>.+?)\.(png|svg|csv|provenance\.json)")
_SETTINGS = re.compile(r"(?P<name>(table|figure)-.+|paste|maps|town)\.yaml")


@dataclass(frozen=True)
class LeftOver:
    """Files of one thing that is no longer asked for. what: in words. files: empty for a stage of dvc.lock."""

    what: str
    files: tuple[Path, ...]
    stage: str = ""

    @property
    def holds_results(self) -> bool:
        """Whether it could be taken for a result; settings are written by a mere look at the plan, too."""
        return any(file.suffix != ".yaml" and file.parts[0] != "logs" for file in self.files)

    def __str__(self) -> str:
        if self.stage:
            return f"{LOCK}: the stage {self.stage} is of {self.what}."
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return f"{self.files[0]}{more}: left over from {self.what}."


def find(params: Params) -> list[LeftOver]:
    """Everything left over, in a fixed order."""
    return [*_runs(params), *_seeds(params), *_tables(params), *_figures(params), *_settings(params), *_stages(params)]


def sentences(params: Params) -> list[str]:
    """One sentence for each thing left over that holds results, which says what to do."""
    return [f"{str(item).rstrip('.')}; {_CURE}." for item in find(params) if item.holds_results]


def remove(found: Iterable[LeftOver]) -> None:
    """Remove these files, folders that become empty by it, and stages of dvc.lock."""
    folders = set()
    for item in found:
        for file in item.files:
            file.unlink(missing_ok=True)
            folders |= {folder for top in (HERE.runs, HERE.models) for folder in file.parents if top in folder.parents}
    for folder in sorted(folders, reverse=True):  # the inner ones first
        with suppress(OSError):  # not empty: something of the user's is in it
            folder.rmdir()
    if stages := {item.stage for item in found if item.stage}:
        _drop_stages(stages)


# ---- what each kind leaves


def _runs(params: Params) -> list[LeftOver]:
    left_over = []
    names = {folder.name for top in (HERE.runs, HERE.models) for folder in _folders(top)}
    for name in sorted(names - set(params.runs)):
        files = [f for f in _files(HERE.runs / name) if f.name in _OF_RUN]
        for seed in _folders(HERE.models / name):
            files += _of_seed(seed)
        if files:
            what = f"the run {name}, which {params.path} does not have"
            logs = [log for log in sorted(HERE.logs.rglob(f"{name}*")) if _is_log_of(log, name)]
            left_over.append(LeftOver(what, tuple(files + logs)))
    return left_over


def _seeds(params: Params) -> list[LeftOver]:
    left_over = []
    for run in params.runs:
        for folder in _folders(HERE.models / run):
            number = folder.name.removeprefix("seed")
            files = _of_seed(folder)
            if files and int(number) not in params.seeds:
                what = f"seed {number} of {run}, which is not among the seeds of {params.path}"
                left_over.append(LeftOver(what, tuple(files)))
    return left_over


def _of_seed(folder: Path) -> list[Path]:
    """The files of a training in the folder of its seed; none in other folders."""
    known = re.fullmatch(r"seed\d+", folder.name)
    return [f for f in _files(folder) if _OF_SEED.fullmatch(f.name)] if known else []


def _is_log_of(log: Path, run: str) -> bool:
    return bool(
        re.fullmatch(
            rf"{re.escape(run)}(-seed\d+)?(-without-(lidar|camera))?(\.json|\.safetensors)?\.(log|tsv)", log.name
        )
    )


def _tables(params: Params) -> list[LeftOver]:
    """Those that have all files of a table or its record."""
    tables = {name for name, rows in params.tables.items() if rows}
    return _named(HERE.tables, _TABLE, lambda name: name not in tables, "the table {}", params)


def _figures(params: Params) -> list[LeftOver]:
    kinds = [*get_args(FigureName), "curves", "distillation", "birdseye", "maps"]
    pictures = (*PICTURES, "birdseye", "maps")

    def unasked(name: str) -> bool:
        kind = next((k for k in sorted(kinds, key=len, reverse=True) if name == k or name.startswith(f"{k}-")), None)
        if kind is None:
            return False
        row = name.removeprefix(kind).removeprefix("-")
        if kind in pictures:
            return bool(row) and not _is_drawn(kind, row, params)
        if row or kind == "curves":
            return False
        if kind == "distillation":
            return not any(run.student and run.task == "detection" for run in params.runs.values())
        return not params.figures.get(kind)  # type: ignore[call-overload]

    return _named(HERE.figures, _FIGURE, unasked, "the figure {}", params)


def _is_drawn(kind: str, row: str, params: Params) -> bool:
    """Whether the settings ask for a picture of this run."""
    if kind in PICTURES:
        return row in params.figures.get(kind, [])  # type: ignore[call-overload]
    run = params.runs.get(row)
    return run is not None and kind == ("maps" if run.task == "segmentation" else "birdseye")


def _settings(params: Params) -> list[LeftOver]:
    shared = seal.shared_settings(params)
    return _named(
        HERE.results / "settings", _SETTINGS, lambda name: name not in shared, "the settings {}", params, alone=True
    )


def _named(
    folder: Path,
    pattern: re.Pattern[str],
    unasked: Callable[[str], bool],
    words: str,
    params: Params,
    alone: bool = False,
) -> list[LeftOver]:
    """Files of a folder that belong together by their name. alone: one file is a whole thing."""
    groups: dict[str, list[Path]] = {}
    for file in _files(folder):
        if (match := pattern.fullmatch(file.name)) and unasked(match["name"]):
            groups.setdefault(match["name"], []).append(file)
    what = f"{words}, which {params.path} does not have"
    return [LeftOver(what.format(name), tuple(files)) for name, files in groups.items() if alone or len(files) > 1]


def _stages(params: Params) -> list[LeftOver]:
    """Stages of runs in dvc.lock; DVC itself keeps those that dvc.yaml no longer has."""
    if not LOCK.is_file():
        return []
    names = re.findall(r"^  ([a-z]+)@(.+):$", LOCK.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [
        LeftOver(f"the run {run}, which {params.path} does not have under {kind}", (), f"{kind}@{run}")
        for kind, run in names
        if kind in KINDS and (run not in params.runs or params.runs[run].kind != kind)
    ]


def _drop_stages(stages: set[str]) -> None:
    """Take stages out of dvc.lock: each is a block of lines that are further indented than its name."""
    kept, dropping = [], False
    for line in LOCK.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.startswith("   "):
            dropping = line.strip().removesuffix(":") in stages and line.startswith("  ")
        if not dropping:
            kept.append(line)
    provenance.write_text(LOCK, "".join(kept))


def _folders(top: Path) -> list[Path]:
    return sorted(p for p in top.iterdir() if p.is_dir()) if top.is_dir() else []


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []
