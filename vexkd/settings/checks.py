"""Whether the settings of a run fit together: checked when settings are read, before a model is built.

Each check yields sentences without a full stop that begin with the key. Whichever parts a run has, the BEV map that comes out of
its model must have the cells that `bev` describes, in number and in metres. X Y Z: axes of the LiDAR frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vexkd.settings import Camera, LiftSplat, Run

_CLOSE = 1e-6  # of a cell: the error that decimal fractions leave
_MOST_BOXES = 500  # per sample, in nuScenes' submissions


def problems(run: Run) -> Iterator[str]:
    """Every reason why a run's settings cannot be used together."""
    yield from _parts(run)
    sentences = list(_grid(run))
    yield from sentences
    if sentences:
        return  # what follows counts cells
    if run.lidar is not None:
        yield from _lidar(run)
    if run.camera is not None:
        yield from _camera(run.camera, run)
    if run.fusion == "mgfm":
        yield from _attention("mgfm", run.mgfm.channels, run.mgfm.heads)
    yield from _bev_encoder(run)
    yield from _head(run)
    yield from _augmentation(run)
    yield from _training(run)
    yield from _after_training(run)


def _parts(run: Run) -> Iterator[str]:
    """What sensors, labels and distillation ask of the rest."""
    if "lidar" not in run.sensors and getattr(run.camera.view, "depth_net", None) == "lidar":
        yield "camera.view.depth_net: lidar reads LiDAR points, which the run lacks; use plain or bevdepth"
    x0, y0, _, x1, y1, _ = run.bev.range
    if run.map is not None and run.map.reach > min(-x0, -y0, x1, y1):
        yield f"map.reach: labels to {run.map.reach:g} m lie beyond bev.range; lower it or widen that"
    trouble = run.distill.trouble(task=run.task, student=run.head) if run.distill is not None else None
    if trouble is not None:
        yield f"distill.{trouble}"


def unlike_teacher(run: Run, teacher: Run) -> str | None:
    """Why a student's BEV maps cannot be held against a teacher's cell by cell; None if they can."""
    if list(run.bev.range) != list(teacher.bev.range) or run.bev.cell != teacher.bev.cell:
        return (
            f"bev.range and bev.cell: student and teacher must share one BEV grid, the teacher {teacher.name} has"
            f" {teacher.bev.range} and {teacher.bev.cell} m; give both the same"
        )
    return None


def _whole(value: float) -> bool:
    """Whether a number is, up to rounding, a whole one of at least 1."""
    return round(value) >= 1 and abs(value - round(value)) < _CLOSE * max(1.0, value)


def _cells(run: Run) -> tuple[int, int]:
    """Cells along X and Y."""
    x0, y0, _, x1, y1, _ = run.bev.range
    return round((x1 - x0) / run.bev.cell), round((y1 - y0) / run.bev.cell)


def _grid(run: Run) -> Iterator[str]:
    low, high = run.bev.range[:3], run.bev.range[3:]
    if any(a >= b for a, b in zip(low, high, strict=True)):
        yield "bev.range: it must be x0, y0, z0, x1, y1, z1 with each first below its second; put them in order"
        return
    if min(run.bev.voxel) <= 0:
        yield "bev.voxel: its sizes must be above zero; correct them"
        return
    for axis, a, b in zip("xy", low, high, strict=False):
        if not _whole((b - a) / run.bev.cell):
            yield (
                f"bev.cell: bev.range is {b - a:g} m along {axis}, which is not a whole number of cells of {run.bev.cell:g} m;"
                " change one of them"
            )
    if run.lidar is None:
        return
    for axis, a, b, size in zip("xyz", low, high, run.bev.voxel, strict=True):
        if abs((b - a) / size - round((b - a) / size)) > 1e-3:
            yield (
                f"bev.voxel: bev.range is {b - a:g} m along {axis}, which is not a whole number of voxels of {size:g} m;"
                " change one of them"
            )


def _lidar(run: Run) -> Iterator[str]:
    lidar = run.lidar
    yield from _positive("lidar.channels", [*lidar.channels, lidar.out_channels])
    yield from _positive("lidar.max_points", [lidar.max_points, lidar.max_voxels_train, lidar.max_voxels_test])
    halvings = len(lidar.channels) - 1
    for axis, size in zip("xy", run.bev.voxel, strict=False):
        if abs(size * 2**halvings - run.bev.cell) > _CLOSE:
            yield (
                f"bev.cell: the {halvings + 1} stages of lidar.channels turn voxels of {size:g} m along {axis} into cells of"
                f" {size * 2**halvings:g} m, but bev.cell is {run.bev.cell:g} m; make them agree"
            )
    layers = round((run.bev.range[5] - run.bev.range[2]) / run.bev.voxel[2]) + 1
    left = layers
    for index in range(halvings):
        left = (left + (0 if index == halvings - 1 else 2) - 3) // 2 + 1
    if (left - 3) // 2 + 1 < 1:
        yield (
            f"bev.voxel: {layers} voxel layers along z are too few for the {halvings + 1} stages of lidar.channels; lower"
            " the z size of bev.voxel"
        )


