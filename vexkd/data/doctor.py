"""Doctor: is every file that nuScenes' tables name there, readable and whole? If so, write a manifest of them.

What is checked without a manifest, and what that cannot see, stands at `file_checks.lidar_problem`; with a manifest of an earlier,
whole state every file is also compared with its recorded size and SHA-256, which any cut or flipped bit fails.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from vexkd.data import expansions, file_checks, file_kinds, infos_build, tables
from vexkd.data import manifest as manifests
from vexkd.data import splits as split_tools
from vexkd.data.frames import Samples
from vexkd.data.manifest import Found
from vexkd.errors import InputError

_AT_ONCE = 4096  # files handed to the threads at a time


class Named(NamedTuple):
    """A file that the tables name: path relative to the root, its kind, and (width, height) of an image."""

    path: str
    kind: str
    size: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Coverage:
    """What a check looks at: files of some splits and sensors ("lidar", "camera"), or of all (None).

    unused: also the files that this pipeline never reads (radar, sweeps of the cameras).
    """

    splits: tuple[str, ...] | None = None
    sensors: tuple[str, ...] | None = None
    unused: bool = True

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left out."""
        return self.splits is None and self.sensors is None and self.unused

    def left_out(self) -> str:
        """What is not looked at, in words; empty if nothing is."""
        words = []
        if self.splits is not None:
            words.append(f"scenes outside {', '.join(self.splits)}")
        if self.sensors is not None:
            files = {"lidar": "LiDAR files", "camera": "images"}
            words += [kind for name, kind in files.items() if name not in self.sensors]
        if not self.unused or self.sensors is not None:
            words.append("radar files and camera sweeps")
        return ", ".join(words)

    def recorded(self) -> dict[str, list[str] | bool | None]:
        """As it stands in the manifest."""
        splits, sensors = (None if names is None else list(names) for names in (self.splits, self.sensors))
        return {"splits": splits, "sensors": sensors, "unused": self.unused and self.sensors is None}


def examine(
    root: Path,
    version: str,
    *,
    manifest: Path | None = None,
    workers: int = 1,
    quick: bool = False,
    coverage: Coverage = Coverage(),
    progress: bool = True,
) -> list[str]:
    """All problems of the data set, one line each that names the file; an empty list means that it is whole.

    manifest: compared with, if it exists; written (again) if there is no problem, with what is covered; files that it
    knows and that are not covered now stay in it. workers: threads. quick: only compare the presence and size of each
    file with the manifest. coverage: which files must be there; the tables are always read whole, by the rules that the
    infos have. A missing map expansion is logged as a warning, since only map segmentation needs it. Where the tables do
    not fit together, sensor files are not looked at. Raises InputError if the root, the version, a table or a split of
    the coverage is missing, or if `quick` has no manifest.
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
    try:
        annotated = infos_build.annotated(root, version)
    except InputError as error:
        return [*problems, *dict.fromkeys([str(error), *_table_problems(root, version)])]
    files = list(named_files(root, version, coverage))
    check = partial(_examine_file, root, annotated)
    checked: list[Found] = []
    with (
        ThreadPoolExecutor(max(1, workers)) as pool,
        tqdm(total=len(files), desc="doctor", unit="file", disable=None if progress else True) as bar,
    ):
        remaining = iter(files)
        while batch := list(islice(remaining, _AT_ONCE)):
            for result in pool.map(check, batch):
                checked.append(result)
                bar.update()
    problems += [f"{result.path}: {result.problem}" for result in checked if result.problem]
    problems += manifests.differences(checked, recorded)
    if manifest is not None and not problems:
        manifests.write_manifest(manifest, version, checked, covers=coverage.recorded(), keep=recorded)
    return problems


def named_files(root: Path, version: str, coverage: Coverage = Coverage()) -> Iterator[Named]:
    """The files that the version's tables name, as far as covered: the tables, maps, then those of sample_data, in its order."""
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
    inside = None if coverage.splits is None else _samples_of(root, version, coverage.splits)
    wanted = coverage.sensors if coverage.sensors is not None else ("lidar", "camera")
    for row in tables.rows(root, version, "sample_data"):
        if inside is not None and row["sample_token"] not in inside:
            continue
        sensor = sensor_of.get(row["calibrated_sensor_token"], {"channel": "", "modality": ""})
        lidar, camera = sensor["channel"] == tables.LIDAR, sensor["channel"] in tables.CAMERAS
        read = (lidar and "lidar" in wanted) or (camera and row["is_key_frame"] and "camera" in wanted)
        if read or (coverage.unused and coverage.sensors is None):
            size = (row.get("width") or 0, row.get("height") or 0)
            yield Named(row["filename"], kind_of.get(sensor["modality"], "any"), size)


def _samples_of(root: Path, version: str, splits: tuple[str, ...]) -> set[str]:
    """Tokens of the samples of some splits. Raises InputError for a split that has none."""
    samples = Samples.read(root, version)
    for name in splits:
        split_tools.require(samples.splits, name, version)
    scenes = {scene for name in splits for scene in samples.splits[name]}
    return {token for token, scene in zip(samples.tokens, samples.scenes, strict=True) if scene in scenes}


# ---- checks of one file, of the tables


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
        problem = expansions.problem(root / file.path)
    else:
        problem = "" if data else "the file is empty"
    other = file_kinds.foreign(data[:4096]) if problem else ""
    problem = f"the file is {other}" if other else problem
    return Found(file.path, len(data), hashlib.sha256(data).hexdigest(), problem)


def _table_problems(root: Path, version: str) -> list[str]:
    """The tables that by themselves are no whole list of rows with what is read of them, a sentence each."""
    problems = []
    for name in tables.TABLES:
        try:
            for _ in tables.rows(root, version, name):
                pass
        except InputError as error:
            problems.append(str(error))
    return problems
