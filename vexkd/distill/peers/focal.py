"""FGD (CVPR 2022) and DistillBEV (ICCV 2023): foreground and background apart, where the teacher's attention is.

B batch, M boxes, C channels, Y X BEV. A published mask of attention enters as a square root on both maps before they are
squared; here it weighs the squared difference, which is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vexkd.distill import regions
from vexkd.distill.adapters import adapter, widths
from vexkd.distill.lesson import Lesson, Method, weights_of
from vexkd.geometry import BevGrid
from vexkd.models.bev_model import BEVModel
from vexkd.settings import Distill

TEMPERATURE = 0.5  # published, of both
FGD_WEIGHTS = {"foreground": 1e-3, "background": 5e-4, "attention": 1e-3, "context": 5e-6}
# The first four are published settings; that of the false positives is the one of the authors' scripts.
DISTILLBEV_WEIGHTS = {"foreground": 1.5e-3, "background": 4e-2, "channel": 0.25, "spatial": 2.5e-3, "false": 6e-2}
# Score above which a heatmap says object, and the heads' Gaussian targets (DistillBEV's scripts, CenterPoint).
THRESHOLD, OVERLAP, MIN_RADIUS = 0.1, 0.1, 2


class FGD(Method):
    """Terms `foreground`, `background`, `attention` and `context` at each level.

    adapters: student's to teacher's channels by level; contexts: by level, the student's and the teacher's context block.
    """

    masks = None

    def __init__(
        self,
        *,
        grid: BevGrid,
        adapters: dict[str, nn.Module],
        contexts: dict[str, nn.ModuleList],
        levels: Sequence[str],
        temperature: float,
        weights: Mapping[str, float],
    ) -> None:
        super().__init__()
        self.grid, self.levels, self.temperature, self.weights = grid, tuple(levels), temperature, dict(weights)
        self.adapters, self.contexts = nn.ModuleDict(adapters), nn.ModuleDict(contexts)

    def forward(self, lesson: Lesson) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        covered = [regions.covered(boxes, self.grid) for boxes in regions.on_grid(lesson.batch, self.grid)]
        foreground = per_box(covered, [1 / cells.sum(dim=(1, 2)) for cells in covered], self.grid)
        background = evenly(foreground == 0)
        terms: dict[str, Tensor] = {}
        for level in self.levels:
            student = self.adapters[level](lesson.output.features[level])
            teacher = lesson.teacher_features[level]
            error = squared(student, teacher)
            error = error * regions.spatial_attention(teacher, self.temperature)
            error = error * regions.channel_attention(teacher, self.temperature)
            blocks = self.contexts[level]
            level_terms = {
                "foreground": per_sample(error * foreground),
                "background": per_sample(error * background),
                "attention": attention_distance(student, teacher, self.temperature),
                "context": per_sample(squared(blocks[0](student), blocks[1](teacher))),
            }
            terms |= {f"distill.{name}.{level}": self.weights[name] * value for name, value in level_terms.items()}
        return terms, {}


class DistillBEV(Method):
    """Terms `foreground`, `background`, `false`, `channel` and `spatial` at each level.

    False positives of the teacher, cells where its heatmap says object and the boxes do not, are neither foreground nor
    background but a region of their own. pools: by level, a convolution on the student's channel mean.
    """

    masks = None

    def __init__(
        self,
        *,
        grid: BevGrid,
        adapters: dict[str, nn.Module],
        pools: dict[str, nn.Module],
        levels: Sequence[str],
        temperature: float,
        weights: Mapping[str, float],
    ) -> None:
        super().__init__()
        self.grid, self.levels, self.temperature, self.weights = grid, tuple(levels), temperature, dict(weights)
        self.adapters, self.pools = nn.ModuleDict(adapters), nn.ModuleDict(pools)

    def forward(self, lesson: Lesson) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        boxes = regions.on_grid(lesson.batch, self.grid)
        covered = [regions.covered(each, self.grid) for each in boxes]
        foreground = per_box(covered, [self.grid.cell / (b[:, 3] * b[:, 4]).sqrt() for b in boxes], self.grid)
        truth = regions.gaussians(lesson.batch, self.grid, overlap=OVERLAP, min_radius=MIN_RADIUS)
        score = regions.highest_logit(lesson.teacher_predictions()).sigmoid()
        false = (score > THRESHOLD) & (truth < THRESHOLD) & (foreground == 0)
        masks = {"foreground": foreground, "background": evenly((foreground == 0) & ~false), "false": evenly(false)}
        terms: dict[str, Tensor] = {}
        for level in self.levels:
            level_terms = self.level_terms(level, lesson.output.features[level], lesson.teacher_features[level], masks)
            terms |= {f"distill.{name}.{level}": self.weights[name] * value for name, value in level_terms.items()}
        return terms, {"mask.false": false.float().mean()}

    def level_terms(self, level: str, student: Tensor, teacher: Tensor, masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """The five terms before their weights."""
        student = self.adapters[level](student)
        attentions = [regions.spatial_attention(feature, self.temperature) for feature in (student, teacher)]
        attention = (attentions[0] + attentions[1]).detach() / 2  # the mean of both, as in the authors' scripts
        error = squared(student, teacher) * attention * regions.channel_attention(teacher, self.temperature)
        terms = {name: per_sample(error * mask) for name, mask in masks.items()}
        student, teacher = student.float(), teacher.float()
        terms["channel"] = per_sample((student.mean(dim=(2, 3)) - teacher.mean(dim=(2, 3))).abs())
        pooled = self.pools[level](student.mean(dim=1, keepdim=True))
        terms["spatial"] = per_sample((pooled.float() - teacher.mean(dim=1, keepdim=True)).abs())
        return terms


class ContextBlock(nn.Module):
    """Global context added to a map (GCNet): (B, C, Y, X) -> the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 2)
        self.look = nn.Conv2d(channels, 1, 1)
        self.change = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.LayerNorm([hidden, 1, 1]), nn.ReLU(), nn.Conv2d(hidden, channels, 1)
        )
        nn.init.kaiming_normal_(self.look.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(self.look.bias)
        nn.init.zeros_(self.change[3].weight)
        nn.init.zeros_(self.change[3].bias)

    def forward(self, feature: Tensor) -> Tensor:
        weight = self.look(feature).flatten(2).softmax(dim=2)  # B 1 Y*X
        context = (feature.flatten(2) * weight).sum(dim=2)[..., None, None]  # B C 1 1
        return feature + self.change(context)


def squared(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference in float32 (B, C, Y, X)."""
    return (student.float() - teacher.float()).square()


def per_sample(values: Tensor) -> Tensor:
    """Sum over everything in a sample, mean over the batch."""
    return values.flatten(1).sum(dim=1).mean()


def per_box(covered: list[Tensor], weights: list[Tensor], grid: BevGrid) -> Tensor:
    """The weight of the box that covers a cell, the largest of several, 0 where none does: (B, 1, Y, X).

    covered: per sample which cells (M, Y, X) lie in which box; weights: per sample one for each box (M,).
    """
    rows, columns = grid.shape
    none = torch.zeros(1, rows, columns, device=covered[0].device)
    largest = [torch.cat([none, c * w[:, None, None]]).amax(dim=0) for c, w in zip(covered, weights, strict=True)]
    return torch.stack(largest)[:, None]


def evenly(cells: Tensor) -> Tensor:
    """Weights (B, 1, Y, X) that are equal in the chosen cells of a sample, 0 elsewhere, and sum to 1 where there are any."""
    return cells / cells.sum(dim=(2, 3), keepdim=True).clamp(min=1)


def attention_distance(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Absolute difference of both attentions of both maps, summed over a sample, mean over the batch."""
    total = 0.0
    for attention in (regions.spatial_attention, regions.channel_attention):
        total = total + per_sample((attention(student, temperature) - attention(teacher, temperature)).abs())
    return total


def build_fgd(*, settings: Distill, student: BEVModel, teacher: BEVModel, teacher_name: str) -> FGD:
    """FGD as the method of a run, on the levels of `distill.levels`."""
    channels, teacher_channels = widths(student), widths(teacher)
    return FGD(
        grid=teacher.grid,
        adapters={
            k: adapter("where-widths-differ", channels[k], teacher_channels[k], hidden=0.0) for k in settings.levels
        },
        contexts={k: nn.ModuleList(ContextBlock(teacher_channels[k]) for _ in range(2)) for k in settings.levels},
        levels=settings.levels,
        temperature=settings.temperature or TEMPERATURE,
        weights=weights_of("fgd", FGD_WEIGHTS, settings.weights),
    )


def build_distillbev(*, settings: Distill, student: BEVModel, teacher: BEVModel, teacher_name: str) -> DistillBEV:
    """DistillBEV as the method of a run, on the levels of `distill.levels`."""
    channels, teacher_channels = widths(student), widths(teacher)
    return DistillBEV(
        grid=teacher.grid,
        adapters={k: adapter("always", channels[k], teacher_channels[k], hidden=0.0) for k in settings.levels},
        pools={k: nn.Conv2d(1, 1, 3, padding=1) for k in settings.levels},
        levels=settings.levels,
        temperature=settings.temperature or TEMPERATURE,
        weights=weights_of("distillbev", DISTILLBEV_WEIGHTS, settings.weights),
    )