def _camera(camera: Camera, run: Run) -> Iterator[str]:
    yield from _positive("camera.image_size", camera.image_size)
    yield from _backbone(camera)
    yield from _positive("camera.neck.channels", [camera.neck.channels])
    if camera.view.kind == "lift-splat":
        yield from _lift_splat(camera.view, camera, run)
        return
    yield from _attention("camera.view", camera.view.channels, camera.view.heads)
    yield from _positive("camera.view", [camera.view.layers, camera.view.points, camera.view.pillar])


def _backbone(camera: Camera) -> Iterator[str]:
    backbone = camera.backbone
    stages, outputs = len(backbone.widths), backbone.outputs
    yield from _positive("camera.backbone.widths", backbone.widths)
    yield from _same_length("camera.backbone", widths=backbone.widths, depths=backbone.depths)
    if not outputs or list(outputs) != sorted(set(outputs)) or outputs[0] < 0 or outputs[-1] >= stages:
        yield (
            f"camera.backbone.outputs: they must be stages from 0 to {stages - 1}, each once and in order, not {outputs};"
            " correct them"
        )
    if backbone.kind == "swin":
        yield from _same_length("camera.backbone", widths=backbone.widths, heads=backbone.heads)
        for width, heads in zip(backbone.widths, backbone.heads, strict=False):
            yield from _attention("camera.backbone", width, heads, name="widths", even=False)
        if any(width != backbone.widths[0] * 2**i for i, width in enumerate(backbone.widths)):
            yield "camera.backbone.widths: those of a swin double from stage to stage; make them"
    if any(not 0 <= stage < stages for stage in backbone.deformable or []):
        yield f"camera.backbone.deformable: the stages are numbered from 0 to {stages - 1}; name those"
    if not 0 <= (backbone.frozen_stages or 0) <= stages:
        yield f"camera.backbone.frozen_stages: the backbone has {stages} stages; freeze at most as many"


def _lift_splat(view: LiftSplat, camera: Camera, run: Run) -> Iterator[str]:
    first, last, step = view.depth
    if not 0 < first < last or step <= 0 or step > last - first:
        yield "camera.view.depth: it must be first, last and step in metres, the first above 0 and below the last; correct it"
    if view.z[0] >= view.z[1]:
        yield "camera.view.z: it must be the lowest and the highest metre that is lifted, in this order; swap them"
    yield from _positive("camera.view.channels", [view.channels, *(view.depth_channels or [])])
    x, y = _cells(run)
    ratio = run.bev.cell / view.step if view.step > 0 else 0.0
    if not _whole(ratio):
        yield (
            f"camera.view.step: cells of bev.cell ({run.bev.cell:g} m) must be a whole number of steps, not {ratio:.3g} of"
            f" {view.step:g} m; make step bev.cell, a half or a third of it"
        )
    stride = 4 * 2 ** camera.backbone.outputs[0] if camera.backbone.outputs else 4
    if any(size % stride for size in camera.image_size):
        yield (
            f"camera.image_size: height and width must be multiples of {stride}, the pixels of a cell of the first map in"
            " camera.backbone.outputs; change one of them"
        )


def _bev_encoder(run: Run) -> Iterator[str]:
    encoder = run.bev_encoder
    if encoder.kind == "none":
        return
    lists = {name: getattr(encoder, name) for name in ("channels", "layers", "strides")}
    if encoder.kind == "second":
        lists["neck_channels"] = encoder.neck_channels
    elif min(encoder.layers, default=0) < 1:
        yield "bev_encoder.layers: each stage of a resnet needs at least one block; raise them"
    if not encoder.channels:
        yield "bev_encoder.channels: there must be at least one stage; add one"
    yield from _same_length("bev_encoder", **lists)
    yield from _positive("bev_encoder", [*encoder.channels, *encoder.strides, *encoder.neck_channels])
    if encoder.kind != "second" or min(encoder.strides, default=1) < 1:
        return
    scale = math.prod(encoder.strides)
    for axis, count in zip("xy", _cells(run), strict=True):
        if count % scale:
            yield (
                f"bev_encoder.strides: {count} cells along {axis} (bev.range by bev.cell) do not divide by {scale}, the"
                " product of the strides, so that the stages' maps would not fit together; change one of them"
            )


