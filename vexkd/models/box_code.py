"""The ten numbers by which every head says a box: centre in x and y, z (gravity centre), log l w h, sin and cos of yaw, vx vy.

M boxes. Heads differ in what the centre is counted in (fractions of a cell, cells, metres), which is their own affair.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CODE = 10
# Channels of the branches that predict the code, after those of the centre, in the code's order.
BRANCHES = {"z": 1, "size": 3, "yaw": 2, "velocity": 2}
# Metres below which no side counts, so that every logarithm is finite.
SMALLEST = 1e-3


def encode(centre: Tensor, boxes: Tensor) -> Tensor:
    """Codes (M, 10) of boxes (M, 9) with their centre (M, 2) in the head's own units."""
    yaw = boxes[:, 6:7]
    size = boxes[:, 3:6].clamp(min=SMALLEST).log()
    return torch.cat([centre, boxes[:, 2:3], size, yaw.sin(), yaw.cos(), boxes[:, 7:9]], dim=1)


def decode(centre: Tensor, codes: Tensor) -> Tensor:
    """Boxes (M, 9) of codes (M, 10) with their centre (M, 2) in metres."""
    yaw = torch.atan2(codes[:, 6:7], codes[:, 7:8])
    return torch.cat([centre, codes[:, 2:3], codes[:, 3:6].exp(), yaw, codes[:, 8:10]], dim=1)


def within(boxes: Tensor, bounds: Sequence[float]) -> Tensor:
    """Which boxes (M, 9) have their centre inside bounds (x0, y0, z0, x1, y1, z1)."""
    low, high = boxes.new_tensor(list(bounds)).chunk(2)
    return ((boxes[:, :3] >= low) & (boxes[:, :3] <= high)).all(dim=1)
