"""Frames, transforms, projection and the BEV grid; the only place that knows about axes.

A matrix is named target_from_source and is 4x4 homogeneous (rotation, or similarity under augmentation, plus translation
in metres). The LiDAR frame is nuScenes' own: x right, y forward, z up. A BEV map is B C Y X with cell (0, 0) at the
minimum of y and x and cell centres at `minimum + (i + 0.5) * cell`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pyquaternion import Quaternion


def rigid(rotation: Sequence[float], translation: Sequence[float]) -> np.ndarray:
    """4x4 target_from_source from nuScenes' quaternion (w, x, y, z) and translation (metres), float64."""
    matrix = np.eye(4)
    matrix[:3, :3] = Quaternion(rotation).rotation_matrix
    matrix[:3, 3] = translation
    return matrix


def rigids(rotations: np.ndarray, translations: np.ndarray) -> np.ndarray:
    """`rigid` for many: quaternions (N, 4) as w, x, y, z and translations (N, 3) -> (N, 4, 4) float64."""
    quaternions = np.asarray(rotations, dtype=np.float64).reshape(-1, 4)
    w, x, y, z = (quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).T
    matrices = np.zeros((len(quaternions), 4, 4))
    matrices[:, 0, :3] = np.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], axis=1)
    matrices[:, 1, :3] = np.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], axis=1)
    matrices[:, 2, :3] = np.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], axis=1)
    matrices[:, :3, 3] = translations
    matrices[:, 3, 3] = 1
    return matrices


def inverse(matrix: np.ndarray) -> np.ndarray:
    """Inverse of a 4x4 similarity (rigid motion times a uniform scale or a flip), (..., 4, 4)."""
    return np.linalg.inv(matrix)


def move(target_from_source: np.ndarray, points_source: np.ndarray) -> np.ndarray:
    """Points (..., 3) in the source frame -> the same points in the target frame, in the points' own precision."""
    matrix = np.asarray(target_from_source, dtype=np.result_type(points_source.dtype, np.float32))
    return points_source @ matrix[:3, :3].T + matrix[:3, 3]


def project(image_from_camera: np.ndarray, points_camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pinhole projection of (P, 3) points in the camera frame (z forward) by a 3x3 intrinsic matrix.

    Returns pixels (P, 2) as (u, v) and depths (P,) in metres; pixels of points with depth <= 0 have no meaning.
    """
    depths = points_camera[:, 2]
    homogeneous = points_camera @ np.asarray(image_from_camera).T  # P 3
    safe = np.where(np.abs(depths) < 1e-6, 1e-6, depths)
    return homogeneous[:, :2] / safe[:, None], depths


def yaw_rotation(yaw: float) -> Quaternion:
    """Rotation by `yaw` radians about +z, counter-clockwise."""
    return Quaternion(axis=[0.0, 0.0, 1.0], radians=float(yaw))


def heading(matrix: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """Yaw angles (M,) after the linear part of `matrix` (which may flip or scale) has acted on the box's x axis."""
    direction = np.stack([np.cos(yaw), np.sin(yaw), np.zeros_like(yaw)], axis=-1) @ matrix[:3, :3].T  # M 3
    return np.arctan2(direction[:, 1], direction[:, 0])


def wrap(angle: np.ndarray) -> np.ndarray:
    """Angles in radians, brought to [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


@dataclass(frozen=True)
class BevGrid:
    """The BEV raster of one model: `bounds` is (x0, y0, z0, x1, y1, z1) in metres, `cell` the side of a cell in metres."""

    bounds: tuple[float, float, float, float, float, float]
    cell: float

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns (Y, X)."""
        x0, y0, _, x1, y1, _ = self.bounds
        return round((y1 - y0) / self.cell), round((x1 - x0) / self.cell)

    @property
    def origin(self) -> tuple[float, float]:
        """Metres (x, y) of the outer corner of cell (0, 0)."""
        return self.bounds[0], self.bounds[1]

    def to_cells(self, xy):
        """Metres (..., 2) as (x, y) -> continuous cell coordinates (..., 2) as (column, row); centres lie at i + 0.5."""
        x = (xy[..., 0:1] - self.bounds[0]) / self.cell
        y = (xy[..., 1:2] - self.bounds[1]) / self.cell
        return _concatenate(x, y)

    def to_metres(self, cells):
        """Continuous cell coordinates (..., 2) as (column, row) -> metres (..., 2) as (x, y)."""
        x = cells[..., 0:1] * self.cell + self.bounds[0]
        y = cells[..., 1:2] * self.cell + self.bounds[1]
        return _concatenate(x, y)


def needed_reach(
    bounds: Sequence[float],
    *,
    rotation: float = 0.0,
    scale: tuple[float, float] = (1.0, 1.0),
    translation: float = 0.0,
    sigmas: float = 6.0,
) -> float:
    """How far from the LiDAR (metres) a map raster must reach so that labels within `bounds` are exact when augmented.

    bounds: (x0, y0, z0, x1, y1, z1) of the label grid. rotation (radians), scale and translation (standard deviation,
    metres) are those of `augment.BevAugmentation`, flips included; translation counts `sigmas` times, for it is normal
    (beyond 6: once in 5e8 draws).
    """
    x, y = (max(abs(bounds[i]), abs(bounds[i + 3])) + sigmas * translation for i in (0, 1))
    radius, angle = math.hypot(x, y), math.atan2(y, x)  # the far corner, which turns towards either axis
    nearest_x, nearest_y = max(angle - rotation, 0.0), max(math.pi / 2 - angle - rotation, 0.0)
    return radius * max(math.cos(nearest_x), math.cos(nearest_y)) / min(scale)


def _concatenate(x, y):
    """Join two NumPy arrays or two tensors along the last axis."""
    if isinstance(x, np.ndarray):
        return np.concatenate([x, y], axis=-1)
    import torch

    return torch.cat([x, y], dim=-1)
