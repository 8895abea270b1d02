"""(c) Triton's kernels against the routes they replace, and against the rate at which the GPU copies memory.

Times are of forward and backward unless a row says otherwise, medians in milliseconds; memory is what a pass allocates
beyond its inputs. The least traffic of pooling: each point's number in the order, depth and context once, the sums once.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from gpu_day.day import Day, Row
from vexkd.ops import bev_pool, kernels
from vexkd.ops import deformable_attention as attention

POOLS = {  # B N D H W C, BEV cells a side: BEVFusion's and BEVDet's views
    "pooling, BEVFusion's view": (2, 6, 118, 32, 88, 80, 360),
    "pooling, BEVDet's view": (4, 6, 59, 16, 44, 64, 180),
}
SAMPLES = {  # B, Q as a side, heads, dim, level sides, points
    "sampling, fusion's map": (4, 180, 8, 32, (180,), 4),
    "sampling, four levels": (2, 100, 8, 32, (116, 58, 29, 15), 8),
}
TINY_POOL, TINY_SAMPLE = (1, 1, 5, 3, 4, 6, 5), (1, 5, 2, 4, (5, 3), 2)


def rows(day: Day) -> Iterator[Row]:
    """The copy rate first: the others are held against it."""
    rate: list[float] = []
    yield "copy rate", lambda: copying(day, rate)
    for name, sizes in POOLS.items():
        for dtype in (torch.float32, torch.bfloat16):
            yield (
                f"{name}, {str(dtype)[6:]}",
                lambda s=sizes, d=dtype: pooling(day, TINY_POOL if day.tiny else s, d, rate),
            )
    for name, sizes in SAMPLES.items():
        for dtype in (torch.float32, torch.bfloat16):
            yield f"{name}, {str(dtype)[6:]}", lambda s=sizes, d=dtype: sampling(day, TINY_SAMPLE if day.tiny else s, d)


def copying(day: Day, rate: list[float]) -> dict[str, Any]:
    """Bytes read and written a second by a copy of 1 GiB."""
    source = torch.zeros(2**14 if day.tiny else 2**28, device=day.device)
    target = torch.empty_like(source)
    times = day.milliseconds(lambda: target.copy_(source))
    rate.append(2 * source.numel() * 4 / min(times) * 1e3)
    return {"GB/s": rate[0] / 1e9}


def measured(day: Day, name: str, step: Callable[[], object]) -> dict[str, Any]:
    """Median time and memory of one route; why it has none where it fails."""
    try:
        times = day.milliseconds(step)
        return {f"{name} ms": statistics.median(times), f"{name} MiB": day.peak(step)}
    except Exception as error:  # one route's failure leaves the others
        if "CUDA error" in str(error):
            raise
        return {f"{name} ms": None, f"{name}: failed": str(error).strip().splitlines()[0][:200]}


def without_triton(run: Callable[[], object]) -> Callable[[], object]:
    """The same with the operators' other routes."""

    def step() -> object:
        before = os.environ.get("VEXKD_TRITON")
        os.environ["VEXKD_TRITON"] = "0"
        try:
            return run()
        finally:
            os.environ.pop("VEXKD_TRITON")
            if before is not None:
                os.environ["VEXKD_TRITON"] = before

    return step


def both_ways(run: Callable[[], Tensor], leaves: list[Tensor]) -> Callable[[], object]:
    def step() -> object:
        out = run()
        return torch.autograd.grad(out, leaves, torch.ones_like(out))

    return step


def pooling(day: Day, sizes: tuple[int, ...], dtype: torch.dtype, rate: list[float]) -> dict[str, Any]:
    batch, cameras, bins, height, width, channels, side = sizes
    shape = (batch, cameras, bins, height, width)
    depth = torch.randn(shape, device=day.device).softmax(2).to(dtype).requires_grad_()
    context = torch.randn(batch, cameras, channels, height, width, device=day.device, dtype=dtype, requires_grad=True)
    cells = rays(shape, side, day.device)
    inputs, leaves = (depth, context, cells, (side, side)), [depth, context]
    fast = both_ways(lambda: bev_pool.lift_pool(*inputs), leaves)
    found = measured(day, "triton", fast) if kernels.ready(depth) else {"triton ms": None}
    found |= measured(day, "bags", without_triton(fast))
    found |= measured(day, "outer product", both_ways(lambda: bev_pool.lift_pool_plain(*inputs), leaves))
    found |= compared(found, "triton", "bags")
    if kernels.ready(depth):
        found |= against_the_limit(day, depth, context, cells, side, rate)
    return found


