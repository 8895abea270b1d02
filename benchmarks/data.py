"""How fast preparation and loading are, as Markdown: `python benchmarks/data.py --scenes 850` for nuScenes' size.

Infos are built from a tables-only synthetic set in a process of their own, so that its peak memory is its own. With
--root (and --version), samples of that data set are loaded as a training run would.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BOUNDS = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)


def build_infos(root: Path, version: str, out: Path) -> None:
    """Child process: build, load, and print one row of the table."""
    from vexkd.data import infos as info_tools
    from vexkd.data import infos_build

    begin = time.perf_counter()
    counts = infos_build.build(root, version, out, progress=False)
    built = time.perf_counter()
    infos = info_tools.load(out)
    loaded = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    size = sum(path.stat().st_size for path in out.iterdir()) / 1024**2
    for position in range(0, len(infos), max(1, len(infos) // 1000)):
        infos[position]
    read = (time.perf_counter() - loaded) / min(1000, len(infos)) * 1e3
    cells = (
        f"{counts.samples:,}",
        f"{counts.sweeps:,}",
        f"{counts.boxes:,}",
        f"{built - begin:.1f}",
        f"{loaded - built:.2f}",
        f"{read:.2f}",
        f"{peak:.2f}",
        f"{size:.0f}",
    )
    print("| " + " | ".join(cells) + " |")


def measure_infos(scenes: int, samples: int, workers: int) -> None:
    """Make the tables, then build the infos in a child."""
    from vexkd.synthetic.tables import synthesize

    print(
        "| samples | sweeps | boxes | build s | load s | keyframe ms | peak GiB | files MiB |\n|" + "---|" * 8,
        flush=True,
    )
    with tempfile.TemporaryDirectory() as scratch:
        root, out = Path(scratch) / "set", Path(scratch) / "infos"
        synthesize(
            root, scenes=scenes, samples=samples, sweeps_per_sample=9, workers=workers, sensors=False, progress=False
        )
        version = next(root.glob("v1.0-*")).name
        arguments = [sys.executable, __file__, "--child", str(root), version, str(out)]
        subprocess.run(arguments, check=True)


def measure_loading(root: Path, version: str, workers: int) -> None:
    """Samples a second of the data set alone, and through the loader."""
    import torch

    from vexkd.data import infos as info_tools
    from vexkd.data import infos_build
    from vexkd.data import paste as paste_tools
    from vexkd.data.augment import BevAugmentation, ImageAugmentation
    from vexkd.data.dataset import EpochSampler, NuScenesDataset, epoch_order, loader

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        infos_build.build(root, version, out / "infos", progress=False)
        infos = info_tools.load(out / "infos")
        split = next(name for name, scenes in infos.splits.items() if scenes)
        infos = infos.subset(split)
        begin = time.perf_counter()
        objects = paste_tools.build(root, out / "infos", out / "paste", split=split, workers=workers, progress=False)
        spent = time.perf_counter() - begin
        print(f"\nPaste database: {objects:,} objects of {len(infos)} samples in {spent:.1f} s, {workers} workers.\n")
        common = {
            "root": root,
            "infos": infos,
            "bounds": BOUNDS,
            "bev_augmentation": BevAugmentation(),
            "training": True,
        }
        images = {"image_size": (256, 704), "image_augmentation": ImageAugmentation()}
        pasted = {"paste": paste_tools.PasteDatabase(out / "paste"), "paste_counts": dict.fromkeys(("car", "bus"), 4)}
        datasets = {
            "LiDAR": NuScenesDataset(sensors=["lidar"], **common),
            "LiDAR, pasting": NuScenesDataset(sensors=["lidar"], **common, **pasted),
            "camera": NuScenesDataset(sensors=["camera"], **common, **images),
            "LiDAR and camera": NuScenesDataset(sensors=["lidar", "camera"], **common, **images),
        }
        print(f"| sensors | samples/s, one process | samples/s, {workers} workers |\n|---|---|---|")
        for name, dataset in datasets.items():
            count = min(60, len(dataset))
            begin = time.perf_counter()
            for i in range(count):
                dataset[(0, i)]
            alone = count / (time.perf_counter() - begin)
            order = epoch_order(infos, seed=0, epoch=0, balanced=False)
            begin = time.perf_counter()
            batches = EpochSampler(order, epoch=0, batch=min(4, len(order)))
            loaded = sum(len(batch) for batch in loader(dataset, batches, workers=workers))
            print(f"| {name} | {alone:.1f} | {loaded / (time.perf_counter() - begin):.1f} |", flush=True)


def main() -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=85)
    parser.add_argument("--samples", type=int, default=40, help="keyframes a scene")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--root", type=Path, help="a data set with sensor files, to measure loading")
    parser.add_argument("--version", default="v1.0-mini")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        build_infos(Path(options.child[0]), options.child[1], Path(options.child[2]))
        return
    if options.scenes:
        measure_infos(options.scenes, options.samples, options.workers)
    if options.root:
        measure_loading(options.root, options.version, options.workers)


if __name__ == "__main__":
    main()
