"""Deformable attention (Eq. 1 of the paper): each query reads a few learned places of a map.

Dimensions: B batch, Q queries, S cells of all levels, L levels, K points, C channels; shapes are (H, W) per level,
locations and references (x, y) in [0, 1] over the whole map.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vexkd.ops import kernels


def deformable_sample(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples; zero outside the map, a cell's centre at (i + 0.5) / size.

    value (B, S, heads, dim); locations (B, Q, heads, L, K, 2); weights (B, Q, heads, L, K).
    Returns (B, Q, heads * dim), in the widest of the three precisions.
    """
    cells = [h * w for h, w in shapes]
    if value.shape[1] != sum(cells):
        raise ValueError(f"value has {value.shape[1]} cells, the levels {shapes} have {sum(cells)}")
    if kernels.ready(value):
        from vexkd.ops.deformable_attention_triton import deformable_sample_triton

        return deformable_sample_triton(value, shapes, locations, weights)
    dtype = torch.promote_types(torch.promote_types(value.dtype, locations.dtype), weights.dtype)
    value, locations, weights = value.to(dtype), locations.to(dtype), weights.to(dtype)
    sample = sample_by_bags if _bags_are_better(value) else sample_by_grid
    planes = [plane.unflatten(1, shape) for plane, shape in zip(value.split(cells, 1), shapes, strict=True)]
    return sum(sample(plane, locations[:, :, :, i], weights[:, :, :, i]) for i, plane in enumerate(planes))


def _bags_are_better(value: Tensor) -> bool:
    """On the CPU they win from 16 channels a head (benchmarks/ops.py); on a GPU without Triton they are deterministic.

    Exported graphs have no bags.
    """
    if torch.compiler.is_exporting():
        return False
    if value.is_cuda:
        return torch.are_deterministic_algorithms_enabled()
    return value.shape[-1] >= 16


