"""LiDAR sweeps: whole-file reading and stacking in the keyframe's LiDAR frame (method: BEVFusion's point loading).

Letters: P points. A nuScenes sweep is float32 (P, 5): x, y, z in metres, intensity 0..255, ring.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vexkd.errors import InputError

POINT_BYTES = 20  # five float32


class Sweep(NamedTuple):
    """An earlier sweep: points (P, 5) in its own LiDAR frame, lidar_from_sweep (4, 4), lag in seconds (> 0)."""

    points: np.ndarray
    lidar_from_sweep: np.ndarray
    lag: float


def read_lidar(path: Path | str, expected_bytes: int | None = None) -> np.ndarray:
    """One sweep file as float32 (P, 5): x, y, z, intensity, ring, in its own LiDAR frame.

    Raises InputError that names the file if it is missing, empty, not a whole number of points, or not of
    `expected_bytes` (recorded when the infos were made; None or 0 means unknown).
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"LiDAR file {path} cannot be read ({error.strerror}): download it again.") from None
    if expected_bytes and len(data) != expected_bytes:
        raise InputError(f"LiDAR file {path} has {len(data)} bytes instead of {expected_bytes}: download it again.")
    if not data or len(data) % POINT_BYTES:
        raise InputError(
            f"LiDAR file {path} has {len(data)} bytes, not a whole number of 20-byte points: download it again."
        )
    return np.frombuffer(bytearray(data), dtype="<f4").reshape(-1, 5)  # P 5, writable


def choose_sweeps(available: int, count: int, rng: np.random.Generator | None) -> np.ndarray:
    """Which of the `available` sweeps (0 is the nearest): the nearest `count`, or with `rng` a random `count`."""
    if rng is None or available <= count:
        return np.arange(min(available, count))
    return np.sort(rng.choice(available, count, replace=False))


def not_close(points: np.ndarray, radius: float = 1.0) -> np.ndarray:
    """Mask (P,) of the points that are not within |x| < radius and |y| < radius of the sensor (the car's own roof)."""
    return (np.abs(points[:, 0]) >= radius) | (np.abs(points[:, 1]) >= radius)


def stack_sweeps(key: np.ndarray, sweeps: Sequence[Sweep], *, pad_to: int = 0) -> np.ndarray:
    """Keyframe and sweeps -> float32 (P, 5): x, y, z, intensity, lag in seconds, in the keyframe's LiDAR frame.

    Points close to the sensor are dropped from the sweeps, not from the keyframe. With `pad_to`, missing sweeps are
    replaced by copies of the keyframe (mmdetection3d's `pad_empty_sweeps`), without its close points, at lag 0.
    """
    current = key.copy()
    current[:, 4] = 0
    stacked = [current]
    for sweep in sweeps:
        moved = np.compress(not_close(sweep.points), sweep.points, axis=0)
        move_in_place(moved, sweep.lidar_from_sweep)
        moved[:, 4] = sweep.lag
        stacked.append(moved)
    stacked += [current[not_close(current)]] * max(0, pad_to - len(sweeps))
    return np.concatenate(stacked)


def move_in_place(points: np.ndarray, target_from_source: np.ndarray) -> None:
    """Move points (P, >=3) to the target frame, in place; the other columns stay.

    The same as `geometry.move`, column by column: for hundreds of thousands of points several times as fast.
    """
    matrix = np.asarray(target_from_source, dtype=points.dtype)
    x, y, z = np.ascontiguousarray(points[:, :3].T)
    for axis in range(3):
        points[:, axis] = x * matrix[axis, 0] + y * matrix[axis, 1] + z * matrix[axis, 2] + matrix[axis, 3]


def in_bounds(points: np.ndarray, bounds: Sequence[float]) -> np.ndarray:
    """Rows of the points (P, >=3) with (x0, y0, z0) <= (x, y, z) < (x1, y1, z1)."""
    inside = np.ones(len(points), dtype=bool)
    for axis in range(3):
        column = points[:, axis]
        inside &= (column >= points.dtype.type(bounds[axis])) & (column < points.dtype.type(bounds[axis + 3]))
    return np.flatnonzero(inside)
