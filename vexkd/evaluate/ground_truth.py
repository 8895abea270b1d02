"""The true boxes of a split, read from nuScenes' tables into columns by the rules of nuscenes-devkit.

Only what scoring needs is read: samples and scenes of the split, where the car is at each LiDAR keyframe, annotations with
their class, attribute, velocity and number of points, and bicycle racks. Letters: S samples, N boxes.
"""

from __future__ import annotations

import ast
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from vexkd.boxes import CLASS_OF_CATEGORY
from vexkd.data import splits as split_tools
from vexkd.data import tables
from vexkd.errors import InputError
from vexkd.evaluate import box_columns, table_rows
from vexkd.evaluate.box_columns import Boxes, Racks

_RACK = "static_object.bicycle_rack"
_LONGEST_STEP = 1.5  # seconds between annotations of which a velocity is made; twice as much between previous and next
_LENGTHS = {"translation": 3, "size": 3, "rotation": 4}
_POINT = msgspec.json.Decoder(tuple[float, float, float])
_POINTS = msgspec.json.Decoder(list[tuple[float, float, float]])
_QUATERNIONS = msgspec.json.Decoder(list[tuple[float, float, float, float]])
_ATTRIBUTES = msgspec.json.Decoder(list[list[str]])
Value = TypeVar("Value")


@dataclass(frozen=True)
class Truth:
    """Samples (S) of a split in the order of their table, the scene of each, (S,) numbers into `scenes` (names, sorted);
    `boxes` after the devkit's filters need `ego` (S, 3), metres, and `racks`. `custom`: the split stands in splits.json."""

    tokens: list[str]
    scene: np.ndarray
    scenes: list[str]
    ego: np.ndarray
    boxes: Boxes
    racks: Racks
    custom: bool


class _Sample(msgspec.Struct, gc=False):
    token: str
    timestamp: int
    scene_token: str


class _Named(msgspec.Struct, gc=False):
    token: str
    name: str


class _Instance(msgspec.Struct, gc=False):
    token: str
    category_token: str


class _SampleData(msgspec.Struct, gc=False):
    sample_token: str
    ego_pose_token: str
    calibrated_sensor_token: str
    is_key_frame: bool


class _EgoPose(msgspec.Struct, gc=False):
    token: str
    translation: msgspec.Raw


class _Annotation(msgspec.Struct, gc=False):
    token: str
    sample_token: str
    instance_token: str
    attribute_tokens: msgspec.Raw
    translation: msgspec.Raw
    size: msgspec.Raw
    rotation: msgspec.Raw
    prev: str
    next: str
    num_lidar_pts: int
    num_radar_pts: int


@dataclass(frozen=True)
class _Rows:
    """Annotations of the split in the order of their table, N of them: lists, and arrays (N,) or of vectors."""

    token: list[str]
    category: list[str]
    attributes: list[list[str]]
    previous: list[str]
    following: list[str]
    sample: np.ndarray
    points: np.ndarray
    translation: np.ndarray
    size: np.ndarray
    rotation: np.ndarray


def read(root: Path, version: str, split: str) -> Truth:
    """The true boxes of a split, not filtered yet.

    Raises InputError for a data set or split that is not there, for tables that contradict themselves, and for a split
    without a single box.
    """
    root = Path(root)
    tables.folder(root, version)
    scene_names = {row.token: row.name for block in table_rows.blocks(root, version, "scene", _Named) for row in block}
    chosen, custom = members(root, version, split)
    times: dict[str, int] = {}
    scene_of: dict[str, str] = {}
    for block in table_rows.blocks(root, version, "sample", _Sample):
        for sample in block:
            times[sample.token] = sample.timestamp
            name = _known(root, version, "sample", sample.token, "scene", sample.scene_token, scene_names)
            if name in chosen:
                scene_of[sample.token] = name
    number = {token: i for i, token in enumerate(scene_of)}
    scenes = sorted(set(scene_of.values()))
    order = {name: i for i, name in enumerate(scenes)}
    try:
        rows = _annotations(root, version, number)
        boxes, racks = _boxes(root, version, rows, times, list(number))
        ego = _ego(root, version, number)
    except msgspec.MsgspecError as error:
        raise _explained(root, version, error) from None
    if not len(boxes):
        raise InputError(
            f"data.val_split: split '{split}' of {version} has no annotated box, so nothing can be scored; "
            "name a split that has annotations."
        )
    return Truth(
        tokens=list(number),
        scene=np.array([order[name] for name in scene_of.values()], dtype=np.int64),
        scenes=scenes,
        ego=ego,
        boxes=boxes,
        racks=racks,
        custom=custom,
    )


# ---- splits


