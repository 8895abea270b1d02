"""Annotations, read from nuScenes' tables into columns, by the rules of `rules` and those that scoring has.

Every function that reads raises InputError that names the table and the token that breaks a rule.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vexkd import boxes as box_tools
from vexkd import geometry
from vexkd.data import devkit, rules, tables
from vexkd.data.frames import Samples
from vexkd.errors import InputError

# What nuscenes-devkit takes as the attribute of a box (eval/detection/constants.py).
ATTRIBUTES = (
    *("pedestrian.moving", "pedestrian.sitting_lying_down", "pedestrian.standing"),
    *("cycle.with_rider", "cycle.without_rider", "vehicle.moving", "vehicle.parked", "vehicle.stopped"),
)
# nuScenes' categories that are not detected; those of its LiDAR segmentation stand in the same table.
OTHER_CATEGORIES = (
    *("animal", "human.pedestrian.personal_mobility", "human.pedestrian.stroller", "human.pedestrian.wheelchair"),
    *("movable_object.debris", "movable_object.pushable_pullable", "static_object.bicycle_rack"),
    *("vehicle.emergency.ambulance", "vehicle.emergency.police", "noise", "vehicle.ego"),
    *("flat.driveable_surface", "flat.other", "flat.sidewalk", "flat.terrain"),
    *("static.manmade", "static.other", "static.vegetation"),
)
_LARGEST, _FARTHEST = 200.0, 1e7  # metres: a side of a box, its place from the map's origin


@dataclass
class Annotations:
    """Columns of sample_annotation; label -1 where the category is not among the ten classes."""

    tokens: list[str]
    instances: list[str]
    attributes: list[str]
    visibility: list[str]
    sample: np.ndarray
    label: np.ndarray
    translation: np.ndarray
    size: np.ndarray
    rotation: np.ndarray
    lidar_points: np.ndarray
    radar_points: np.ndarray
    previous: np.ndarray
    next: np.ndarray

    @classmethod
    def read(cls, root: Path, version: str, samples: Samples) -> Annotations:
        instance = _categories(root, version)
        label_of = {t: _label(name) for t, name in instance.items()}
        attribute = {token: row["name"] for token, row in tables.index(root, version, "attribute").items()}
        levels = tables.index(root, version, "visibility")
        same = {token: token for token in instance}  # one string object an instance, not one an annotation
        path = tables.path_of(root, version, "sample_annotation")
        tokens: list[str] = []
        columns: dict[str, list[Any]] = {name: [] for name in _ANNOTATION_COLUMNS}
        for row in tables.rows(root, version, "sample_annotation"):
            problem = _problem(row, samples.position, instance, levels) or _attribute_problem(
                row, attribute, detected=label_of.get(row["instance_token"], -1) >= 0
            )
            if problem:
                raise tables.fault(path, row["token"], problem)
            named = row["attribute_tokens"][:1]
            tokens.append(row["token"])
            values = (
                same[row["instance_token"]],
                attribute[named[0]] if named else "",
                row.get("visibility_token", ""),
                samples.position[row["sample_token"]],
                label_of[row["instance_token"]],
                row["translation"],
                row["size"],
                row["rotation"],
                row["num_lidar_pts"],
                row["num_radar_pts"],
                (row["prev"], row["next"]),
            )
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
        return cls._assemble(path, tokens, columns, samples.timestamps)

    @classmethod
    def _assemble(
        cls, path: Path, tokens: list[str], columns: dict[str, list[Any]], timestamps: np.ndarray
    ) -> Annotations:
        label = np.array(columns["label"], dtype=np.int64)
        sizes = rules.numbers(path, tokens, "size", columns["size"], 3)
        rules.refuse(
            path,
            tokens,
            (label >= 0) & ((sizes <= 0) | (sizes > _LARGEST)).any(axis=1),
            lambda i: (
                f"size is {', '.join(f'{v:g}' for v in sizes[i])}; a box is wider, longer and higher than 0 m and "
                f"smaller than {_LARGEST:g} m"
            ),
        )
        sample = np.array(columns["sample"], dtype=np.int64)
        _check_once(path, tokens, sample, columns["instances"])
        _check_order(path, sizes[label == box_tools.CLASSES.index("car")])
        links = _links(path, tokens, columns, timestamps[sample] if len(sample) else sample)
        return cls(
            tokens=tokens,
            **{name: columns[name] for name in ("instances", "attributes", "visibility")},
            sample=sample,
            label=label,
            translation=rules.translations(path, tokens, columns["translation"], _FARTHEST),
            size=sizes,
            rotation=_rotations(path, tokens, columns["rotation"]),
            lidar_points=rules.counts(path, tokens, "num_lidar_pts", columns["lidar_points"]),
            radar_points=rules.counts(path, tokens, "num_radar_pts", columns["radar_points"]),
            previous=links[:, 0],
            next=links[:, 1],
        )

    def velocities(self, timestamps: np.ndarray, max_time_diff: float = 1.5) -> np.ndarray:
        """Global velocities (rows, 2) in m/s by centred or one-sided difference, NaN where unknown (devkit's rule)."""
        here = np.arange(len(self.tokens))
        first = np.where(self.previous >= 0, self.previous, here)
        last = np.where(self.next >= 0, self.next, here)
        elapsed = 1e-6 * timestamps[self.sample[last]] - 1e-6 * timestamps[self.sample[first]]
        limit = np.where((self.previous >= 0) & (self.next >= 0), 2 * max_time_diff, max_time_diff)
        known = (first != last) & (elapsed <= limit)
        velocity = np.full((len(here), 2), np.nan)
        moved = self.translation[last] - self.translation[first]
        velocity[known] = moved[known, :2] / elapsed[known, None]
        return velocity


_ANNOTATION_COLUMNS = (
    *("instances", "attributes", "visibility", "sample", "label"),
    *("translation", "size", "rotation", "lidar_points", "radar_points", "links"),
)


def _categories(root: Path, version: str) -> dict[str, str]:
    """Instance -> name of its category; a name that is nearly one of nuScenes' is refused."""
    path = tables.path_of(root, version, "category")
    rows = tables.index(root, version, "category")
    devkit.check(root, version, rows)
    category = {token: row["name"] for token, row in rows.items()}
    for token, name in category.items():
        near = _nearly(name)
        if near:
            raise tables.fault(path, token, f"its name {name[:40]!r} is none of nuScenes' (did you mean {near}?)")
    instances = tables.index(root, version, "instance")
    named = [row["category_token"] for row in instances.values()]
    rules.known(tables.path_of(root, version, "instance"), list(instances), named, "category", category)
    return {token: category[row["category_token"]] for token, row in instances.items()}


def _nearly(name: str) -> str:
    """The category that a name misspells or shortens; empty for names of nuScenes and for wholly other ones."""
    if name in box_tools.CLASS_OF_CATEGORY or name in OTHER_CATEGORIES:
        return ""
    plain = name.strip().lower()
    shortened = [full for full in box_tools.CLASS_OF_CATEGORY if full.rsplit(".", 1)[-1] == plain]
    meant = [full for full, short in box_tools.CLASS_OF_CATEGORY.items() if short == plain]
    known = [*box_tools.CLASS_OF_CATEGORY, *OTHER_CATEGORIES]
    return (shortened + meant + difflib.get_close_matches(plain, known, 1, 0.85) + [""])[0]


def _problem(row: dict[str, Any], samples: Any, instances: Any, levels: Any) -> str:
    """A row of another table that an annotation names in vain, in words."""
    if row["sample_token"] not in samples:
        return rules.lacks("sample", row["sample_token"])
    if row["instance_token"] not in instances:
        return rules.lacks("instance", row["instance_token"])
    if row.get("visibility_token") and row["visibility_token"] not in levels:
        return rules.lacks("visibility", row["visibility_token"])
    return ""


def _attribute_problem(row: dict[str, Any], attributes: dict[str, str], *, detected: bool) -> str:
    """What is wrong with the attributes of an annotation, in words: the devkit scores none or one of its own."""
    for token in row["attribute_tokens"]:
        if not isinstance(token, str) or token not in attributes:
            return rules.lacks("attribute", token)
        if detected and attributes[token] not in ATTRIBUTES:
            return f"its attribute {attributes[token][:40]!r} is none of nuScenes', so the devkit cannot score it"
    if detected and len(row["attribute_tokens"]) > 1:
        return f"it has {len(row['attribute_tokens'])} attributes where nuscenes-devkit scores one at most"
    return ""


def _check_once(path: Path, tokens: list[str], sample: np.ndarray, instances: list[str]) -> None:
    """A thing has one box in a sample."""
    seen: dict[tuple[int, str], int] = {}
    for i, pair in enumerate(zip(sample.tolist(), instances, strict=True)):
        first = seen.setdefault(pair, i)
        if first != i:
            raise tables.fault(path, tokens[i], f"it and {tokens[first]} are two boxes of one instance in one sample")


def _check_order(path: Path, cars: np.ndarray) -> None:
    """Sizes (M, 3) of cars are width, length, height: nearly all are longer than wide and high."""
    if len(cars) >= 20 and (cars.argmax(axis=1) != 1).mean() > 0.9:
        raise InputError(
            f"{path}: size of {len(cars)} cars is not width, length, height (the median is "
            f"{', '.join(f'{v:.3g}' for v in np.median(cars, axis=0))} m): put them in nuScenes' order."
        )


def _rotations(path: Path, tokens: list[str], values: list[Any]) -> np.ndarray:
    """Checked quaternions (rows, 4) of boxes, few of which may lie on their side (then the order of numbers is wrong)."""
    rotations = rules.rotations(path, tokens, values)
    if len(rotations):
        lean = geometry.rigids(rotations, np.zeros((len(rotations), 3)))[:, 2, 2] < 0.5
        if lean.sum() > max(1, 0.01 * len(lean)):
            rules.refuse(path, tokens, lean, "rotation lays the box on its side; nuScenes' quaternions are w, x, y, z")
    return rotations


def _links(path: Path, tokens: list[str], columns: dict[str, list[Any]], times: np.ndarray) -> np.ndarray:
    """Rows (rows, 2) of the annotations before and after, -1 for none: of the same instance, earlier and later."""
    where = {token: i for i, token in enumerate(tokens)}
    links = np.full((len(tokens), 2), -1, dtype=np.int64)
    instances = columns["instances"]
    for i, pair in enumerate(columns["links"]):
        for side, name in enumerate(pair):
            if not name:
                continue
            j = where.get(name)
            if j is None:
                raise tables.fault(
                    path, tokens[i], f"{_SIDES[side]} names an annotation that is not there ({name[:40]!r})"
                )
            if instances[i] is not instances[j]:
                raise tables.fault(path, tokens[i], f"{_SIDES[side]} names {name} of another instance")
            links[i, side] = j
    for side, sign in ((0, 1), (1, -1)):
        other = links[:, side]
        wrong = (other >= 0) & (sign * (times - times[other]) <= 0) if len(other) else np.zeros(0, bool)
        words = "earlier" if side == 0 else "later"
        rules.refuse(
            path,
            tokens,
            wrong,
            lambda i, s=side, o=other, w=words: f"{_SIDES[s]} names {tokens[o[i]]}, which is not {w}",
        )
    return links


_SIDES = ("prev", "next")


def _label(category: str) -> int:
    """Index of the detection class of a nuScenes category, -1 for none."""
    name = box_tools.CLASS_OF_CATEGORY.get(category)
    return box_tools.CLASSES.index(name) if name else -1
