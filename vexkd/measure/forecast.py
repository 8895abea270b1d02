"""Measure what a training step, a prediction and the loading of each distinct model cost on the hardware at hand.

Models and teachers have random weights: cost does not depend on what was learnt. Batches are real where a data root and
infos are given, else made up in realistic sizes. B samples, N cameras, H W image, P points, M boxes.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vexkd import boxes as box_tools
from vexkd import provenance
from vexkd.batch import Batch, Sample, collate
from vexkd.data.infos import Infos
from vexkd.data.infos import load as load_infos
from vexkd.distill import distiller
from vexkd.errors import InputError
from vexkd.measure.cost import Measured, Probe, distinct, freezes
from vexkd.models import bev_model
from vexkd.models.targets import Counts
from vexkd.settings import MAP_CLASSES, Params, Run
from vexkd.train import optim, tasks
from vexkd.train.predict import infer
from vexkd.train.seeding import seed_everything
from vexkd.train.tasks import Supervised

# nuScenes' sensors: LiDAR height, rings and their elevations; horizontal directions a turn; cameras' yaw and focal length.
_LIDAR_HEIGHT = 1.84
_RINGS = np.deg2rad(np.linspace(-30.67, 10.67, 32))
_DIRECTIONS = 1084
_CAMERA_YAWS = np.deg2rad([0, -55, -110, 180, 110, 55])
_IMAGE_SIZE = (1600, 900)
_FOCAL = 1266.0
_BOXES = 34  # annotated boxes of ten classes in an average keyframe of nuScenes
_NO_MEMORY = "out of memory"


def measure(
    params: Params,
    names: list[str],
    *,
    root: Path | None = None,
    infos: Path | None = None,
    steps: int = 1,
    micro: int = 1,
    device: str | None = None,
    tell: Callable[[str], None] = print,
) -> Probe:
    """Measure each distinct model among the runs once; `tell` is called with a line of progress after each."""
    chosen = torch.device("cuda" if torch.cuda.is_available() and device != "cpu" else "cpu")
    if (root is None) != (infos is None):
        raise InputError("real samples need both --root and --infos; give both or neither.")
    known = load_infos(infos) if infos is not None else None

    groups = distinct(params, names)
    models = {}
    for number, (key, members) in enumerate(groups.items(), 1):
        run = params.run(members[0])
        began = time.monotonic()
        if root is not None and infos is not None and known is not None:
            source = _RealSamples(params, run, root=root, infos=known, artifacts=infos.parent)
        else:
            source = _MadeUpSamples(params, run)
        models[key] = measure_model(params, run, source, steps=steps, micro=micro, device=chosen)
        tell(f"{number} of {len(groups)}: {_in_words(models[key])}, measured in {time.monotonic() - began:.0f} s")
    real = f"real samples of {root}, files in the system's cache" if root is not None else "made-up samples"
    return Probe(
        device=torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else "CPU",
        threads=torch.get_num_threads(),
        data=real,
        micro_batch=micro,
        steps=steps,
        origin=provenance.record(),
        models=models,
    )


def _in_words(model: Measured) -> str:
    if model.trouble:
        return f"{model.run} {model.trouble}"
    loading = "" if model.loading is None else f", loading {model.loading:.2g} s"
    return f"{model.run} {model.seconds:.3g} s a sample{loading}, {(model.gpu_memory or model.memory) / 1e9:.2g} GB"


def build_task(params: Params, run: Run) -> nn.Module:
    """What a run trains, with random weights, its teacher's included."""
    model = bev_model.build(run)
    if run.teacher is None or run.distill is None:
        return Supervised(model)
    teacher = bev_model.build(params.run(run.teacher))
    return distiller.build(settings=run.distill, student=model, teacher=teacher, teacher_name=run.teacher)


def sizes(task: nn.Module) -> dict[str, int]:
    """Parameters of what is kept, bytes of its weights file, and bytes of the resumable state of its training."""
    kept = sum(tensor.numel() * tensor.element_size() for tensor in task.model.state_dict().values())
    state = sum(t.numel() * t.element_size() for k, t in task.state_dict().items() if not k.startswith("teacher."))
    moments = sum(2 * p.numel() * p.element_size() for p in task.parameters() if p.requires_grad)
    parameters = sum(p.numel() for p in task.model.parameters())
    return {"parameters": parameters, "weights": kept, "state": state + moments}


