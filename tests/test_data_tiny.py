"""A hand-made nuScenes set of two scenes, small enough to reason about, that the other data tests read.

The ego car drives along a curve; sweeps are taken at 20 Hz and keyframes at 5 Hz. A car moves, a pedestrian stands, an
animal is not among the ten classes, a barrier was seen by no sensor. The only test here holds it to the devkit.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyquaternion import Quaternion

from vexkd import geometry
from vexkd.data import tables

VERSION = "v1.0-mini"
SCENES = {"scene-0061": 3, "scene-0103": 1}  # keyframes
START = 1_500_000_000_000_000
SWEEP, KEY = 50_000, 200_000  # microseconds
RINGS, COLUMNS = 32, 360
POST = np.array([30.0, 12.0, 1.0])  # a static point of the map that every sweep sees as its last point
IMAGE = (64, 36)
# Names of annotated things: category, position at START, velocity, size (w, l, h), LiDAR points, radar points.
THINGS = {
    "car": ("vehicle.car", (20.0, 3.0, 1.0), (5.0, 0.0), (2.0, 4.0, 1.6), 20, 2),
    "walker": ("human.pedestrian.adult", (8.0, -6.0, 0.9), (0.0, 0.0), (0.6, 0.8, 1.8), 7, 0),
    "cat": ("animal", (5.0, 5.0, 0.2), (0.0, 0.0), (0.2, 0.4, 0.3), 0, 0),
    "barrier": ("movable_object.barrier", (-12.0, 9.0, 0.5), (0.0, 0.0), (2.0, 0.5, 1.0), 0, 0),
}


def real_keyframe() -> Path:
    """The real nuScenes keyframe, where there is one; skips the test otherwise."""
    default = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "nuscenes-frame"
    root = Path(os.environ.get("VEXKD_KEYFRAME", default))
    if not (root / VERSION).is_dir():
        pytest.skip("no real keyframe: set VEXKD_KEYFRAME to a folder with nuScenes' tables")
    return root


def ego_pose(time: int) -> tuple[list[float], list[float]]:
    """Rotation and translation of the ego car at a time: 6 m/s forward, turning slowly, a little pitched."""
    elapsed = (time - START) * 1e-6
    turn = Quaternion(axis=[0, 0, 1], radians=0.3 * elapsed) * Quaternion(axis=[0, 1, 0], radians=0.01)
    return turn.elements.tolist(), [6.0 * elapsed, 0.9 * elapsed**2, 0.02]


def sensors() -> dict[str, tuple[Quaternion, list[float]]]:
    """Channel -> rotation and translation in the ego frame; the LiDAR looks left, cameras look along their z."""
    optical = Quaternion(matrix=np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]))
    yaws = dict(zip(tables.CAMERAS, np.deg2rad([0, -55, 55, 180, 110, -110]), strict=True))
    found = {name: (geometry.yaw_rotation(yaw) * optical, [1.0, yaw / 5, 1.5]) for name, yaw in yaws.items()}
    found[tables.LIDAR] = (geometry.yaw_rotation(-np.pi / 2), [0.9, 0.0, 1.8])
    return found


def sweep_points(time: int) -> np.ndarray:
    """A whole sweep in firing order (RINGS a column), points inside the things, and the post as the last point."""
    rotation, translation = sensors()[tables.LIDAR]
    global_from_lidar = geometry.rigid(*ego_pose(time)) @ geometry.rigid(rotation.elements, translation)
    lidar_from_global = geometry.inverse(global_from_lidar)
    azimuth = -np.repeat(np.arange(COLUMNS), RINGS) * 2 * np.pi / COLUMNS
    reach = 15.0 + np.tile(np.arange(RINGS), COLUMNS)
    points = np.stack([reach * np.cos(azimuth), reach * np.sin(azimuth), np.full_like(reach, -4.0)], axis=1)
    rng = np.random.default_rng(time % 2**32)
    begin = 100
    for _, position, velocity, size, count, _ in THINGS.values():
        centre = np.array(position) + np.array([*velocity, 0]) * (time - START) * 1e-6
        inside = centre + rng.uniform(-0.3, 0.3, (count, 3)) * np.array(size)[[1, 0, 2]]
        points[begin : begin + count] = geometry.move(lidar_from_global, inside)
        begin += count
    points[0] = [0.5, 0.5, -1.0]  # the car's own roof
    points[-1] = geometry.move(lidar_from_global, POST[None])[0]
    intensity = np.full(len(points), 40.0)
    intensity[-1] = 255.0
    rings = np.tile(np.arange(RINGS), COLUMNS)
    return np.column_stack([points, intensity, rings]).astype(np.float32)


def write(root: Path) -> Path:
    """Write the set; returns its root."""
    writer = _Writer(root)
    for scene, keyframes in SCENES.items():
        writer.scene(scene, keyframes)
    writer.finish()
    return root


class _Writer:
    """Collects table rows and writes sensor files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rows: dict[str, list[dict]] = {name: [] for name in tables.TABLES}
        add = self.rows
        add["visibility"] = [{"token": str(i), "level": "", "description": ""} for i in range(1, 5)]
        add["attribute"] = [{"token": "moving", "name": "vehicle.moving", "description": ""}]
        add["log"] = [
            {"token": "log", "logfile": "a", "vehicle": "a", "date_captured": "", "location": "singapore-onenorth"}
        ]
        mask = "maps/53992ee3023e5494b90c316c183be829.png"
        add["map"] = [{"token": "map", "log_tokens": ["log"], "category": "semantic_prior", "filename": mask}]
        (root / "maps").mkdir(parents=True)
        Image.new("L", (20, 20)).save(root / mask)
        for name, (category, *_) in THINGS.items():
            add["category"].append({"token": f"c-{name}", "name": category, "description": ""})
        for channel, (rotation, translation) in sensors().items():
            modality = "lidar" if channel == tables.LIDAR else "camera"
            intrinsic = [[50.0, 0, 31.5], [0, 50.0, 17.5], [0, 0, 1]] if modality == "camera" else []
            add["sensor"].append({"token": channel, "channel": channel, "modality": modality})
            add["calibrated_sensor"].append(
                {
                    "token": f"k-{channel}",
                    "sensor_token": channel,
                    "translation": [float(t) for t in translation],
                    "rotation": rotation.elements.tolist(),
                    "camera_intrinsic": intrinsic,
                }
            )

    def scene(self, scene: str, keyframes: int) -> None:
        """One scene: keyframes, the sweeps between them, annotations."""
        tokens = [f"{scene}-{i}" for i in range(keyframes)]
        for i, token in enumerate(tokens):
            near = {"prev": tokens[i - 1] if i else "", "next": tokens[i + 1] if i + 1 < keyframes else ""}
            self.rows["sample"].append({"token": token, "timestamp": START + i * KEY, "scene_token": scene, **near})
            self.annotations(scene, i, keyframes)
            for channel in tables.CAMERAS:
                self.frame(channel, token, START + i * KEY - 7_000, key=True, prev="", following="")
        times = list(range(START, START + (keyframes - 1) * KEY + 1, SWEEP))
        names = [f"d-{tables.LIDAR}-{scene}-{time}" for time in times]
        for i, time in enumerate(times):
            owner = tokens[-(-(time - START) // KEY)]
            after = names[i + 1] if i + 1 < len(times) else ""
            key = (time - START) % KEY == 0
            self.frame(tables.LIDAR, owner, time, key=key, prev=names[i - 1] if i else "", following=after)
        about = {"token": scene, "log_token": "log", "nbr_samples": keyframes, "name": scene, "description": ""}
        self.rows["scene"].append({**about, "first_sample_token": tokens[0], "last_sample_token": tokens[-1]})

    def frame(self, channel: str, sample: str, time: int, *, key: bool, prev: str, following: str) -> None:
        """One row of sample_data with its ego pose and its file."""
        lidar = channel == tables.LIDAR
        scene = sample.rsplit("-", 1)[0]
        name = f"d-{channel}-{scene}-{time}"
        folder = "samples" if key else "sweeps"
        path = f"{folder}/{channel}/{name}" + (".pcd.bin" if lidar else ".jpg")
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        if lidar:
            sweep_points(time).tofile(self.root / path)
        else:
            noise = np.random.default_rng(time % 2**32).integers(0, 255, (IMAGE[1], IMAGE[0], 3), dtype=np.uint8)
            Image.fromarray(noise).save(self.root / path)
        rotation, translation = ego_pose(time)
        pose = {"token": f"e-{name}", "timestamp": time, "rotation": rotation, "translation": translation}
        self.rows["ego_pose"].append(pose)
        self.rows["sample_data"].append(
            {
                "token": name,
                "sample_token": sample,
                "ego_pose_token": f"e-{name}",
                "calibrated_sensor_token": f"k-{channel}",
                "timestamp": time,
                "fileformat": "pcd" if lidar else "jpg",
                "is_key_frame": key,
                "width": 0 if lidar else IMAGE[0],
                "height": 0 if lidar else IMAGE[1],
                "filename": path,
                "prev": prev,
                "next": following,
            }
        )

    def annotations(self, scene: str, i: int, keyframes: int) -> None:
        """The things at one keyframe."""
        for name, (_, position, velocity, size, lidar, radar) in THINGS.items():
            token = f"a-{scene}-{name}"
            if i == 0:
                ends = {"first_annotation_token": f"{token}-0", "last_annotation_token": f"{token}-{keyframes - 1}"}
                about = {"token": f"i-{token}", "category_token": f"c-{name}", "nbr_annotations": keyframes, **ends}
                self.rows["instance"].append(about)
            self.rows["sample_annotation"].append(
                {
                    "token": f"{token}-{i}",
                    "sample_token": f"{scene}-{i}",
                    "instance_token": f"i-{token}",
                    "visibility_token": "4",
                    "attribute_tokens": ["moving"] if name == "car" else [],
                    "translation": (np.array(position) + np.array([*velocity, 0]) * i * KEY * 1e-6).tolist(),
                    "size": list(size),
                    "rotation": geometry.yaw_rotation(0.0).elements.tolist(),
                    "prev": f"{token}-{i - 1}" if i else "",
                    "next": f"{token}-{i + 1}" if i + 1 < keyframes else "",
                    "num_lidar_pts": lidar,
                    "num_radar_pts": radar,
                }
            )

    def finish(self) -> None:
        """Write the 13 tables."""
        (self.root / VERSION).mkdir()
        for name, rows in self.rows.items():
            (self.root / VERSION / f"{name}.json").write_text(json.dumps(rows, indent=0))


def test_the_devkit_reads_the_tiny_set(tmp_path):
    from nuscenes.nuscenes import NuScenes

    nusc = NuScenes(VERSION, str(write(tmp_path)), verbose=False)
    assert len(nusc.sample) == sum(SCENES.values())
    path, found, _ = nusc.get_sample_data(nusc.sample[1]["data"][tables.LIDAR])
    points = np.fromfile(path, np.float32).reshape(-1, 5)
    assert len(points) == RINGS * COLUMNS
    car = next(box for box in found if box.name == "vehicle.car")
    offset = np.abs((points[:, :3] - car.center) @ car.rotation_matrix)
    assert (offset <= car.wlh[[1, 0, 2]] / 2).all(axis=1).sum() == 20
