"""Samples and the frames of their sensors, read from nuScenes' tables into columns, by the rules of `rules`.

Letters: S samples, N cameras. Every function raises InputError that names the table and the token that breaks a rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vexkd import geometry
from vexkd.data import rules, tables
from vexkd.data import splits as split_tools
from vexkd.errors import InputError

_FARTHEST_SENSOR, _FARTHEST_CAR = 100.0, 1e7  # metres: from the car's axle, from the map's origin
_LARGEST_IMAGE = 1 << 16  # pixels a side


@dataclass
class Samples:
    """Samples in the order of their scenes, then of time."""

    tokens: list[str]
    position: dict[str, int]
    scenes: list[str]
    locations: list[str]
    timestamps: np.ndarray
    splits: dict[str, list[str]]

    @classmethod
    def read(cls, root: Path, version: str) -> Samples:
        logs = _logs(root, version)
        scenes = _scenes(root, version, logs)
        order = {token: i for i, token in enumerate(scenes)}
        path = tables.path_of(root, version, "sample")
        samples = tables.index(root, version, "sample")
        if not samples:
            raise InputError(f"{path} holds no sample: {tables.CURE}.")
        rules.known(path, list(samples), [row["scene_token"] for row in samples.values()], "scene", scenes)
        rules.times(path, list(samples), [row["timestamp"] for row in samples.values()])
        ordered = sorted(samples.values(), key=lambda row: (order[row["scene_token"]], row["timestamp"]))
        for row, following in zip(ordered, ordered[1:], strict=False):
            if (row["scene_token"], row["timestamp"]) == (following["scene_token"], following["timestamp"]):
                raise tables.fault(path, following["token"], f"it has the time of {row['token']}, of the same scene")
        owners = [scenes[row["scene_token"]] for row in ordered]
        return cls(
            tokens=[row["token"] for row in ordered],
            position={row["token"]: i for i, row in enumerate(ordered)},
            scenes=[scene["name"] for scene in owners],
            locations=[logs[scene["log_token"]]["location"] for scene in owners],
            timestamps=np.array([row["timestamp"] for row in ordered], dtype=np.int64),
            splits=split_tools.read(root, version, [scene["name"] for scene in scenes.values()]),
        )


def _logs(root: Path, version: str) -> dict[str, dict[str, Any]]:
    """The rows of log; each has a map, as the devkit needs it."""
    logs = tables.index(root, version, "log")
    path, mapped = tables.path_of(root, version, "map"), set()
    for token, row in tables.index(root, version, "map").items():
        _check_filename(path, token, row["filename"])
        mapped |= {str(name) for name in row["log_tokens"]}
    alone = next((token for token in logs if token not in mapped), None)
    if alone is not None:
        raise tables.fault(
            tables.path_of(root, version, "log"), alone, "no row of map.json names it, and nuscenes-devkit needs one"
        )
    return logs


def _scenes(root: Path, version: str, logs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of scene, whose names differ, since splits name them."""
    path = tables.path_of(root, version, "scene")
    scenes = tables.index(root, version, "scene")
    rules.known(path, list(scenes), [row["log_token"] for row in scenes.values()], "log", logs)
    named: dict[str, str] = {}
    for token, row in scenes.items():
        if not row["name"]:
            raise tables.fault(path, token, "its name is empty")
        if row["name"] in named:
            raise tables.fault(path, token, f"its name {row['name']} is that of row {named[row['name']]} too")
        named[row["name"]] = token
    return scenes


@dataclass
class Frames:
    """Rows of sample_data of one sensor kind, with their poses. `key` (S or S*N,): the row of each keyframe."""

    paths: list[str]
    timestamps: np.ndarray
    previous: np.ndarray  # row of the previous frame, -1 for none
    ego_from_sensor: np.ndarray  # rows 4 4
    global_from_ego: np.ndarray  # rows 4 4
    sizes: np.ndarray  # rows 2
    intrinsics: np.ndarray  # rows 3 3
    key: np.ndarray