def measure_model(params: Params, run: Run, source: Any, *, steps: int, micro: int, device: torch.device) -> Measured:
    """One warm-up and `steps` steps of training, then as many predictions."""
    seed_everything(0)  # deterministic kernels, as in training
    task = build_task(params, run)
    size = {"run": run.name, **sizes(task)}
    batches, loading = _timed(source.training, steps + 1, micro)
    samples, predict_loading = _timed(source.validation, steps + 1, micro)
    _forget_peak(device)
    try:
        task = task.to(device)
        optimiser = optim.optimiser(task, run.train)
        task.train()
        task.begin_step(0, 0)
        learning = _train(task, optimiser, run, batches, device)
        frozen = None
        if freezes(run):
            task.begin_step(run.train.epochs, 2**62)
            frozen = _train(task, optimiser, run, batches[1:], device, warm=False)
        peak = _peak(device)
        predicting = _predict(task.model, run, samples if device.type == "cuda" else samples[1:], device)
    except (torch.OutOfMemoryError, MemoryError):
        return Measured(**size, trouble=_NO_MEMORY)
    finally:
        del task
        _release()
    return Measured(
        **size,
        seconds=learning[0] / micro,
        frozen_seconds=None if frozen is None else frozen[0] / micro,
        step_seconds=learning[1],
        predict_seconds=predicting / micro,
        loading=loading if source.real else None,
        predict_loading=predict_loading if source.real else None,
        memory=peak[0],
        gpu_memory=peak[1],
    )


def _timed(samples: Iterator[Sample], count: int, micro: int) -> tuple[list[Batch], float]:
    """`count` batches, and the median seconds that one of their samples took after the first batch's."""
    drawn, seconds = [], []
    for _ in range(count * micro):
        began = time.perf_counter()
        drawn.append(next(samples))
        seconds.append(time.perf_counter() - began)
    return [collate(drawn[i : i + micro]) for i in range(0, len(drawn), micro)], statistics.median(seconds[micro:])


def _train(
    task: nn.Module,
    optimiser: torch.optim.Optimizer,
    run: Run,
    batches: list[Batch],
    device: torch.device,
    *,
    warm=True,
) -> tuple[float, float]:
    """Median seconds of forward, loss and backward, and of the optimiser's step; as `Trainer` does them."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[run.train.precision]
    trainable = [p for group in optimiser.param_groups for p in group["params"]]
    passes, updates = [], []
    for batch in batches:
        began = _now(device)
        batch = batch.to(device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            targets = task.targets(batch)
            terms, _ = task(batch, targets, Counts.of([targets]))
        sum(terms.values()).backward()
        middle = _now(device)
        torch.nn.utils.clip_grad_norm_(trainable, run.train.clip)
        optimiser.step()
        optimiser.zero_grad()
        passes.append(middle - began)
        updates.append(_now(device) - middle)
    first = 1 if warm else 0
    return statistics.median(passes[first:]), statistics.median(updates[first:])


@torch.no_grad()
def _predict(model: nn.Module, run: Run, batches: list[Batch], device: torch.device) -> float:
    """Median seconds of a prediction, decoding included; the first is left out where there are several."""
    model.eval()
    seconds = []
    for batch in batches:
        began = _now(device)
        infer(model, batch.to(device), run)
        seconds.append(_now(device) - began)
    return statistics.median(seconds[1:] or seconds)


def _now(device: torch.device) -> float:
    """The time, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _forget_peak(device: torch.device) -> None:
    """Start the count of peak memory anew. Linux resets a process's own by a 5 in clear_refs; elsewhere it stays."""
    _release()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return