def members(root: Path, version: str, split: str) -> tuple[set[str], bool]:
    """The names of a split's scenes, and whether it stands in splits.json. Raises InputError for one that is unknown."""
    official = _official()
    refusal = f"data.val_split: split '{split}' is not in {version}"
    if split in official:
        fitting = next(ending for ending, names in split_tools.OFFICIAL.items() if split in names)
        if not version.endswith(fitting):
            raise InputError(
                f"{refusal} (nuscenes-devkit knows it in versions that end in {fitting}); name another split."
            )
        return set(official[split]), False
    path = root / version / "splits.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{refusal} (there is no {path} that defines it); name another split.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: this is not JSON ({error}); correct it.") from None
    scenes = known.get(split) if isinstance(known, dict) else None
    if not isinstance(scenes, list):
        raise InputError(f"{refusal} ({path} has no list of scenes of this name); name another split.")
    return set(scenes), True


def _official() -> dict[str, list[str]]:
    """The devkit's own splits, read from its source: importing it takes seconds."""
    spec = importlib.util.find_spec("nuscenes")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("nuscenes-devkit is not installed: install what pyproject.toml lists.")
    source = Path(spec.submodule_search_locations[0]) / "utils" / "splits.py"
    official = {}
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.List):
            official[node.targets[0].id] = ast.literal_eval(node.value)
    return official | {"train": sorted({*official["train_detect"], *official["train_track"]})}


# ---- rows


def _annotations(root: Path, version: str, number: dict[str, int]) -> _Rows:
    """The annotations of the samples in `number`, which numbers them by token."""
    category_of = _categories(root, version)
    lists: dict[str, list[Any]] = {name: [] for name in ("token", "category", "attributes", "previous", "following")}
    arrays: dict[str, list[np.ndarray]] = {name: [] for name in ("sample", "points", *_LENGTHS)}
    for block in table_rows.blocks(root, version, "sample_annotation", _Annotation):
        rows = [row for row in block if row.sample_token in number]
        lists["token"] += [row.token for row in rows]
        lists["category"] += [
            _known(root, version, "sample_annotation", row.token, "instance", row.instance_token, category_of)
            for row in rows
        ]
        lists["attributes"] += _ATTRIBUTES.decode(_together([row.attribute_tokens for row in rows]))
        lists["previous"] += [row.prev for row in rows]
        lists["following"] += [row.next for row in rows]
        arrays["sample"].append(np.array([number[row.sample_token] for row in rows], dtype=np.int64))
        arrays["points"].append(np.array([row.num_lidar_pts + row.num_radar_pts for row in rows], dtype=np.int64))
        for name, length in _LENGTHS.items():
            arrays[name].append(_vectors([getattr(row, name) for row in rows], length))
    return _Rows(**lists, **{name: np.concatenate(parts) for name, parts in arrays.items()})


def _together(texts: list[msgspec.Raw]) -> bytes:
    """A JSON list of what stands in these texts."""
    return b"[" + b",".join(texts) + b"]"


def _vectors(texts: list[msgspec.Raw], length: int) -> np.ndarray:
    """Lists of `length` numbers, as they stand in a table: (N, length)."""
    return np.array((_POINTS if length == 3 else _QUATERNIONS).decode(_together(texts))).reshape(-1, length)


def _categories(root: Path, version: str) -> dict[str, str]:
    """Instance token -> name of its category."""
    names = {row.token: row.name for block in table_rows.blocks(root, version, "category", _Named) for row in block}
    return {
        row.token: _known(root, version, "instance", row.token, "category", row.category_token, names)
        for block in table_rows.blocks(root, version, "instance", _Instance)
        for row in block
    }


def _boxes(root: Path, version: str, rows: _Rows, times: dict[str, int], tokens: list[str]) -> tuple[Boxes, Racks]:
    """The boxes of detection classes by sample, and the racks. times: of all samples; tokens: of those of the split."""
    path = tables.path_of(root, version, "sample_annotation")
    names = {row.token: row.name for block in table_rows.blocks(root, version, "attribute", _Named) for row in block}
    label_of = {name: box_columns.CLASS_NUMBER[kind] for name, kind in CLASS_OF_CATEGORY.items()} | {_RACK: -2}
    label = np.array([label_of.get(name, -1) for name in rows.category], dtype=np.int64)
    by_sample = np.argsort(rows.sample, kind="stable")
    chosen = by_sample[label[by_sample] >= 0]
    boxes = Boxes(
        sample=rows.sample[chosen],
        label=label[chosen],
        translation=rows.translation[chosen],
        size=rows.size[chosen],
        rotation=rows.rotation[chosen],
        velocity=_velocity(root, version, rows, times, tokens)[chosen],
        score=np.full(len(chosen), -1.0),
        attribute=np.array(
            [_attribute(path, rows.token[i], rows.attributes[i], names) for i in chosen.tolist()], dtype=np.int64
        ),
        points=rows.points[chosen],
    )
    racks = by_sample[label[by_sample] == label_of[_RACK]]
    return boxes, Racks(rows.sample[racks], rows.translation[racks], rows.size[racks], rows.rotation[racks])