def sensor_data(root: Path, version: str, samples: Samples) -> tuple[Frames, Frames]:
    """All LiDAR frames, and the cameras' keyframes, of the known samples; no camera at all is none for any sample."""
    path = tables.path_of(root, version, "sample_data")
    channel = {token: sensor["channel"] for token, sensor in tables.sensors(root, version).items()}
    lidar: list[dict[str, Any]] = []
    cameras: list[dict[str, Any]] = []
    for row in tables.rows(root, version, "sample_data"):
        name = channel.get(row["calibrated_sensor_token"])
        owner = samples.position.get(row["sample_token"])
        if name is None:
            raise tables.fault(path, row["token"], rules.lacks("calibrated_sensor", row["calibrated_sensor_token"]))
        if owner is None:
            raise tables.fault(path, row["token"], rules.lacks("sample", row["sample_token"]))
        if name == tables.LIDAR:
            lidar.append(_slim(row, name, owner))
        elif row["is_key_frame"] and name in tables.CAMERAS:
            cameras.append(_slim(row, name, owner))
    poses = _ego_poses(root, version, {row["ego"] for row in lidar} | {row["ego"] for row in cameras})
    calibrations = tables.index(root, version, "calibrated_sensor")
    folder = path.parent
    found = (
        _frames(lidar, calibrations, poses, samples, (tables.LIDAR,), folder),
        _frames(cameras, calibrations, poses, samples, tables.CAMERAS if cameras else (), folder),
    )
    _check_sweeps(path, lidar, found[0], samples)
    _check_drive(folder / "ego_pose.json", lidar, found[0], samples)
    _check_images(path, cameras, found[1])
    return found


def _slim(row: dict[str, Any], channel: str, owner: int) -> dict[str, Any]:
    """The columns of a sample_data row that are needed (key sharing keeps millions of them small)."""
    return {
        "token": row["token"],
        "owner": owner,
        "is_key": row["is_key_frame"],
        "channel": channel,
        "calibration": row["calibrated_sensor_token"],
        "ego": row["ego_pose_token"],
        "path": row["filename"],
        "timestamp": row["timestamp"],
        "prev": row["prev"],
        "size": (row.get("width") or 0, row.get("height") or 0),
    }


def _ego_poses(root: Path, version: str, wanted: set[str]) -> dict[str, tuple[list[float], list[float], Any]]:
    """Token -> (rotation, translation, timestamp if it has one) of the wanted ego poses."""
    return {
        row["token"]: (row["rotation"], row["translation"], row.get("timestamp"))
        for row in tables.rows(root, version, "ego_pose")
        if row["token"] in wanted
    }


def _frames(
    rows: list[dict[str, Any]],
    calibrations: dict[str, dict[str, Any]],
    poses: dict[str, tuple[list[float], list[float], Any]],
    samples: Samples,
    channels: tuple[str, ...],
    folder: Path,
) -> Frames:
    """Columns of the rows, and which row is the keyframe of each sample (and channel)."""
    path, tokens = folder / "sample_data.json", [row["token"] for row in rows]
    rules.known(path, tokens, [row["ego"] for row in rows], "ego_pose", poses)
    times = rules.times(path, tokens, [row["timestamp"] for row in rows])
    key = _keyframes(path, rows, samples, channels)
    _check_pose_times(path, rows, [poses[row["ego"]][2] for row in rows])
    used = [calibrations[row["calibration"]] for row in rows]
    named = [row["calibration"] for row in rows]
    ego_from_sensor = _rigids(
        folder / "calibrated_sensor.json",
        named,
        [c["rotation"] for c in used],
        [c["translation"] for c in used],
        _FARTHEST_SENSOR,
    )
    egos = [row["ego"] for row in rows]
    global_from_ego = _rigids(
        folder / "ego_pose.json", egos, [poses[e][0] for e in egos], [poses[e][1] for e in egos], _FARTHEST_CAR
    )
    rules.upright(folder / "ego_pose.json", egos, global_from_ego, "the car")
    if channels == (tables.LIDAR,):
        rules.upright(folder / "calibrated_sensor.json", named, ego_from_sensor, "the LiDAR")
    sizes = [size for row in rows for size in row["size"]]
    repeated = [token for token in tokens for _ in range(2)]
    return Frames(
        paths=_filenames(path, rows),
        timestamps=times,
        previous=_previous(path, rows, tokens) if channels == (tables.LIDAR,) else np.full(len(rows), -1),
        ego_from_sensor=ego_from_sensor,
        global_from_ego=global_from_ego,
        sizes=rules.whole(path, repeated, "the size of its image", sizes, _LARGEST_IMAGE)
        .astype(np.int32)
        .reshape(-1, 2),
        intrinsics=_intrinsics(folder / "calibrated_sensor.json", used),
        key=key,
    )


