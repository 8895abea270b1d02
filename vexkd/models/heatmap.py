"""Gaussian centre heatmaps, which CenterPoint's and TransFusion's heads learn, and the cells in which boxes lie.

B batch, K classes, M boxes, Y X BEV. Cells are counted from the low corner of the BEV range; an object outside has none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vexkd.geometry import BevGrid

# Start of the bias of heatmap logits: sigmoid(-2.19) = 0.1 (CenterNet).
HEATMAP_BIAS = -2.19


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
