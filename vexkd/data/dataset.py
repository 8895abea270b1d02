"""The training and evaluation data set: infos, files and draws -> `batch.Sample`; orders, batches and the loader.

Every random draw of a sample comes from a generator seeded by (seed, epoch, index, position), so results do not
depend on workers, ranks, or where a run was interrupted. Letters: P points, M boxes, N cameras, H W image.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from vexkd import boxes as box_tools
from vexkd import geometry
from vexkd.batch import Sample, collate
from vexkd.data import images as image_tools
from vexkd.data import shared_memory
from vexkd.data.augment import BevAugmentation, ImageAugmentation
from vexkd.data.images import ImageDraw
from vexkd.data.infos import Infos, Keyframe
from vexkd.data.maps import Maps
from vexkd.data.paste import PasteDatabase
from vexkd.data.points import Sweep, choose_sweeps, in_bounds, move_in_place, read_lidar, stack_sweeps
from vexkd.errors import InputError

SENSORS = ("lidar", "camera")


class Key(NamedTuple):
    """Which sample, in which epoch, at which place of the epoch's order (a sample may stand there twice)."""

    epoch: int
    index: int
    position: int = 0


class NuScenesDataset(Dataset):
    """Samples of a split as the models take them.

    root: nuScenes' folder. infos: a loaded split. sensors: of "lidar", "camera". sweeps: earlier LiDAR sweeps to
    stack. bounds: (x0, y0, z0, x1, y1, z1) metres; points and boxes outside are dropped. image_size: (H, W) given to
    the model. test_resize: resize factor where images are not augmented. training: draw sweeps at random, shuffle
    points, augment. bev_augmentation, image_augmentation, paste (LiDAR alone) and paste_counts (class -> number):
    used in training only; paste_epochs: paste in the epochs before this one (None: always). pad_sweeps: replace
    missing sweeps by the keyframe. history: earlier keyframes whose images follow the sample's own, nearest first.
    teacher_image_size, teacher_augmentation: for a teacher that sees the keyframe's images otherwise than the student;
    without an augmentation of its own it shares the student's, and sees no history. maps,
    map_grid: rasters, and the grid in which samples hold the labels read from them under the BEV augmentation.

    `dataset[(epoch, index)]`, `dataset[(epoch, index, position)]` or `dataset[index]` (epoch 0).
    """

    def __init__(
        self,
        *,
        root: Path,
        infos: Infos,
        sensors: Sequence[str],
        bounds: Sequence[float],
        sweeps: int = 9,
        image_size: tuple[int, int] | None = None,
        test_resize: float = 0.48,
        bev_augmentation: BevAugmentation | None = None,
        image_augmentation: ImageAugmentation | None = None,
        paste: PasteDatabase | None = None,
        paste_counts: Mapping[str, int] | None = None,
        paste_epochs: int | None = None,
        pad_sweeps: bool = False,
        history: int = 0,
        teacher_image_size: tuple[int, int] | None = None,
        teacher_augmentation: ImageAugmentation | None = None,
        maps: Maps | None = None,
        map_grid: geometry.BevGrid | None = None,
        seed: int = 0,
        training: bool = False,
    ) -> None:
        unknown = [name for name in sensors if name not in SENSORS]
        if unknown or not sensors:
            raise InputError(
                f"sensors {list(sensors)} are not some of {', '.join(SENSORS)}: correct the run's sensors."
            )
        if "camera" in sensors and image_size is None:
            raise InputError("the run has a camera but no image size: set camera.image_size.")
        if "camera" in sensors and not infos.cameras.num_rows:
            raise InputError(
                f"the run reads cameras, but the infos of {infos.version} list no images: get nuScenes' cameras, or name "
                "lidar alone."
            )
        if "camera" in sensors and paste is not None:
            raise InputError(
                "ground-truth pasting would show objects to the LiDAR that no image shows: switch it off for this run."
            )
        self.root = Path(root)
        self.infos = infos
        self.sensors = tuple(sensors)
        self.bounds = tuple(float(b) for b in bounds)
        self.sweeps = sweeps
        self.image_size = image_size
        self.test_resize = test_resize
        self.bev_augmentation = bev_augmentation if training else None
        self.image_augmentation = image_augmentation if training else None
        self.paste = paste if training else None
        self.paste_counts = dict(paste_counts or {})
        self.paste_epochs = paste_epochs
        self.pad_sweeps = pad_sweeps
        self.history = history
        self.teacher_image_size, self.teacher_augmentation = teacher_image_size, teacher_augmentation
        self.maps, self.map_grid = maps, map_grid
        self.seed = seed
        self.training = training

    def __len__(self) -> int:
        return len(self.infos)

    def __getitem__(self, key: int | tuple[int, ...]) -> Sample:
        """One sample; raises InputError that names the file that cannot be read, never gives another sample instead."""
        epoch, index, position = Key(*key) if isinstance(key, tuple) else Key(0, key)
        rng = np.random.default_rng([self.seed, epoch, index, position])
        keyframe = self.infos[index]
        boxes, labels = keyframe.boxes[keyframe.valid], keyframe.labels[keyframe.valid]
        points = self._read_points(keyframe, rng) if "lidar" in self.sensors else None
        if self.paste is not None and (self.paste_epochs is None or epoch < self.paste_epochs):
            points, boxes, labels = self.paste.paste(points, boxes, labels, rng, self.paste_counts)
        lidar_augment = self.bev_augmentation.draw(rng) if self.bev_augmentation else np.eye(4)
        boxes = box_tools.move(boxes, lidar_augment)
        boxes[:, 6] = geometry.wrap(boxes[:, 6])
        near = box_tools.in_range(boxes, self.bounds)
        if points is not None:
            points = self._finish_points(points, lidar_augment, rng)
        pictures = self._read_pictures(keyframe) if "camera" in self.sensors else []
        images = self._see(pictures, index, rng) if pictures else (None, None, None, None)
        return Sample(
            token=keyframe.token,
            points=None if points is None else torch.from_numpy(points),
            images=images[0],
            intrinsics=images[1],
            camera_from_lidar=images[2],
            image_augment=images[3],
            lidar_augment=torch.from_numpy(lidar_augment.astype(np.float32)),
            global_from_lidar=torch.from_numpy(keyframe.global_from_lidar),
            boxes=torch.from_numpy(boxes[near].astype(np.float32)),
            labels=torch.from_numpy(labels[near].astype(np.int64)),
            maps=self._read_maps(keyframe.token, lidar_augment),
            **self._teacher_sees(pictures, images, [self.seed, epoch, index, position, 1]),
        )

    def _read_maps(self, token: str, lidar_augment: np.ndarray) -> torch.Tensor | None:
        """Labels (K, Y', X') uint8 under the augmentation, where they are asked for."""
        if self.maps is None:
            return None
        return torch.from_numpy(self.maps.labels(token, lidar_augment, self.map_grid))

    def _read_points(self, keyframe: Keyframe, rng: np.random.Generator) -> np.ndarray:
        """Keyframe and sweeps (P, 5), un-augmented."""
        chosen = choose_sweeps(len(keyframe.sweep_paths), self.sweeps, rng if self.training else None)
        sweeps = [
            Sweep(
                read_lidar(self.root / keyframe.sweep_paths[i], int(keyframe.sweep_bytes[i])),
                keyframe.lidar_from_sweep[i],
                float(keyframe.sweep_lags[i]),
            )
            for i in chosen
        ]
        key = read_lidar(self.root / keyframe.lidar_path, keyframe.lidar_bytes)
        return stack_sweeps(key, sweeps, pad_to=self.sweeps if self.pad_sweeps else 0)

    def _finish_points(self, points: np.ndarray, lidar_augment: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Augmented (in place), inside the bounds, shuffled in training."""
        move_in_place(points, lidar_augment)
        inside = in_bounds(points, self.bounds)
        return np.take(points, rng.permutation(inside) if self.training else inside, axis=0)

    def _read_pictures(self, frame: Keyframe) -> list[Image.Image]:
        """The images of a keyframe as they lie on disk, camera by camera."""
        files = zip(frame.camera_paths, frame.camera_sizes, strict=True)
        return [image_tools.read_image(self.root / path, tuple(size)) for path, size in files]

    def _see(self, pictures: list[Image.Image], index: int, rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
        """Images (F N, 3, H, W), intrinsics (F N, 3, 3), camera_from_lidar (F N, 4, 4), image_augment (F N, 3, 3); float32.

        F frames: the keyframe, whose pictures are given, then `history` earlier ones. A camera is augmented alike in all of
        them, as published.
        """
        current = self.infos[index]
        frames = [current, *self.infos.history(index, self.history)]
        draws = [self._draw_image(rng) for _ in current.camera_paths]
        mask = self.image_augmentation.draw_mask(rng, self.image_size) if self.image_augmentation else None
        pixels = np.empty((len(frames) * len(draws), 3, *self.image_size), dtype=np.float32)
        augmented: list[np.ndarray] = []
        for number, frame in enumerate(frames):
            for picture, draw in zip(self._read_pictures(frame) if number else pictures, draws, strict=True):
                image, matrix = image_tools.augment(picture, draw, self.image_size)
                normal = image_tools.normalise(image, draw.colours, out=pixels[len(augmented)])
                if mask is not None:
                    normal *= mask
                augmented.append(matrix)
        intrinsics = np.concatenate([frame.intrinsics for frame in frames])
        cameras = np.concatenate([current.camera_from_lidar, *(cameras_over_time(f, current) for f in frames[1:])])
        arrays = (pixels, intrinsics, cameras, np.stack(augmented))
        return tuple(torch.from_numpy(np.asarray(a, dtype=np.float32)) for a in arrays)

    def _teacher_sees(
        self, pictures: list[Image.Image], images: tuple[torch.Tensor, ...], seed: list[int]
    ) -> dict[str, torch.Tensor]:
        """The teacher's images (N, 3, H', W') and their matrices (N, 3, 3), where they are not all that the student sees."""
        if self.teacher_image_size is None:
            return {}
        if self.teacher_augmentation is None:  # the student's own, of the keyframe alone
            count = len(pictures)
            return {"teacher_images": images[0][:count], "teacher_image_augment": images[3][:count]}
        rng = np.random.default_rng(seed)
        pixels, matrices = [], []
        for picture in pictures:
            draw = self.teacher_augmentation.draw(rng)
            image, matrix = image_tools.augment(picture, draw, self.teacher_image_size)
            pixels.append(image_tools.normalise(image, draw.colours))
            matrices.append(matrix)
        return {
            "teacher_images": torch.from_numpy(np.stack(pixels)),
            "teacher_image_augment": torch.from_numpy(np.stack(matrices).astype(np.float32)),
        }

    def _draw_image(self, rng: np.random.Generator) -> ImageDraw:
        """What to do with the images of one camera."""
        return self.image_augmentation.draw(rng) if self.image_augmentation else ImageDraw(resize=self.test_resize)


def cameras_over_time(earlier: Keyframe, current: Keyframe) -> np.ndarray:
    """camera_from_lidar (N, 4, 4) from the current keyframe's LiDAR frame to the cameras of an earlier one, by the map."""
    earlier_from_current = geometry.inverse(earlier.global_from_lidar) @ current.global_from_lidar
    return earlier.camera_from_lidar @ earlier_from_current


def plain_order(count: int, rng: np.random.Generator) -> np.ndarray:
    """Every sample once, shuffled."""
    return rng.permutation(count)


def cbgs_indices(infos: Infos, rng: np.random.Generator) -> np.ndarray:
    """Class-balanced draw of positions in `infos` (CBGS, as mmdetection3d's `CBGSDataset`), shuffled.

    Each class draws total / 10 samples with replacement from those that hold it, where total is the sum over classes of
    the number of such samples. Classes that no sample holds draw nothing.
    """
    holders = [np.flatnonzero(column) for column in infos.holds_class().T]
    total = sum(len(rows) for rows in holders)
    drawn = [rng.choice(rows, int(total / len(holders))) for rows in holders if len(rows)]
    return rng.permutation(np.concatenate(drawn)) if drawn else np.zeros(0, dtype=np.int64)


def epoch_order(infos: Infos, *, seed: int, epoch: int, balanced: bool) -> np.ndarray:
    """The order of one epoch, the same on every rank: class-balanced or plain."""
    rng = np.random.default_rng([seed, epoch])
    return cbgs_indices(infos, rng) if balanced else plain_order(len(infos), rng)


class EpochSampler(Sampler[list[Key]]):
    """The micro-batches of one rank in one epoch, from optimiser step `start_step` on.

    order: positions in the data set for the whole epoch (see `epoch_order`). batch: global batch size of one step,
    split over `world` ranks and `accumulate` micro-batches. Step s uses order[s * batch : (s + 1) * batch] whatever
    the number of ranks; the incomplete last step is dropped. Raises InputError if the batch cannot be split or is
    never full.
    """

    def __init__(
        self,
        order: np.ndarray,
        *,
        epoch: int,
        batch: int,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        start_step: int = 0,
    ) -> None:
        if batch % (world * accumulate):
            raise InputError(
                f"batch {batch} cannot be split over {world} processes and {accumulate} micro-batches: "
                f"make it a multiple of {world * accumulate}."
            )
        if len(order) < batch:
            raise InputError(
                f"an epoch holds {len(order)} samples, fewer than one batch of {batch}: lower train.batch."
            )
        self.order = order
        self.epoch = epoch
        self.batch = batch
        self.rank = rank
        self.world = world
        self.accumulate = accumulate
        self.start_step = start_step

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole epoch."""
        return len(self.order) // self.batch

    def __len__(self) -> int:
        return max(0, self.steps - self.start_step) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        size = self.batch // (self.world * self.accumulate)
        for step in range(self.start_step, self.steps):
            for micro in range(self.accumulate):
                first = step * self.batch + (micro * self.world + self.rank) * size
                yield [Key(self.epoch, int(self.order[i]), i) for i in range(first, first + size)]


def in_order(count: int, *, batch: int, rank: int = 0, world: int = 1) -> list[list[Key]]:
    """Batches of one rank for evaluation: every sample once over all ranks, in order, the last batch smaller."""
    keys = [Key(0, i) for i in range(rank, count, world)]
    return [keys[i : i + batch] for i in range(0, len(keys), batch)]


# Data sets whose batches were found to fit into shared memory.
_FITTING: weakref.WeakSet[Dataset] = weakref.WeakSet()


def loader(
    dataset: NuScenesDataset,
    batches: Sampler[list[Key]] | list[list[Key]],
    *,
    workers: int = 0,
    start: str | None = None,
) -> DataLoader:
    """Batches of `vexkd.batch.Batch` from `EpochSampler` or `in_order`.

    workers: processes (0: this one). start: how they start ("fork", "spawn"; None: Python's default). The loader takes
    nothing from torch's global random state.
    """
    if workers and dataset not in _FITTING:  # once: later on, batches of the last epoch may still be there
        shared_memory.check(dataset, batches, workers)
        _FITTING.add(dataset)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=shared_memory.leave_signals_to_parent,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),
        multiprocessing_context=start if workers else None,
    )
