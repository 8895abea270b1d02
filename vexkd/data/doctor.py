"""Doctor: is every file that nuScenes' tables name there, readable and whole? If so, write a manifest of them.

What is checked without a manifest, and what that cannot see, stands at `lidar_problem`; with a manifest of an earlier,
whole state every file is also compared with its recorded size and SHA-256, which any cut or flipped bit fails.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from vexkd import boxes as box_tools
from vexkd import provenance
from vexkd.data import infos as info_tools
from vexkd.data import tables
from vexkd.data.points import POINT_BYTES
from vexkd.errors import InputError

SCHEMA = 1
MAX_GAP = np.deg2rad(3.0)  # widest sector that a whole sweep may leave empty
_AT_ONCE = 4096  # files handed to the threads at a time


class Named(NamedTuple):
    """A file that the tables name: path relative to the root, its kind, and (width, height) of an image."""

    path: str
    kind: str
    size: tuple[int, int] = (0, 0)


class Found(NamedTuple):
    """What was found of a file: bytes, SHA-256 (empty if unread), and the problem in one line (empty if none)."""

    path: str
    bytes: int
    sha256: str
    problem: str


def examine(
    root: Path,
    version: str,
    *,
    manifest: Path | None = None,
    workers: int = 1,
    quick: bool = False,
    unused: bool = True,
    progress: bool = True,
) -> list[str]:
    """All problems of the data set, one line each that names the file; an empty list means that it is whole.

    manifest: compared with, if it exists; written (again) if there is no problem. workers: threads. quick: only
    compare the presence and size of each file with the manifest. unused: also check the files that this pipeline
    never reads (radar, sweeps of the cameras); with False they may be absent. A missing map expansion is logged as a
    warning, since only map segmentation needs it. Where the tables do not fit together, sensor files are not looked
    at. Raises InputError if the root, the version or a table is missing,
    or if `quick` has no manifest.
    """
    root = Path(root)
    tables.folder(root, version)
    if manifest is not None and Path(manifest).is_dir():
        raise InputError(f"manifest {manifest} is a folder: name a file.")
    recorded, problems = _recorded(manifest, version)
    if quick:
        if not recorded and not problems:
            where = "a manifest to compare with: name it" if manifest is None else f"the manifest {manifest}: make it"
            raise InputError(f"a quick check needs {where} with --manifest, once without --quick.")
        return problems + _compare_sizes(root, recorded)
    problems += _table_problems(root, version)
    try:
        annotated = info_tools.annotated(root, version)
    except InputError as error:
        return problems if str(error) in problems else [*problems, str(error)]
    files = list(named_files(root, version, unused=unused))
    check = partial(_examine_file, root, annotated)
    found: list[Found] = []
    with (
        ThreadPoolExecutor(max(1, workers)) as pool,
        tqdm(total=len(files), desc="doctor", unit="file", disable=None if progress else True) as bar,
    ):
        remaining = iter(files)
        while batch := list(islice(remaining, _AT_ONCE)):
            for result in pool.map(check, batch):
                found.append(result)
                bar.update()
    problems += [f"{result.path}: {result.problem}" for result in found if result.problem]
    problems += _differences(found, recorded)
    if manifest is not None and not problems:
        write_manifest(manifest, version, found)
    return problems


def named_files(root: Path, version: str, *, unused: bool = True) -> Iterator[Named]:
    """Every file that the version's tables name: the tables, maps, then sensor files in the order of sample_data."""
    names = [f"{table}.json" for table in tables.TABLES]
    names += ["splits.json"] if (root / version / "splits.json").is_file() else []
    yield from (Named(f"{version}/{name}", "json") for name in names)
    logs = tables.index(root, version, "log")
    for row in tables.index(root, version, "map").values():
        yield Named(row["filename"], "png" if row["filename"].endswith(".png") else "any")
    for location in sorted({row["location"] for row in logs.values()}):
        path = f"maps/expansion/{location}.json"
        if (root / path).is_file():
            yield Named(path, "expansion")
        else:
            logging.getLogger(__name__).warning("%s is absent: map segmentation needs nuScenes' map expansion.", path)
    kind_of = {"lidar": "lidar", "camera": "image", "radar": "radar"}
    sensor_of = tables.sensors(root, version)
    for row in tables.rows(root, version, "sample_data"):
        sensor = sensor_of.get(row["calibrated_sensor_token"], {"channel": "", "modality": ""})
        read = sensor["channel"] == tables.LIDAR or (row["is_key_frame"] and sensor["channel"] in tables.CAMERAS)
        if read or unused:
            size = (row.get("width") or 0, row.get("height") or 0)
            yield Named(row["filename"], kind_of.get(sensor["modality"], "any"), size)


