"""Boxes as columns: what nuScenes' detection metric knows of each, true or predicted, and the filters that it applies.

Numbers are float64, as in the files; boxes are in the global frame, sizes are width, length, height. Letters: N boxes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from vexkd.boxes import CLASSES

# The devkit's attributes; the first stands for none.
ATTRIBUTES = (
    "",
    "pedestrian.moving",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "cycle.with_rider",
    "cycle.without_rider",
    "vehicle.moving",
    "vehicle.parked",
    "vehicle.stopped",
)
CLASS_NUMBER = {name: number for number, name in enumerate(CLASSES)}
ATTRIBUTE_NUMBER = {name: number for number, name in enumerate(ATTRIBUTES)}
_RACKED = [CLASS_NUMBER["bicycle"], CLASS_NUMBER["motorcycle"]]  # what a bicycle rack hides
_CLOSE = 1e-6  # of a rack's side: nearer to it, the devkit's own arithmetic decides


@dataclass(frozen=True)
class Boxes:
    """Boxes in the devkit's order: sample (N,) number of the sample, label (N,) number of the class, translation (N, 3) m,
    size (N, 3) m, rotation (N, 4) quaternion w x y z, velocity (N, 2) m/s, NaN where unknown, score (N,), attribute (N,)
    number of the attribute, points (N,) LiDAR and radar points in the box, -1 where nobody counted."""

    sample: np.ndarray
    label: np.ndarray
    translation: np.ndarray
    size: np.ndarray
    rotation: np.ndarray
    velocity: np.ndarray
    score: np.ndarray
    attribute: np.ndarray
    points: np.ndarray

    def __len__(self) -> int:
        return len(self.sample)

    def __getitem__(self, rows: np.ndarray) -> Boxes:
        """The boxes in some rows: numbers or a mask."""
        return Boxes(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


@dataclass(frozen=True)
class Racks:
    """Bicycle racks: sample (K,), translation (K, 3), size (K, 3), rotation (K, 4), as in Boxes; sorted by sample."""

    sample: np.ndarray
    translation: np.ndarray
    size: np.ndarray
    rotation: np.ndarray


def kept(boxes: Boxes, ego: np.ndarray, racks: Racks, ranges: Mapping[str, float]) -> Boxes:
    """The boxes that count, as the devkit's `filter_eval_boxes`: nearer to the car than their class's range, not empty of
    points, and no cycle with its centre in a bicycle rack.

    ego: where the car is in each sample, (S, 3). ranges: metres by class.
    """
    offset = (boxes.translation - ego[boxes.sample])[:, :2]
    distance = np.sqrt((offset**2).sum(axis=1))
    reach = np.array([ranges[name] for name in CLASSES], dtype=np.float64)
    boxes = boxes[(distance < reach[boxes.label]) & (boxes.points != 0)]
    return boxes[~_racked(boxes, racks)]


def _racked(boxes: Boxes, racks: Racks) -> np.ndarray:
    """Whether each box is a cycle with its centre in a rack of its sample: (N,)."""
    racked = np.zeros(len(boxes), dtype=bool)
    cycles = np.flatnonzero(np.isin(boxes.label, _RACKED))
    first = np.searchsorted(racks.sample, boxes.sample[cycles], side="left")
    count = np.searchsorted(racks.sample, boxes.sample[cycles], side="right") - first
    cycle, rack = pairs(first, count)
    cycle = cycles[cycle]
    corner, axes = _corners(racks)
    offset = boxes.translation[cycle] - corner[rack]
    along = (axes[rack] * offset[:, None, :]).sum(axis=2)  # pairs 3
    whole = (axes[rack] ** 2).sum(axis=2)
    inside = ((along >= 0) & (along <= whole)).all(axis=1)
    close = (np.minimum(np.abs(along), np.abs(along - whole)) < _CLOSE * whole).any(axis=1)
    for pair in np.flatnonzero(close):
        inside[pair] = _devkit_inside(racks, rack[pair], boxes.translation[cycle[pair]])
    np.logical_or.at(racked, cycle, inside)
    return racked


def pairs(first: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row i paired with each of first[i], first[i] + 1, ... (count[i] of them): the rows, and what they are paired with."""
    row = np.repeat(np.arange(len(count)), count)
    start = np.cumsum(count) - count
    return row, np.arange(len(row)) - np.repeat(start - first, count)


def rotation_matrices(rotation: np.ndarray) -> np.ndarray:
    """Quaternions (N, 4) -> (N, 3, 3), by the same products of 4 x 4 matrices as pyquaternion's, so with the same rounding."""
    squares = dot(rotation, rotation)
    length = np.where((np.abs(1.0 - squares) < 1e-14) | (squares == 0), 1.0, np.sqrt(squares))
    w, x, y, z = (rotation / length[:, None]).T
    left = np.stack([w, -x, -y, -z, x, w, -z, y, y, z, w, -x, z, -y, x, w], axis=1).reshape(-1, 4, 4)
    right = np.stack([w, -x, -y, -z, x, w, z, -y, y, -z, w, x, z, y, -x, w], axis=1).reshape(-1, 4, 4)
    return np.matmul(left, right.transpose(0, 2, 1))[:, 1:, 1:]


def dot(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Dot products of rows, (N, C) and (N, C) -> (N,), rounded as `np.dot` rounds that of two vectors."""
    return np.matmul(np.ascontiguousarray(first)[:, None, :], np.ascontiguousarray(second)[:, :, None])[:, 0, 0]


def _corners(racks: Racks) -> tuple[np.ndarray, np.ndarray]:
    """The devkit's reference corner of each rack (K, 3), and the edges from it, (K, 3, 3): one a row."""
    edges = rotation_matrices(racks.rotation).transpose(0, 2, 1) * racks.size[:, [1, 0, 2], None]  # along l, w, h
    corner = racks.translation + 0.5 * edges.sum(axis=1)
    return corner, -edges


def _devkit_inside(racks: Racks, rack: int, point: np.ndarray) -> bool:
    """The devkit's verdict on a point so close to a rack's side that rounding decides."""
    from nuscenes.utils.data_classes import Box
    from nuscenes.utils.geometry_utils import points_in_box
    from pyquaternion import Quaternion

    values = (racks.translation[rack].tolist(), racks.size[rack].tolist(), Quaternion(racks.rotation[rack].tolist()))
    return bool(points_in_box(Box(*values), point[:, None])[0])
