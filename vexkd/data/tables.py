"""nuScenes' JSON tables, read straight from disk: streamed row by row, so that full-size tables need little memory.

The devkit's `NuScenes` object keeps every row of every table as a dictionary (several GB, most of a minute);
preparation needs a few columns once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vexkd.errors import InputError

LIDAR = "LIDAR_TOP"
# The one order of cameras in infos, samples and batches (mmdetection3d's).
CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
TABLES = (
    "attribute",
    "calibrated_sensor",
    "category",
    "ego_pose",
    "instance",
    "log",
    "map",
    "sample",
    "sample_annotation",
    "sample_data",
    "scene",
    "sensor",
    "visibility",
)
_BLOCK = 1 << 22  # characters read at a time
_SPACE = " \t\r\n,"


def folder(root: Path, version: str) -> Path:
    """The tables' folder, after checking that the root, the version and its 13 tables exist.

    Raises InputError that names what is missing and, for a wrong version, the versions that are there.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(
            f"data root {root} does not exist: set root to the folder that holds nuScenes' `{version}` folder."
        )
    tables = root / version
    if not tables.is_dir():
        found = sorted(p.parent.name for p in root.glob("*/sample_data.json"))
        known = f"it holds {', '.join(found)}" if found else "it holds no nuScenes tables at all"
        raise InputError(f"data root {root} has no version {version} ({known}): correct data.version or root.")
    missing = [f"{name}.json" for name in TABLES if not (tables / f"{name}.json").is_file()]
    if missing:
        raise InputError(f"{tables} lacks {', '.join(missing)}: extract nuScenes' metadata archive of {version} again.")
    return tables


def rows(root: Path, version: str, table: str) -> Iterator[dict[str, Any]]:
    """The rows of one table, streamed in file order.

    Raises InputError that names the file if it is missing, cut, or not a JSON list of objects.
    """
    path = Path(root) / version / f"{table}.json"
    try:
        with path.open(encoding="utf-8") as stream:
            yield from _objects(stream, path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: extract nuScenes' metadata archive of {version} again.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text: extract nuScenes' metadata archive of {version} again.") from None


def _objects(stream: Any, path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a top-level JSON list, decoded one at a time from a text stream."""
    decode = json.JSONDecoder().raw_decode
    buffer, position = stream.read(_BLOCK).lstrip(), 1
    damaged = InputError(f"{path} is cut or damaged: extract nuScenes' metadata archive again.")
    if not buffer.startswith("["):
        raise damaged
    while True:
        while position < len(buffer) and buffer[position] in _SPACE:
            position += 1
        if position < len(buffer) and buffer[position] == "]":
            if buffer[position + 1 :].strip() or stream.read().strip():
                raise damaged
            return
        try:
            row, position = decode(buffer, position)
        except json.JSONDecodeError:
            block = stream.read(_BLOCK)
            if not block:
                raise damaged from None
            buffer, position = buffer[position:] + block, 0
            continue
        if not isinstance(row, dict) or "token" not in row:
            raise damaged
        yield row


def index(root: Path, version: str, table: str) -> dict[str, dict[str, Any]]:
    """A small table as token -> row; raises InputError on a token that stands twice."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows(root, version, table):
        if row["token"] in found:
            raise InputError(
                f"table {table} of {version} holds token {row['token']} twice: extract the metadata archive again."
            )
        found[row["token"]] = row
    return found


def sensors(root: Path, version: str) -> dict[str, dict[str, Any]]:
    """Token of each calibrated_sensor -> the row of its sensor; raises InputError if a sensor is missing."""
    known = index(root, version, "sensor")
    found = {}
    for token, row in index(root, version, "calibrated_sensor").items():
        if row["sensor_token"] not in known:
            raise InputError(
                f"calibrated_sensor {token} names a sensor that {version} lacks: extract the metadata again."
            )
        found[token] = known[row["sensor_token"]]
    return found


def splits(root: Path, version: str) -> dict[str, list[str]]:
    """Split name -> scene names: the devkit's own for this version, and those of `splits.json` beside the tables.

    The mini splits belong to versions that end in "mini", test to "test", train and val (and their halves) to
    "trainval", as in the devkit; a version with another ending knows them all.
    """
    from nuscenes.utils.splits import create_splits_scenes  # slow to import: it loads the whole devkit

    known = {name: list(scenes) for name, scenes in create_splits_scenes().items()}
    for ending, wanted in {"mini": ("mini",), "trainval": ("train", "val"), "test": ("test",)}.items():
        if version.endswith(ending):
            known = {name: scenes for name, scenes in known.items() if name.startswith(wanted)}
            break
    custom = Path(root) / version / "splits.json"
    if custom.is_file():
        try:
            known.update(
                {str(name): [str(s) for s in scenes] for name, scenes in json.loads(custom.read_text()).items()}
            )
        except (ValueError, AttributeError, TypeError):
            raise InputError(
                f'{custom} is not of the form {{"split": ["scene-0001", ...]}}: correct or remove it.'
            ) from None
    return known
