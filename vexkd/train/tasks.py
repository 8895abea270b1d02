"""From a run's settings to what is trained: its data set and its task (supervision or distillation)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor, nn

from vexkd.batch import Batch
from vexkd.data.augment import BevAugmentation, ColourAugmentation, GridMaskAugmentation, ImageAugmentation
from vexkd.data.dataset import NuScenesDataset
from vexkd.data.infos import Infos
from vexkd.data.maps import Maps
from vexkd.data.paste import PasteDatabase
from vexkd.distill import distiller
from vexkd.errors import InputError
from vexkd.models import bev_model
from vexkd.models.bev_model import BEVModel
from vexkd.models.targets import Counts, Targets
from vexkd.needs import sensors_read
from vexkd.published import fetch
from vexkd.settings import ImageAugment, Run
from vexkd.train import checkpoint
from vexkd.train.loop import Task


class Supervised(nn.Module):
    """A model trained on its own task loss."""

    masks = None

    def __init__(self, model: BEVModel) -> None:
        super().__init__()
        self.model = model

    def begin_step(self, epoch: int, iteration: int) -> None:
        """Tell the model which epoch it is."""
        self.model.begin_epoch(epoch)

    def targets(self, batch: Batch) -> Targets:
        """The model's own."""
        return self.model.targets(batch)

    def forward(self, batch: Batch, targets: Targets, counts: Counts) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The model's loss terms, and nothing to watch."""
        losses = self.model.loss(self.model(batch), targets, counts)
        return {f"task.{name}": value for name, value in losses.items()}, {}


def build_task(run: Run, *, start: Path | None, teacher: Path | None) -> tuple[Task, Run]:
    """The task to train, and the run whose camera settings shape the images (the teacher's, where there is one).

    Raises InputError where the weights named by the run are not given, or are those of another run.
    """
    model = bev_model.build(run)
    fetch.start(model, run)
    if run.start is not None:
        _check_origin(run.start, start, f"{run.name}: start")
        same_task = checkpoint.read_header(start)["settings"]["task"] == run.task
        new = checkpoint.start_from(model, start, head=same_task)
        print(f"{run.name}: starts from {run.start}; new are {', '.join(new) or 'no parts'}", flush=True)
    if run.teacher is None:
        return Supervised(model), run
    _check_origin(run.teacher, teacher, f"{run.name}: teacher")
    teacher_model, teacher_run = checkpoint.load_model(teacher)
    if teacher_run.bev != run.bev:
        raise InputError(
            f"{run.name}: student and teacher {run.teacher} must share the settings of bev; make them equal."
        )
    task = distiller.build(settings=run.distill, student=model, teacher=teacher_model, teacher_name=run.teacher)
    return task, teacher_run


def _check_origin(name: str, weights: Path | None, where: str) -> None:
    if weights is None:
        raise InputError(f"{where} is {name}, but no weights were given; pass its weights.safetensors.")
    name_in_weights = checkpoint.read_header(weights)["settings"]["name"]
    if name_in_weights != name:
        raise InputError(
            f"{weights}: {where} must be {name}, these are the weights of {name_in_weights}; pass those of {name}."
        )


def training_set(
    run: Run, images: Run, *, root: Path, infos: Infos, paste: Path | None, maps: Path | None = None, seed: int
) -> NuScenesDataset:
    """The training split with its augmentation: one draw serves student and teacher. `images`: the teacher, or the run.

    The images are the student's where it has cameras; a teacher that asks for the same ones shares them.
    """
    shown = run if run.camera else images
    sensors = sensors_read(run, images)
    augment = run.bev_augment
    history = shown.camera.history.keyframes if shown.camera and shown.camera.history else 0
    otherwise = images.camera is not None and _pictures(images) != _pictures(shown)
    alone = images.camera is not None and images.camera.history is None and history > 0
    if run.paste is not None and paste is None:
        raise InputError(
            f"{run.name}: the settings ask for pasted objects; pass the ground-truth database with --paste."
        )
    if run.map is not None and maps is None:
        raise InputError(f"{run.name}: the settings ask for map labels; pass the folder of their rasters with --maps.")
    split = infos.subset(run.data.train_split)
    return NuScenesDataset(
        root=_existing(root),
        infos=split,
        sensors=sensors,
        bounds=run.bev.range,
        sweeps=run.data.sweeps,
        image_size=tuple(shown.camera.image_size) if "camera" in sensors else None,
        history=history,
        teacher_image_size=tuple(images.camera.image_size) if otherwise or alone else None,
        teacher_augmentation=_image_augmentation(images.image_augment) if otherwise else None,
        bev_augmentation=BevAugmentation(
            rotation=augment.rotation,
            scale=tuple(augment.scale),
            translation=augment.translation,
            flip_x=augment.flip,
            flip_y=augment.flip,
        ),
        image_augmentation=_image_augmentation(shown.image_augment) if "camera" in sensors else None,
        paste=_pasted(run, paste, split) if run.paste else None,
        paste_counts=run.paste.counts if run.paste else None,
        paste_epochs=run.paste.until_epoch if run.paste else None,
        maps=Maps(maps).require(cell=run.map.cell, edges=run.map.edges) if run.map else None,
        map_grid=run.map.grid if run.map else None,
        seed=seed,
        training=True,
    )


def validation_set(run: Run, *, root: Path, infos: Infos, drop: str | None = None) -> NuScenesDataset:
    """The validation split for the run's own sensors but one to `drop`, without augmentation."""
    sensors = [name for name in run.sensors if name != drop]
    return NuScenesDataset(
        root=_existing(root),
        infos=infos.subset(run.data.val_split),
        sensors=sensors,
        bounds=run.bev.range,
        sweeps=run.data.sweeps,
        image_size=tuple(run.camera.image_size) if "camera" in sensors else None,
        test_resize=run.image_augment.test_resize if run.image_augment else 1.0,
        history=run.camera.history.keyframes if run.camera and run.camera.history and "camera" in sensors else 0,
    )


def _pasted(run: Run, paste: Path, split: Infos) -> PasteDatabase:
    """The objects to paste, if they are those of the run's training split."""
    return PasteDatabase(paste).require(
        split=split, name=run.data.train_split, min_points=run.paste.min_points, sweeps=run.data.sweeps
    )


def _pictures(run: Run) -> tuple:
    """What the images of a run depend on in training."""
    return run.camera.image_size, run.image_augment


def _image_augmentation(settings: ImageAugment) -> ImageAugmentation:
    return ImageAugmentation(
        resize=tuple(settings.resize),
        rotation=float(np.deg2rad(settings.rotation)),
        flip=settings.flip,
        colours=ColourAugmentation(**settings.colours.model_dump()) if settings.colours else None,
        mask=GridMaskAugmentation(**settings.grid_mask.model_dump()) if settings.grid_mask else None,
    )


def _existing(root: Path) -> Path:
    """The data root, if it is there."""
    if not root.is_dir():
        raise InputError(f"data root {root} does not exist: set root to nuScenes' folder.")
    return root
