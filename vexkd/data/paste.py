"""The ground-truth database: the points of every annotated object of the training split, and pasting them into scenes.

Two files: `points.npy`, float32 (P, 5) x, y, z, intensity, lag in the LiDAR frame of the object's own sample,
memory-mapped; and `index.parquet`, one row an object. Letters: P points, M boxes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from vexkd import boxes as box_tools
from vexkd import content, pool, provenance
from vexkd.data import infos as info_tools
from vexkd.data.indexed import open_indexed
from vexkd.data.points import Sweep, read_lidar, stack_sweeps
from vexkd.errors import InputError

SCHEMA = 1


def build(
    root: Path,
    infos_dir: Path,
    out: Path,
    *,
    split: str,
    min_points: int = 5,
    sweeps: int = 9,
    workers: int = 1,
    progress: bool = True,
) -> int:
    """Write `out/points.npy` and `out/index.parquet` for the valid boxes of a split; returns how many there are.

    min_points: objects with fewer points (keyframe and the nearest `sweeps` together, as mmdetection3d counts) are
    left out. The files are byte for byte the same whatever the number of workers. Raises InputError as `infos.load`
    and `read_lidar`.
    """
    infos = info_tools.load(infos_dir).subset(split)
    work = partial(_cut_out, Path(root), sweeps, min_points)
    found: dict[str, list[np.ndarray]] = {"sample": [], "row": [], "count": []}
    annotations: list[str] = []
    out = Path(out)
    with provenance.atomic(out / "points.npy") as temporary:
        with temporary.open("wb") as stream:
            _write_header(stream, 0)
            bar = tqdm(
                pool.in_order(work, infos, workers), total=len(infos), desc="paste", disable=None if progress else True
            )
            for keyframe, (rows, counts, packed) in zip(infos, bar, strict=True):
                stream.write(packed)
                found["sample"].append(np.full(len(rows), keyframe.index))
                found["row"].append(rows)
                found["count"].append(counts)
                annotations += [keyframe.annotations[i] for i in rows]
            columns = {name: np.concatenate(parts).astype(np.int64) for name, parts in found.items()}
            _write_header(stream, int(columns["count"].sum()))
        recipe = {
            "split": split,
            "samples": provenance.digest(infos.tokens()),
            "infos": content.Digests().of(infos_dir),
        }
        recipe |= {"min_points": min_points, "sweeps": sweeps, "sha256": provenance.file_digest(temporary)}
        _write_index(out / "index.parquet", infos, columns, annotations, recipe)
    return len(annotations)


class PasteDatabase:
    """An opened database, from which objects are pasted into LiDAR scenes.

    Raises InputError if its two files are missing, cut, of another schema, or not of one build.
    """

    def __init__(self, directory: Path) -> None:
        directory = Path(directory)
        cure = "run vexkd paste again"
        self._points, index, expected = open_indexed(
            directory, "points.npy", schema=SCHEMA, key="vexkd.points", name="ground-truth database", cure=cure
        )
        if self._points.shape != (expected["points"], 5) or self._points.dtype != np.float32:
            raise InputError(f"{directory / 'points.npy'} does not belong to the index.parquet beside it: {cure}.")
        self.directory, self.recipe = directory, expected
        self._samples = index["sample"].to_numpy()
        self.offsets = index["offset"].to_numpy()
        self.counts = index["count"].to_numpy()
        self.labels = index["label"].to_numpy().astype(np.int64)
        self.boxes = np.stack([index[name].to_numpy() for name in info_tools.BOX], axis=1)
        self._rows_of = {name: np.flatnonzero(self.labels == i) for i, name in enumerate(box_tools.CLASSES)}

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[type[PasteDatabase], tuple[Path]]:
        return PasteDatabase, (
            self.directory,
        )  # a spawned worker opens the files again instead of being sent the points

    def require(self, *, split: info_tools.Infos, name: str, min_points: int, sweeps: int) -> PasteDatabase:
        """This database, or InputError where it was cut from other scenes, or otherwise, than a run asks for.

        split: the training split, called `name`. A database of an earlier version records nothing but its samples.
        """
        cure = "run vexkd paste again"
        inside = np.isin(self._samples, split.rows)
        wanted = {
            "split": name,
            "samples": provenance.digest(split.tokens()),
            "min_points": min_points,
            "sweeps": sweeps,
        }
        recorded = self.recipe
        if recorded.get("split", name) != name or not inside.all():
            raise InputError(
                f"ground-truth database {self.directory} holds objects of other scenes"
                f"{' (split ' + recorded['split'] + ')' if 'split' in recorded else ''} than the training split {name}: {cure}."
            )
        for key, words in (
            ("samples", f"other samples of {name}"),
            ("min_points", "another number"),
            ("sweeps", "others"),
        ):
            if recorded.get(key, wanted[key]) != wanted[key]:
                given = words if key == "samples" else f"{key} {recorded[key]}, but the run asks for {wanted[key]}"
                raise InputError(f"ground-truth database {self.directory} was made with {given}: {cure}.")
        return self

    def points(self, row: int) -> np.ndarray:
        """The points (P, 5) of one object, a copy."""
        return np.array(self._points[self.offsets[row] : self.offsets[row] + self.counts[row]])

    def paste(
        self,
        points: np.ndarray,
        boxes: np.ndarray,
        labels: np.ndarray,
        rng: np.random.Generator,
        counts: Mapping[str, int],
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Fill the scene up to `counts[class]` objects of each class, where they overlap nothing in bird's-eye view.

        points (P, 5), boxes (M, 9), labels (M,) of one un-augmented scene in its LiDAR frame; returns the three
        enlarged. Scene points inside a pasted box are removed. Objects keep the place they had in their own scene.
        """
        chosen = self._choose(boxes, labels, rng, counts)
        if not chosen:
            return points, boxes, labels
        for row in chosen:
            points = points[_outside(points, self.boxes[row])]
        points = np.concatenate([points, *(self.points(row) for row in chosen)])
        boxes = np.concatenate([boxes, self.boxes[chosen].astype(boxes.dtype)])
        return points, boxes, np.concatenate([labels, self.labels[chosen].astype(labels.dtype)])

    def _choose(
        self, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator, counts: Mapping[str, int]
    ) -> list[int]:
        """Rows of the objects to paste: drawn class by class, dropped where they overlap a box or an earlier one."""
        taken = np.asarray(boxes, dtype=np.float64)
        chosen: list[int] = []
        for name, wanted in counts.items():
            rows = self._rows_of[name]
            missing = wanted - int((labels == box_tools.CLASSES.index(name)).sum())
            if missing <= 0 or not len(rows):
                continue
            drawn = rows[rng.choice(len(rows), min(missing, len(rows)), replace=False, shuffle=True)]
            candidates = self.boxes[drawn]
            free = ~overlaps(candidates, taken).any(axis=1)
            clash = overlaps(candidates, candidates)
            kept: list[int] = []
            for i in np.flatnonzero(free):
                if not clash[i, kept].any():
                    kept.append(int(i))
            chosen += [int(row) for row in drawn[kept]]
            taken = np.concatenate([taken, candidates[kept]])
        return chosen


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Mask (A, B): do the bird's-eye rectangles of boxes (A, 9) and (B, 9) overlap; touching is not overlapping.

    Separating-axis test: two rectangles are apart if and only if one of their four axes separates them.
    """
    apart = _separated(first, second) | _separated(second, first).T
    return ~apart


def _separated(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Mask (A, B): one of the two axes of the first rectangle separates it from the second."""
    offset = second[None, :, :2] - first[:, None, :2]  # A B 2
    turn = second[None, :, 6] - first[:, None, 6]  # A B
    c, s = np.abs(np.cos(turn)), np.abs(np.sin(turn))
    cos, sin = np.cos(first[:, 6])[:, None], np.sin(first[:, 6])[:, None]
    along = np.abs(offset[..., 0] * cos + offset[..., 1] * sin)  # A B
    across = np.abs(offset[..., 1] * cos - offset[..., 0] * sin)
    half, other = first[:, None, 3:5] / 2, second[None, :, 3:5] / 2
    reach_along = half[..., 0] + other[..., 0] * c + other[..., 1] * s
    reach_across = half[..., 1] + other[..., 0] * s + other[..., 1] * c
    slack = 1e-9  # metres: rounding must not turn touching into overlapping
    return (along >= reach_along - slack) | (across >= reach_across - slack)