# ---- checks of one file


def lidar_problem(data: bytes, boxes: np.ndarray | None = None, counts: np.ndarray | None = None) -> str:
    """What is wrong with the content of a LiDAR file, or "".

    boxes (M, 9) and counts (M,) are a keyframe's annotations in the LiDAR frame with the point counts of the table.

    Checked: a whole number of points; finite values; whole ring numbers; whole columns, if the rings go round and round
    (nuScenes stores 32 rings a firing, so only 1 in 32 cuts at a point leaves whole columns); a full turn, since a
    sweep is stored in firing order and a cut one lacks its last sector; the points that the table counts in the boxes.
    Not seen without a manifest: a cut by whole columns narrower than about 4 degrees (1.3 % of the points of a real
    keyframe; the ego motion makes the end of a sweep overlap its beginning a little), and, in a set that stores ring
    after ring, the loss of some top rings from a sweep that is no keyframe.
    """
    if not data:
        return "the file is empty"
    if len(data) % POINT_BYTES:
        return f"{len(data)} bytes are not a whole number of {POINT_BYTES}-byte points"
    points = np.frombuffer(data, dtype="<f4").reshape(-1, 5)
    if not np.isfinite(points).all():
        return f"{int((~np.isfinite(points)).any(axis=1).sum())} points are not finite"
    ring = points[:, 4]
    if (ring < 0).any() or (ring > 255).any() or (ring != np.floor(ring)).any():
        return "the ring column does not hold ring numbers"
    rings = _rings_of_columns(ring)
    if rings and len(points) % rings:
        return f"the file is cut: {len(points)} points are not whole columns of {rings} rings"
    problem = _turn_problem(points) or (_seam_problem(points.reshape(-1, rings, 5)) if rings else "")
    if not problem and boxes is not None and counts is not None:
        problem = _count_problem(points, boxes, counts)
    return problem


def _rings_of_columns(ring: np.ndarray) -> int:
    """R, if the rings go 0..R-1 again and again (nuScenes: a firing of all lasers is a column), otherwise 0."""
    rings = int(ring.max()) + 1
    cyclic = rings > 1 and len(ring) > 16 * rings and np.array_equal(ring, np.arange(len(ring)) % rings)
    return rings if cyclic else 0


def _turn_problem(points: np.ndarray) -> str:
    """Echoes from beyond a metre must leave no wide sector empty."""
    x, y = points[:, 0].astype(np.float64), points[:, 1].astype(np.float64)
    azimuth = np.sort(np.arctan2(y, x)[x * x + y * y > 1])
    if len(azimuth) < 2:
        return "the file is cut: hardly any point lies beyond 1 m"
    gap = np.diff(np.append(azimuth, azimuth[0] + 2 * np.pi)).max()
    if gap > MAX_GAP:
        return f"the file is cut: a sector of {np.rad2deg(gap):.0f} degrees holds no point of its {len(points)}"
    return ""


