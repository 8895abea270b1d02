"""nuScenes' JSON tables, read straight from disk: streamed row by row, so that full-size tables need little memory.

The devkit's `NuScenes` object keeps every row of every table as a dictionary (several GB, most of a minute);
preparation needs a few columns once.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any

import numpy as np

from vexkd.data import file_kinds
from vexkd.errors import InputError

LIDAR = "LIDAR_TOP"
# The one order of cameras in infos, samples and batches (mmdetection3d's).
CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
_KINDS = {LIDAR: "lidar"} | dict.fromkeys(CAMERAS, "camera")
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
    "map": {"filename": str, "log_tokens": list},
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
_LONGEST = 1 << 20  # characters of a row: what stays unreadable over more is damaged, not cut by the end of a block
_SPACE = re.compile(r"[ \t\r\n]*")
CURE = "extract nuScenes' metadata archive again"


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
        versions = sorted(p.parent.name for p in root.glob("*/sample_data.json"))
        known = f"it holds {', '.join(versions)}" if versions else "it holds no nuScenes tables at all"
        raise InputError(f"data root {root} has no version {version} ({known}): correct data.version or root.")
    missing = [f"{name}.json" for name in TABLES if not (tables / f"{name}.json").is_file()]
    if missing:
        raise InputError(f"{tables} lacks {', '.join(missing)}: extract nuScenes' metadata archive of {version} again.")
    return tables


def path_of(root: Path, version: str, table: str) -> Path:
    """Where a table stands."""
    return Path(root) / version / f"{table}.json"


def fault(path: Path, token: str, problem: str) -> InputError:
    """The one form of sentence about a row of a table: file, token, problem, cure."""
    return InputError(f"{path}: row {token}: {problem}: {CURE}.")


def rows(root: Path, version: str, table: str) -> Iterator[dict[str, Any]]:
    """The rows of one table, streamed in file order.

    Raises InputError that names the file and what it holds instead if it is missing, cut, or not a JSON list of objects;
    the token and the column where a row lacks what is read of it; and, at the end, a token that stands twice.
    """
    path = path_of(root, version, table)
    columns = _TOKEN | COLUMNS[table]
    hashes = array("q")
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            for number, row in enumerate(_objects(stream, path)):
                problem = _row_problem(row, columns)
                if problem:
                    raise fault(path, row.get("token") or f"number {number}", problem)
                hashes.append(hash(row["token"]))
                yield row
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: {CURE}.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is {file_kinds.seen(path) or 'not UTF-8 text'}: {CURE}.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): mend its permissions or its disk.") from None
    if len(np.unique(np.frombuffer(hashes, np.int64))) < len(hashes):
        _refuse_repeated(path)


def _refuse_repeated(path: Path) -> None:
    """Raises InputError for the first token that stands twice in a table whose hashes are not all different."""
    known: set[str] = set()
    with path.open(encoding="utf-8") as stream:
        for row in _objects(stream, path):
            if row["token"] in known:
                raise fault(path, row["token"], "its token stands twice in this table")
            known.add(row["token"])


def _row_problem(row: dict[str, Any], columns: dict[str, Kind]) -> str:
    """The first column that a row lacks or that does not hold what it should, in words; empty if all is well."""
    for name, kind in columns.items():
        value = row.get(name)
        if type(value) is kind:
            if kind is str and not value.isascii() and not _is_text(value):
                return f"{name} holds half a character"
            continue
        if isinstance(kind, int):
            if type(value) is list and len(value) == kind and _NUMBERS.issuperset(map(type, value)):
                continue
            words = f"a list of {kind} numbers"
        elif isinstance(value, kind) and type(value) is not bool:
            continue
        else:
            words = _IN_WORDS[kind]
        return f"{name} is {json.dumps(value)[:40]}, not {words}" if name in row else f"it lacks {name}"
    return "" if row["token"] else "its token is empty"


def _is_text(value: str) -> bool:
    """Whether a text can be written: JSON lets half of a surrogate pair through."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _objects(stream: Any, path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a top-level JSON list, decoded one at a time from a text stream."""
    decode = json.JSONDecoder().raw_decode
    buffer, position, last = stream.read(_BLOCK), 0, ""
    marks, is_row = "[", False  # what may stand next: one of these marks, or a row

    def damaged(what: str) -> InputError:
        seen = "" if last else file_kinds.seen(path)
        after = f" after row {last}" if last else ""
        return InputError(f"{path} is {seen or f'cut or damaged{after} ({what})'}: {CURE}.")

    while True:
        position = _SPACE.match(buffer, position).end()
        if position == len(buffer):
            buffer, position = stream.read(_BLOCK), 0
            if not buffer:
                raise damaged("it ends there")
            continue
        mark = buffer[position]
        if mark in marks:
            position += 1
            if mark == "]":
                break
            marks, is_row = "]" if mark == "[" else "", True
            continue
        if not is_row:
            raise damaged(f"{_shown(buffer, position)} stands there")
        try:
            row, position = decode(buffer, position)
        except (ValueError, RecursionError):
            block = stream.read(_BLOCK) if len(buffer) - position < _LONGEST else ""
            if not block:
                raise damaged(f"{_shown(buffer, position)} cannot be read") from None
            buffer, position = buffer[position:] + block, 0
            continue
        if not isinstance(row, dict):
            raise damaged("what follows is no row")
        last, marks, is_row = str(row.get("token", "")), ",]", False
        yield row
    rest = buffer[position:].strip() or stream.read().strip()
    if rest:
        raise damaged(f"{_shown(rest, 0)} follows its end")


def _shown(text: str, position: int) -> str:
    """A few characters of a text, quoted."""
    return repr(text[position : position + 20])


def index(root: Path, version: str, table: str) -> dict[str, dict[str, Any]]:
    """A small table as token -> row; raises InputError on a token that stands twice."""
    return {row["token"]: row for row in rows(root, version, table)}


def sensors(root: Path, version: str) -> dict[str, dict[str, Any]]:
    """Token of each calibrated_sensor -> the row of its sensor.

    Raises InputError if a sensor is missing, is of another kind than its channel, or none is the LiDAR.
    """
    known = index(root, version, "sensor")
    path = path_of(root, version, "sensor")
    for token, row in known.items():
        kind = _KINDS.get(row["channel"])
        if kind and row["modality"] != kind:
            raise fault(path, token, f"modality of {row['channel']} is {row['modality'][:40]!r} instead of {kind!r}")
    modalities = {}
    for token, row in index(root, version, "calibrated_sensor").items():
        if row["sensor_token"] not in known:
            raise fault(path_of(root, version, "calibrated_sensor"), token, "it names a sensor that sensor.json lacks")
        modalities[token] = known[row["sensor_token"]]
    channels = sorted({row["channel"] for row in known.values()})
    if LIDAR not in channels:
        named = ", ".join(channels)[:200] or "none"
        raise InputError(
            f"{path} names no channel {LIDAR}, in whose frame boxes are learned (it names {named}): {CURE}."
        )
    return modalities