def _outside(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Mask (P,) of the points outside one box; only those near it are tested exactly."""
    reach = np.hypot(box[3], box[4]) / 2
    near = np.flatnonzero((np.abs(points[:, 0] - box[0]) <= reach) & (np.abs(points[:, 1] - box[1]) <= reach))
    outside = np.ones(len(points), dtype=bool)
    outside[near[box_tools.points_inside(points[near], box)]] = False
    return outside


def _cut_out(
    root: Path, sweeps: int, min_points: int, keyframe: info_tools.Keyframe
) -> tuple[np.ndarray, np.ndarray, bytes]:
    """Objects of one keyframe: rows into its boxes, point counts, packed points."""
    candidates = np.flatnonzero(keyframe.valid)
    if not len(candidates):
        return candidates, np.zeros(0, dtype=np.int64), b""
    points = stack_sweeps(
        read_lidar(root / keyframe.lidar_path, keyframe.lidar_bytes),
        [
            Sweep(read_lidar(root / path, int(size)), matrix, float(lag))
            for path, size, matrix, lag in zip(
                keyframe.sweep_paths[:sweeps],
                keyframe.sweep_bytes,
                keyframe.lidar_from_sweep,
                keyframe.sweep_lags,
                strict=False,
            )
        ],
    )
    parts = [points[~_outside(points, keyframe.boxes[row])] for row in candidates]
    kept = [i for i, part in enumerate(parts) if len(part) >= max(1, min_points)]
    counts = np.array([len(parts[i]) for i in kept], dtype=np.int64)
    return candidates[kept], counts, b"".join(parts[i].tobytes() for i in kept)


def _write_header(stream: BinaryIO, count: int) -> None:
    """The .npy header of a (count, 5) float32 array; NumPy leaves room in it for any count, so it can be rewritten."""
    position = stream.tell()
    stream.seek(0)
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype("<f4")), "fortran_order": False, "shape": (count, 5)}
    np.lib.format.write_array_header_1_0(stream, header)
    stream.seek(max(position, stream.tell()))


def _write_index(
    path: Path, infos: info_tools.Infos, columns: dict[str, np.ndarray], annotations: list[str], recipe: dict[str, Any]
) -> None:
    """The index: where each object's points stand, what it is, and where it came from; recipe: what it was made from."""
    rows = infos.arrays["box_offset"][columns["sample"]] + columns["row"]
    table = {
        "label": pa.array(infos.arrays["labels"][rows], pa.int8()),
        "class": pa.array([box_tools.CLASSES[i] for i in infos.arrays["labels"][rows]], pa.string()),
        "sample": pa.array(columns["sample"], pa.int32()),
        "annotation": pa.array(annotations, pa.string()),
        "offset": np.cumsum(columns["count"]) - columns["count"],
        "count": columns["count"],
    }
    table |= {name: infos.arrays["boxes"][rows, i] for i, name in enumerate(info_tools.BOX)}
    seal = json.dumps({"points": int(columns["count"].sum()), **recipe})
    metadata = {"vexkd.schema": str(SCHEMA), "vexkd.version": infos.version, "vexkd.points": seal}
    with provenance.atomic(path) as temporary:
        pq.write_table(
            pa.table(table).replace_schema_metadata(metadata), temporary, compression="zstd", write_page_checksum=True
        )
