"""Doctor: is every file that nuScenes' tables name there, readable and whole? If so, write a manifest of them.

What is checked without a manifest, and what that cannot see, stands at `file_checks.lidar_problem`; with a manifest of an earlier,
whole state every file is also compared with its recorded size and SHA-256, which any cut or flipped bit fails.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from vexkd.data import file_checks, tables
from vexkd.data import infos as info_tools
from vexkd.data import manifest as manifests
from vexkd.data.manifest import Found
from vexkd.errors import InputError

_AT_ONCE = 4096  # files handed to the threads at a time


class Named(NamedTuple):
    """A file that the tables name: path relative to the root, its kind, and (width, height) of an image."""

    path: str
    kind: str
    size: tuple[int, int] = (0, 0)


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
    recorded, problems = manifests.recorded(manifest, version)
    if quick:
        if not recorded and not problems:
            where = "a manifest to compare with: name it" if manifest is None else f"the manifest {manifest}: make it"
            raise InputError(f"a quick check needs {where} with --manifest, once without --quick.")
        return problems + manifests.compare_sizes(root, recorded)
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
    problems += manifests.differences(found, recorded)
    if manifest is not None and not problems:
        manifests.write_manifest(manifest, version, found)
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


def _examine_file(root: Path, annotated: dict[str, tuple[np.ndarray, np.ndarray]], file: Named) -> Found:
    """Read one file once: its hash and its problem."""
    try:
        data = (root / file.path).read_bytes()
    except OSError as error:
        return Found(
            file.path, 0, "", "the file is missing" if isinstance(error, FileNotFoundError) else error.strerror
        )
    if file.kind == "lidar":
        problem = file_checks.lidar_problem(data, *annotated.get(file.path, (None, None)))
    elif file.kind == "image":
        problem = file_checks.image_problem(data, file.size)
    elif file.kind == "radar":
        problem = file_checks.radar_problem(data)
    elif file.kind == "png":
        problem = file_checks.png_problem(data)
    elif file.kind == "expansion":
        problem = file_checks.expansion_problem(data)
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
