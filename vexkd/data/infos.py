"""Infos: nuScenes' tables boiled down to four flat Parquet files, as training and evaluation read them (`infos_build` writes them).

`samples`, `sweeps`, `cameras` and `boxes` are tidy tables (readable by pandas); matrices are row-major lists of 16
numbers named target_from_source. Letters: S samples, M boxes, K sweeps of a sample, N cameras.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vexkd import boxes as box_tools
from vexkd import provenance
from vexkd.data import splits as split_tools
from vexkd.data import tables
from vexkd.errors import InputError

SCHEMA = 1
BOX = ("x", "y", "z", "l", "w", "h", "yaw", "vx", "vy")  # the columns of a box
FILES = ("sweeps", "cameras", "boxes", "samples")  # samples last: it seals the others


@dataclass(frozen=True)
class Keyframe:
    """One sample as the infos know it. Paths are relative to the data root; boxes are in the LiDAR frame.

    sweep_paths (K), sweep_bytes (K,), sweep_lags (K,) seconds, lidar_from_sweep (K, 4, 4): nearest first.
    camera_paths (N), camera_sizes (N, 2) width and height, intrinsics (N, 3, 3), camera_from_lidar (N, 4, 4).
    boxes (M, 9), labels (M,), valid (M,) LiDAR or radar has seen it, lidar_points (M,), annotations (M) tokens.
    lidar_bytes, sweep_bytes: file sizes when the infos were made, 0 if the file was absent then.
    """

    index: int
    token: str
    scene: str
    location: str
    timestamp: int
    lidar_path: str
    lidar_bytes: int
    ego_from_lidar: np.ndarray
    global_from_ego: np.ndarray
    sweep_paths: list[str]
    sweep_bytes: np.ndarray
    sweep_lags: np.ndarray
    lidar_from_sweep: np.ndarray
    camera_paths: list[str]
    camera_sizes: np.ndarray
    intrinsics: np.ndarray
    camera_from_lidar: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    valid: np.ndarray
    lidar_points: np.ndarray
    annotations: list[str]

    @property
    def global_from_lidar(self) -> np.ndarray:
        """(4, 4) float64."""
        return self.global_from_ego @ self.ego_from_lidar


@dataclass(frozen=True)
class Infos:
    """Loaded infos, or a split of them: `rows` (S,) are the samples it covers, `splits` maps a split to its scenes."""

    version: str
    splits: dict[str, list[str]]
    samples: pa.Table
    sweeps: pa.Table
    cameras: pa.Table
    boxes: pa.Table
    arrays: dict[str, np.ndarray]
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Keyframe]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, position: int) -> Keyframe:
        """The keyframe at a position of this split."""
        return self._keyframe(int(self.rows[position]))

    def history(self, position: int, count: int) -> list[Keyframe]:
        """The `count` keyframes before the one at a position, nearest first, of the same scene.

        As in the published recipe (BEVDet4D) the keyframe itself stands for those before its scene.
        """
        row = int(self.rows[position])
        scenes = self.samples["scene"]
        earlier = [row - back if back <= row else row for back in range(1, count + 1)]
        return [self._keyframe(e if scenes[e] == scenes[row] else row) for e in earlier]

    def _keyframe(self, row: int) -> Keyframe:
        """The keyframe in a row of `samples`."""
        a = self.arrays
        sweep = _window(a["sweep_offset"], a["sweep_count"], row)
        box = _window(a["box_offset"], a["box_count"], row)
        camera = slice(row * len(tables.CAMERAS), (row + 1) * len(tables.CAMERAS))
        return Keyframe(
            index=row,
            **{
                name: self.samples[name][row].as_py()
                for name in ("token", "scene", "location", "timestamp", "lidar_path")
            },
            lidar_bytes=int(a["lidar_bytes"][row]),
            ego_from_lidar=a["ego_from_lidar"][row],
            global_from_ego=a["global_from_ego"][row],
            sweep_paths=_strings(self.sweeps["path"], sweep),
            sweep_bytes=a["sweep_bytes"][sweep],
            sweep_lags=a["sweep_lags"][sweep],
            lidar_from_sweep=a["lidar_from_sweep"][sweep],
            camera_paths=_strings(self.cameras["path"], camera),
            camera_sizes=a["camera_sizes"][camera],
            intrinsics=a["intrinsics"][camera],
            camera_from_lidar=a["camera_from_lidar"][camera],
            boxes=a["boxes"][box],
            labels=a["labels"][box],
            valid=a["valid"][box],
            lidar_points=a["lidar_points"][box],
            annotations=_strings(self.boxes["token"], box),
        )

    def tokens(self) -> list[str]:
        """Sample tokens of this split, in order."""
        return self.samples["token"].take(pa.array(self.rows)).to_pylist()

    def subset(self, split: str) -> Infos:
        """The samples of one split; raises InputError that names the known splits."""
        split_tools.require(self.splits, split, self.version)
        scenes = pa.array(self.splits[split], pa.string())
        inside = pa.compute.is_in(self.samples["scene"], value_set=scenes).to_numpy(zero_copy_only=False)
        return replace(self, rows=np.intersect1d(self.rows, np.flatnonzero(inside)))

    def holds_class(self) -> np.ndarray:
        """Mask (S, 10): does the sample hold a valid box of the class."""
        a = self.arrays
        held = np.zeros((len(a["box_count"]), len(box_tools.CLASSES)), dtype=bool)
        owner = np.repeat(np.arange(len(held)), a["box_count"])
        held[owner[a["valid"]], a["labels"][a["valid"]]] = True
        return held[self.rows]


def load(directory: Path) -> Infos:
    """Read infos. Raises InputError if they are missing, damaged, of another schema, or mixed from two builds."""
    directory = Path(directory)
    cure = "run vexkd infos again"
    columns, metadata = {}, {}
    for name in FILES:
        path = directory / f"{name}.parquet"
        if not path.is_file():
            raise InputError(f"infos file {path} does not exist: {cure}.")
        try:
            metadata = pq.read_schema(path).metadata or {}
            schema = metadata.get(b"vexkd.schema", b"unknown").decode()
            if schema != str(SCHEMA):
                raise InputError(f"infos file {path} has schema {schema} instead of {SCHEMA}: {cure}.")
            columns[name] = pq.read_table(path, page_checksum_verification=True).combine_chunks()
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0].split(". ")[0].rstrip(".")
            raise InputError(f"infos file {path} is damaged or may not be read ({reason}): {cure}.") from None
    for name, expected in json.loads(metadata[b"vexkd.digests"]).items():
        if provenance.file_digest(directory / f"{name}.parquet") != expected:
            raise InputError(
                f"infos file {directory / name}.parquet was not made together with samples.parquet: {cure}."
            )
    return Infos(
        version=metadata[b"vexkd.version"].decode(),
        splits=json.loads(metadata[b"vexkd.splits"]),
        **columns,
        arrays=_arrays(**columns),
        rows=np.arange(columns["samples"].num_rows),
    )


# ---- arrays


def _arrays(samples: pa.Table, sweeps: pa.Table, cameras: pa.Table, boxes: pa.Table) -> dict[str, np.ndarray]:
    """The numeric columns as NumPy arrays, matrices in their shapes."""
    plain = ("sweep_offset", "sweep_count", "box_offset", "box_count", "lidar_bytes")
    return {
        **{name: samples[name].to_numpy() for name in plain},
        "ego_from_lidar": _matrices(samples["ego_from_lidar"], 4),
        "global_from_ego": _matrices(samples["global_from_ego"], 4),
        "sweep_bytes": sweeps["bytes"].to_numpy(),
        "sweep_lags": sweeps["lag"].to_numpy(),
        "lidar_from_sweep": _matrices(sweeps["lidar_from_sweep"], 4),
        "camera_sizes": np.stack([cameras["width"].to_numpy(), cameras["height"].to_numpy()], axis=1),
        "intrinsics": _matrices(cameras["intrinsics"], 3),
        "camera_from_lidar": _matrices(cameras["camera_from_lidar"], 4),
        "boxes": np.stack([boxes[name].to_numpy() for name in BOX], axis=1),
        "labels": boxes["label"].to_numpy().astype(np.int64),
        "valid": boxes["valid"].to_numpy(),
        "lidar_points": boxes["num_lidar_pts"].to_numpy(),
    }


def _matrices(column: pa.ChunkedArray, side: int) -> np.ndarray:
    """The inverse of `_lists`."""
    return (
        pa.concat_arrays([c.flatten() for c in column.chunks] or [pa.array([], pa.float64())])
        .to_numpy()
        .reshape(-1, side, side)
    )


def _window(offsets: np.ndarray, counts: np.ndarray, row: int) -> slice:
    """Where the rows of one sample stand."""
    return slice(int(offsets[row]), int(offsets[row] + counts[row]))


def _strings(column: pa.ChunkedArray, window: slice) -> list[str]:
    """Part of a column of text."""
    return column.slice(window.start, window.stop - window.start).to_pylist()
