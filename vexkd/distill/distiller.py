"""One training step of a distillation: student, frozen teacher, and the method that says what the student learns of it.

VeXKD's own method is in `masked.py`, its peers' in `peers/`. Only two maps of each model are read by VeXKD, `low` and
`high`; both models see the same batch, drawn once. B batch, C channels, Y X BEV.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vexkd.batch import Batch
from vexkd.distill import masked
from vexkd.distill.lesson import Lesson, Method
from vexkd.distill.peers import bevdistill, focal, maskd, s2m2, unidistill
from vexkd.distill.schedule import MaskSchedule
from vexkd.models.bev_model import BEVModel
from vexkd.models.targets import Counts, Targets
from vexkd.settings import Distill

# A method by the name it has in `distill.method`; each is built from the same four arguments.
METHODS = {
    "vexkd": masked.build,
    "unidistill": unidistill.build,
    "bevdistill": bevdistill.build,
    "fgd": focal.build_fgd,
    "distillbev": focal.build_distillbev,
    "maskd": maskd.build,
    "s2m2": s2m2.build,
}


class Distiller(nn.Module):
    """Student and teacher joined for training; what is kept afterwards is the student alone.

    monitor_every: steps between two measurements of each loss term's gradient norm; 0: never.
    """

    def __init__(
        self, *, student: BEVModel, teacher: BEVModel, method: Method, schedule: MaskSchedule, monitor_every: int = 0
    ) -> None:
        super().__init__()
        self.student, self.teacher, self.method = student, teacher.requires_grad_(False), method
        self.schedule, self.monitor_every = schedule, monitor_every
        self.learn_masks = method.masks is not None
        self.monitoring = False
        self.train()

    @property
    def model(self) -> BEVModel:
        """What the run is about: the student."""
        return self.student

    @property
    def masks(self) -> nn.Module | None:
        """What learns where to distil, if anything does."""
        return self.method.masks

    def train(self, mode: bool = True) -> Distiller:
        """The teacher's BatchNorm and dropout stay as in evaluation."""
        super().train(mode)
        self.teacher.eval()
        return self

    def begin_step(self, epoch: int, iteration: int) -> None:
        """Freeze the masks once their schedule says so; iterations count from 0."""
        self.student.begin_epoch(epoch)
        self.monitoring = self.monitor_every > 0 and (iteration + 1) % self.monitor_every == 0
        if self.masks is not None:
            self.learn_masks = self.schedule.learning(epoch, iteration)
            self.masks.requires_grad_(self.learn_masks)
            self.masks.train(self.learn_masks)

    def targets(self, batch: Batch) -> Targets:
        """The student's and the method's and, while masks learn from it, those of the teacher's head."""
        parts = {"student": self.student.targets(batch), "method": self.method.targets(batch)}
        if self.learn_masks:
            parts["teacher"] = self.teacher.head.targets(batch)
        return Targets.join(**parts)

    def forward(self, batch: Batch, targets: Targets, counts: Counts) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weighted loss terms, whose sum is to be minimised, and figures to watch."""
        with torch.no_grad():
            teacher_features = self.teacher.features(batch.for_teacher(), high=self.method.reads_high)
        output = self.student(batch)
        task = self.student.loss(output, targets.under("student"), counts.under("student"))
        terms = {f"task.{name}": value for name, value in task.items()}
        lesson = Lesson(batch, self.student, self.teacher, output, teacher_features, self.learn_masks, targets, counts)
        method_terms, watched = self.method(lesson)
        terms |= method_terms
        if self.monitoring and torch.is_grad_enabled():
            watched |= gradient_norms(terms, {level: output.features[level] for level in ("low", "high")})
        return terms, watched


def gradient_norms(terms: dict[str, Tensor], maps: dict[str, Tensor]) -> dict[str, Tensor]:
    """Norm of each term's gradient in the student's maps, as `gradient.<term>.<level>`; 0 where a term does not reach.

    Summed over the samples: a term is a mean over them, so this is one sample's norm on average, however a batch is split.
    Costs a pass back through the head for each term; touches no parameter's gradient and draws nothing.
    """
    norms = {}
    for name, term in terms.items():
        gradients: tuple[Tensor | None, ...] = (None,) * len(maps)
        if term.requires_grad:
            gradients = torch.autograd.grad(term, list(maps.values()), retain_graph=True, allow_unused=True)
        for level, gradient in zip(maps, gradients, strict=True):
            norm = term.new_zeros(()) if gradient is None else gradient.float().flatten(1).norm(dim=1).sum()
            norms[f"gradient.{name}.{level}"] = norm
    return norms


def build(*, settings: Distill, student: BEVModel, teacher: BEVModel, teacher_name: str) -> Distiller:
    """The distiller of a run. Raises InputError where the teacher or the head lacks what the method reads."""
    method = METHODS[settings.method or "vexkd"](
        settings=settings, student=student, teacher=teacher, teacher_name=teacher_name
    )
    return Distiller(
        student=student,
        teacher=teacher,
        method=method,
        schedule=MaskSchedule(settings.stop_mask_epoch, settings.stop_mask_iteration),
        monitor_every=settings.monitor_every or 0,
    )