def _seam_problem(columns: np.ndarray) -> str:
    """Columns (columns, rings, 5) in firing order: the last ones must look where the first ones began to look.

    Only echoes beyond 10 m are used, as the ego motion shifts the bearing of near ones. Finer than `_turn_problem`,
    which the overlap of near echoes can hide a gap from.
    """
    x, y = columns[..., 0].astype(np.float64), columns[..., 1].astype(np.float64)
    bearing = np.where(np.hypot(x, y) > 10, np.exp(1j * np.arctan2(y, x)), 0)  # columns rings
    head, before, tail = (part.sum() for part in (bearing[:4], bearing[-8:-4], bearing[-4:]))
    if min(abs(head), abs(before), abs(tail)) < 4:
        return ""
    turn = np.sign(np.angle(tail / before))
    gap = turn * np.angle(head / tail)
    if gap > MAX_GAP + np.deg2rad(1.5):  # the middles of four columns are compared
        return f"the file is cut: its last columns stop {np.rad2deg(gap):.0f} degrees before the first ones"
    return ""


def _count_problem(
    points: np.ndarray, boxes: np.ndarray, counts: np.ndarray, least: int = 10, margin: float = 0.3
) -> str:
    """A box for which the table counts `least` points or more must hold at least half of them."""
    for row in np.flatnonzero(counts >= least):
        inside = int(box_tools.points_inside(points, boxes[row], margin).sum())
        if 2 * inside < counts[row]:
            return f"the file is cut: a box holds {inside} points where the table counts {counts[row]}"
    return ""


