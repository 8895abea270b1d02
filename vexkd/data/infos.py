"""Infos: nuScenes' tables boiled down to four flat Parquet files that training and evaluation read.

`samples`, `sweeps`, `cameras` and `boxes` are tidy tables (readable by pandas); matrices are row-major lists of 16
numbers named target_from_source. Letters: S samples, M boxes, K sweeps of a sample, N cameras.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from vexkd import boxes as box_tools
from vexkd import content, provenance
from vexkd.data import columns, tables
from vexkd.data import splits as split_tools
from vexkd.data.frames import Samples, sensor_data
from vexkd.errors import InputError

SCHEMA = 1
FILES = ("sweeps", "cameras", "boxes", "samples")  # samples last: it seals the others
_COMPRESSION: dict[str, Any] = {"compression": "zstd", "row_group_size": 1 << 16, "write_page_checksum": True}


class Counts(NamedTuple):
    """What a build wrote."""

    samples: int
    sweeps: int
    cameras: int
    boxes: int


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
        found = np.zeros((len(a["box_count"]), len(box_tools.CLASSES)), dtype=bool)
        owner = np.repeat(np.arange(len(found)), a["box_count"])
        found[owner[a["valid"]], a["labels"][a["valid"]]] = True
        return found[self.rows]


def build(
    root: Path, version: str, out: Path, *, max_sweeps: int = 10, manifest: Path | None = None, progress: bool = True
) -> Counts:
    """Write `out/{samples,sweeps,cameras,boxes}.parquet` from the tables of `root/version`.

    max_sweeps: how many earlier LiDAR sweeps are listed for each sample. manifest: doctor's, whose hash is recorded.
    Splits keep nuScenes' names (mini_train, ...).
    Raises InputError that names the missing table, or the token whose rows do not fit together.
    """
    root, out = Path(root), Path(out)
    tables.folder(root, version)
    with tqdm(total=5, desc="infos", disable=None if progress else True) as bar:
        samples = Samples.read(root, version)
        bar.update()
        lidar, cameras = sensor_data(root, version, samples)
        bar.update()
        written = {"sweeps": columns.sweeps(root, lidar, max_sweeps), "cameras": columns.cameras(lidar, cameras)}
        bar.update()
        written["boxes"] = columns.boxes(root, version, samples, lidar)
        bar.update()
        written["samples"] = columns.samples(root, samples, lidar, written)
        digests = {}
        for name in FILES:
            metadata = {"vexkd.schema": str(SCHEMA), "vexkd.version": version, "vexkd.max_sweeps": str(max_sweeps)}
            if name == "samples":
                apart = written[name].drop_columns("split").replace_schema_metadata(metadata)
                whole = _content(apart, digests)
                metadata |= {"vexkd.splits": json.dumps(samples.splits), "vexkd.digests": json.dumps(digests)}
                metadata |= {"vexkd.content": whole, **_origin(root, version, samples, manifest)}
            digests[name] = _write(written[name], out / f"{name}.parquet", metadata)
        bar.update()
    return Counts(**{name: table.num_rows for name, table in written.items()})


def load(directory: Path) -> Infos:
    """Read infos. Raises InputError if they are missing, damaged, of another schema, or mixed from two builds."""
    directory = Path(directory)
    cure = "run vexkd infos again"
    found, metadata = {}, {}
    for name in FILES:
        path = directory / f"{name}.parquet"
        if not path.is_file():
            raise InputError(f"infos file {path} does not exist: {cure}.")
        try:
            metadata = pq.read_schema(path).metadata or {}
            schema = metadata.get(b"vexkd.schema", b"unknown").decode()
            if schema != str(SCHEMA):
                raise InputError(f"infos file {path} has schema {schema} instead of {SCHEMA}: {cure}.")
            found[name] = pq.read_table(path, page_checksum_verification=True).combine_chunks()
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
        **found,
        arrays=_arrays(**found),
        rows=np.arange(found["samples"].num_rows),
    )


def annotated(root: Path, version: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """LiDAR keyframe path -> boxes (M, 9) in its frame and the LiDAR points (M,) that the table counts in them."""
    samples = Samples.read(root, version)
    lidar, _ = sensor_data(root, version, samples)
    table = columns.boxes(root, version, samples, lidar)
    boxes = np.stack([table[name].to_numpy() for name in columns.BOX], axis=1)
    counts = table["num_lidar_pts"].to_numpy()
    edges = np.searchsorted(table["sample"].to_numpy(), np.arange(len(samples.tokens) + 1))
    paths = [lidar.paths[i] for i in lidar.key]
    return {path: (boxes[a:b], counts[a:b]) for path, a, b in zip(paths, edges, edges[1:], strict=False)}


# ---- files and arrays


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
        "boxes": np.stack([boxes[name].to_numpy() for name in columns.BOX], axis=1),
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


def _content(samples: pa.Table, digests: dict[str, str]) -> str:
    """What a training reads of infos as a hash: all but the splits, of which it reads one, whose samples it records itself."""
    stream = pa.BufferOutputStream()
    pq.write_table(samples, stream, **_COMPRESSION)
    return provenance.digest({**digests, "samples": hashlib.sha256(stream.getvalue()).hexdigest()})


def _origin(root: Path, version: str, samples: Any, manifest: Path | None) -> dict[str, str]:
    """What the infos were made from, for `vexkd.products`: the manifest, splits.json, and which samples each split holds."""
    custom = root / version / "splits.json"
    return {
        "vexkd.manifest": content.manifest_digest(manifest) if manifest is not None and manifest.is_file() else "",
        "vexkd.splits_file": provenance.file_digest(custom) if custom.is_file() else "",
        "vexkd.split_digests": json.dumps(_split_digests(samples.splits, samples.tokens, samples.scenes)),
    }


def _split_digests(splits: dict[str, list[str]], tokens: Sequence[str], scenes: Sequence[str]) -> dict[str, str]:
    """The hash of the samples of each split."""
    sets = {name: set(members) for name, members in splits.items()}
    return {
        name: provenance.digest([token for token, scene in zip(tokens, scenes, strict=True) if scene in members])
        for name, members in sets.items()
    }


def renew_splits(directory: Path, root: Path, version: str, *, write: bool) -> dict[str, str] | None:
    """Take over a splits.json that has changed since the infos were made; returns the hash of the samples of each split.

    The rest of the infos stays, so what was made from another split is not outdated. None where nothing changed, without raw
    data, and for infos that do not record it. write: False only looks. Raises InputError as `splits.read`.
    """
    path, custom = directory / "samples.parquet", root / version / "splits.json"
    recorded = content.parquet_metadata(path)
    now = provenance.file_digest(custom) if custom.is_file() else ""
    if not custom.parent.is_dir() or recorded.get("vexkd.splits_file", now) == now:
        return None
    samples = pq.read_table(path)
    scenes = samples["scene"].to_pylist()
    splits = split_tools.read(root, version, [row["name"] for row in tables.index(root, version, "scene").values()])
    digests = _split_digests(splits, samples["token"].to_pylist(), scenes)
    if write:
        column = pa.array(columns.split_names(splits, scenes), pa.string())
        samples = samples.set_column(samples.column_names.index("split"), "split", column)
        before = path.stat()
        names = {
            "vexkd.splits": json.dumps(splits),
            "vexkd.splits_file": now,
            "vexkd.split_digests": json.dumps(digests),
        }
        _write(samples, path, {**recorded, **names})
        content.set_time(path, before.st_mtime_ns)
    return digests


def _write(table: pa.Table, path: Path, metadata: dict[str, str]) -> str:
    """Write one Parquet file atomically with file metadata; returns its SHA-256."""
    with provenance.atomic(path) as temporary:
        pq.write_table(table.replace_schema_metadata(metadata), temporary, **_COMPRESSION)
        return provenance.file_digest(temporary)
