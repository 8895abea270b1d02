"""3D boxes as arrays (M, 9): x, y, z, l, w, h, yaw, vx, vy in metres, radians and metres per second.

z is the gravity centre, l runs along the box's own x axis, yaw is counter-clockwise from +x of the frame that the array's
name carries (`boxes_lidar`, `boxes_global`). Velocity is NaN where nuScenes knows none.
"""

from __future__ import annotations

import numpy as np

from vexkd import geometry

# nuScenes detection classes in the order of the published configurations (mmdetection3d, BEVFusion).
CLASSES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)

# nuScenes category -> detection class (nuscenes-devkit, eval/detection/utils.py); categories not listed are not detected.
CLASS_OF_CATEGORY = {
    "movable_object.barrier": "barrier",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}


def from_nuscenes(translation: np.ndarray, size: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """nuScenes' translations (M, 3), sizes (M, 3) as w, l, h and quaternions (M, 4) -> boxes_global (M, 9), velocity NaN."""
    translation, size, rotation = (np.asarray(a, dtype=np.float64) for a in (translation, size, rotation))
    boxes = np.full((len(translation), 9), np.nan)
    boxes[:, 0:3] = translation
    boxes[:, 3:6] = size[:, [1, 0, 2]]
    w, x, y, z = _unit(rotation).T
    boxes[:, 6] = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))  # direction of the box's own x axis
    return boxes


def _unit(quaternions: np.ndarray) -> np.ndarray:
    """Quaternions (M, 4) brought to length 1 where they are not so within 1e-14, as pyquaternion does in the devkit."""
    squares = (quaternions**2).sum(axis=1, keepdims=True)
    return np.where(np.abs(1 - squares) < 1e-14, quaternions, quaternions / np.sqrt(squares))


def move(boxes_source: np.ndarray, target_from_source: np.ndarray) -> np.ndarray:
    """Boxes (M, 9) under a rigid motion or an augmentation (rotation, uniform scale, flips, translation).

    Sizes and velocities are scaled with the frame, as mmdetection3d does.
    """
    linear = np.asarray(target_from_source, dtype=np.float64)[:3, :3]
    moved = np.array(boxes_source, dtype=np.float64, copy=True).reshape(-1, 9)
    velocity = np.concatenate([moved[:, 7:9], np.zeros((len(moved), 1))], axis=1)  # M 3
    moved[:, 0:3] = geometry.move(target_from_source, moved[:, 0:3])
    moved[:, 3:6] *= abs(np.linalg.det(linear)) ** (1 / 3)
    moved[:, 6] = geometry.heading(target_from_source, moved[:, 6])
    moved[:, 7:9] = (velocity @ linear.T)[:, :2]
    return moved


def corners(boxes: np.ndarray) -> np.ndarray:
    """The eight corners (M, 8, 3): bottom rectangle counter-clockwise from front left, then the top one."""
    signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2
    plan = np.concatenate([signs, signs])  # 8 2
    height = np.repeat([-0.5, 0.5], 4)
    local = boxes[:, None, 3:5] * plan  # M 8 2
    c, s = np.cos(boxes[:, 6])[:, None], np.sin(boxes[:, 6])[:, None]
    x = boxes[:, 0:1] + c * local[..., 0] - s * local[..., 1]
    y = boxes[:, 1:2] + s * local[..., 0] + c * local[..., 1]
    z = boxes[:, 2:3] + boxes[:, 5:6] * height
    return np.stack([x, y, z], axis=-1)


def points_inside(points: np.ndarray, box: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """Mask (P,) of the points (P, >=3) inside one box (9,), borders included; `margin` in metres widens every side."""
    offset = points[:, :3].astype(np.float64) - box[:3]
    c, s = np.cos(box[6]), np.sin(box[6])
    along = offset[:, 0] * c + offset[:, 1] * s
    across = offset[:, 1] * c - offset[:, 0] * s
    half = box[3:6] / 2 + margin
    return (np.abs(along) <= half[0]) & (np.abs(across) <= half[1]) & (np.abs(offset[:, 2]) <= half[2])


def in_range(boxes: np.ndarray, bounds: tuple[float, ...]) -> np.ndarray:
    """Mask (M,) of the boxes whose centre lies inside bounds (x0, y0, z0, x1, y1, z1), z ignored as the detectors do."""
    x0, y0, _, x1, y1, _ = bounds
    return (boxes[:, 0] >= x0) & (boxes[:, 0] < x1) & (boxes[:, 1] >= y0) & (boxes[:, 1] < y1)
