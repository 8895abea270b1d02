"""Bytes to batches at the paper's settings: samples a second and core by sensors, the time by part, and the plain way beside it.

`python benchmarks/loading.py [--keyframe FOLDER] [--town]` as Markdown. The keyframe is a folder with nuScenes' tables and
sensor files of one sample (default: $VEXKD_KEYFRAME); its scan stands for the nine sweeps, too. --town makes a small set with
images of 1600 x 900 and nine sweeps. Times are of the processor, of one thread: what else the machine does shows less in them
than in the clock.

The plain way is what published code does: Pillow decodes, resizes the whole image, crops and turns; each sweep is read with
`np.fromfile` and moved in one matrix product.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vexkd import settings
from vexkd.batch import collate
from vexkd.data import dataset as dataset_module
from vexkd.data import images, infos_build, paste
from vexkd.data import infos as info_tools
from vexkd.data.dataset import Key, NuScenesDataset
from vexkd.data.infos import Infos, Keyframe
from vexkd.train import tasks

ROOT = Path(__file__).parents[1]
ROWS = {"LiDAR": "centerpoint-det", "camera": "bevdet-det", "LiDAR + camera": "fusion-det"}  # runs of params.yaml
BATCH = 4
Timed = dict[str, float]


class WithSweeps:
    """Infos of a keyframe whose own scan stands for nine earlier sweeps, 50 ms apart, 0.4 m behind each other."""

    def __init__(self, infos: Infos, sweeps: int) -> None:
        self._infos, self._sweeps = infos, sweeps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._infos, name)

    def __len__(self) -> int:
        return len(self._infos)

    def __getitem__(self, position: int) -> Keyframe:
        keyframe = self._infos[position]
        lags = 0.05 * np.arange(1, self._sweeps + 1)
        poses = np.tile(np.eye(4), (self._sweeps, 1, 1))
        poses[:, 1, 3] = -8 * lags
        return dataclasses.replace(
            keyframe,
            sweep_paths=[keyframe.lidar_path] * self._sweeps,
            sweep_bytes=np.full(self._sweeps, keyframe.lidar_bytes),
            sweep_lags=lags,
            lidar_from_sweep=poses,
        )


@dataclasses.dataclass
class Meter:
    """Processor time of functions while they run, each without the others that it calls."""

    spent: dict[str, float] = dataclasses.field(default_factory=lambda: defaultdict(float))
    running: list[list] = dataclasses.field(default_factory=list)

    def wrap(self, part: str, function: Callable) -> Callable:
        """The function, whose time is added to a part."""

        def timed(*arguments: Any, **options: Any) -> Any:
            begin, inner = time.process_time(), [0.0]
            self.running.append(inner)
            try:
                return function(*arguments, **options)
            finally:
                self.running.pop()
                whole = time.process_time() - begin
                self.spent[part] += whole - inner[0]
                if self.running:
                    self.running[-1][0] += whole

        return timed


STEPS = (
    (dataset_module, "read_lidar", "read LiDAR"),
    (images, "read_image", "read and decode JPEG"),
    (images, "augment", "resize and warp"),
    (images, "normalise", "normalise"),
    (dataset_module, "stack_sweeps", "sweeps"),
    (paste.PasteDatabase, "paste", "paste"),
    (NuScenesDataset, "_finish_points", "augment and crop points"),
    (NuScenesDataset, "__getitem__", "targets and the rest"),
)


def watch(meter: Meter) -> None:
    """Put the meter around the steps of loading."""
    for owner, name, part in STEPS:
        setattr(owner, name, meter.wrap(part, getattr(owner, name)))


# ---- the plain way


def plain_points(root: Path, keyframe: Keyframe, dataset: NuScenesDataset, rng: np.random.Generator) -> torch.Tensor:
    """Stacked, augmented, cropped and shuffled points."""
    key = np.fromfile(root / keyframe.lidar_path, dtype=np.float32).reshape(-1, 5)
    key[:, 4] = 0
    stacked = [key]
    for path, matrix, lag in zip(keyframe.sweep_paths, keyframe.lidar_from_sweep, keyframe.sweep_lags, strict=True):
        points = np.fromfile(root / path, dtype=np.float32).reshape(-1, 5)
        points = points[~((np.abs(points[:, 0]) < 1) & (np.abs(points[:, 1]) < 1))]
        points[:, :3] = points[:, :3] @ matrix[:3, :3].T + matrix[:3, 3]
        points[:, 4] = lag
        stacked.append(points)
    points = np.concatenate(stacked)
    if dataset.paste is not None:
        boxes, labels = keyframe.boxes[keyframe.valid], keyframe.labels[keyframe.valid]
        points, _, _ = dataset.paste.paste(points, boxes, labels, rng, dataset.paste_counts)
    matrix = dataset.bev_augmentation.draw(rng)
    points[:, :3] = points[:, :3] @ matrix[:3, :3].T + matrix[:3, 3]
    low, high = np.array(dataset.bounds[:3]), np.array(dataset.bounds[3:])
    points = points[((points[:, :3] >= low) & (points[:, :3] < high)).all(axis=1)]
    return torch.from_numpy(points[rng.permutation(len(points))])


def plain_images(root: Path, keyframe: Keyframe, dataset: NuScenesDataset, rng: np.random.Generator) -> torch.Tensor:
    """Augmented and normalised images (N, 3, H, W)."""
    height, width = dataset.image_size
    normal = []
    for path in keyframe.camera_paths:
        draw = dataset.image_augmentation.draw(rng)
        image = Image.open(root / path).convert("RGB")
        size = int(image.width * draw.resize), int(image.height * draw.resize)
        left, top = int(max(0, size[0] - width) * draw.across), int((1 - draw.bottom) * size[1]) - height
        image = image.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + width, top + height))
        if draw.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image = image.rotate(np.rad2deg(draw.rotation), resample=Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        normal.append(
            (pixels - torch.tensor(images.MEAN / 255)[:, None, None]) / torch.tensor(images.STD / 255)[:, None, None]
        )
    return torch.stack(normal)


def plain_batch(dataset: NuScenesDataset, keys: list[Key]) -> list[torch.Tensor]:
    """Points and images of some samples."""
    made: list[torch.Tensor] = []
    for key in keys:
        rng, keyframe = np.random.default_rng(list(key)), dataset.infos[key.index]
        if "lidar" in dataset.sensors:
            made.append(plain_points(dataset.root, keyframe, dataset, rng))
        if "camera" in dataset.sensors:
            made.append(plain_images(dataset.root, keyframe, dataset, rng))
    return made


# ---- measuring


def paper(version: str, split: str) -> settings.Params:
    """params.yaml, on another version and split."""
    raw = settings.load(ROOT / "params.yaml").raw
    raw["data"] |= {"version": version, "train_split": split, "val_split": split}
    return settings.parse(raw)


def sets(root: Path, scratch: Path, *, repeat: bool) -> Iterator[tuple[str, NuScenesDataset]]:
    """The training sets of the paper's rows, by sensors."""
    version = next(path.parent.name for path in root.glob("v1.0-*/sample.json"))
    infos_build.build(root, version, scratch / "infos", progress=False)
    infos = info_tools.load(scratch / "infos")
    split = next(name for name, scenes in infos.splits.items() if scenes)
    params = paper(version, split)
    paste.build(root, scratch / "infos", scratch / "paste", split=split, progress=False)
    for name, row in ROWS.items():
        run = params.run(row).model_copy(update={"map": None})
        pasted = scratch / "paste" if run.sensors == ["lidar"] else None
        dataset = tasks.training_set(run, run, root=root, infos=infos, paste=pasted, maps=None, seed=0)
        if repeat:
            dataset.infos = WithSweeps(dataset.infos, run.data.sweeps)
        yield name, dataset