def sample_by_grid(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """One level by `grid_sample`.

    value (B, H, W, heads, dim), locations (B, Q, heads, K, 2), weights (B, Q, heads, K) -> (B, Q, heads * dim).
    """
    batch, _, _, heads, dim = value.shape
    maps = value.permute(0, 3, 4, 1, 2).flatten(0, 1)  # B*heads dim H W
    grid = locations.transpose(1, 2).flatten(0, 1) * 2 - 1  # B*heads Q K 2
    samples = F.grid_sample(maps, grid, align_corners=False)  # B*heads dim Q K
    total = (samples * weights.transpose(1, 2).flatten(0, 1).unsqueeze(1)).sum(-1)  # B*heads dim Q
    return total.view(batch, heads * dim, -1).transpose(1, 2)  # B Q heads*dim


def sample_by_bags(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """One level, shapes as above, as a sparse matrix times the map: each query and head is a bag of 4 K weighted cells.

    The samples are summed as they are read, so they are never stored, and no gradient needs an atomic sum. A border of
    zero cells around the map stands for what lies outside.
    """
    batch, h, w, heads, dim = value.shape
    points = locations.shape[3]
    rows = F.pad(value, (0, 0, 0, 0, 1, 1, 1, 1)).reshape(-1, dim)  # B*(H+2)*(W+2)*heads dim
    x = (locations[..., 0] * w - 0.5).clamp(-1, w)  # B Q heads K
    y = (locations[..., 1] * h - 0.5).clamp(-1, h)
    with torch.no_grad():
        left, low = x.floor().clamp(max=w - 1), y.floor().clamp(max=h - 1)
        cell = ((low + 1) * (w + 2) + left + 1).nan_to_num().int()
        sample = torch.arange(batch, device=value.device, dtype=torch.int32).view(-1, 1, 1, 1)
        head = torch.arange(heads, device=value.device, dtype=torch.int32).view(1, 1, -1, 1)
        corner = ((sample * ((h + 2) * (w + 2)) + cell) * heads + head).view(-1, points)  # B*Q*heads K
    upper = weights * (y - low)
    lower = weights - upper
    right_lower, right_upper = lower * (x - left), upper * (x - left)
    shares = torch.cat([lower - right_lower, right_lower, upper - right_upper, right_upper], -1).view(-1, 4 * points)
    steps = (0, heads, (w + 2) * heads, (w + 3) * heads)  # from the lower left corner to the other three, in rows
    entries = torch.cat([corner + step for step in steps], 1)  # B*Q*heads 4K
    sums = F.embedding_bag(entries, rows.detach(), mode="sum", per_sample_weights=shares)
    return _GradientOfRows.apply(sums, rows, corner, shares.detach(), steps).view(batch, -1, heads * dim)


class _GradientOfRows(torch.autograd.Function):
    """Passes the bags' sums through and gives the rows their gradient: for each corner again a sum of bags, by row."""

    @staticmethod
    def forward(ctx, sums: Tensor, rows: Tensor, corner: Tensor, shares: Tensor, steps: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(corner, shares)
        ctx.rows, ctx.steps = len(rows), steps
        return sums.view_as(sums)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        corner, shares = ctx.saved_tensors
        grad = grad.contiguous()
        sorted_corner, order = torch.sort(corner.flatten(), stable=True)
        bounds = torch.arange(ctx.rows + 1, device=corner.device, dtype=corner.dtype)
        offsets = torch.searchsorted(sorted_corner, bounds, out_int32=True)
        queries = order.div(corner.shape[1], rounding_mode="floor").int()
        grad_rows = grad.new_zeros(ctx.rows, grad.shape[1])
        for step, share in zip(ctx.steps, shares.chunk(len(ctx.steps), dim=1), strict=True):
            part = F.embedding_bag(
                queries, grad, offsets, mode="sum", per_sample_weights=share.flatten()[order], include_last_offset=True
            )
            grad_rows[step:] += part[: ctx.rows - step]
        return grad, grad_rows, None, None, None


def deformable_sample_plain(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """`deformable_sample` written from the definition: for each level, point and corner, gather, weigh, add."""
    batch, _, heads, dim = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    rows = torch.arange(batch, device=value.device).view(-1, 1, 1)
    columns = torch.arange(heads, device=value.device).view(1, 1, -1)
    total, start = value.new_zeros(batch, queries, heads, dim), 0
    for level, (h, w) in enumerate(shapes):
        for point in range(points):
            x = locations[:, :, :, level, point, 0] * w - 0.5  # B Q heads, in cells
            y = locations[:, :, :, level, point, 1] * h - 0.5
            for dy in (0, 1):
                for dx in (0, 1):
                    cx, cy = x.floor() + dx, y.floor() + dy
                    inside = (cx >= 0) & (cx < w) & (cy >= 0) & (cy < h)
                    nearness = (1 - (x - cx).abs()) * (1 - (y - cy).abs())
                    cell = start + cy.clamp(0, h - 1).long() * w + cx.clamp(0, w - 1).long()
                    share = weights[:, :, :, level, point] * nearness * inside
                    total = total + share.unsqueeze(-1) * value[rows, cell, columns]
        start += h * w
    return total.flatten(2)  # B Q heads*dim


def reference_points(rows: int, columns: int, device: torch.device | str = "cpu") -> Tensor:
    """Centres of the cells of a (Y, X) map as (x, y) in [0, 1], row by row: (1, Y*X, 2)."""
    y = (torch.arange(rows, device=device) + 0.5) / rows
    x = (torch.arange(columns, device=device) + 0.5) / columns
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([grid_x, grid_y], -1).view(1, rows * columns, 2)  # 1 Q 2


def star(heads: int, levels: int, points: int) -> Tensor:
    """Offsets at the start, in cells: head h looks along compass direction h, point k at k + 1 cells; heads*levels*points*2."""
    angles = torch.arange(heads) * (2 * math.pi / heads)
    rays = torch.stack([angles.cos(), angles.sin()], -1)  # heads 2
    rays = rays / rays.abs().amax(-1, keepdim=True)
    steps = rays.view(-1, 1, 1, 2) * torch.arange(1, points + 1).view(1, 1, -1, 1)  # heads 1 K 2
    return steps.expand(-1, levels, -1, -1).flatten()


class DeformableAttention(nn.Module):
    """Equation 1. At the start head h looks along compass direction h, point k at k + 1 cells, all weights equal.

    `query_channels` is the width of what predicts offsets and weights (2C where a modality is concatenated to the
    query). Dropout and the residual sum are the caller's.
    """

    def __init__(
        self,
        *,
        channels: int,
        heads: int = 8,
        points: int = 4,
        levels: int = 1,
        query_channels: int | None = None,
        value_channels: int | None = None,
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"channels ({channels}) must be a multiple of heads ({heads})")
        self.heads, self.points, self.levels = heads, points, levels
        self.offsets = nn.Linear(query_channels or channels, heads * levels * points * 2)
        self.weights = nn.Linear(query_channels or channels, heads * levels * points)
        self.value = nn.Linear(value_channels or channels, channels)
        self.output = nn.Linear(channels, channels)
        start_as_star(self, levels=levels)

    def forward(self, query_context: Tensor, reference: Tensor, value: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        """query_context (B, Q, query_channels), reference (B or 1, Q, 2) or (B or 1, Q, L, 2), value (B, S,
        value_channels) -> (B, Q, channels).
        """
        batch, queries = query_context.shape[:2]
        layout = (batch, queries, self.heads, self.levels, self.points)
        offsets = self.offsets(query_context).view(*layout, 2)  # in cells
        weights = self.weights(query_context).view(*layout[:3], -1).softmax(-1).view(layout)
        if reference.dim() == 3:
            reference = reference.unsqueeze(2)  # B Q 1 2
        sides = [reference.new_full((), float(side)) for h, w in shapes for side in (w, h)]  # no copy from the CPU
        cells = torch.stack(sides).view(-1, 2)  # L 2
        locations = reference[:, :, None, :, None] + offsets / cells[None, None, None, :, None]
        projected = self.value(value).unflatten(-1, (self.heads, -1))  # B S heads dim
        sampled = deformable_sample(projected, shapes, locations, weights)  # B Q C
        return self.output(sampled)


def start_as_star(attention: nn.Module, *, levels: int) -> None:
    """BEVFormer's start of an attention with `heads`, `points` and the layers offsets, weights, value and output.

    Offsets as of `star`; equal weights, Xavier projections, no biases.
    """
    with torch.no_grad():
        attention.offsets.bias.copy_(star(attention.heads, levels, attention.points))
    nn.init.zeros_(attention.offsets.weight)
    nn.init.zeros_(attention.weights.weight)
    for layer in (attention.weights, attention.value, attention.output):
        nn.init.zeros_(layer.bias)
    nn.init.xavier_uniform_(attention.value.weight)
    nn.init.xavier_uniform_(attention.output.weight)
