"""Gaussian centre heatmaps and the two focal losses that CenterPoint's and TransFusion's heads share.

B batch, K classes, M boxes, Y X BEV. Cells are counted from the low corner of the BEV range; an object outside has none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vexkd.geometry import BevGrid

# The published heads clip sigmoids so that no logarithm leaves float16's range.
CLIP = 1e-4


def gaussian_radius(length: Tensor, width: Tensor, overlap: float) -> Tensor:
    """Radius in cells at which a shifted box still overlaps by `overlap`, lengths in cells.

    This is CornerNet's published form with its well-known slip, (b + root) / 2 in all three cases: published CenterPoint
    numbers were reached with it, and the exact roots give other targets.
    """
    total, area = length + width, length * width
    cases = (
        (1.0, total, area * (1 - overlap) / (1 + overlap)),
        (4.0, 2 * total, (1 - overlap) * area),
        (4 * overlap, -2 * overlap * total, (overlap - 1) * area),
    )
    radii = [(b + torch.sqrt((b * b - 4 * a * c).clamp(min=0))) / 2 for a, b, c in cases]
    return torch.stack(radii).amin(0)


def cells_of(boxes: Tensor, grid: BevGrid) -> tuple[Tensor, Tensor, Tensor]:
    """Continuous cell coordinates (M, 2) as (column, row), their integer parts (M, 2), and which lie on the grid (M,)."""
    exact = grid.to_cells(boxes[:, :2])
    whole = torch.floor(exact).long()
    rows, columns = grid.shape
    inside = (whole[:, 0] >= 0) & (whole[:, 0] < columns) & (whole[:, 1] >= 0) & (whole[:, 1] < rows)
    return exact, whole, inside


def draw(boxes: Tensor, channels: Tensor, count: int, grid: BevGrid, *, overlap: float, min_radius: int) -> Tensor:
    """Heatmap (count, Y, X) with a Gaussian of peak 1 for each box (M, 9) in its channel (M,); where they meet, the larger.

    The radius is max(min_radius, int(gaussian_radius)); sigma is a sixth of the diameter 2 r + 1.
    """
    rows, columns = grid.shape
    heatmap = boxes.new_zeros(count * rows * columns)
    _, whole, inside = cells_of(boxes, grid)
    boxes, whole, channels = boxes[inside], whole[inside], channels[inside]
    if len(boxes) == 0:
        return heatmap.view(count, rows, columns)
    radius = gaussian_radius(boxes[:, 3] / grid.cell, boxes[:, 4] / grid.cell, overlap).long().clamp(min=min_radius)
    reach = torch.arange(-int(radius.max()), int(radius.max()) + 1, device=boxes.device)
    dy, dx = torch.meshgrid(reach, reach, indexing="ij")  # R R
    sigma = (2 * radius + 1).to(boxes.dtype) / 6
    value = torch.exp(-(dx * dx + dy * dy)[None] / (2 * sigma * sigma)[:, None, None])  # M R R
    x, y = whole[:, 0, None, None] + dx, whole[:, 1, None, None] + dy
    used = (dx.abs() <= radius[:, None, None]) & (dy.abs() <= radius[:, None, None])
    used &= (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
    index = (channels[:, None, None] * rows + y) * columns + x
    heatmap.scatter_reduce_(0, index[used], value[used], reduce="amax")
    return heatmap.view(count, rows, columns)


def gaussian_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Sum over all cells of CornerNet's focal loss (alpha 2, gamma 4) of logits against a Gaussian target of one shape."""
    score = logits.float().sigmoid().clamp(CLIP, 1 - CLIP)
    peak = target.eq(1)
    positive = -(score.log() * (1 - score).square())[peak].sum()
    negative = -((1 - score).log() * score.square() * (1 - target).pow(4))[~peak].sum()
    return positive + negative


def sigmoid_focal_loss(logits: Tensor, target: Tensor, *, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """Element-wise focal loss of RetinaNet; `target` is 0 or 1."""
    logits = logits.float()
    score = logits.sigmoid()
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    missed = target * (1 - score) + (1 - target) * score
    balance = target * alpha + (1 - target) * (1 - alpha)
    return balance * missed.pow(gamma) * cross_entropy
