"""One training step of VeXKD: student, frozen teacher, masks, and the two objectives (Eq. 4 to 8).

    student   L_task + lambda * sum over levels of L_masKD                   (Eq. 8)
    masks     L_task of the masked teacher + mu * sum over levels of L_masKD (Eq. 5)

Only two maps of each model are read, `low` and `high`; both models see the same batch, drawn once. B batch, Y X BEV.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vexkd.batch import Batch, Output
from vexkd.distill import masks as mask_parts
from vexkd.distill.losses import attention_transfer
from vexkd.distill.masks import MaskNet
from vexkd.distill.schedule import MaskSchedule
from vexkd.errors import InputError
from vexkd.models.bev_model import BEVModel
from vexkd.params import Distill


class Distiller(nn.Module):
    """Student and teacher joined for training; what is kept afterwards is the student alone.

    masks: one net per level, or None to distil everywhere. coupling "detached": the student does not pull the masks and
    the masks do not pull the student, each sees its own objective; "summed": both objectives are simply added, so that the
    student feels L_masKD (lambda + mu) times.
    """

    def __init__(
        self,
        *,
        student: BEVModel,
        teacher: BEVModel,
        masks: nn.ModuleDict | None,
        schedule: MaskSchedule,
        levels: Sequence[str],
        power: int,
        student_weight: float,
        mask_weight: float,
        coupling: str,
    ) -> None:
        super().__init__()
        self.student, self.teacher, self.masks = student, teacher.requires_grad_(False), masks
        self.schedule, self.levels, self.power = schedule, tuple(levels), power
        self.student_weight, self.mask_weight = student_weight, mask_weight
        self.detached = coupling == "detached"
        self.learn_masks = masks is not None
        self.train()

    @property
    def model(self) -> BEVModel:
        """What the run is about: the student."""
        return self.student

    def train(self, mode: bool = True) -> Distiller:
        """The teacher's BatchNorm and dropout stay as in evaluation."""
        super().train(mode)
        self.teacher.eval()
        return self

    def begin_step(self, epoch: int, iteration: int) -> None:
        """Freeze the masks once their schedule says so."""
        self.student.begin_epoch(epoch)
        if self.masks is not None:
            self.learn_masks = self.schedule.learning(epoch, iteration)
            self.masks.requires_grad_(self.learn_masks)
            self.masks.train(self.learn_masks)

    def positives(self, batch: Batch) -> Tensor:
        """Normalisers of the student's head, then of the teacher's."""
        return torch.cat([self.student.positives(batch), self.teacher.positives(batch)])

    def forward(self, batch: Batch, positives: Tensor) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Weighted loss terms, whose sum is to be minimised, and figures to watch."""
        own, teachers = positives.split([self.student.normalisers, self.teacher.normalisers])
        with torch.no_grad():
            taught = self.teacher.features(batch)
        output = self.student(batch)
        terms = {f"task.{k}": v for k, v in self.student.loss(output, batch, own).items()}
        masks = self.make_masks(taught)
        if self.learn_masks:
            masked = self.masked_teacher_loss(taught, masks, batch, teachers)
            terms |= {f"masked.{k}": v for k, v in masked.items()}
        for level in self.levels:
            terms |= self.level_terms(level, output.features[level], taught[level], masks.get(level))
        watched = {f"mask.{lvl}.{k}": v for lvl, m in masks.items() for k, v in mask_parts.statistics(m).items()}
        return terms, watched

    def make_masks(self, taught: dict[str, Tensor]) -> dict[str, Tensor]:
        """Masks (B, 1, Y, X) of the teacher's maps; each level's comes from its own un-masked map."""
        if self.masks is None:
            return {}
        with torch.set_grad_enabled(self.learn_masks and torch.is_grad_enabled()):
            return {level: self.masks[level](taught[level]) for level in self.levels}

    def masked_teacher_loss(
        self, taught: dict[str, Tensor], masks: dict[str, Tensor], batch: Batch, positives: Tensor
    ) -> dict[str, Tensor]:
        """Eq. 4 in cascade: masked low -> BEV encoder -> masked high -> head -> task loss; gradients reach only the masks."""
        if "low" in masks:
            high = self.teacher.bev_encoder(taught["low"] * masks["low"])
        else:
            high = taught["high"]
        if "high" in masks:
            high = high * masks["high"]
        return self.teacher.loss(Output(predictions=self.teacher.head(high)), batch, positives)

    def level_terms(self, level: str, student: Tensor, teacher: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Eq. 7 at one level, weighted by lambda for the student and by mu for the mask."""
        held = mask.detach() if mask is not None and self.detached else mask
        terms = {f"distill.{level}": self.student_weight * attention_transfer(student, teacher, held, power=self.power)}
        if self.learn_masks:
            seen = student.detach() if self.detached else student
            terms[f"mask.{level}"] = self.mask_weight * attention_transfer(seen, teacher, mask, power=self.power)
        return terms


def build(*, settings: Distill, student: BEVModel, teacher: BEVModel, teacher_name: str) -> Distiller:
    """The distiller of a run. Raises InputError where the teacher has no query to start the masks from."""
    masks = None
    if settings.mask != "none":
        query = getattr(teacher.fusion, "query", None)
        if query is None:
            raise InputError(
                f"teacher {teacher_name} has no BEV query to start masks from; use a teacher with fusion: mgfm "
                "or set distill.mask to none."
            )
        start = query if settings.mask == "learned-query" else torch.randn_like(query)
        widths = {"low": teacher.fusion.out_channels, "high": teacher.bev_encoder.out_channels}
        masks = nn.ModuleDict(
            {
                level: MaskNet(
                    query=start,
                    shape=teacher.grid.shape,
                    in_channels=widths[level],
                    blocks=settings.mask_blocks,
                    heads=settings.mask_heads,
                    points=settings.mask_points,
                    ffn=settings.mask_ffn,
                    dropout=settings.mask_dropout,
                    bias=settings.mask_bias,
                )
                for level in settings.levels
            }
        )
    return Distiller(
        student=student,
        teacher=teacher,
        masks=masks,
        schedule=MaskSchedule(settings.stop_mask_epoch, settings.stop_mask_iteration),
        levels=settings.levels,
        power=settings.power,
        student_weight=settings.lambda_,
        mask_weight=settings.mu,
        coupling=settings.coupling,
    )
