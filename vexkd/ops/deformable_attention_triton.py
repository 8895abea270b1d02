"""Deformable sampling in Triton: samples are weighed and summed as they are read, and never stored.

Dimensions: B batch, Q queries, S cells of all levels, L levels, K points; a row is one query of one head, R = B Q heads.
Imported only where Triton is used.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from vexkd.ops.bev_pool_triton import intervals

BLOCK_ELEMENTS = 1024  # of a block's rows times channels
NO_VALUES, ATOMIC_VALUES, SORTED_VALUES = 0, 1, 2  # what the backward pass does for the gradient of the values


@triton.jit
def locate(locations, entry, present, height, width, TYPE: tl.constexpr):
    """Where the entries' lower left corners are, in cells, and how far beyond them the samples lie."""
    x = tl.load(locations + 2 * entry, mask=present, other=0.0).to(TYPE) * width - 0.5
    y = tl.load(locations + 2 * entry + 1, mask=present, other=0.0).to(TYPE) * height - 0.5
    left, low = tl.floor(x), tl.floor(y)
    return left, low, x - left, y - low


@triton.jit
def corner_cell(column, line, present, height, width):
    """The number of a cell in its level, and whether it is one; comparisons are false for what is not a number."""
    inside = present & (column >= 0) & (column < width) & (line >= 0) & (line < height)
    cell = tl.where(inside, line, 0).to(tl.int64) * width + tl.where(inside, column, 0).to(tl.int64)
    return cell, inside