def _release() -> None:
    """Give what is free back to the device and to the system."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _peak(device: torch.device) -> tuple[int, int | None]:
    """Peak bytes resident in memory, and allocated on the GPU."""
    gpu = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024, gpu
    return 0, gpu


# -------------------------------------------------------------------------------------------------------------- samples


class _RealSamples:
    """Keyframes spread over the splits of a real data root, read and augmented as in training and prediction."""

    real = True

    def __init__(self, params: Params, run: Run, *, root: Path, infos: Infos, artifacts: Path) -> None:
        images = params.run(run.teacher) if run.teacher else run
        paste, maps = artifacts / "paste", artifacts / "maps"
        if run.paste is not None and not (paste / "index.parquet").is_file():
            run = run.model_copy(update={"paste": None})
        learning = tasks.training_set(run, images, root=root, infos=infos, paste=paste, maps=maps, seed=0)
        self.training = _spread(learning)
        self.validation = _spread(tasks.validation_set(run, root=root, infos=infos))


def _spread(dataset: Any) -> Iterator[Sample]:
    """Samples from all over a data set, for ever."""
    stride = max(1, round(len(dataset) * 0.381966))  # golden section: even for any number
    position = 0
    while True:
        yield dataset[position % len(dataset)]
        position += stride


class _MadeUpSamples:
    """Samples of realistic size for a run: points on the ground and on walls, noise in the images, boxes at random."""

    real = False

    def __init__(self, params: Params, run: Run) -> None:
        images = params.run(run.teacher) if run.teacher else run
        self.training = _made_up(params, run, images if images.camera else run, points=True)
        self.validation = _made_up(params, run, run, points="lidar" in run.sensors)


def _made_up(params: Params, run: Run, images: Run, *, points: bool) -> Iterator[Sample]:
    rng = np.random.default_rng(0)
    while True:
        yield made_up_sample(params, run, images, rng, points=points)


def made_up_sample(params: Params, run: Run, images: Run, rng: np.random.Generator, *, points: bool = True) -> Sample:
    """One sample with the cameras of `images`, map labels where `run` has them, and LiDAR points or none.

    Trainings get points always: a teacher reads them, and what cameras learn of depth is learnt from them.
    """
    bounds = run.bev.range
    pixels = _made_up_images(params, images, rng) if images.camera is not None else (None, None, None, None)
    boxes = np.zeros((_BOXES, 9), dtype=np.float32)
    boxes[:, 0] = rng.uniform(0.9 * bounds[0], 0.9 * bounds[3], _BOXES)
    boxes[:, 1] = rng.uniform(0.9 * bounds[1], 0.9 * bounds[4], _BOXES)
    boxes[:, 2] = rng.uniform(-1.5, 0.0, _BOXES)
    boxes[:, 3:6] = rng.uniform([0.5, 0.5, 1.0], [8.0, 2.5, 3.0], (_BOXES, 3))
    boxes[:, 6] = rng.uniform(-np.pi, np.pi, _BOXES)
    cloud = made_up_points(params, run, rng) if points else None
    return Sample(
        token="made-up",
        points=None if cloud is None else torch.from_numpy(cloud),
        images=pixels[0],
        intrinsics=pixels[1],
        camera_from_lidar=pixels[2],
        image_augment=pixels[3],
        lidar_augment=torch.eye(4),
        global_from_lidar=torch.eye(4, dtype=torch.float64),
        boxes=torch.from_numpy(boxes),
        labels=torch.from_numpy(rng.integers(0, len(box_tools.CLASSES), _BOXES)),
        maps=torch.from_numpy(_made_up_maps(run, rng)) if run.map else None,
    )


def _made_up_maps(run: Run, rng: np.random.Generator) -> np.ndarray:
    """Labels (K, Y, X) of noise."""
    return rng.integers(0, 2, (len(MAP_CLASSES), *run.map.grid.shape), dtype=np.uint8)


def made_up_points(params: Params, run: Run, rng: np.random.Generator) -> np.ndarray:
    """A keyframe and its sweeps (P, 5) inside the bounds: rings on flat ground, walls around, 0.5 m driven a sweep."""
    town = params.synthetic
    rings = np.deg2rad(np.linspace(-30.67, 10.67, town.beams)) if town else _RINGS
    directions = town.azimuths if town else _DIRECTIONS
    azimuth = np.linspace(-np.pi, np.pi, directions, endpoint=False)
    walls = np.repeat(rng.exponential(22.0, 48) + 4.0, -(-directions // 48))[:directions]
    heights = np.repeat(rng.uniform(0.5, 8.0, 48), -(-directions // 48))[:directions]
    sweeps = []
    for sweep in range(run.data.sweeps + 1):
        ground = np.where(rings < 0, _LIDAR_HEIGHT / np.maximum(-np.tan(rings), 1e-3), np.inf)[:, None]  # rings 1
        reach = np.minimum(ground, walls) + rng.normal(0, 0.02, (len(rings), directions))
        z = reach * np.tan(rings)[:, None]
        kept = (reach < 90) & (z + _LIDAR_HEIGHT < heights)
        x, y = reach * np.sin(azimuth), reach * np.cos(azimuth) - 0.5 * sweep
        columns = [x, y, z, rng.uniform(0, 255, z.shape), np.full(z.shape, 0.05 * sweep)]
        sweeps.append(np.stack(columns, axis=-1)[kept])
    points = np.concatenate(sweeps).astype(np.float32)  # P 5
    low, high = np.array(run.bev.range[:3]), np.array(run.bev.range[3:])
    inside = ((points[:, :3] > low) & (points[:, :3] < high)).all(axis=1)
    return rng.permutation(points[inside])


def _made_up_images(params: Params, run: Run, rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
    """Six images of noise with the calibration of a ring of cameras, resized and cropped as for prediction."""
    height, width = run.camera.image_size
    original = params.synthetic.image_size if params.synthetic else _IMAGE_SIZE
    focal = _FOCAL * original[0] / _IMAGE_SIZE[0]
    count = len(_CAMERA_YAWS)
    images = rng.standard_normal((count, 3, height, width), dtype=np.float32)  # N 3 H W
    intrinsics = np.array([[focal, 0, original[0] / 2], [0, focal, original[1] / 2], [0, 0, 1]])
    scale = run.image_augment.test_resize
    resized = np.array([original[0] * scale, original[1] * scale])
    augment = np.diag([scale, scale, 1.0])
    augment[:2, 2] = [-max(0.0, (resized[0] - width) / 2), height - resized[1]]
    matrices = []
    for yaw in _CAMERA_YAWS:
        forward = np.array([-np.sin(yaw), np.cos(yaw), 0.0])
        right = np.array([np.cos(yaw), np.sin(yaw), 0.0])
        matrix = np.eye(4)
        matrix[:3, :3] = np.stack([right, [0.0, 0.0, -1.0], forward])  # camera: x right, y down, z forward
        matrix[:3, 3] = [0.0, -0.3, -0.7]
        matrices.append(matrix)
    arrays = (images, [intrinsics] * count, matrices, [augment] * count)
    frames = 1 + (run.camera.history.keyframes if run.camera.history else 0)
    return tuple(torch.from_numpy(np.concatenate([np.array(a, dtype=np.float32)] * frames)) for a in arrays)
