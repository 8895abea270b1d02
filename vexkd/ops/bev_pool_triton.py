"""Lift-splat pooling in Triton: sums over sorted intervals, as BEVFusion's, without atomic sums in either direction.

Dimensions: M pixels of a batch, D depth bins, C channels. Imported only where Triton is used.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable


@triton.jit
def sum_intervals(
    rows, weights, order, offsets, sums, bins, channels, BLOCK_POINTS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr
):
    """One program a cell and block of channels: its entries in their sorted order, BLOCK_POINTS at a time."""
    cell = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    used = channel < channels
    end = tl.load(offsets + cell + 1)
    total = tl.zeros([BLOCK_CHANNELS], sums.dtype.element_ty)
    for first in range(tl.load(offsets + cell), end, BLOCK_POINTS):
        position = first + tl.arange(0, BLOCK_POINTS)
        present = position < end
        entry = tl.load(order + position, mask=present, other=0)
        weight = tl.load(weights + entry, mask=present, other=0.0).to(total.dtype)
        offset = (entry // bins)[:, None] * channels + channel[None, :]
        values = tl.load(rows + offset, mask=present[:, None] & used[None, :], other=0.0).to(total.dtype)
        total += tl.sum(values * weight[:, None], 0)
    tl.store(sums + cell * channels + channel, total, mask=used)


@triton.jit
def gradient_by_pixel(
    grad,
    depth,
    context,
    numbers,
    grad_depth,
    grad_context,
    cells,
    bins,
    channels,
    WANTS_DEPTH: tl.constexpr,
    WANTS_CONTEXT: tl.constexpr,
    BLOCK_BINS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """One program a pixel: the gradients of its bins' cells, each read once for both results."""
    pixel = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK_CHANNELS)
    used = channel < channels
    features = tl.load(context + pixel * channels + channel, mask=used, other=0.0).to(grad.dtype.element_ty)
    total = tl.zeros([BLOCK_CHANNELS], grad.dtype.element_ty)
    for first in range(0, bins, BLOCK_BINS):
        column = first + tl.arange(0, BLOCK_BINS)
        present = column < bins
        number = tl.load(numbers + pixel * bins + column, mask=present, other=cells)
        inside = number < cells
        offset = number.to(tl.int64)[:, None] * channels + channel[None, :]
        slopes = tl.load(grad + offset, mask=inside[:, None] & used[None, :], other=0.0)
        if WANTS_DEPTH:
            tl.store(grad_depth + pixel * bins + column, tl.sum(slopes * features[None, :], 1), mask=present)
        if WANTS_CONTEXT:
            share = tl.load(depth + pixel * bins + column, mask=inside, other=0.0).to(slopes.dtype)
            total += tl.sum(slopes * share[:, None], 0)
    if WANTS_CONTEXT:
        tl.store(grad_context + pixel * channels + channel, total, mask=used)


def intervals(numbers: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Entries in the order of their numbers, equal ones as they stood, and where each number of `cells` begins and ends.

    numbers (N,) int32 -> (N,) int64 and (cells + 1,) int32; entries with a number of `cells` or more come last.
    """
    sorted_numbers, order = torch.sort(numbers, stable=True)
    bounds = torch.arange(cells + 1, device=numbers.device, dtype=numbers.dtype)
    return order, torch.searchsorted(sorted_numbers, bounds, out_int32=True)


def interval_sums(
    weights: Tensor, rows: Tensor, order: Tensor, offsets: Tensor, dtype: torch.dtype, *, block_points: int = 16
) -> Tensor:
    """sums[cell] = sum of weights[i, j] * rows[i] over the entries of its interval: (cells, C) in `dtype`.

    weights (M, D), rows (M, C), order and offsets of `intervals`. The order of each sum is fixed, so the same input gives
    the same bits.
    """
    cells, channels = len(offsets) - 1, rows.shape[1]
    sums = torch.empty(cells, channels, dtype=dtype, device=rows.device)
    if sums.numel() == 0 or weights.numel() == 0:
        return sums.zero_()
    block = min(128, triton.next_power_of_2(channels))
    with torch.cuda.device_of(rows):
        sum_intervals[cells, triton.cdiv(channels, block)](
            rows.contiguous(),
            weights.contiguous(),
            order,
            offsets,
            sums,
            weights.shape[1],
            channels,
            BLOCK_POINTS=block_points,
            BLOCK_CHANNELS=block,
        )
    return sums


def pixel_sums(depth: Tensor, context: Tensor, numbers: Tensor, cells: int) -> Tensor:
    """sums[cell] = sum of depth[pixel, bin] * context[pixel] over the entries with numbers[pixel, bin] == cell.

    depth (M, D), context (M, C) of any floating precision, numbers (M, D) int32 -> (cells, C), summed in float32, or
    in float64 where an input is. Gradients come in the precision of their input.
    """
    return _PixelSums.apply(depth, context, numbers, cells)


class _PixelSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx, depth: Tensor, context: Tensor, numbers: Tensor, cells: int) -> Tensor:
        ctx.save_for_backward(depth, context, numbers)
        dtype = torch.promote_types(torch.promote_types(depth.dtype, context.dtype), torch.float32)
        return interval_sums(depth, context, *intervals(numbers.flatten(), cells), dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        depth, context, numbers = (tensor.contiguous() for tensor in ctx.saved_tensors)
        (pixels, bins), channels = depth.shape, context.shape[1]
        block = triton.next_power_of_2(max(1, channels))
        grad_depth, grad_context = torch.zeros_like(depth), torch.zeros_like(context)
        if pixels and bins and channels and len(grad):
            with torch.cuda.device_of(grad):
                gradient_by_pixel[(pixels,)](
                    grad.contiguous(),
                    depth,
                    context,
                    numbers,
                    grad_depth,
                    grad_context,
                    len(grad),
                    bins,
                    channels,
                    WANTS_DEPTH=ctx.needs_input_grad[0],
                    WANTS_CONTEXT=ctx.needs_input_grad[1],
                    BLOCK_BINS=max(1, min(16, 4096 // block)),
                    BLOCK_CHANNELS=block,
                )
        wanted = zip((grad_depth, grad_context), ctx.needs_input_grad, strict=False)
        return *(result if needed else None for result, needed in wanted), None, None
