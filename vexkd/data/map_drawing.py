"""Drawing the rasters of `maps` from the map expansion, in parts that an interrupted build goes on from.

Letters: S samples, C classes, Y X cells.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from vexkd import content, pool, provenance
from vexkd.data import infos as info_tools
from vexkd.data.expansions import LINE_WIDTH, Edges, Expansion, checked_digest, read_expansion
from vexkd.data.maps import CLASSES, SCHEMA
from vexkd.errors import InputError

MAX_CELLS = 4096  # along a side of a raster; more come of units mixed up
_CHUNK = 64  # samples of one job, and of one part on disk


def build(
    root: Path,
    infos_dir: Path,
    out: Path,
    *,
    reach: float,
    cell: float = 0.5,
    edges: Edges = "published",
    workers: int = 1,
    progress: bool = True,
) -> int:
    """Write `out/rasters.npy` and `out/index.parquet` for every sample of the infos; returns how many there are.

    reach: metres around the LiDAR, rounded up to whole cells (see `geometry.needed_reach`). cell: side of a cell in metres.
    edges: see `rasterise`. Finished parts stay in `out/.parts` until all is done: a build that was interrupted goes on
    from them. The files do not depend on the number of workers. Raises InputError for a missing, old or damaged map
    expansion, for a sample without a location, and for a scene that lies off its map.
    """
    root, out = Path(root), Path(out)
    if not (reach > 0 and cell > 0 and math.isfinite(reach / cell)):
        raise InputError(
            f"maps need a reach and a cell above 0 metres, not {reach} and {cell}: correct these settings."
        )
    if 2 * reach / cell > MAX_CELLS:
        raise InputError(
            f"maps of {2 * reach / cell:.0f} cells a side are too large: give reach and cell in metres, {MAX_CELLS} cells at most."
        )
    infos = info_tools.load(infos_dir)
    locations = _locations(infos)
    files = {name: root / "maps" / "expansion" / f"{name}.json" for name in sorted(set(locations))}
    half = math.ceil(reach / cell - 1e-9)
    recipe = {
        "schema": SCHEMA,
        "classes": list(CLASSES),
        "cell": cell,
        "reach": half * cell,
        "edges": edges,
        "samples": len(infos),
        "infos": content.Digests().of(Path(infos_dir)),
        "expansions": {name: checked_digest(path) for name, path in files.items()},
    }
    parts = out / ".parts" / provenance.digest(recipe)
    for old in (out / ".parts").glob("*"):
        if old != parts:
            shutil.rmtree(old)
    jobs = _jobs(infos, locations, files, parts, half, cell, edges)
    with tqdm(total=len(infos), desc="maps", unit="sample", disable=None if progress else True) as bar:
        missing = [job for job in jobs if not job.part.is_file()]
        bar.update(len(infos) - sum(len(job.rows) for job in missing))  # what an earlier build left
        for drawn in pool.in_order(_make_part, missing, min(workers, len(missing))):
            bar.update(drawn)
    _refuse_empty(jobs, infos, locations)
    rows = np.empty(len(infos), dtype=np.int64)
    rows[np.concatenate([job.rows for job in jobs])] = np.arange(len(infos))
    _join(jobs, (len(infos), len(CLASSES), 2 * half, -(-2 * half // 8)), out)
    recipe["sha256"] = provenance.file_digest(out / "rasters.npy")
    _write_index(out / "index.parquet", infos, locations, rows, recipe)
    shutil.rmtree(out / ".parts")
    return len(infos)


# ---- drawing


def rasterise(
    expansion: Expansion,
    global_from_lidar: np.ndarray,
    *,
    reach: float,
    cell: float,
    lidar_augment: np.ndarray | None = None,
) -> np.ndarray:
    """The classes (C, Y, X) uint8 in a square of +-reach metres around the LiDAR, as `expansion` was read.

    edges "published" draws as nuscenes-devkit's get_map_mask does for BEVFusion: corners rounded to cells and outlines
    drawn, so that areas grow by about half a cell (also into their holes, which the devkit does only with holes that
    its patch cuts), lines truncated to cells; labels then count as in published scores.
    edges "centre" sets a cell if its centre lies in the area or within LINE_WIDTH / 2 of the line. lidar_augment
    (4, 4) draws the map in the augmented frame itself: what reading a raster under an augmentation must equal.
    """
    side = round(2 * reach / cell)
    cells_from_global = _cells_from_global(global_from_lidar, lidar_augment, reach, cell)  # 3 3
    corners = np.array([[x, y] for x in (-3, side + 3) for y in (-3, side + 3)], dtype=np.float64)
    corners = _move(np.linalg.inv(cells_from_global), corners)
    low, high = corners.min(axis=0), corners.max(axis=0)
    raster = np.zeros((len(CLASSES), side, side), dtype=np.uint8)
    for mask, name in zip(raster, CLASSES, strict=True):
        extents = expansion.extents[name]
        near = (extents[:, :2] <= high).all(axis=1) & (extents[:, 2:] >= low).all(axis=1)
        for number in np.flatnonzero(near):
            rings = [_move(cells_from_global, ring) for ring in expansion.shapes[name][number]]
            if not expansion.open_lines:
                _fill_centres(mask, rings)
            elif name == "divider":
                _draw_line(mask, rings[0], max(1, round(LINE_WIDTH / cell)))
            else:
                _fill_outlined(mask, rings)
    return raster


def _cells_from_global(
    global_from_lidar: np.ndarray, lidar_augment: np.ndarray | None, reach: float, cell: float
) -> np.ndarray:
    """Continuous (column, row) from global (x, y), 3 3: the LiDAR's place and the yaw of its x axis, tilt left out."""
    cos, sin = global_from_lidar[:2, 0] / np.hypot(*global_from_lidar[:2, 0])
    global_from_flat = np.eye(3)
    global_from_flat[:2, :2] = [[cos, -sin], [sin, cos]]
    global_from_flat[:2, 2] = global_from_lidar[:2, 3]
    augment = np.eye(3) if lidar_augment is None else np.asarray(lidar_augment)[np.ix_([0, 1, 3], [0, 1, 3])]
    cells_from_flat = np.array([[1 / cell, 0.0, reach / cell], [0.0, 1 / cell, reach / cell], [0.0, 0.0, 1.0]])
    return cells_from_flat @ augment @ np.linalg.inv(global_from_flat)


