"""nuScenes' JSON tables, read straight from disk: streamed row by row, so that full-size tables need little memory.

The devkit's `NuScenes` object keeps every row of every table as a dictionary (several GB, most of a minute);
preparation needs a few columns once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any

from vexkd.errors import InputError

LIDAR = "LIDAR_TOP"
# The one order of cameras in infos, samples and batches (mmdetection3d's).
CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
Kind = type | UnionType | int
_PIXELS, _TEXT = int | None, str | None  # may be absent: the size of an image for other sensors, the visibility
# The tables, each with the columns that are read: their type, or of a list of numbers its length.
COLUMNS: dict[str, dict[str, Kind]] = {
    "attribute": {"name": str},
    "calibrated_sensor": {"sensor_token": str, "translation": 3, "rotation": 4, "camera_intrinsic": list},
    "category": {"name": str},
    "ego_pose": {"translation": 3, "rotation": 4},
    "instance": {"category_token": str},
    "log": {"location": str},
    "map": {"filename": str},
    "sample": {"timestamp": int, "scene_token": str},
    "sample_annotation": {
        "sample_token": str,
        "instance_token": str,
        "attribute_tokens": list,
        "visibility_token": _TEXT,
        "translation": 3,
        "size": 3,
        "rotation": 4,
        "num_lidar_pts": int,
        "num_radar_pts": int,
        "prev": str,
        "next": str,
    },
    "sample_data": {
        "sample_token": str,
        "ego_pose_token": str,
        "calibrated_sensor_token": str,
        "timestamp": int,
        "is_key_frame": bool,
        "filename": str,
        "width": _PIXELS,
        "height": _PIXELS,
        "prev": str,
    },
    "scene": {"name": str, "log_token": str},
    "sensor": {"channel": str, "modality": str},
    "visibility": {},
}
TABLES = tuple(COLUMNS)
_TOKEN: dict[str, Kind] = {"token": str}
_IN_WORDS: dict[type | UnionType, str] = {
    str: "text",
    int: "a whole number",
    _PIXELS: "a whole number",
    _TEXT: "text",
    bool: "true or false",
    list: "a list",
}
_NUMBERS = {int, float}
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

    Raises InputError that names the file if it is missing, cut, or not a JSON list of objects, and the token and the
    column where a row lacks what is read of it.
    """
    path = Path(root) / version / f"{table}.json"
    try:
        with path.open(encoding="utf-8") as stream:
            for number, row in enumerate(_objects(stream, path)):
                problem = _row_problem(row, _TOKEN) or _row_problem(row, COLUMNS[table])
                if problem:
                    name = row.get("token", f"number {number}")
                    raise InputError(f"{path}: row {name}: {problem}: extract nuScenes' metadata archive again.")
                yield row
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: extract nuScenes' metadata archive of {version} again.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text: extract nuScenes' metadata archive of {version} again.") from None


def _row_problem(row: dict[str, Any], columns: dict[str, Kind]) -> str:
    """The first column that a row lacks or that does not hold what it should, in words; empty if all is well."""
    for name, kind in columns.items():
        value = row.get(name)
        if type(value) is kind:
            continue
        if isinstance(kind, int):
            if type(value) is list and len(value) == kind and _NUMBERS.issuperset(map(type, value)):
                continue
            words = f"a list of {kind} numbers"
        elif isinstance(value, kind):
            continue
        else:
            words = _IN_WORDS[kind]
        return f"{name} is {json.dumps(value)[:40]}, not {words}" if name in row else f"it lacks {name}"
    return ""


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
        if not isinstance(row, dict):
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