def _check_pose_times(path: Path, rows: list[dict[str, Any]], times: list[Any]) -> None:
    """The ego pose of a frame is of its time, where poses have times (nuScenes' have the very same)."""
    for row, time in zip(rows, times, strict=True):
        if type(time) is int and rules.EARLIEST < time < rules.LATEST:
            off = time - row["timestamp"]
            if abs(off) > rules.KEYFRAME_SLACK:
                raise tables.fault(
                    path, row["token"], f"its ego pose {row['ego']} is of a time {off * 1e-6:.4g} s from its own"
                )


def _rigids(path: Path, tokens: list[str], rotations: list[Any], translations: list[Any], limit: float) -> np.ndarray:
    """(rows, 4, 4) from checked quaternions and translations."""
    moved = rules.translations(path, tokens, translations, limit)
    return geometry.rigids(rules.rotations(path, tokens, rotations), moved)


def _keyframes(path: Path, rows: list[dict[str, Any]], samples: Samples, channels: tuple[str, ...]) -> np.ndarray:
    """The row (S*N,) of each sample's keyframe of each channel: one, and near the sample's time."""
    key = np.full((len(samples.tokens), len(channels)), -1, dtype=np.int64)
    for i, row in enumerate(rows):
        if not row["is_key"]:
            continue
        slot = row["owner"], channels.index(row["channel"])
        sample = samples.tokens[slot[0]]
        if key[slot] >= 0:
            other = rows[key[slot]]["token"]
            raise tables.fault(
                path, row["token"], f"it and {other} are both keyframes of {row['channel']} of sample {sample}"
            )
        key[slot] = i
        off = row["timestamp"] - int(samples.timestamps[slot[0]])
        if abs(off) > rules.KEYFRAME_SLACK and rules.EARLIEST < row["timestamp"] < rules.LATEST:
            raise tables.fault(
                path, row["token"], f"it is a keyframe {off * 1e-6:.4g} s from the time of its sample {sample}"
            )
    if (key < 0).any():
        sample, channel = np.argwhere(key < 0)[0]
        raise InputError(
            f"{path}: sample {samples.tokens[sample]} has no keyframe of {channels[channel]}: {tables.CURE}."
        )
    return key.reshape(-1)


def _previous(path: Path, rows: list[dict[str, Any]], tokens: list[str]) -> np.ndarray:
    """The row (rows,) of the frame before each one, -1 for none."""
    where = {token: i for i, token in enumerate(tokens)}
    named = [row["prev"] for row in rows]
    lost = next((i for i, name in enumerate(named) if name and name not in where), None)
    if lost is not None:
        raise tables.fault(path, tokens[lost], f"prev names no frame of {tables.LIDAR} ({named[lost][:40]!r})")
    return np.array([where.get(name, -1) for name in named], dtype=np.int64)


def _check_sweeps(path: Path, rows: list[dict[str, Any]], lidar: Frames, samples: Samples) -> None:
    """The frame before a frame is an earlier one of the same scene, so that no chain has a circle."""
    tokens = [row["token"] for row in rows]
    before, times = lidar.previous, lidar.timestamps
    linked = before >= 0
    rules.refuse(path, tokens, before == np.arange(len(before)), "prev names the row itself")
    rules.refuse(
        path,
        tokens,
        linked & (times[before] >= times),
        lambda i: f"prev names {tokens[before[i]]}, which is not earlier",
    )
    scenes = [samples.scenes[row["owner"]] for row in rows]
    mixed = np.array([j >= 0 and scenes[i] != scenes[j] for i, j in enumerate(before)], dtype=bool)
    rules.refuse(
        path,
        tokens,
        mixed,
        lambda i: f"prev names {tokens[before[i]]} of {scenes[before[i]]}, but the row is of {scenes[i]}",
    )


