"""What a table, a figure or the page says of its making: hashes of what it was made from, of its own files, of the settings.

Tables have it in `<table>.provenance.json`, figures in `<figure>.provenance.json`, the page in its last line. It holds no time,
so that the same inputs give the same page.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vexkd import provenance
from vexkd.content import Digests
from vexkd.experiment import HERE, Experiment
from vexkd.report import sources
from vexkd.settings import Params

TABLE_FILES = ("csv", "md", "tex")
FIGURE_FILES = ("png", "svg", "csv")
_MARK = "<!-- vexkd-record "


def of_files(stem: Path, endings: Iterable[str], names: Iterable[str], settings: str, folder: Path) -> dict[str, Any]:
    """The record of files that stand under one name. names: what they were made from
    (`vexkd.report.sources`), in an experiment's folder. settings: a hash of what they show of these."""
    files = [stem.with_name(f"{stem.name}.{ending}") for ending in endings]
    return {
        "asked": settings,
        "made_from": hashes(names, folder),
        "files": {path.name: provenance.file_digest(path) for path in files},
    }


def hashes(names: Iterable[str], folder: Path) -> dict[str, str]:
    """The hash of each of these files, as far as they are there."""
    digests = Digests()
    return {name: digests.of(folder / name) for name in names if (folder / name).exists()}


def write_figure(
    name: str, params: Params, experiment: Experiment, *, seed: int | None = None, sample: int | str | None = None
) -> None:
    """Write `results/figures/<name>.provenance.json` beside a finished figure.

    seed, sample: of a picture, whose weights it shows, and the sample that was asked for.
    """
    stem = experiment.figures / name
    names = sources.of_figure(name, params, seed=seed)
    settings = sources.figure_settings(name, params, sample=sample)
    record = of_files(stem, FIGURE_FILES, names, settings, experiment.folder)
    provenance.write_json(stem.with_name(f"{name}.provenance.json"), {"figure": name, **record})


def signed(document: str, names: Iterable[str], settings: str, folder: Path) -> str:
    """A page with its record as the last line."""
    record = {"asked": settings, "made_from": hashes(names, folder), "page": provenance.digest(document)}
    return f"{document}{_MARK}{json.dumps(record)} -->\n"


# ---- held against what is there


def problem(stem: Path, endings: Iterable[str], names: Iterable[str], settings: str, digests: Digests) -> str | None:
    """Why files under one name are not what would be made now, in a sentence; "" if they are, None without a record."""
    beside = stem.with_name(f"{stem.name}.provenance.json")
    if not beside.is_file():
        return None
    try:
        record = json.loads(beside.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError
    except ValueError:  # no text or no JSON, as with a conflict marker in it
        return f"{beside} is damaged; run snakemake, which makes it again."
    if "made_from" not in record:
        return None
    files = {ending: stem.with_name(f"{stem.name}.{ending}") for ending in endings}
    for path in files.values():
        if path.is_file() and (record.get("files") or {}).get(path.name) != digests.file(path):
            return f"{path} is not the one that was made with {beside.name} beside it; run snakemake, which makes it again."
    return _outdated(next(iter(files.values())), record, names, settings, digests)


def page_problem(path: Path, names: Iterable[str], settings: str, digests: Digests) -> str | None:
    """As `problem`, of the page."""
    document, mark, rest = path.read_bytes().decode(errors="replace").rpartition(_MARK)
    if not mark:
        return None
    try:
        record, end = json.JSONDecoder().raw_decode(rest)
        whole = record.get("page") == provenance.digest(document) and rest[end:] == " -->\n"
    except (ValueError, AttributeError):
        whole = False
    if not whole:
        return f"{path} was changed after it was made; run snakemake, which makes it again."
    return _outdated(path, record, names, settings, digests)


def _outdated(shown: Path, record: dict[str, Any], names: Iterable[str], settings: str, digests: Digests) -> str:
    """In what a record differs from what stands there and is asked for, in a sentence; "" if in nothing."""
    recorded = record.get("made_from") or {}
    known = {name: Path(name) for name in names}
    for name in dict.fromkeys([*known, *recorded]):
        path = known.get(name)
        if path is None or (not path.exists() and name in recorded and HERE.results in Path(name).parents):
            return (
                f"{shown} was made from {name} too, which is not shown any more; run snakemake, which makes it again."
            )
        if path.exists() and recorded.get(name) != digests.of(path):
            return f"{shown} was not made from the present {name}; run snakemake, which makes it again."
    if record.get("asked") != settings:
        return f"{shown} was made with other settings than those of now; run snakemake, which makes it again."
    return ""
