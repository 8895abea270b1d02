"""The four tables of the infos, made from what was read of nuScenes' tables. Letters: S samples, N cameras."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vexkd import boxes as box_tools
from vexkd import geometry
from vexkd.data import tables
from vexkd.data.annotations import Annotations
from vexkd.data.frames import Frames, Samples
from vexkd.data.infos import BOX


def sweeps(root: Path, lidar: Frames, max_sweeps: int) -> pa.Table:
    """For each sample the earlier sweeps, nearest first; file sizes are those on disk now, 0 if absent."""
    global_from_lidar = lidar.global_from_ego @ lidar.ego_from_sensor
    lidar_from_global = geometry.inverse(global_from_lidar[lidar.key])  # S 4 4
    current = lidar.key
    chains: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # samples, orders, rows
    for order in range(max_sweeps):
        current = np.where(current >= 0, lidar.previous[current], -1)
        samples = np.flatnonzero(current >= 0)
        chains.append((samples, np.full(len(samples), order), current[samples]))
    sample, order, row = (np.concatenate(c) for c in zip(*chains, strict=True)) if chains else (np.zeros(0, int),) * 3
    rank = np.lexsort((order, sample))
    sample, order, row = sample[rank], order[rank], row[rank]
    sizes = {i: _bytes(root / lidar.paths[i]) for i in np.unique(row)}
    return pa.table(
        {
            "sample": pa.array(sample, pa.int32()),
            "order": pa.array(order, pa.int8()),
            "path": pa.array([lidar.paths[i] for i in row], pa.string()),
            "bytes": pa.array([sizes[i] for i in row], pa.int64()),
            "lag": (lidar.timestamps[lidar.key[sample]] - lidar.timestamps[row]) * 1e-6,
            "lidar_from_sweep": _lists(lidar_from_global[sample] @ global_from_lidar[row]),
        }
    )


def cameras(lidar: Frames, cameras: Frames) -> pa.Table:
    """Six rows a sample, ordered as `tables.CAMERAS`; none in a set without cameras.

    The transform goes through the ego poses of both exposures.
    """
    count = len(tables.CAMERAS) if len(cameras.key) else 0  # a data set without any camera has no rows
    samples = np.repeat(np.arange(len(lidar.key)), count)
    global_from_lidar = (lidar.global_from_ego @ lidar.ego_from_sensor)[lidar.key[samples]]
    global_from_camera = (cameras.global_from_ego @ cameras.ego_from_sensor)[cameras.key]
    return pa.table(
        {
            "sample": pa.array(samples, pa.int32()),
            "channel": pa.array([tables.CAMERAS[i % count] for i in range(len(samples))], pa.string()),
            "path": pa.array([cameras.paths[i] for i in cameras.key], pa.string()),
            "width": pa.array(cameras.sizes[cameras.key, 0]),
            "height": pa.array(cameras.sizes[cameras.key, 1]),
            "intrinsics": _lists(cameras.intrinsics[cameras.key]),
            "camera_from_lidar": _lists(geometry.inverse(global_from_camera) @ global_from_lidar),
        }
    )


def boxes(root: Path, version: str, samples: Samples, lidar: Frames) -> pa.Table:
    """Annotations of the ten classes in the LiDAR frames, ordered by sample, then as in the table."""
    rows = Annotations.read(root, version, samples)
    boxes_global = box_tools.from_nuscenes(rows.translation, rows.size, rows.rotation)
    boxes_global[:, 7:9] = rows.velocities(samples.timestamps)
    detected = np.flatnonzero(rows.label >= 0)
    kept = detected[np.argsort(rows.sample[detected], kind="stable")]
    owner = rows.sample[kept]
    lidar_from_global = geometry.inverse((lidar.global_from_ego @ lidar.ego_from_sensor)[lidar.key])
    boxes_lidar = boxes_global[kept]
    edges = np.searchsorted(owner, np.arange(len(samples.tokens) + 1))
    for sample in np.unique(owner):
        window = slice(edges[sample], edges[sample + 1])
        boxes_lidar[window] = box_tools.move(boxes_lidar[window], lidar_from_global[sample])
    names = np.array(box_tools.CLASSES)
    columns: dict[str, Any] = {
        "sample": pa.array(owner, pa.int32()),
        "token": pa.array([rows.tokens[i] for i in kept], pa.string()),
        "instance": pa.array([rows.instances[i] for i in kept], pa.string()),
        "class": pa.array(names[rows.label[kept]].tolist(), pa.string()),
        "label": pa.array(rows.label[kept], pa.int8()),
    }
    columns |= {name: boxes_lidar[:, i] for i, name in enumerate(BOX)}
    columns |= {
        "num_lidar_pts": pa.array(rows.lidar_points[kept], pa.int32()),
        "num_radar_pts": pa.array(rows.radar_points[kept], pa.int32()),
        "valid": rows.lidar_points[kept] + rows.radar_points[kept] > 0,
        "visibility": pa.array([rows.visibility[i] for i in kept], pa.string()),
        "attribute": pa.array([rows.attributes[i] for i in kept], pa.string()),
    }
    return pa.table(columns)


def samples(root: Path, known: Samples, lidar: Frames, written: dict[str, pa.Table]) -> pa.Table:
    """One row a sample, with where its sweeps and boxes stand in the other files."""
    columns: dict[str, Any] = {
        "index": pa.array(np.arange(len(known.tokens)), pa.int32()),
        "token": pa.array(known.tokens, pa.string()),
        "scene": pa.array(known.scenes, pa.string()),
        "split": pa.array(split_names(known.splits, known.scenes), pa.string()),
        "location": pa.array(known.locations, pa.string()),
        "timestamp": pa.array(known.timestamps),
        "lidar_path": pa.array([lidar.paths[i] for i in lidar.key], pa.string()),
        "lidar_bytes": pa.array([_bytes(root / lidar.paths[i]) for i in lidar.key], pa.int64()),
        "ego_from_lidar": _lists(lidar.ego_from_sensor[lidar.key]),
        "global_from_ego": _lists(lidar.global_from_ego[lidar.key]),
    }
    for kind, name in (("sweep", "sweeps"), ("box", "boxes")):
        counts = np.bincount(written[name]["sample"].to_numpy(), minlength=len(known.tokens))
        columns[f"{kind}_offset"] = np.cumsum(counts) - counts
        columns[f"{kind}_count"] = counts
    return pa.table(columns)


def split_names(splits: dict[str, list[str]], scenes: list[str]) -> list[str]:
    """The first split that holds each of these scenes, "" where none does."""
    split_of = {scene: name for name, members in reversed(splits.items()) for scene in members}
    return [split_of.get(scene, "") for scene in scenes]


def _lists(matrices: np.ndarray) -> pa.FixedSizeListArray:
    """(rows, n, n) -> one fixed-size list a row."""
    width = matrices.shape[1] * matrices.shape[2]
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(matrices).reshape(-1)), width)


def _bytes(path: Path) -> int:
    """Size of a file, 0 if it is absent."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