@triton.jit
def sample_forward(
    value,
    locations,
    weights,
    out,
    sizes,
    rows,
    queries,
    heads,
    cells,
    dim,
    POINTS: tl.constexpr,
    TYPE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    present = row < rows
    channel = tl.arange(0, BLOCK_DIM)
    used = channel < dim
    head, batch = row % heads, row // (heads * queries)
    total = tl.zeros([BLOCK_ROWS, BLOCK_DIM], TYPE)
    for level in tl.static_range(len(sizes)):
        height, width, start, _ = sizes[level]
        for point in range(POINTS):
            entry = (row * len(sizes) + level) * POINTS + point
            left, low, right_part, upper_part = locate(locations, entry, present, height, width, TYPE)
            weight = tl.load(weights + entry, mask=present, other=0.0).to(TYPE)
            for corner in tl.static_range(4):
                dx, dy = corner % 2, corner // 2
                cell, inside = corner_cell(left + dx, low + dy, present, height, width)
                share = (right_part if dx else 1 - right_part) * (upper_part if dy else 1 - upper_part)
                place = (((batch * cells + start + cell) * heads + head) * dim)[:, None] + channel[None, :]
                read = tl.load(value + place, mask=inside[:, None] & used[None, :], other=0.0).to(TYPE)
                total += (weight * share)[:, None] * read
    tl.store(out + row[:, None] * dim + channel[None, :], total, mask=present[:, None] & used[None, :])


@triton.jit
def sample_backward(
    grad,
    value,
    locations,
    weights,
    grad_locations,
    grad_weights,
    grad_value,
    corners,
    sizes,
    rows,
    queries,
    heads,
    cells,
    dim,
    corners_per_sample,
    nowhere,
    VALUES: tl.constexpr,
    POINTS: tl.constexpr,
    TYPE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """Gradients of locations and weights, which are each row's own; those of the values as VALUES says.

    ATOMIC_VALUES adds them where they belong. SORTED_VALUES writes the number of each sample's lower left corner (R, L K),
    by which `gather_values` then finds the samples near a cell.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    present = row < rows
    channel = tl.arange(0, BLOCK_DIM)
    used = channel < dim
    head, batch = row % heads, row // (heads * queries)
    slope = tl.load(grad + row[:, None] * dim + channel[None, :], mask=present[:, None] & used[None, :], other=0.0)
    slope = slope.to(TYPE)
    for level in tl.static_range(len(sizes)):
        height, width, start, first_corner = sizes[level]
        for point in range(POINTS):
            entry = (row * len(sizes) + level) * POINTS + point
            left, low, right_part, upper_part = locate(locations, entry, present, height, width, TYPE)
            weight = tl.load(weights + entry, mask=present, other=0.0).to(TYPE)
            by_weight = tl.zeros([BLOCK_ROWS], TYPE)
            by_x = tl.zeros([BLOCK_ROWS], TYPE)
            by_y = tl.zeros([BLOCK_ROWS], TYPE)
            for corner in tl.static_range(4):
                dx, dy = corner % 2, corner // 2
                cell, inside = corner_cell(left + dx, low + dy, present, height, width)
                along_x = right_part if dx else 1 - right_part
                along_y = upper_part if dy else 1 - upper_part
                target = (batch * cells + start + cell) * heads + head
                place = target[:, None] * dim + channel[None, :]
                kept = inside[:, None] & used[None, :]
                read = tl.load(value + place, mask=kept, other=0.0).to(TYPE)
                product = tl.sum(slope * read, 1)
                by_weight += along_x * along_y * product
                by_x += (along_y if dx else -along_y) * product
                by_y += (along_x if dy else -along_x) * product
                if VALUES == 1:
                    share = weight * along_x * along_y
                    tl.atomic_add(grad_value + place, share[:, None] * slope, mask=kept, sem="relaxed")
            if VALUES == 2:  # corners reach one cell beyond the map to the left and below
                corner_number, near = corner_cell(left + 1, low + 1, present, height + 1, width + 1)
                corner_number = (batch * corners_per_sample + first_corner + corner_number) * heads + head
                tl.store(corners + entry, tl.where(near, corner_number, nowhere), mask=present)
            tl.store(grad_weights + entry, by_weight, mask=present)
            tl.store(grad_locations + 2 * entry, by_x * weight * width, mask=present)
            tl.store(grad_locations + 2 * entry + 1, by_y * weight * height, mask=present)


@triton.jit
def gather_values(
    grad,
    locations,
    weights,
    order,
    offsets,
    grad_value,
    level,
    levels,
    height,
    width,
    start,
    first_corner,
    heads,
    cells,
    dim,
    corners_per_sample,
    POINTS: tl.constexpr,
    TYPE: tl.constexpr,
    BLOCK_ENTRIES: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """One program a cell and head of one level: the samples of its four corners, in their sorted order."""
    number = tl.program_id(0).to(tl.int64)
    head, position = number % heads, number // heads
    column, line = position % width, position // width % height
    batch = position // (width * height)
    channel = tl.arange(0, BLOCK_DIM)
    used = channel < dim
    total = tl.zeros([BLOCK_DIM], TYPE)
    for corner in tl.static_range(4):
        dx, dy = corner % 2, corner // 2
        corner_number = (line - dy + 1) * (width + 1) + column - dx + 1
        interval = (batch * corners_per_sample + first_corner + corner_number) * heads + head
        end = tl.load(offsets + interval + 1)
        for first in range(tl.load(offsets + interval), end, BLOCK_ENTRIES):
            place = first + tl.arange(0, BLOCK_ENTRIES)
            present = place < end
            entry = tl.load(order + place, mask=present, other=0)
            left, low, right_part, upper_part = locate(locations, entry, present, height, width, TYPE)
            weight = tl.load(weights + entry, mask=present, other=0.0).to(TYPE)
            share = weight * (right_part if dx else 1 - right_part) * (upper_part if dy else 1 - upper_part)
            row = entry // (levels * POINTS)
            kept = present[:, None] & used[None, :]
            slope = tl.load(grad + row[:, None] * dim + channel[None, :], mask=kept, other=0.0).to(TYPE)
            total += tl.sum(tl.where(present, share, 0.0)[:, None] * slope, 0)
    target = (batch * cells + start + line * width + column) * heads + head
    tl.store(grad_value + target * dim + channel, total, mask=used)


def deformable_sample_triton(
    value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """`deformable_sample` for all levels at once, summed in float32, or in float64 where an input is.

    Nothing but the result is stored. The gradient of the values is summed by atomic additions, or, where deterministic
    algorithms are asked for, cell by cell over the sorted samples. A location that is not a number makes its query's
    result not a number, and no other.
    """
    return _Sample.apply(value, locations, weights, tuple((int(h), int(w)) for h, w in shapes))


class _Sample(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, locations: Tensor, weights: Tensor, shapes: tuple[tuple[int, int], ...]) -> Tensor:
        value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
        ctx.save_for_backward(value, locations, weights)
        ctx.shapes = shapes
        batch, queries, heads = weights.shape[:3]
        dtype = torch.promote_types(torch.promote_types(value.dtype, locations.dtype), weights.dtype)
        out = torch.zeros(batch, queries, heads * value.shape[3], dtype=dtype, device=value.device)
        grid, numbers, constants = _launch(value, weights, shapes, dtype)
        if out.numel() and weights.numel():
            with torch.cuda.device_of(value):
                sample_forward[grid](value, locations, weights, out, *numbers, **constants)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        value, locations, weights = ctx.saved_tensors
        grad = grad.contiguous()
        grid, numbers, constants = _launch(value, weights, ctx.shapes, grad.dtype)
        dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
        corners_per_sample = sum((h + 1) * (w + 1) for h, w in ctx.shapes)
        nowhere = len(value) * corners_per_sample * value.shape[2]
        grad_locations, grad_weights = torch.zeros_like(locations), torch.zeros_like(weights)
        grad_value, corners, values = None, None, NO_VALUES
        if ctx.needs_input_grad[0]:
            grad_value = torch.zeros(value.shape, dtype=dtype, device=value.device)
            values = SORTED_VALUES if torch.are_deterministic_algorithms_enabled() else ATOMIC_VALUES
        if values == SORTED_VALUES:
            corners = torch.empty(weights.numel(), dtype=torch.int32, device=value.device)
        if grad.numel() and weights.numel():
            arrays = (grad, value, locations, weights, grad_locations, grad_weights, grad_value, corners)
            with torch.cuda.device_of(value):
                sample_backward[grid](*arrays, *numbers, corners_per_sample, nowhere, VALUES=values, **constants)
            if values == SORTED_VALUES:
                _gather(grad, locations, weights, corners, grad_value, ctx.shapes, nowhere)
        grad_value = None if grad_value is None else grad_value.to(value.dtype)
        wanted = zip((grad_value, grad_locations, grad_weights), ctx.needs_input_grad, strict=False)
        return *(result if needed else None for result, needed in wanted), None


def _gather(
    grad: Tensor,
    locations: Tensor,
    weights: Tensor,
    corners: Tensor,
    grad_value: Tensor,
    shapes: tuple[tuple[int, int], ...],
    nowhere: int,
) -> None:
    """Fill the gradient of the values level by level, each cell by the sorted intervals of its four corners."""
    order, offsets = intervals(corners, nowhere)
    batch, cells, heads, dim = grad_value.shape
    corners_per_sample = sum((h + 1) * (w + 1) for h, w in shapes)
    block_dim = triton.next_power_of_2(dim)
    for level, (height, width, start, first_corner) in enumerate(_sizes(shapes)):
        if height * width == 0:
            continue
        with torch.cuda.device_of(grad):
            gather_values[(batch * height * width * heads,)](
                grad,
                locations,
                weights,
                order,
                offsets,
                grad_value,
                level,
                len(shapes),
                height,
                width,
                start,
                first_corner,
                heads,
                cells,
                dim,
                corners_per_sample,
                POINTS=weights.shape[4],
                TYPE=tl.float64 if grad_value.dtype == torch.float64 else tl.float32,
                BLOCK_ENTRIES=max(1, min(8, BLOCK_ELEMENTS // block_dim)),
                BLOCK_DIM=block_dim,
                num_warps=1 if block_dim <= 64 else 4,
            )


def _sizes(shapes: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int, int, int], ...]:
    """Of each level height, width, the number of its first cell and that of its first corner."""
    sizes, start, first_corner = [], 0, 0
    for h, w in shapes:
        sizes.append((h, w, start, first_corner))
        start, first_corner = start + h * w, first_corner + (h + 1) * (w + 1)
    return tuple(sizes)


def _launch(
    value: Tensor, weights: Tensor, shapes: tuple[tuple[int, int], ...], dtype: torch.dtype
) -> tuple[tuple[int], tuple, dict]:
    """The grid, the numbers and the constants that both passes over the rows are launched with."""
    batch, queries, heads, _, points = weights.shape
    cells, dim = value.shape[1], value.shape[3]
    block_dim = triton.next_power_of_2(max(1, dim))
    block_rows = max(1, BLOCK_ELEMENTS // block_dim)
    rows = batch * queries * heads
    constants = {
        "POINTS": points,
        "TYPE": tl.float64 if dtype == torch.float64 else tl.float32,
        "BLOCK_ROWS": block_rows,
        "BLOCK_DIM": block_dim,
    }
    return (triton.cdiv(rows, block_rows),), (_sizes(shapes), rows, queries, heads, cells, dim), constants