def measure(dataset: NuScenesDataset, rounds: int, meter: Meter) -> tuple[list[float], list[float], Timed]:
    """Seconds a sample of each round, ours and the plain way, in turn; and ours by part."""
    ours, plain = [], []
    parts: Timed = defaultdict(float)
    for number in range(rounds + 1):
        keys = [Key(number, i % len(dataset), i) for i in range(BATCH)]
        meter.spent.clear()
        begin = time.process_time()
        samples = [dataset[key] for key in keys]
        loaded = time.process_time()
        collate(samples)
        ended = time.process_time()
        seen = dict(meter.spent) | {"collate": ended - loaded}
        plain_batch(dataset, keys)
        if number:  # the first round warms up
            ours.append((ended - begin) / BATCH)
            plain.append((time.process_time() - ended) / BATCH)
            for part, seconds in seen.items():
                parts[part] += seconds / BATCH / rounds
    return ours, plain, parts


def report(title: str, root: Path, rounds: int, meter: Meter, *, repeat: bool) -> None:
    """Both tables of one data set."""
    names = list(dict.fromkeys([*(part for _, _, part in STEPS), "collate"]))
    head = ["sensors", "samples/s per core", "plain way", "ratio (spread)", *(f"{name}, ms" for name in names)]
    print(f"\n{title}\n\n| {' | '.join(head)} |")
    print("|" + "---|" * len(head), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for name, dataset in sets(root, Path(scratch), repeat=repeat):
            ours, plain, parts = measure(dataset, rounds, meter)
            ratios = sorted(p / o for o, p in zip(ours, plain, strict=True))
            cells = [name, f"{1 / statistics.median(ours):.1f}", f"{1 / statistics.median(plain):.1f}"]
            cells += [f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"]
            cells += [f"{1e3 * parts.get(n, 0.0):.1f}" for n in names]
            print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--keyframe", type=Path, default=os.environ.get("VEXKD_KEYFRAME"), help="default: $VEXKD_KEYFRAME"
    )
    parser.add_argument("--town", action="store_true", help="also a synthetic town with full images and nine sweeps")
    parser.add_argument("--rounds", type=int, default=5, help=f"batches of {BATCH} samples")
    options = parser.parse_args()
    if not (options.keyframe or options.town):
        sys.exit("name a folder with --keyframe or $VEXKD_KEYFRAME, or ask for --town")
    torch.set_num_threads(1)
    meter = Meter()
    watch(meter)
    if options.keyframe:
        report("The real keyframe", Path(options.keyframe), options.rounds, meter, repeat=True)
    if options.town:
        from vexkd.synthetic.tables import synthesize

        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "town"
            synthesize(
                root,
                scenes=2,
                samples=2,
                image_size=(1600, 900),
                azimuths=1080,
                sweeps_per_sample=10,
                workers=1,
                progress=False,
            )
            report("A synthetic town, images of 1600 x 900, nine sweeps", root, options.rounds, meter, repeat=False)


if __name__ == "__main__":
    main()