def _check_drive(path: Path, rows: list[dict[str, Any]], lidar: Frames, samples: Samples) -> None:
    """From frame to frame the car neither jumps nor drives across the way it looks all along a scene."""
    after = np.flatnonzero(lidar.previous >= 0)
    before = lidar.previous[after]
    seconds = (lidar.timestamps[after] - lidar.timestamps[before]) * 1e-6
    step = lidar.global_from_ego[after, :3, 3] - lidar.global_from_ego[before, :3, 3]
    metres = np.linalg.norm(step, axis=1)
    egos = [rows[i]["ego"] for i in after]
    rules.refuse(
        path,
        egos,
        (metres > 20) & (metres > rules.FASTEST * seconds),
        lambda i: f"the car jumps {metres[i]:.4g} m in the {seconds[i]:.4g} s before it; nuScenes counts in metres",
    )
    ahead = np.einsum("ij,ij->i", lidar.global_from_ego[before, :3, 0], step)
    fast = metres > 4 * seconds
    owners = np.array([rows[i]["owner"] for i in after], dtype=np.int64)
    _, scene = np.unique(np.array(samples.scenes, dtype=object).astype(str)[owners], return_inverse=True)
    strange = np.bincount(scene[fast & (ahead < 0.5 * metres)], minlength=scene.max(initial=-1) + 1)
    moving = np.bincount(scene[fast], minlength=len(strange))
    wrong = (moving >= 10) & (2 * strange > moving)
    rules.refuse(
        path,
        egos,
        wrong[scene],
        lambda i: (
            f"all along {samples.scenes[owners[i]]} the car does not drive where it looks: "
            "nuScenes' rotations are w, x, y, z and global_from_ego"
        ),
    )


def _check_images(path: Path, rows: list[dict[str, Any]], cameras: Frames) -> None:
    """An image has a size, a focal length, and looks at its own middle rather than somewhere outside."""
    tokens, calibrations = [row["token"] for row in rows], [row["calibration"] for row in rows]
    rules.refuse(path, tokens, (cameras.sizes <= 0).any(axis=1), "width or height of its image is not above 0")
    matrices = cameras.intrinsics
    above = path.with_name("calibrated_sensor.json")
    good = (matrices[:, [0, 1], [0, 1]] > 0).all(axis=1) & (np.abs(matrices[:, 2] - [0, 0, 1]) < 1e-6).all(axis=1)
    rules.refuse(
        above,
        calibrations,
        ~good,
        "camera_intrinsic is no camera matrix (focal lengths above 0, 0 0 1 in its last row)",
    )
    centre = matrices[:, :2, 2] / cameras.sizes  # of the principal point, in widths and heights
    swapped = matrices[:, :2, 2] / cameras.sizes[:, ::-1]
    off, otherwise = np.abs(centre - 0.5).max(axis=1), np.abs(swapped - 0.5).max(axis=1)
    rules.refuse(
        path,
        tokens,
        (off > 0.25) & (otherwise < 0.15),
        lambda i: f"width {cameras.sizes[i, 0]} and height {cameras.sizes[i, 1]} are swapped, by the camera's matrix",
    )
    rules.refuse(
        above,
        calibrations,
        off > 0.5,
        lambda i: (
            f"camera_intrinsic looks past the image of {cameras.sizes[i, 0]}x{cameras.sizes[i, 1]} pixels of {tokens[i]}"
        ),
    )
    down = cameras.ego_from_sensor[:, 2, 1] if len(rows) else np.zeros(0)
    rules.refuse(
        above,
        calibrations,
        down > -0.3,
        "rotation lays the camera on its side; nuScenes' quaternions are w, x, y, z",
    )


def _filenames(path: Path, rows: list[dict[str, Any]]) -> list[str]:
    """The files of the rows: below the root, each of one row, in no other sensor's folder."""
    owners: dict[str, str] = {}
    channels = {tables.LIDAR, *tables.CAMERAS}
    for row in rows:
        name = row["path"]
        _check_filename(path, row["token"], name)
        if name in owners:
            raise tables.fault(path, row["token"], f"filename {name} is that of row {owners[name]} too")
        foreign = channels.intersection(name.split("/")[:-1]) - {row["channel"]}
        if foreign:
            raise tables.fault(
                path, row["token"], f"filename {name} is of {min(foreign)}, but the row is of {row['channel']}"
            )
        owners[name] = row["token"]
    return list(owners)


def _check_filename(path: Path, token: str, name: str) -> None:
    """A file lies below the root."""
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or "\0" in name:
        raise tables.fault(path, token, f"filename {name[:60]!r} is no path below the root")


def _intrinsics(path: Path, used: list[dict[str, Any]]) -> np.ndarray:
    """The camera matrices (rows, 3, 3) of calibrations, zero where the sensor has none."""
    matrices = np.zeros((len(used), 3, 3))
    for i, calibration in enumerate(used):
        if calibration["camera_intrinsic"]:
            try:
                matrix = np.array(calibration["camera_intrinsic"], dtype=np.float64)
            except (TypeError, ValueError, OverflowError):
                matrix = np.zeros(0)
            if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
                raise tables.fault(path, calibration["token"], "camera_intrinsic is not 3 x 3 numbers")
            matrices[i] = matrix
    return matrices
