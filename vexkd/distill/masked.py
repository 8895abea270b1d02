"""VeXKD itself: a feature loss under masks, and the two objectives (Eq. 4 to 8).

    student   L_task + lambda * sum over levels of L_masKD                   (Eq. 8)
    masks     L_task of the masked teacher + mu * sum over levels of L_masKD (Eq. 5)

B batch, C channels, Y X BEV.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vexkd.distill import masks as mask_parts
from vexkd.distill.adapters import adapter, widths
from vexkd.distill.lesson import Lesson, Method, weights_of
from vexkd.distill.losses import LOSSES
from vexkd.models.bev_model import BEVModel
from vexkd.settings import Distill

# Share of the cells that MGD hides (mmrazor 1.0.0).
HIDDEN = 0.65


class MaskedDistillation(Method):
    """The student's maps are drawn to the teacher's where the masks say.

    drawing: the module that makes the masks, or None to distil everywhere; learns: whether it has something to learn.
    coupling "detached": the student does not pull the masks and the masks do not pull the student or its adapters, each
    sees its own objective; "summed": both objectives are simply added, so that the student feels L_masKD (lambda + mu)
    times.
    """

    def __init__(
        self,
        *,
        drawing: nn.Module | None,
        learns: bool,
        adapters: dict[str, nn.Module],
        compare: Callable[[Tensor, Tensor, Tensor | None], Tensor],
        levels: Sequence[str],
        student_weight: float,
        mask_weight: float,
        coupling: str,
    ) -> None:
        super().__init__()
        self.drawing, self.learns = drawing, learns
        self.adapters, self.compare, self.levels = nn.ModuleDict(adapters), compare, tuple(levels)
        self.reads_high = "high" in self.levels
        self.student_weight, self.mask_weight = student_weight, mask_weight
        self.detached = coupling == "detached"

    @property
    def masks(self) -> nn.Module | None:
        """What the schedule freezes."""
        return self.drawing if self.learns else None

    def forward(self, lesson: Lesson) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        masks = self.make_masks(lesson)
        terms: dict[str, Tensor] = {}
        if lesson.learning:
            terms |= {f"masked.{name}": value for name, value in lesson.masked_teacher_loss(masks).items()}
        for level in self.levels:
            adapted = self.adapters[level](lesson.output.features[level])
            terms |= self.level_terms(level, adapted, lesson.teacher_features[level], masks.get(level), lesson.learning)
        watched = {f"mask.{lvl}.{k}": v for lvl, m in masks.items() for k, v in mask_parts.statistics(m).items()}
        return terms, watched

    def make_masks(self, lesson: Lesson) -> dict[str, Tensor]:
        """Masks (B, 1, Y, X) of the teacher's maps; each level's comes from its own un-masked map."""
        if self.drawing is None:
            return {}
        with torch.set_grad_enabled(lesson.learning and torch.is_grad_enabled()):
            return self.drawing(lesson.teacher_features, lesson.batch)

    def level_terms(
        self, level: str, student: Tensor, teacher: Tensor, mask: Tensor | None, learning: bool
    ) -> dict[str, Tensor]:
        """Eq. 7 at one level, weighted by lambda for the student and by mu for the mask; `student` is adapted."""
        fixed_mask = mask.detach() if mask is not None and self.detached else mask
        terms = {f"distill.{level}": self.student_weight * self.compare(student, teacher, fixed_mask)}
        if learning:
            fixed_student = student.detach() if self.detached else student
            terms[f"mask.{level}"] = self.mask_weight * self.compare(fixed_student, teacher, mask)
        return terms


def build(*, settings: Distill, student: BEVModel, teacher: BEVModel, teacher_name: str) -> MaskedDistillation:
    """The method of a run: its masks, loss and adapters."""
    loss = LOSSES[settings.loss]
    scale = weights_of(f"distill.loss {settings.loss}", {settings.loss: loss.scale}, settings.weights)[settings.loss]
    drawing = mask_parts.build(settings, teacher, teacher_name)
    options = {name: getattr(settings, name) for name in loss.options if getattr(settings, name) is not None}
    hidden = HIDDEN if settings.hidden is None else settings.hidden
    adapters = {
        level: adapter(loss.adapter, widths(student)[level], widths(teacher)[level], hidden=hidden)
        for level in settings.levels
    }

    def compare(student_map: Tensor, teacher_map: Tensor, mask: Tensor | None) -> Tensor:
        return scale * loss.compare(student_map, teacher_map, mask, **options)

    return MaskedDistillation(
        drawing=drawing,
        learns=isinstance(drawing, mask_parts.LearnedMasks),
        adapters=adapters,
        compare=compare,
        levels=settings.levels,
        student_weight=settings.lambda_,
        mask_weight=settings.mu,
        coupling=settings.coupling,
    )