def rays(shape: tuple[int, ...], side: int, device: torch.device) -> Tensor:
    """Cells that each pixel's ray passes, as a ring of cameras sees them; the far bins may leave the grid."""
    batch, cameras, bins, height, width = shape
    view = torch.arange(cameras, device=device).view(-1, 1, 1, 1) + torch.arange(width, device=device) / width
    angle = 2 * torch.pi * view / cameras  # N 1 1 W
    reach = (torch.arange(bins, device=device).view(1, -1, 1, 1) + 0.5) / bins * 0.55 * side
    x, y = (side / 2 + reach * part(angle) for part in (torch.cos, torch.sin))
    inside = (x >= 0) & (x < side) & (y >= 0) & (y < side)
    cells = torch.where(inside, y.floor() * side + x.floor(), -1).long()  # N D 1 W
    return cells.expand(batch, cameras, bins, height, width).contiguous()


def against_the_limit(
    day: Day, depth: Tensor, context: Tensor, cells: Tensor, side: int, rate: list[float]
) -> dict[str, Any]:
    """The forward kernel alone, without sorting: its least traffic over its time, as a share of the copy rate."""
    from vexkd.ops.bev_pool_triton import interval_sums, intervals

    batch, bins, channels = len(depth), depth.shape[2], context.shape[2]
    numbers = cells + side * side * torch.arange(batch, device=cells.device).view(-1, 1, 1, 1, 1)
    numbers = torch.where(cells >= 0, numbers, batch * side * side).int().movedim(2, -1).reshape(-1, bins)
    weights = depth.detach().movedim(2, -1).reshape(-1, bins).contiguous()
    features = context.detach().movedim(2, -1).reshape(-1, channels).contiguous()
    order, offsets = intervals(numbers.flatten(), batch * side * side)
    inside = int(offsets[-1])
    found: dict[str, Any] = {
        "sorting ms": statistics.median(day.milliseconds(lambda: intervals(numbers.flatten(), batch * side * side)))
    }
    least = inside * (8 + weights.element_size()) + features.numel() * features.element_size()
    least += offsets.numel() * 4 + batch * side * side * channels * 4
    for points in (8, 16, 32):
        times = day.milliseconds(
            lambda n=points: interval_sums(weights, features, order, offsets, torch.float32, block_points=n)
        )
        found[f"kernel alone, blocks of {points}, ms"] = statistics.median(times)
    best = min(value for key, value in found.items() if key.startswith("kernel alone"))
    found["least traffic MB"] = least / 1e6
    if rate:
        found["share of the copy rate"] = least / best * 1e3 / rate[0]
    return found


def sampling(day: Day, sizes: tuple[Any, ...], dtype: torch.dtype) -> dict[str, Any]:
    batch, side, heads, dim, levels, points = sizes
    shapes = [(level, level) for level in levels]
    value = torch.randn(batch, sum(h * w for h, w in shapes), heads, dim, device=day.device, dtype=dtype)
    reference = attention.reference_points(side, side, day.device)[:, :, None, None, None]
    spread = torch.randn(batch, side * side, heads, len(levels), points, 2, device=day.device) * 3 / side
    leaves = [value.requires_grad_(), (reference + spread).requires_grad_()]
    weights = torch.rand(batch, side * side, heads, len(levels), points, device=day.device, requires_grad=True)
    leaves.append(weights)
    inputs = (value, shapes, leaves[1], weights)
    step = both_ways(lambda: attention.deformable_sample(*inputs), leaves)
    found: dict[str, Any] = {"triton ms": None}
    if kernels.ready(value):
        found = measured(day, "triton", step)
        torch.use_deterministic_algorithms(True, warn_only=True)
        found |= measured(day, "triton, deterministic", step)
        torch.use_deterministic_algorithms(False)
    for name, route in (("grid_sample", attention.sample_by_grid), ("bags", attention.sample_by_bags)):
        found |= measured(day, name, both_ways(lambda r=route: by_level(r, *inputs), leaves))
    return found | compared(found, "triton", "grid_sample") | compared(found, "triton, deterministic", "bags")


def by_level(route: Callable, value: Tensor, shapes: list[tuple[int, int]], places: Tensor, weights: Tensor) -> Tensor:
    """A route of one level for all of them, in float32, as the operator calls it."""
    planes = value.float().split([h * w for h, w in shapes], 1)
    parts = [
        route(plane.unflatten(1, shape), places[:, :, :, level], weights[:, :, :, level])
        for level, (plane, shape) in enumerate(zip(planes, shapes, strict=True))
    ]
    return sum(parts)


def compared(found: dict[str, Any], ours: str, other: str) -> dict[str, Any]:
    """How many times faster and leaner the first is, where both were measured."""
    ratios = {}
    for unit, word in (("ms", "faster"), ("MiB", "leaner")):
        a, b = found.get(f"{ours} {unit}"), found.get(f"{other} {unit}")
        if a and b:
            ratios[f"{ours}: times {word} than {other}"] = b / a
    return ratios