def _attribute(path: Path, token: str, attributes: list[str], names: dict[str, str]) -> int:
    """The number of an annotation's one attribute, 0 for none."""
    if not attributes:
        return 0
    if len(attributes) > 1:
        raise tables.fault(path, token, f"it has {len(attributes)} attributes where nuscenes-devkit scores one at most")
    name = names.get(attributes[0])
    if name is None:
        raise tables.fault(path, token, "it names an attribute that attribute.json lacks")
    if name not in box_columns.ATTRIBUTE_NUMBER:
        raise tables.fault(path, token, f"its attribute {name[:40]!r} is none of nuScenes', so it cannot be scored")
    return box_columns.ATTRIBUTE_NUMBER[name]


def _velocity(root: Path, version: str, rows: _Rows, times: dict[str, int], tokens: list[str]) -> np.ndarray:
    """Velocities (N, 2) as the devkit's `box_velocity`: between the annotations before and after, or this one and either."""
    time = np.array([times[token] for token in tokens], dtype=np.float64)[rows.sample]
    position = rows.translation[:, :2]
    row_of = {token: i for i, token in enumerate(rows.token)}
    lost = sorted({token for token in (*rows.previous, *rows.following) if token and token not in row_of})
    if lost:  # a thing's annotations stand in one scene, so a proper data set gets here only if it is damaged
        row_of |= {token: len(row_of) + i for i, token in enumerate(lost)}
        more_time, more_place = _elsewhere(root, version, lost, times)
        time, position = np.concatenate([time, more_time]), np.concatenate([position, more_place])
    own = range(len(rows.token))
    first, last = (
        np.array([row_of[token] if token else i for i, token in zip(own, side, strict=True)], dtype=np.int64)
        for side in (rows.previous, rows.following)
    )
    elapsed = 1e-6 * time[last] - 1e-6 * time[first]
    alone = np.arange(len(own))
    limit = np.where((first != alone) & (last != alone), 2 * _LONGEST_STEP, _LONGEST_STEP)
    with np.errstate(divide="ignore", invalid="ignore"):
        velocity = (position[last] - position[first]) / elapsed[:, None]
    velocity[((first == alone) & (last == alone)) | (elapsed > limit)] = np.nan
    return velocity


def _elsewhere(root: Path, version: str, lost: list[str], times: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """When and where annotations outside the split are: times (M,), microseconds, and places (M, 2)."""
    wanted, found = set(lost), {}
    for block in table_rows.blocks(root, version, "sample_annotation", _Annotation):
        for row in block:
            if row.token in wanted:
                time = _known(root, version, "sample_annotation", row.token, "sample", row.sample_token, times)
                found[row.token] = (time, *_POINT.decode(row.translation)[:2])
    path = tables.path_of(root, version, "sample_annotation")
    for token in lost:
        if token not in found:
            raise tables.fault(path, token, "another row names it as its previous or next, and it is not there")
    values = np.array([found[token] for token in lost], dtype=np.float64)
    return values[:, 0], values[:, 1:]


def _ego(root: Path, version: str, number: dict[str, int]) -> np.ndarray:
    """Where the car is at each sample's LiDAR keyframe, (S, 3), global."""
    sensors = tables.sensors(root, version)
    lidar = {token for token, row in sensors.items() if row["channel"] == tables.LIDAR}
    pose_of: dict[str, str] = {}
    for block in table_rows.blocks(root, version, "sample_data", _SampleData):
        for row in block:
            if row.is_key_frame and row.calibrated_sensor_token in lidar and row.sample_token in number:
                pose_of[row.sample_token] = row.ego_pose_token
    bare = next((token for token in number if token not in pose_of), None)
    if bare is not None:
        path = tables.path_of(root, version, "sample")
        raise tables.fault(path, bare, f"sample_data.json has no keyframe of {tables.LIDAR} for it")
    wanted = set(pose_of.values())
    place = {
        pose.token: _POINT.decode(pose.translation)
        for block in table_rows.blocks(root, version, "ego_pose", _EgoPose)
        for pose in block
        if pose.token in wanted
    }
    for token in number:
        _known(root, version, "sample_data", token, "ego_pose", pose_of[token], place)
    return np.array([place[pose_of[token]] for token in number], dtype=np.float64).reshape(-1, 3)


def _explained(root: Path, version: str, error: Exception) -> InputError:
    """What is wrong with a list of numbers that msgspec refused, told by the reader that checks every column."""
    for table in ("sample_annotation", "ego_pose"):
        try:
            for _ in tables.rows(root, version, table):
                pass
        except InputError as found:
            return found
    return InputError(f"{root / version}: a list of numbers cannot be read ({error}); {tables.CURE}.")


def _known(root: Path, version: str, table: str, row: str, other: str, token: str, rows: dict[str, Value]) -> Value:
    """What another table says under a token. Raises InputError if it lacks it."""
    try:
        return rows[token]
    except KeyError:
        path = tables.path_of(root, version, table)
        raise tables.fault(path, row, f"it names {other} {token}, which {other}.json lacks") from None
