"""How fast preparation is, as Markdown: `python benchmarks/preparation.py --scenes 850` for nuScenes' size.

Infos are built from tables without sensor files, in a process of their own, so that its peak memory is its own. Doctor, paste
database and map rasters are measured on a small town with sensor files: doctor beside hashing the same files alone (what
reading them costs at least), the database beside a writer of one process that searches all points for each box and writes a
file for each object, the rasters as samples a second. In the second table times are of the processor, of one process.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vexkd import boxes as box_tools
from vexkd.data import doctor, infos_build, map_drawing, paste
from vexkd.data import infos as info_tools
from vexkd.data.points import Sweep, read_lidar, stack_sweeps
from vexkd.synthetic.tables import synthesize

MIN_POINTS, SWEEPS, REACH = 5, 9, 80.0


def build_infos(root: Path, version: str, out: Path) -> None:
    """Child process: build, load, and print one row of the table."""
    begin, worked = time.perf_counter(), time.process_time()
    counts = infos_build.build(root, version, out, progress=False)
    built, worked = time.perf_counter(), time.process_time() - worked
    infos = info_tools.load(out)
    loaded = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    size = sum(path.stat().st_size for path in out.iterdir()) / 1024**2
    for position in range(0, len(infos), max(1, len(infos) // 1000)):
        infos[position]
    read = (time.perf_counter() - loaded) / min(1000, len(infos)) * 1e3
    cells = (f"{counts.samples:,}", f"{counts.sweeps:,}", f"{counts.boxes:,}", f"{built - begin:.1f}", f"{worked:.1f}")
    cells += (f"{loaded - built:.2f}", f"{read:.2f}", f"{peak:.2f}", f"{size:.0f}")
    print("| " + " | ".join(cells) + " |")


def measure_infos(scenes: int, samples: int | None, workers: int) -> None:
    """Make the tables, then build the infos in a child."""
    head = (
        "samples",
        "sweeps",
        "boxes",
        "build, s",
        "of it processor, s",
        "load, s",
        "keyframe, ms",
        "peak GiB",
        "files MiB",
    )
    print(f"| {' | '.join(head)} |\n|" + "---|" * len(head), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        root, out = Path(scratch) / "set", Path(scratch) / "infos"
        synthesize(
            root, scenes=scenes, samples=samples, sweeps_per_sample=10, workers=workers, sensors=False, progress=False
        )
        version = next(root.glob("v1.0-*")).name
        subprocess.run([sys.executable, __file__, "--child", str(root), version, str(out)], check=True)


def processor_time(function: Callable[..., Any], *arguments: Any, **options: Any) -> float:
    """Seconds that this process computes in a call."""
    begin = time.process_time()
    function(*arguments, **options)
    return time.process_time() - begin


def hash_files(root: Path) -> None:
    """Read and hash every file."""
    for path in filter(Path.is_file, root.rglob("*")):
        hashlib.sha256(path.read_bytes())


def plain_database(root: Path, infos: info_tools.Infos, out: Path) -> None:
    """A file for each object, as published code writes them."""
    out.mkdir()
    for keyframe in infos:
        history = zip(keyframe.sweep_paths, keyframe.lidar_from_sweep, keyframe.sweep_lags, strict=True)
        sweeps = [Sweep(read_lidar(root / path), matrix, float(lag)) for path, matrix, lag in list(history)[:SWEEPS]]
        points = stack_sweeps(read_lidar(root / keyframe.lidar_path), sweeps)
        for number in keyframe.valid.nonzero()[0]:
            inside = points[box_tools.points_inside(points, keyframe.boxes[number])]
            if len(inside) >= MIN_POINTS:
                inside.tofile(out / f"{keyframe.token}_{number}.bin")


def measure_files(samples: int, rounds: int) -> None:
    """Doctor, paste database and map rasters on a town."""
    print("\n| step | rate | plain way | ratio (spread) |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        root, built = folder / "town", folder / "infos"
        synthesize(
            root,
            scenes=2,
            samples=samples,
            image_size=(1600, 900),
            azimuths=1080,
            sweeps_per_sample=10,
            workers=1,
            progress=False,
        )
        infos_build.build(root, "v1.0-mini", built, progress=False)
        infos = info_tools.load(built).subset("mini_train")
        megabytes = sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) / 1e6
        count = len(info_tools.load(built))
        hashing, checking, plain, packed, drawing = [], [], [], [], []
        for number in range(rounds):
            out = folder / str(number)
            out.mkdir()
            hashing.append(processor_time(hash_files, root))
            checking.append(processor_time(doctor.examine, root, "v1.0-mini", progress=False))
            plain.append(processor_time(plain_database, root, infos, out / "plain"))
            options = {"split": "mini_train", "min_points": MIN_POINTS, "sweeps": SWEEPS, "progress": False}
            packed.append(processor_time(paste.build, root, built, out / "paste", **options))
            drawing.append(processor_time(map_drawing.build, root, built, out / "maps", reach=REACH, progress=False))
        row("doctor", checking, hashing, megabytes, "MB/s")
        row("paste database", packed, plain, len(infos), "samples/s")
        print(f"| map rasters of ±{REACH:g} m, 0.5 m | {count / min(drawing):.0f} samples/s | | |")


def row(name: str, ours: list[float], plain: list[float], amount: float, unit: str) -> None:
    """One row: both rates, and their ratio round by round."""
    ratios = sorted(p / o for o, p in zip(ours, plain, strict=True))
    middle = ratios[len(ratios) // 2]
    rates = f"{amount / min(ours):.1f} {unit} | {amount / min(plain):.1f} {unit}"
    print(f"| {name} | {rates} | {middle:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |", flush=True)


def main() -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=85, help="of the tables without sensor files; 0: none")
    parser.add_argument("--samples", type=int, help="keyframes of each of these scenes (default: nuScenes' own number)")
    parser.add_argument("--town", type=int, default=3, help="keyframes of a scene of the town; 0: no town")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that make the tables")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        build_infos(Path(options.child[0]), options.child[1], Path(options.child[2]))
        return
    if options.scenes:
        measure_infos(options.scenes, options.samples, options.workers)
    if options.town:
        measure_files(options.town, options.rounds)


if __name__ == "__main__":
    main()
