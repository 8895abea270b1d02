"""What one training step shows a method of distillation: the batch, both models, and what they made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vexkd.batch import Batch, Output
from vexkd.errors import InputError
from vexkd.models.bev_model import BEVModel
from vexkd.models.targets import Counts, Targets


@dataclass
class Lesson:
    """One step. B batch, C channels, Y X BEV.

    output: the student's, with gradients. teacher_features: the teacher's maps (B, C, Y, X), without. learning: whether
    masks learn in this step. targets, counts: by `student`, `method` and, while masks learn, `teacher`.
    """

    batch: Batch
    student: BEVModel
    teacher: BEVModel
    output: Output
    teacher_features: dict[str, Tensor]
    learning: bool
    targets: Targets
    counts: Counts

    @torch.no_grad()
    def teacher_predictions(self) -> Any:
        """The raw output of the teacher's head."""
        return self.teacher.head(self.teacher_features["high"])

    def masked_teacher_loss(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Eq. 4 in cascade: masked low -> BEV encoder -> masked high -> head -> task loss; gradients reach only the masks.

        masks: (B, 1, Y, X) by level.
        """
        if "low" in masks:
            high = self.teacher.bev_encoder(self.teacher_features["low"] * masks["low"])
        else:
            high = self.teacher_features["high"]
        if "high" in masks:
            high = high * masks["high"]
        return self.teacher.head.loss(
            self.teacher.head(high), self.targets.under("teacher"), self.counts.under("teacher")
        )


class Method(nn.Module):
    """A method: a module whose parameters are trained with the student and dropped after.

    masks: the module that learns where to distil and is frozen by the schedule, or None. reads_high: whether it reads the
    teacher's `high` map or predictions. forward: from a `Lesson` weighted loss terms, and figures to watch.
    """

    masks: nn.Module | None  # no default here: it would hide a module of this name
    reads_high = True

    def targets(self, batch: Batch) -> Targets:
        """What the method reads of the ground truth, with the counts that its terms are divided by, if any."""
        return Targets()


def weights_of(method: str, published: Mapping[str, float], chosen: Mapping[str, float] | None) -> dict[str, float]:
    """The weights of a method's terms: the published ones, some replaced. Raises InputError for a term it has not."""
    for name in chosen or {}:
        if name not in published:
            raise InputError(
                f"distill.weights.{name}: {method} has no such term; name one of {', '.join(sorted(published))}."
            )
    return {**published, **(chosen or {})}
