"""Ground-truth boxes and predicted heatmaps as regions of the BEV grid: what the published distillers teach by.

B batch, M boxes, C channels, Y X BEV. Boxes are `vexkd.boxes` rows in the LiDAR frame; x counts columns and y rows
everywhere (some published codes exchange the two).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vexkd.batch import Batch
from vexkd.geometry import BevGrid
from vexkd.models import heatmap

# The nine key points of a box over its half length and half width: corners, centre, middles of the edges (UniDistill).
KEY_POINTS = ((1, 1), (-1, 1), (-1, -1), (1, -1), (0, 0), (1, 0), (0, 1), (-1, 0), (0, -1))


def on_grid(batch: Batch, grid: BevGrid) -> list[Tensor]:
    """The boxes (M, 9) of each sample whose centre lies on the grid."""
    return [boxes[heatmap.cells_of(boxes, grid)[2]] for boxes in batch.boxes]


def key_points(boxes: Tensor) -> Tensor:
    """The nine key points of boxes (M, 9) in metres: (M, 9, 2) as (x, y)."""
    local = boxes[:, None, 3:5] / 2 * boxes.new_tensor(KEY_POINTS)  # M 9 2
    c, s = boxes[:, 6:7].cos(), boxes[:, 6:7].sin()
    x = boxes[:, 0:1] + c * local[..., 0] - s * local[..., 1]
    y = boxes[:, 1:2] + s * local[..., 0] + c * local[..., 1]
    return torch.stack([x, y], dim=-1)


def sample(feature: Tensor, points: Tensor, grid: BevGrid) -> Tensor:
    """Bilinear samples of one map (C, Y, X) at points (P, 2) in metres: (P, C); zero beyond the map."""
    rows, columns = grid.shape
    grid_places = grid.to_cells(points) / points.new_tensor([columns, rows]) * 2 - 1  # P 2
    grid_places = grid_places.to(feature.dtype)[None, :, None]  # 1 P 1 2
    return F.grid_sample(feature[None], grid_places, align_corners=False)[0, :, :, 0].T  # P C


def covered(boxes: Tensor, grid: BevGrid) -> Tensor:
    """Which cells lie in which rotated box: (M, Y, X). A cell does by its centre, and the one under a box's centre always.

    Without the second rule a pedestrian in cells of 0.6 m could cover none.
    """
    rows, columns = grid.shape
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    centres = grid.to_metres(torch.stack([x, y], dim=-1).to(boxes) + 0.5)  # Y X 2
    offset = centres[None] - boxes[:, None, None, :2]  # M Y X 2
    c, s = boxes[:, 6].cos()[:, None, None], boxes[:, 6].sin()[:, None, None]
    along = (offset[..., 0] * c + offset[..., 1] * s).abs() <= boxes[:, 3, None, None] / 2
    across = (offset[..., 1] * c - offset[..., 0] * s).abs() <= boxes[:, 4, None, None] / 2
    inside = along & across
    _, whole, on_map = heatmap.cells_of(boxes, grid)
    number = torch.arange(len(boxes), device=boxes.device)[on_map]
    inside[number, whole[on_map, 1], whole[on_map, 0]] = True
    return inside


def gaussians(batch: Batch, grid: BevGrid, *, overlap: float, min_radius: int) -> Tensor:
    """One Gaussian a box, whatever its class; where they meet, the larger: (B, 1, Y, X)."""
    drawn = [
        heatmap.draw(boxes, torch.zeros_like(boxes[:, 0]).long(), 1, grid, overlap=overlap, min_radius=min_radius)
        for boxes in batch.boxes
    ]
    return torch.stack(drawn)


def highest_logit(predictions: Any) -> Tensor:
    """The largest heatmap logit over all classes (B, 1, Y, X), of CenterPoint's or TransFusion's predictions."""
    maps = [task["heatmap"] for task in predictions] if isinstance(predictions, list) else [predictions["heatmap"]]
    return torch.cat(maps, dim=1).float().amax(dim=1, keepdim=True)


def spatial_attention(feature: Tensor, temperature: float) -> Tensor:
    """Softmax over the cells of the mean |F| over channels, times the number of cells: (B, 1, Y, X) of mean 1."""
    means = feature.float().abs().mean(dim=1, keepdim=True)
    return (means.flatten(1) / temperature).softmax(dim=1).view_as(means) * means[0].numel()


def channel_attention(feature: Tensor, temperature: float) -> Tensor:
    """Softmax over the channels of the mean |F| over cells, times the number of channels: (B, C, 1, 1) of mean 1."""
    means = feature.float().abs().mean(dim=(2, 3), keepdim=True)
    return (means / temperature).softmax(dim=1) * means.shape[1]
