"""UniDistill (CVPR 2023): key points of the boxes at `low`, their relations at `high`, and the predictions.

B batch, M boxes, C channels, Y X BEV.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vexkd.batch import Batch
from vexkd.distill import regions
from vexkd.distill.adapters import adapter, widths
from vexkd.distill.lesson import Lesson, Method, weights_of
from vexkd.geometry import BevGrid
from vexkd.models.bev_model import BEVModel
from vexkd.models.centerpoint import BRANCHES
from vexkd.models.targets import Targets
from vexkd.settings import Distill

# Published weights by the sensors of teacher and student; a pair that is not published takes those of L+C -> L.
WEIGHTS = {
    ("lidar+camera", "lidar"): {"feature": 10.0, "relation": 1.0, "response": 10.0},
    ("lidar+camera", "camera"): {"feature": 10.0, "relation": 5.0, "response": 10.0},
    ("lidar", "camera"): {"feature": 100.0, "relation": 40.0, "response": 10.0},
    ("camera", "lidar"): {"feature": 10.0, "relation": 5.0, "response": 1.0},
}
# The Gaussians over the boxes where predictions are compared: a small object's covers its own cell alone.
OVERLAP, MIN_RADIUS = 0.7, 0
# Added to a feature's length before it is divided by, and how near 0 and 1 a score may come.
SHORTEST, CLIP = 1e-4, 1e-4


class UniDistill(Method):
    """Terms `feature`, `relation`, `heatmap` and, where both heads are CenterPoint's with the same tasks, `box`.

    adapter: student's `low` to the teacher's channels. same_boxes: whether both heads' box maps mean the same.
    """

    masks = None

    def __init__(self, *, grid: BevGrid, adapter: nn.Module, same_boxes: bool, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.grid, self.adapter, self.same_boxes, self.weights = grid, adapter, same_boxes, dict(weights)

    def targets(self, batch: Batch) -> Targets:
        """The boxes on the grid and the Gaussians over them (B, 1, Y, X); counts: `boxes`, and the Gaussians' `area`."""
        boxes = regions.on_grid(batch, self.grid)
        mask = regions.gaussians(batch, self.grid, overlap=OVERLAP, min_radius=MIN_RADIUS)
        area = mask.sum()
        return Targets((boxes, mask), {"boxes": torch.as_tensor(sum(map(len, boxes))).to(area), "area": area})

    def forward(self, lesson: Lesson) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        boxes, mask = lesson.targets.under("method").values
        counts = lesson.counts.under("method")
        count, area = counts.share("boxes", at_least=1), counts.share("area", at_least=1)
        student, teacher = lesson.output.features, lesson.teacher_features
        feature = point_distance(self.adapter(student["low"]), teacher["low"], boxes, self.grid) / count
        relation = relation_distance(student["high"], teacher["high"], boxes, self.grid) / count
        predictions = lesson.output.predictions, lesson.teacher_predictions()
        responses = response_distance(*predictions, mask, boxes=self.same_boxes)
        terms = {
            "distill.feature": self.weights["feature"] * feature,
            "distill.relation": self.weights["relation"] * relation,
        }
        terms |= {f"distill.{name}": self.weights["response"] * value / area for name, value in responses.items()}
        return terms, {}


def sampled(feature: Tensor, boxes: list[Tensor], grid: BevGrid) -> Tensor:
    """Features at the nine key points of all boxes of a batch, sample after sample: (M, 9, C), float32."""
    samples = [
        regions.sample(one.float(), regions.key_points(own_boxes).flatten(0, 1), grid).unflatten(0, (-1, 9))
        for one, own_boxes in zip(feature, boxes, strict=True)
        if len(own_boxes)
    ]
    return torch.cat(samples) if samples else feature.float().sum(dim=(2, 3))[:0, None].expand(-1, 9, -1)


def point_distance(student: Tensor, teacher: Tensor, boxes: list[Tensor], grid: BevGrid) -> Tensor:
    """Absolute difference at the key points, mean over points and channels, summed over the boxes."""
    difference = sampled(student, boxes, grid) - sampled(teacher, boxes, grid)
    return difference.abs().mean(dim=(1, 2)).sum()


def relation_distance(student: Tensor, teacher: Tensor, boxes: list[Tensor], grid: BevGrid) -> Tensor:
    """Absolute difference of the 9 x 9 cosine similarities among a box's key points, their mean summed over the boxes."""
    similar = []
    for feature in (student, teacher):
        points = sampled(feature, boxes, grid)  # M 9 C
        points = points / (torch.linalg.vector_norm(points, dim=2, keepdim=True) + SHORTEST)
        with torch.autocast(points.device.type, enabled=False):
            similar.append(points @ points.transpose(1, 2))  # M 9 9
    return (similar[0] - similar[1]).abs().mean(dim=(1, 2)).sum()


def response_distance(student: Any, teacher: Any, mask: Tensor, *, boxes: bool) -> dict[str, Tensor]:
    """Absolute differences under the mask (B, 1, Y, X), summed: of the largest class score, and of the box maps' mean.

    The teacher's score is sigmoid(x / 2), as published.
    """
    student_map, teacher_map = regions.highest_logit(student).sigmoid(), (regions.highest_logit(teacher) / 2).sigmoid()
    terms = {"heatmap": ((student_map.clamp(CLIP, 1 - CLIP) - teacher_map.clamp(CLIP, 1 - CLIP)).abs() * mask).sum()}
    if boxes:
        student_map, teacher_map = (
            torch.cat([task[n].float() for task in p for n in BRANCHES], dim=1) for p in (student, teacher)
        )
        terms["box"] = ((student_map - teacher_map).abs().mean(dim=1, keepdim=True) * mask).sum()
    return terms


def sensors(model: BEVModel) -> str:
    """What a model sees, as in WEIGHTS."""
    return "+".join(name for name in ("lidar", "camera") if getattr(model, name) is not None)


def build(*, settings: Distill, student: BEVModel, teacher: BEVModel, teacher_name: str) -> UniDistill:
    """The method of a run."""
    published = WEIGHTS.get((sensors(teacher), sensors(student)), WEIGHTS["lidar+camera", "lidar"])
    same = student.head.box_maps is not None and student.head.box_maps == teacher.head.box_maps
    return UniDistill(
        grid=teacher.grid,
        adapter=adapter("always", widths(student)["low"], widths(teacher)["low"], hidden=0.0),
        same_boxes=same,
        weights=weights_of("unidistill", published, settings.weights),
    )