def _move(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (P, 2) under an affine 3x3 matrix."""
    return points @ matrix[:2, :2].T + matrix[:2, 2]


def _fill_outlined(mask: np.ndarray, rings: list[np.ndarray]) -> None:
    """Set a polygon but its holes as OpenCV fills it; a hole keeps its border and takes nothing from other polygons."""
    import cv2  # comes with the devkit; slow to import, and only the build draws

    cv2.fillPoly(mask, [np.round(ring).astype(np.int32) for ring in rings], 1)


def _draw_line(mask: np.ndarray, points: np.ndarray, thickness: int) -> None:
    """Draw an open line, however often it leaves and enters the mask."""
    import cv2

    cv2.polylines(mask, [np.floor(points).astype(np.int32)], False, 1, thickness)


def _fill_centres(mask: np.ndarray, rings: list[np.ndarray]) -> None:
    """Set the cells whose centre lies inside the rings by the even-odd rule: a row's centre line crosses each edge once."""
    height, width = mask.shape
    low = max(0, math.ceil(min(ring[:, 1].min() for ring in rings) - 0.5))
    high = min(height, math.ceil(max(ring[:, 1].max() for ring in rings) - 0.5))
    if low >= high:
        return
    turns = np.zeros((high - low, width + 1), dtype=np.uint8)  # parity of the crossings left of a centre
    for ring in rings:
        for (x0, y0), (x1, y1) in pairwise(np.concatenate([ring, ring[:1]]).tolist()):
            first, last = sorted((math.ceil(y0 - 0.5), math.ceil(y1 - 0.5)))
            rows = np.arange(max(first, low), min(last, high))
            if len(rows):
                crossings = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
                columns = np.clip(np.ceil(crossings - 0.5), 0, width).astype(np.int64)
                turns[rows - low, columns] ^= 1
    mask[low:high] |= np.bitwise_xor.accumulate(turns, axis=1)[:, :width]


# ---- jobs and files


@dataclass(frozen=True)
class _Job:
    """Some samples of one location. rows: theirs in the infos; part: the file that holds their packed rasters."""

    rows: np.ndarray
    poses: np.ndarray  # S 4 4, global_from_lidar
    expansion: Path
    part: Path
    half: int
    cell: float
    edges: Edges


def _locations(infos: info_tools.Infos) -> list[str]:
    """Location of each sample; raises InputError that names a sample without one."""
    locations = infos.samples["location"].to_pylist()
    lost = next((i for i, name in enumerate(locations) if not name), None)
    if lost is not None:
        token = infos.samples["token"][lost].as_py()
        raise InputError(
            f"sample {token} has no location in the infos, so its map is unknown: give its row of log.json a location "
            "and run vexkd infos again."
        )
    return locations


def _jobs(
    infos: info_tools.Infos,
    locations: list[str],
    files: dict[str, Path],
    parts: Path,
    half: int,
    cell: float,
    edges: Edges,
) -> list[_Job]:
    """Samples by location, so that a worker reads few maps, in pieces of `_CHUNK`."""
    poses = infos.arrays["global_from_ego"] @ infos.arrays["ego_from_lidar"]
    jobs = []
    for name, path in files.items():
        mine = np.flatnonzero(np.array(locations) == name)
        for start in range(0, len(mine), _CHUNK):
            rows = mine[start : start + _CHUNK]
            jobs.append(_Job(rows, poses[rows], path, parts / f"{len(jobs):05d}.npy", half, cell, edges))
    return jobs


@lru_cache(maxsize=1)
def _expansion(path: Path, edges: Edges) -> Expansion:
    """The last map read: a worker's jobs come location by location."""
    return read_expansion(path, edges=edges)


def _make_part(job: _Job) -> int:
    """Draw the samples of a job into its part; returns how many (a worker's job)."""
    expansion = _expansion(job.expansion, job.edges)
    rasters = [rasterise(expansion, pose, reach=job.half * job.cell, cell=job.cell) for pose in job.poses]
    with provenance.atomic(job.part) as temporary, temporary.open("wb") as stream:
        np.save(stream, np.packbits(np.stack(rasters), axis=-1), allow_pickle=False)  # S C Y X/8
    return len(job.rows)


def _refuse_empty(jobs: list[_Job], infos: info_tools.Infos, locations: list[str]) -> None:
    """Raises InputError for a scene that lies off its map all along; single samples without any label are logged."""
    empty = np.concatenate([job.rows[~_part(job).any(axis=(1, 2, 3))] for job in jobs])
    if not len(empty):
        return
    scenes = infos.samples["scene"].to_pylist()
    for row in empty:
        scene, count = scenes[row], scenes.count(scenes[row])
        if sum(scenes[other] == scene for other in empty) == count:
            raise InputError(
                f"{scene}: none of its {count} samples (the first is {infos.samples['token'][row].as_py()}) sees any class of "
                f"the map of {locations[row]}: correct the location in log.json, or the car's place in ego_pose.json."
            )
    said = ", ".join(sorted({f"{scenes[row]} ({locations[row]})" for row in empty}))
    logging.getLogger(__name__).warning("%d of %d samples lie off their map: %s.", len(empty), len(scenes), said)


def _part(job: _Job) -> np.ndarray:
    """The packed rasters of a job, as they were written."""
    try:
        return np.load(job.part, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise InputError(f"{job.part} is damaged: remove {job.part.parent} and run vexkd maps again.") from None


def _join(jobs: list[_Job], shape: tuple[int, ...], out: Path) -> None:
    """Put the parts into `rasters.npy`, one after the other; an older index, which would not fit, goes first."""
    with provenance.atomic(out / "rasters.npy") as temporary:
        with temporary.open("wb") as stream:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype("u1")), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            for job in jobs:
                part = _part(job)
                if part.shape != (len(job.rows), *shape[1:]) or part.dtype != np.uint8:
                    raise InputError(f"{job.part} is damaged: remove {job.part.parent} and run vexkd maps again.")
                stream.write(part.tobytes())
        (out / "index.parquet").unlink(missing_ok=True)


def _write_index(
    path: Path, infos: info_tools.Infos, locations: list[str], rows: np.ndarray, recipe: dict[str, Any]
) -> None:
    """The index: which row of `rasters.npy` belongs to which sample; it seals the rasters, so it is written last."""
    table = pa.table({"token": infos.samples["token"], "row": rows, "location": pa.array(locations, pa.string())})
    metadata = {"vexkd.schema": str(SCHEMA), "vexkd.version": infos.version, "vexkd.maps": json.dumps(recipe)}
    with provenance.atomic(path) as temporary:
        pq.write_table(table.replace_schema_metadata(metadata), temporary, compression="zstd", write_page_checksum=True)
