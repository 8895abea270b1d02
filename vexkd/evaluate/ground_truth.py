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
from typing import TypeVar

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
_POINT = tuple[float, float, float]
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
    """Annotations of the split, unpacked: columns of the same length, in the order of the table."""

    token: list[str]
    sample: list[int]
    category: list[str]
    attributes: list[list[str]]
    translation: list[list[float]]
    size: list[list[float]]
    rotation: list[list[float]]
    neighbours: list[tuple[str, str]]
    points: list[int]


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
        rows, centre = _annotations(root, version, number)
        ego = _ego(root, version, number)
    except msgspec.MsgspecError as error:
        raise _explained(root, version, error) from None
    boxes, racks = _boxes(root, version, rows, centre, times)
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
    found = {}
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.List):
            found[node.targets[0].id] = ast.literal_eval(node.value)
    return found | {"train": sorted({*found["train_detect"], *found["train_track"]})}


# ---- rows


def _annotations(root: Path, version: str, number: dict[str, int]) -> tuple[_Rows, dict[str, tuple[str, list[float]]]]:
    """Annotations of the samples in `number`, and of each annotation that they name as previous or next: sample and centre."""
    category_of = _categories(root, version)
    unpack = msgspec.json.Decoder(list[float]).decode
    names = msgspec.json.Decoder(list[str]).decode
    found = _Rows([], [], [], [], [], [], [], [], [])
    centre: dict[str, tuple[str, list[float]]] = {}
    for block in table_rows.blocks(root, version, "sample_annotation", _Annotation):
        for row in block:
            sample = number.get(row.sample_token)
            if sample is None:
                continue
            translation = unpack(row.translation)
            centre[row.token] = row.sample_token, translation
            found.token.append(row.token)
            found.sample.append(sample)
            found.category.append(
                _known(root, version, "sample_annotation", row.token, "instance", row.instance_token, category_of)
            )
            found.attributes.append(names(row.attribute_tokens))
            found.translation.append(translation)
            found.size.append(unpack(row.size))
            found.rotation.append(unpack(row.rotation))
            found.neighbours.append((row.prev, row.next))
            found.points.append(row.num_lidar_pts + row.num_radar_pts)
    lost = {token for pair in found.neighbours for token in pair if token and token not in centre}
    if lost:  # a thing's annotations stand in one scene, so a proper data set gets here only if it is damaged
        for block in table_rows.blocks(root, version, "sample_annotation", _Annotation):
            centre |= {row.token: (row.sample_token, unpack(row.translation)) for row in block if row.token in lost}
    return found, centre


def _categories(root: Path, version: str) -> dict[str, str]:
    """Instance token -> name of its category."""
    names = {row.token: row.name for block in table_rows.blocks(root, version, "category", _Named) for row in block}
    return {
        row.token: _known(root, version, "instance", row.token, "category", row.category_token, names)
        for block in table_rows.blocks(root, version, "instance", _Instance)
        for row in block
    }


def _boxes(
    root: Path, version: str, rows: _Rows, centre: dict[str, tuple[str, list[float]]], times: dict[str, int]
) -> tuple[Boxes, Racks]:
    """The boxes of detection classes by sample, and the racks."""
    path = tables.path_of(root, version, "sample_annotation")
    attribute_names = {
        row.token: row.name for block in table_rows.blocks(root, version, "attribute", _Named) for row in block
    }
    classes = [CLASS_OF_CATEGORY.get(name) for name in rows.category]
    by_sample = np.argsort(np.array(rows.sample, dtype=np.int64), kind="stable")
    detected = [i for i in by_sample.tolist() if classes[i] is not None]
    attribute = [_attribute(path, rows.token[i], rows.attributes[i], attribute_names) for i in detected]
    boxes = Boxes(
        sample=_column([rows.sample[i] for i in detected], np.int64),
        label=_column([box_columns.CLASS_NUMBER[str(classes[i])] for i in detected], np.int64),
        translation=_vectors(path, rows, detected, "translation", 3),
        size=_vectors(path, rows, detected, "size", 3),
        rotation=_vectors(path, rows, detected, "rotation", 4),
        velocity=_velocity(path, rows, detected, centre, times),
        score=np.full(len(detected), -1.0),
        attribute=_column(attribute, np.int64),
        points=_column([rows.points[i] for i in detected], np.int64),
    )
    racks = [i for i in by_sample.tolist() if rows.category[i] == _RACK]
    return boxes, Racks(
        sample=_column([rows.sample[i] for i in racks], np.int64),
        translation=_vectors(path, rows, racks, "translation", 3),
        size=_vectors(path, rows, racks, "size", 3),
        rotation=_vectors(path, rows, racks, "rotation", 4),
    )


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


def _column(values: list[int], dtype: type) -> np.ndarray:
    return np.array(values, dtype=dtype).reshape(-1)


def _vectors(path: Path, rows: _Rows, chosen: list[int], name: str, length: int) -> np.ndarray:
    """One column of vectors, (len(chosen), length). Raises InputError for another length and for what is not finite."""
    values = getattr(rows, name)
    wrong = next((i for i in chosen if len(values[i]) != length), None)
    array = np.zeros(0) if wrong is not None else np.array([values[i] for i in chosen], np.float64).reshape(-1, length)
    if wrong is None and not np.isfinite(array).all():
        wrong = chosen[int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])]
    if wrong is not None:
        raise tables.fault(path, rows.token[wrong], f"{name} is not {length} finite numbers")
    return array


def _velocity(
    path: Path,
    rows: _Rows,
    chosen: list[int],
    centre: dict[str, tuple[str, list[float]]],
    times: dict[str, int],
) -> np.ndarray:
    """Velocities (N, 2) as the devkit's `box_velocity`: between the annotations before and after, or this one and either."""
    ends, places = [], []
    for i in chosen:
        before, after = (token or rows.token[i] for token in rows.neighbours[i])
        for token in (before, after):
            if token not in centre:
                raise tables.fault(path, rows.token[i], f"it names {token} as previous or next, which is not there")
            sample, place = centre[token]
            if sample not in times:
                raise tables.fault(path, token, "it names a sample that sample.json lacks")
            ends.append(times[sample])
            places.append(place[:2])
    moment = 1e-6 * np.array(ends, dtype=np.float64).reshape(-1, 2)
    place = np.array(places, dtype=np.float64).reshape(-1, 2, 2)
    has = np.array([(bool(a), bool(b)) for a, b in (rows.neighbours[i] for i in chosen)], dtype=bool).reshape(-1, 2)
    elapsed = moment[:, 1] - moment[:, 0]
    limit = np.where(has.all(axis=1), 2 * _LONGEST_STEP, _LONGEST_STEP)
    unknown = ~has.any(axis=1) | (elapsed > limit)
    with np.errstate(divide="ignore", invalid="ignore"):
        velocity = (place[:, 1] - place[:, 0]) / elapsed[:, None]
    velocity[unknown] = np.nan
    return velocity


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
    unpack = msgspec.json.Decoder(_POINT).decode
    place = {
        pose.token: unpack(pose.translation)
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
