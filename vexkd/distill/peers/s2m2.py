"""S2M2-SSD's idea (CVPR 2022) on BEV maps: teach apart where the student is right, where it sees too much, and too little.

B batch, C channels, Y X BEV.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from vexkd.distill import regions
from vexkd.distill.adapters import adapter, widths
from vexkd.distill.lesson import Lesson, Method, weights_of
from vexkd.distill.peers.focal import MIN_RADIUS, OVERLAP, THRESHOLD, evenly, per_sample
from vexkd.geometry import BevGrid
from vexkd.models.bev_model import BEVModel
from vexkd.settings import Distill

# No weights are public for BEV maps; equal ones are inferred. `false` is where the student sees too much, `missed` too little.
WEIGHTS = {f"{what}.{group}": 1.0 for what in ("heatmap", "feature") for group in ("true", "false", "missed")}


class S2M2(Method):
    """Terms `heatmap.<group>`, L1 of the largest class score, and `feature.<group>.<level>`, squared difference of maps.

    Each is the mean over the group's cells in a sample (0 where it has none), mean over the batch.
    """

    masks = None

    def __init__(
        self, *, grid: BevGrid, adapters: dict[str, nn.Module], levels: Sequence[str], weights: Mapping[str, float]
    ) -> None:
        super().__init__()
        self.grid, self.levels, self.weights = grid, tuple(levels), dict(weights)
        self.adapters = nn.ModuleDict(adapters)

    def forward(self, lesson: Lesson) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        truth = regions.gaussians(lesson.batch, self.grid, overlap=OVERLAP, min_radius=MIN_RADIUS)
        student_score = regions.highest_logit(lesson.output.predictions).sigmoid()
        teacher_score = regions.highest_logit(lesson.teacher_predictions()).sigmoid()
        cells_by_group = groups(student_score.detach(), truth, THRESHOLD)
        terms = {}
        for name, cells in cells_by_group.items():
            weight = self.weights[f"heatmap.{name}"]
            terms[f"distill.heatmap.{name}"] = weight * per_sample(
                (student_score - teacher_score).abs() * evenly(cells)
            )
        for level in self.levels:
            student = self.adapters[level](lesson.output.features[level])
            error = (student.float() - lesson.teacher_features[level].float()).square().mean(dim=1, keepdim=True)
            for name, cells in cells_by_group.items():
                weight = self.weights[f"feature.{name}"]
                terms[f"distill.feature.{name}.{level}"] = weight * per_sample(error * evenly(cells))
        return terms, {f"mask.{name}": cells.float().mean() for name, cells in cells_by_group.items()}


def groups(score: Tensor, truth: Tensor, threshold: float) -> dict[str, Tensor]:
    """Cells (B, 1, Y, X) by what a heatmap says of them and what is true."""
    predicted, true = score > threshold, truth > threshold
    return {"true": predicted & true, "false": predicted & ~true, "missed": ~predicted & true}


def build(*, settings: Distill, student: BEVModel, teacher: BEVModel, teacher_name: str) -> S2M2:
    """The method of a run, on the levels of `distill.levels`."""
    channels, teacher_channels = widths(student), widths(teacher)
    return S2M2(
        grid=teacher.grid,
        adapters={k: adapter("always", channels[k], teacher_channels[k], hidden=0.0) for k in settings.levels},
        levels=settings.levels,
        weights=weights_of("s2m2", WEIGHTS, settings.weights),
    )
