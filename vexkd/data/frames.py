"""Samples and the frames of their sensors, read from nuScenes' tables into columns. Letters: S samples, N cameras."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vexkd import geometry
from vexkd.data import tables
from vexkd.errors import InputError


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
        logs = tables.index(root, version, "log")
        scenes = tables.index(root, version, "scene")
        order = {token: i for i, token in enumerate(scenes)}
        found = tables.index(root, version, "sample")
        for row in found.values():
            if row["scene_token"] not in scenes or scenes[row["scene_token"]]["log_token"] not in logs:
                raise InputError(
                    f"sample {row['token']} names a scene or log that {version} lacks: extract the metadata again."
                )
        ordered = sorted(found.values(), key=lambda row: (order[row["scene_token"]], row["timestamp"]))
        owners = [scenes[row["scene_token"]] for row in ordered]
        present = {scene["name"] for scene in scenes.values()}
        splits = {name: [s for s in members if s in present] for name, members in tables.splits(root, version).items()}
        return cls(
            tokens=[row["token"] for row in ordered],
            position={row["token"]: i for i, row in enumerate(ordered)},
            scenes=[scene["name"] for scene in owners],
            locations=[logs[scene["log_token"]]["location"] for scene in owners],
            timestamps=np.array([row["timestamp"] for row in ordered], dtype=np.int64),
            splits=splits,
        )


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
    """All LiDAR frames, and the cameras' keyframes, of the known samples."""
    calibrations = tables.index(root, version, "calibrated_sensor")
    channel = {token: sensor["channel"] for token, sensor in tables.sensors(root, version).items()}
    lidar: list[dict[str, Any]] = []
    cameras: list[dict[str, Any]] = []
    for row in tables.rows(root, version, "sample_data"):
        name = channel.get(row["calibrated_sensor_token"])
        if name == tables.LIDAR:
            lidar.append(_slim(row, name))
        elif row["is_key_frame"] and name in tables.CAMERAS:
            cameras.append(_slim(row, name))
    poses = _ego_poses(root, version, {row["ego"] for row in lidar} | {row["ego"] for row in cameras})
    return (
        _frames(lidar, calibrations, poses, samples, (tables.LIDAR,)),
        _frames(cameras, calibrations, poses, samples, tables.CAMERAS),
    )


def _slim(row: dict[str, Any], channel: str) -> dict[str, Any]:
    """The columns of a sample_data row that are needed (key sharing keeps millions of them small)."""
    return {
        "token": row["token"],
        "sample": row["sample_token"] if row["is_key_frame"] else "",
        "channel": channel,
        "calibration": row["calibrated_sensor_token"],
        "ego": row["ego_pose_token"],
        "path": row["filename"],
        "timestamp": row["timestamp"],
        "prev": row["prev"],
        "size": (row.get("width") or 0, row.get("height") or 0),
    }


def _ego_poses(root: Path, version: str, wanted: set[str]) -> dict[str, tuple[list[float], list[float]]]:
    """Token -> (rotation, translation) of the wanted ego poses."""
    return {
        row["token"]: (row["rotation"], row["translation"])
        for row in tables.rows(root, version, "ego_pose")
        if row["token"] in wanted
    }


def _frames(
    rows: list[dict[str, Any]],
    calibrations: dict[str, dict[str, Any]],
    poses: dict[str, tuple[list[float], list[float]]],
    samples: Samples,
    channels: tuple[str, ...],
) -> Frames:
    """Columns of the rows, and which row is the keyframe of each sample (and channel)."""
    missing = next((row for row in rows if row["ego"] not in poses), None)
    if missing:
        raise InputError(
            f"sample_data {missing['token']} names an ego pose that ego_pose.json lacks: extract the metadata again."
        )
    where = {row["token"]: i for i, row in enumerate(rows)}
    used = [calibrations[row["calibration"]] for row in rows]
    with np.errstate(invalid="ignore"):  # refused below
        ego_from_sensor = geometry.rigids([c["rotation"] for c in used], [c["translation"] for c in used])
        global_from_ego = geometry.rigids([poses[r["ego"]][0] for r in rows], [poses[r["ego"]][1] for r in rows])
    refuse_nan("calibrated_sensor", [row["calibration"] for row in rows], ego_from_sensor)
    refuse_nan("ego_pose", [row["ego"] for row in rows], global_from_ego)
    key = np.full((len(samples.tokens), len(channels)), -1, dtype=np.int64)
    for i, row in enumerate(rows):
        owner = samples.position.get(row["sample"])
        if owner is not None:
            key[owner, channels.index(row["channel"])] = i
    if (key < 0).any():
        sample, channel = np.argwhere(key < 0)[0]
        raise InputError(
            f"sample {samples.tokens[sample]} has no keyframe of {channels[channel]}: extract the metadata again."
        )
    return Frames(
        paths=[row["path"] for row in rows],
        timestamps=np.array([row["timestamp"] for row in rows], dtype=np.int64),
        previous=np.array([where.get(row["prev"], -1) for row in rows], dtype=np.int64),
        ego_from_sensor=ego_from_sensor,
        global_from_ego=global_from_ego,
        sizes=np.array([row["size"] for row in rows], dtype=np.int32).reshape(-1, 2),
        intrinsics=_intrinsics(used),
        key=key.reshape(-1),
    )


def _intrinsics(used: list[dict[str, Any]]) -> np.ndarray:
    """The camera matrices (rows, 3, 3) of calibrations, zero where the sensor has none."""
    matrices = np.zeros((len(used), 3, 3))
    for i, calibration in enumerate(used):
        if calibration["camera_intrinsic"]:
            try:
                matrices[i] = np.array(calibration["camera_intrinsic"], dtype=np.float64).reshape(3, 3)
            except (TypeError, ValueError):
                raise InputError(
                    f"calibrated_sensor {calibration['token']}: camera_intrinsic is not 3 x 3 numbers: "
                    "extract the metadata again."
                ) from None
    return matrices


def refuse_nan(table: str, tokens: list[str], values: np.ndarray) -> None:
    """Raises InputError that names the first row (of `tokens`) whose numbers are not finite."""
    finite = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    if not finite.all():
        raise InputError(
            f"{table} {tokens[int(finite.argmin())]} holds a number that is not finite or a rotation of length 0: "
            "extract the metadata again."
        )