def image_problem(data: bytes, size: tuple[int, int]) -> str:
    """What is wrong with a JPEG that the tables say has `size` (width, height), or ""."""
    if not data:
        return "the file is empty"
    try:
        with Image.open(io.BytesIO(data)) as image:
            found = image.size
            image.draft("RGB", (found[0] // 8, found[1] // 8))  # reads the whole stream, but computes few pixels
            image.load()
    except (OSError, SyntaxError, ValueError) as error:
        return f"the image cannot be decoded ({error})"
    if not data.rstrip(b"\0").endswith(b"\xff\xd9") and data.startswith(b"\xff\xd8"):
        return "the image is cut: its end marker is missing"
    return "" if found == tuple(size) else f"the image is {found[0]}x{found[1]} instead of {size[0]}x{size[1]}"


def png_problem(data: bytes) -> str:
    """What is wrong with a PNG, or "": every chunk's checksum, without decoding (nuScenes' map masks are huge)."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "the file is not a PNG image"
    position = 8
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        body = memoryview(data)[position + 4 : position + 8 + length]
        checksum = data[position + 8 + length : position + 12 + length]
        if zlib.crc32(body).to_bytes(4, "big") != checksum:
            return "the image is cut or damaged"
        position += 12 + length
        if body[:4] == b"IEND":
            return ""
    return "the image is cut"


def radar_problem(data: bytes) -> str:
    """What is wrong with a binary PCD file, or "": its header must promise no more than the file holds."""
    head, mark, body = data.partition(b"DATA binary\n")
    if not mark:
        return "the file is not a binary PCD file" if data else "the file is empty"
    try:
        header = {line.split()[0]: line.split()[1:] for line in head.decode("ascii").splitlines() if line.strip()}
        fields = zip(header["SIZE"], header.get("COUNT", ["1"] * len(header["SIZE"])), strict=True)
        needed = int(header["POINTS"][0]) * sum(int(size) * int(count) for size, count in fields)
    except (KeyError, ValueError, IndexError):
        return "the PCD header is damaged"
    return "" if len(body) >= needed else f"the file is cut: {len(body)} bytes of points instead of {needed}"


def _expansion_problem(data: bytes) -> str:
    """What is wrong with a map expansion file, or ""."""
    try:
        version = str(json.loads(data)["version"])
        old = tuple(int(part) for part in version.split(".")) < (1, 3)
    except (ValueError, KeyError, TypeError):
        return "the map expansion is cut or damaged"
    return f"the map expansion has version {version}, older than 1.3" if old else ""


def _examine_file(root: Path, annotated: dict[str, tuple[np.ndarray, np.ndarray]], file: Named) -> Found:
    """Read one file once: its hash and its problem."""
    try:
        data = (root / file.path).read_bytes()
    except OSError as error:
        return Found(
            file.path, 0, "", "the file is missing" if isinstance(error, FileNotFoundError) else error.strerror
        )
    if file.kind == "lidar":
        problem = lidar_problem(data, *annotated.get(file.path, (None, None)))
    elif file.kind == "image":
        problem = image_problem(data, file.size)
    elif file.kind == "radar":
        problem = radar_problem(data)
    elif file.kind == "png":
        problem = png_problem(data)
    elif file.kind == "expansion":
        problem = _expansion_problem(data)
    else:
        problem = "" if data else "the file is empty"
    return Found(file.path, len(data), hashlib.sha256(data).hexdigest(), problem)


def _table_problems(root: Path, version: str) -> list[str]:
    """Tables that are no whole JSON list, or hold a token twice."""
    problems = []
    for name in tables.TABLES:
        tokens: set[str] = set()
        try:
            count = 0
            for row in tables.rows(root, version, name):
                tokens.add(row["token"])
                count += 1
        except InputError as error:
            problems.append(str(error))
            continue
        if len(tokens) < count:
            problems.append(f"{version}/{name}.json: {count - len(tokens)} rows repeat a token")
    return problems


# ---- manifest


def write_manifest(path: Path, version: str, found: list[Found]) -> None:
    """Write the manifest: Parquet with path (relative to the root), bytes, sha256, sorted by path; no times."""
    unique = sorted({(f.path, f.bytes, f.sha256) for f in found})
    lines = "".join(f"{sha256} {size} {name}\n" for name, size, sha256 in unique)
    metadata = {
        "vexkd.schema": str(SCHEMA),
        "vexkd.version": version,
        "vexkd.digest": hashlib.sha256(lines.encode()).hexdigest(),
    }
    names, sizes, hashes = ([row[i] for row in unique] for i in range(3))
    table = pa.table({"path": pa.array(names, pa.string()), "bytes": pa.array(sizes, pa.int64()), "sha256": hashes})
    with provenance.atomic(path) as temporary:
        pq.write_table(table.replace_schema_metadata(metadata), temporary, compression="zstd")


def read_manifest(path: Path) -> tuple[str, dict[str, tuple[int, str]]]:
    """The version, and path -> (bytes, sha256). Raises InputError if the manifest is damaged or of another schema."""
    cure = "name another file, or remove this one, and run vexkd doctor again"
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException):
        raise InputError(f"manifest {path} is damaged, or the file is none: {cure}.") from None
    metadata = table.schema.metadata or {}
    if metadata.get(b"vexkd.schema") != str(SCHEMA).encode():
        raise InputError(f"manifest {path} has another schema than {SCHEMA}: {cure}.")
    columns = (table[name].to_pylist() for name in ("path", "bytes", "sha256"))
    return metadata[b"vexkd.version"].decode(), {name: (size, sha) for name, size, sha in zip(*columns, strict=True)}


def _recorded(manifest: Path | None, version: str) -> tuple[dict[str, tuple[int, str]], list[str]]:
    """The files of an existing manifest of this version, and the problem if it is of another one."""
    if manifest is None or not Path(manifest).is_file():
        return {}, []
    found, files = read_manifest(Path(manifest))
    if found != version:
        return {}, [f"{manifest}: the manifest is of {found}, not of {version}"]
    return files, []


def _differences(found: list[Found], recorded: dict[str, tuple[int, str]]) -> list[str]:
    """Readable files that differ from the manifest."""
    problems = []
    for file in found:
        size, sha256 = recorded.get(file.path, (file.bytes, file.sha256))
        if file.problem or file.sha256 == sha256:
            continue
        if file.bytes != size:
            problems.append(f"{file.path}: {file.bytes} bytes instead of the {size} of the manifest")
        else:
            problems.append(f"{file.path}: the content differs from the manifest")
    return problems


def _compare_sizes(root: Path, recorded: dict[str, tuple[int, str]]) -> list[str]:
    """Files of the manifest that are absent or of another size."""
    problems = []
    for name, (size, _) in recorded.items():
        path = root / name
        if not path.is_file():
            problems.append(f"{name}: the file is missing")
        elif path.stat().st_size != size:
            problems.append(f"{name}: {path.stat().st_size} bytes instead of the {size} of the manifest")
    return problems
