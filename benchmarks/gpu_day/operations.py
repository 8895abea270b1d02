"""(a) Every operation on the device against the plain route on the CPU in float64, twice for equal bits, and in bfloat16.

Inputs are numbers that the precision holds exactly, so every difference is the computation's. An error is the largest
difference of a result or gradient over its largest value.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpu_day.day import Day, Row
from vexkd.measure import forecast
from vexkd.models import bev_model
from vexkd.ops import bev_pool, deformable_attention, rotated_iou, sparse_conv
from vexkd.ops.deform_conv import deform_conv, deform_conv_plain
from vexkd.ops.voxelize import voxelize, voxelize_plain

Operation = Callable[..., Tensor | Sequence[Tensor]]
VOXELS = {"range": (-8.0, -8.0, -2.0, 8.0, 8.0, 2.0), "voxel": (0.5, 0.5, 0.5), "max_points": 5, "max_voxels": 2000}


def rows(day: Day) -> Iterator[Row]:
    """Every operation, then the whole sparse encoder."""
    torch.manual_seed(0)
    side = 8 if day.tiny else 48
    yield "lift_pool", lambda: pooling(day, side)
    yield "deformable_sample", lambda: sampling(day, side)
    yield "deform_conv", lambda: convolution(day, side)
    for name in ("submanifold_conv", "strided_conv"):
        yield name, lambda name=name: sparse(day, name, side)
    yield "voxelize", lambda: voxels(day, 500 if day.tiny else 20_000)
    yield "rotated_iou", lambda: overlaps(day, 40 if day.tiny else 400)
    yield "rotated_nms", lambda: kept(day, rotated_iou.rotated_nms, 5)
    yield "circle_nms", lambda: kept(day, rotated_iou.circle_nms, 2)
    yield "sparse encoder, GPU against Native", lambda: encoder(day)


def exact_numbers(*shape: int, scale: float = 1.0) -> Tensor:
    """Normal numbers as bfloat16 holds them, in float64."""
    return (torch.randn(shape) * scale).bfloat16().double()


def compare(day: Day, fast: Operation, plain: Operation, inputs: list[Tensor], halved: Sequence[int]) -> dict[str, Any]:
    """Errors in float32 and with the inputs of the numbers `halved` in bfloat16; equal bits with and without the demand."""
    exact = with_gradients(plain, inputs, torch.device("cpu"))

    def on_device(half: bool) -> list[Tensor]:
        dtypes = [torch.bfloat16 if half and i in halved else torch.float32 for i in range(len(inputs))]
        given = [t.to(d) if t.is_floating_point() else t for t, d in zip(inputs, dtypes, strict=True)]
        return with_gradients(fast, given, day.device)

    found: dict[str, Any] = {"error fp32": error(on_device(False), exact)}
    found["error bf16"] = error(on_device(True), exact) if halved else None
    for demand in (False, True):
        torch.use_deterministic_algorithms(demand, warn_only=True)
        runs = [on_device(False) for _ in "ab"]
        found["same bits" + (", asked for" if demand else "")] = all(map(torch.equal, *runs))
    torch.use_deterministic_algorithms(False)
    return found


def with_gradients(operation: Operation, inputs: list[Tensor], device: torch.device) -> list[Tensor]:
    """Results and the gradients of all floating inputs, on the CPU in float64."""
    there = [t.to(device).requires_grad_(t.is_floating_point()) for t in inputs]
    found = operation(*there)
    results = [found] if isinstance(found, Tensor) else list(found)
    slope = torch.Generator().manual_seed(1)
    total = sum((r * torch.randn(r.shape, generator=slope, dtype=torch.float64).to(r)).sum() for r in results)
    slopes = torch.autograd.grad(total, [t for t in there if t.requires_grad], allow_unused=True)
    return [t.detach().cpu().double() for t in (*results, *slopes) if t is not None]


def error(found: list[Tensor], exact: list[Tensor]) -> float:
    """The largest difference over the largest value."""
    pairs = list(zip(found, exact, strict=True))
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs if b.numel())


def pooling(day: Day, side: int) -> dict[str, Any]:
    shape = (2, 3, 11, side // 2, side)
    cells = torch.randint(-side, side * side, shape)
    inputs = [exact_numbers(*shape).softmax(2).bfloat16().double(), exact_numbers(2, 3, 20, *shape[3:]), cells]

    def route(operation: Operation) -> Operation:
        return lambda depth, context, cells: operation(depth, context, cells, (side, side))

    return compare(day, route(bev_pool.lift_pool), route(bev_pool.lift_pool_plain), inputs, (0, 1))


def sampling(day: Day, side: int) -> dict[str, Any]:
    """Values alone are in bfloat16, as under autocast."""
    shapes = [(side, side), (side // 2, side // 2)]
    count = sum(h * w for h, w in shapes)
    inputs = [
        exact_numbers(2, count, 4, 16),
        (torch.rand(2, side * side, 4, 2, 4, 2) * 1.25 - 0.125).double(),
        torch.rand(2, side * side, 4, 2, 4).bfloat16().double(),
    ]

    def route(operation: Operation) -> Operation:
        return lambda value, locations, weights: operation(value, shapes, locations, weights)

    attention = deformable_attention
    return compare(day, route(attention.deformable_sample), route(attention.deformable_sample_plain), inputs, (0,))


def convolution(day: Day, side: int) -> dict[str, Any]:
    inputs = [
        exact_numbers(2, 8, side, side),
        exact_numbers(6, 8, 3, 3),
        torch.randn(2, 18, side, side).double(),  # not on the cells' borders, where the slope has a step
        torch.rand(2, 9, side, side).bfloat16().double(),
    ]

    def route(operation: Operation) -> Operation:
        return lambda *tensors: operation(*tensors, stride=1, padding=1)

    return compare(day, route(deform_conv), route(deform_conv_plain), inputs, ())


def sparse(day: Day, name: str, side: int) -> dict[str, Any]:
    """spconv against the sum over kernel cells; computed in float32 also for bfloat16."""
    shape = (9, side, side)
    coordinates = (torch.rand(side * side, 3) * torch.tensor(shape)).int()
    coordinates = torch.nn.functional.pad(coordinates, (1, 0)).unique(dim=0)
    if name == "submanifold_conv":
        conv = sparse_conv.submanifold_conv(8, 12, key="one")
        options: dict[str, Any] = {"submanifold": True}
    else:
        conv = sparse_conv.strided_conv(8, 12, kernel=3, stride=2, padding=1, key="one")
        options = {"stride": 2, "padding": 1}
    weight = conv.conv.weight.detach().bfloat16().double()

    def fast(features: Tensor, weight: Tensor) -> Tensor:
        tensor = sparse_conv.sparse_tensor(features, there, spatial_shape=shape, batch_size=1)
        replaced = torch.func.functional_call(conv, {"conv.weight": weight}, (tensor,))
        return replaced.features[sparse_order(replaced.indices)]

    def plain(features: Tensor, weight: Tensor) -> Tensor:
        found, places, _ = sparse_conv.plain_sparse_conv(features, coordinates, shape, 1, weight, **options)
        return found[sparse_order(places)]

    there = coordinates.to(day.device)
    conv = conv.to(day.device)
    return compare(day, fast, plain, [exact_numbers(len(coordinates), 8), weight], ())


def sparse_order(indices: Tensor) -> Tensor:
    """Voxels in ascending coordinates."""
    return ((indices.long() * torch.tensor([10**9, 10**6, 10**3, 1], device=indices.device)).sum(1)).argsort()


def voxels(day: Day, count: int) -> dict[str, Any]:
    points = [torch.randn(count, 5) * torch.tensor([4.0, 4.0, 1.0, 1.0, 1.0]) for _ in range(2)]
    exact = voxelize_plain(points, **VOXELS)
    runs = [voxelize([p.to(day.device) for p in points], **VOXELS) for _ in "ab"]
    if not torch.equal(runs[0][1].cpu(), exact[1]):
        raise ValueError("the voxels are not those of the plain route")
    return {
        "error fp32": error([runs[0][0].cpu().double()], [exact[0].double()]),
        "same bits": all(map(torch.equal, *runs)),
    }


def boxes(count: int) -> Tensor:
    low, size = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0]), torch.tensor([30.0, 20.0, 4.0, 2.0, 6.28])
    return torch.rand(count, 5) * size + low


def overlaps(day: Day, count: int) -> dict[str, Any]:
    a, b = boxes(count), boxes(count // 3)
    exact = rotated_iou.rotated_iou(a.double(), b.double())
    runs = [rotated_iou.rotated_iou(a.to(day.device), b.to(day.device)) for _ in "ab"]
    return {"error fp32": error([runs[0].cpu().double()], [exact]), "same bits": bool(torch.equal(*runs))}


def kept(day: Day, suppress: Callable[..., Tensor], columns: int) -> dict[str, Any]:
    """Suppression keeps the same boxes as on the CPU."""
    given, scores = boxes(200)[:, :columns], torch.rand(200)
    here = suppress(given, scores, threshold=0.3)
    there = suppress(given.to(day.device), scores.to(day.device), threshold=0.3)
    if not torch.equal(here, there.cpu()):
        raise ValueError(f"{len(there)} boxes are kept, {len(here)} on the CPU, or others")
    return {"error fp32": 0.0, "same bits": True}


def encoder(day: Day) -> dict[str, Any]:
    """The LiDAR branch of the first LiDAR run: spconv's GPU algorithm, its Native one there, and Native on the CPU."""
    run = next(run for run in day.params.runs.values() if run.lidar)
    model = bev_model.build_lidar(run).eval()
    points = torch.from_numpy(forecast.made_up_points(day.params, run, np.random.default_rng(0)))
    with torch.no_grad():
        began = time.perf_counter()
        exact = model([points])
        cpu = 1e3 * (time.perf_counter() - began)
        model, there = model.to(day.device), points.to(day.device)
        fast = model([there])
        found = {"error fp32": error([fast.cpu().double()], [exact.double()])}
        found["GPU's algorithm ms"] = min(day.milliseconds(lambda: model([there])))
        for part in model.modules():
            if isinstance(part, sparse_conv.SparseConv):
                part.gpu_algorithm = sparse_conv._spconv().ConvAlgo.Native
        native = model([there])
        found["Native ms"] = min(day.milliseconds(lambda: model([there])))
        found["error of Native"] = error([native.cpu().double()], [exact.double()])
    return found | {"Native on the CPU ms": cpu, "points": len(points)}
