"""Building the infos: nuScenes' tables are read once, checked, and written as the four Parquet files of `infos`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from vexkd import content, provenance
from vexkd.data import columns, tables
from vexkd.data import splits as split_tools
from vexkd.data.frames import Samples, sensor_data
from vexkd.data.infos import BOX, FILES, SCHEMA

_COMPRESSION: dict[str, Any] = {"compression": "zstd", "row_group_size": 1 << 16, "write_page_checksum": True}


class Counts(NamedTuple):
    """What a build wrote."""

    samples: int
    sweeps: int
    cameras: int
    boxes: int


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


def annotated(root: Path, version: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """LiDAR keyframe path -> boxes (M, 9) in its frame and the LiDAR points (M,) that the table counts in them."""
    samples = Samples.read(root, version)
    lidar, _ = sensor_data(root, version, samples)
    table = columns.boxes(root, version, samples, lidar)
    boxes = np.stack([table[name].to_numpy() for name in BOX], axis=1)
    counts = table["num_lidar_pts"].to_numpy()
    edges = np.searchsorted(table["sample"].to_numpy(), np.arange(len(samples.tokens) + 1))
    paths = [lidar.paths[i] for i in lidar.key]
    return {path: (boxes[a:b], counts[a:b]) for path, a, b in zip(paths, edges, edges[1:], strict=False)}


# ---- files


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
