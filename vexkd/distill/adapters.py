"""Small networks between a student's map and its teacher's: trained with the student, dropped with the teacher.

B batch, C channels, Y X BEV.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from vexkd.models.bev_model import BEVModel
from vexkd.models.blocks import match_width

Adapter = Literal["none", "where-widths-differ", "always", "generator"]


def widths(model: BEVModel) -> dict[str, int]:
    """Channels of a model's `low` and `high` map."""
    first = next(part for part in (model.fusion, model.lidar, model.camera) if part is not None)
    return {"low": first.out_channels, "high": model.bev_encoder.out_channels}


def adapter(kind: Adapter, student: int, teacher: int, *, hidden: float) -> nn.Module:
    """What turns a student's map of `student` channels into the `teacher` channels that a loss compares.

    hidden: share of the cells that a generator does not see.
    """
    if kind == "generator":
        return Generator(student, teacher, hidden=hidden)
    if kind == "none":
        return nn.Identity()
    return nn.Conv2d(student, teacher, 1) if kind == "always" else match_width(student, teacher)


class Generator(nn.Module):
    """The teacher's map guessed from a student's map with random cells set to zero (MGD)."""

    def __init__(self, student: int, teacher: int, *, hidden: float) -> None:
        super().__init__()
        self.hidden = hidden
        self.align = match_width(student, teacher)
        self.generate = nn.Sequential(
            nn.Conv2d(teacher, teacher, 3, padding=1), nn.ReLU(), nn.Conv2d(teacher, teacher, 3, padding=1)
        )

    def forward(self, feature: Tensor) -> Tensor:
        """(B, C_student, Y, X) -> (B, C_teacher, Y, X)."""
        aligned = self.align(feature)
        visible = torch.rand_like(aligned[:, :1], dtype=torch.float32) >= self.hidden  # B 1 Y X
        return self.generate(aligned * visible)