def _head(run: Run) -> Iterator[str]:
    if run.head == "map" and (run.map.cell <= 0 or not _whole(2 * run.map.reach / run.map.cell)):
        yield (
            f"map.cell: the labels' {2 * run.map.reach:g} m are not a whole number of cells of {run.map.cell:g} m; change"
            " map.reach or map.cell"
        )
    if run.head == "transfusion":
        yield from _attention("transfusion", run.transfusion.channels, run.transfusion.heads, even=False)
        x, y = _cells(run)
        if not 1 <= run.transfusion.proposals <= 10 * x * y:
            yield f"transfusion.proposals: there are {10 * x * y} pairs of class and cell; ask for 1 to all of them"
    if run.head == "detr":
        yield from _attention("detr", run.detr.channels, run.detr.heads)
        yield from _positive("detr", [run.detr.queries, run.detr.layers, run.detr.points])
    if run.head == "centerpoint":
        names = [name for task in run.centerpoint.tasks for name in task]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            yield f"centerpoint.tasks: {', '.join(twice)} would be detected twice; name each class once"
        if not names or not all(run.centerpoint.tasks):
            yield "centerpoint.tasks: each task needs a class; add one, or remove the empty task"


def _augmentation(run: Run) -> Iterator[str]:
    low, high = run.bev_augment.scale
    if not 0 < low <= high:
        yield "bev_augment.scale: it must be the smallest and the largest factor, above 0; put them in order"
    if run.image_augment is not None:
        low, high = run.image_augment.resize
        if not 0 < low <= high:
            yield "image_augment.resize: it must be the smallest and the largest factor, above 0; put them in order"
        if run.image_augment.test_resize <= 0:
            yield "image_augment.test_resize: it must be above 0; raise it"
    if run.paste is not None and min(run.paste.counts.values(), default=0) < 0:
        yield "paste.counts: no count may be below 0; correct them"


def _training(run: Run) -> Iterator[str]:
    schedule = run.train.schedule
    if schedule.peak <= 0 or schedule.final < 0 or schedule.warmup < 0:
        yield "train.schedule: peak must be above 0, final and warmup 0 or more; correct them"
    if schedule.kind == "one-cycle" and not 0 < schedule.rise < 1:
        yield "train.schedule.rise: it is a share of the training, between 0 and 1; correct it"
    if any(not 0 <= beta < 1 for beta in schedule.beta1):
        yield "train.schedule.beta1: Adam's beta1 lies from 0 to below 1; correct it"
    milestones = schedule.milestones or []
    if milestones != sorted(set(milestones)):
        yield "train.schedule.milestones: they must be epochs in order, each once; sort them"
    if run.train.weight_decay < 0:
        yield "train.weight_decay: it must be 0 or more; correct it"


def _after_training(run: Run) -> Iterator[str]:
    inference = run.inference
    if any(a >= b for a, b in zip(inference.range[:3], inference.range[3:], strict=True)):
        yield "inference.range: it must be x0, y0, z0, x1, y1, z1 with each first below its second; put them in order"
    if not 1 <= inference.max_boxes <= _MOST_BOXES:
        yield f"inference.max_boxes: nuScenes takes at most {_MOST_BOXES} boxes per sample; ask for 1 to {_MOST_BOXES}"
    if run.head != "centerpoint":
        return
    settings, tasks = inference.centerpoint, len(run.centerpoint.tasks)
    yield from _positive("inference.centerpoint", [settings.top, settings.pre, settings.post])
    kinds = settings.nms if isinstance(settings.nms, list) else [settings.nms]
    read = {"nms": settings.nms, "threshold": settings.threshold}
    read |= {"radius": settings.radius} if "circle" in kinds else {}
    for name, value in read.items():
        if isinstance(value, list) and len(value) != tasks:
            yield (
                f"inference.centerpoint.{name}: {len(value)} values for the {tasks} tasks of centerpoint.tasks; give one"
                " for each"
            )
    for kind, name in (("circle", "radius"), ("scale", "scales")):
        if kind in kinds and getattr(settings, name) is None:
            yield f"inference.centerpoint.{name}: nms: {kind} needs this setting; add it"


def _attention(where: str, channels: int, heads: int, *, name: str = "channels", even: bool = True) -> Iterator[str]:
    """The channels of attention are divided among its heads, and position codes of rows and columns take half of them each."""
    if channels < 1 or heads < 1 or channels % heads:
        yield f"{where}.{name}: {channels} channels are not a multiple of {heads} heads; change {where}.{name} or heads"
    elif even and channels % 2:
        yield f"{where}.{name}: position codes of rows and columns take half of the channels each; make {channels} even"


def _same_length(where: str, **lists: Sequence[int]) -> Iterator[str]:
    """Lists that hold a value for each stage."""
    if len({len(values) for values in lists.values()}) > 1:
        words = ", ".join(f"{name} {len(values)}" for name, values in lists.items())
        yield f"{where}.{next(iter(lists))}: these lists need a value for each stage ({words}); make them the same length"


def _positive(where: str, values: Sequence[int]) -> Iterator[str]:
    if min(values, default=1) < 1:
        yield f"{where}: {min(values)} is below 1; raise it"
