"""BEVDistill (ICLR 2023): `high` under the boxes' Gaussians and, between two query heads, instance by instance.

B batch, Q proposals, C channels, P points, Y X BEV.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vexkd.batch import Batch
from vexkd.distill import regions
from vexkd.distill.adapters import adapter, widths
from vexkd.distill.lesson import Lesson, weights_of
from vexkd.distill.masks import MIN_RADIUS, OVERLAP
from vexkd.geometry import BevGrid
from vexkd.models.bev_model import BEVModel
from vexkd.models.transfusion import TransFusionHead, encode
from vexkd.params import Distill

# Published: weights, width of the contrastive space, its temperature, and how many of the teacher's boxes teach.
WEIGHTS = {"dense": 0.01, "contrast": 0.2, "box": 0.25}
PROJECTION, TEMPERATURE, TOP = 512, 0.07, 50


class BEVDistill(nn.Module):
    """Term `dense` always; `contrast` and `box` where `projections` are given, for heads that refine proposals.

    projections: student's and teacher's network into the space where the same place should look the same.
    """

    normalisers = 0
    masks = None

    def __init__(
        self, *, grid: BevGrid, adapter: nn.Module, projections: nn.ModuleList | None, weights: Mapping[str, float]
    ) -> None:
        super().__init__()
        self.grid, self.adapter, self.projections, self.weights = grid, adapter, projections, dict(weights)

    def positives(self, batch: Batch) -> Tensor:
        return torch.zeros(0)

    def forward(self, lesson: Lesson) -> tuple[dict[str, Tensor], dict[str, float]]:
        ours, theirs = lesson.output.features["high"], lesson.taught["high"]
        mask = regions.gaussians(lesson.batch, self.grid, overlap=OVERLAP, min_radius=MIN_RADIUS)
        terms = {"distill.dense": self.weights["dense"] * dense(self.adapter(ours), theirs, mask)}
        if self.projections is not None:
            layers = lesson.output.predictions["layers"]
            places = torch.cat([layer["codes"][..., :2].detach() for layer in layers], dim=1)  # B P 2, in cells
            points = [self.grid.to_metres(place.float()) for place in places]
            pair = [
                torch.cat([regions.sample(f.float(), p, self.grid) for f, p in zip(feature, points, strict=True)])
                for feature in (ours, theirs)
            ]
            projected = [net(feature) for net, feature in zip(self.projections, pair, strict=True)]
            terms["distill.contrast"] = self.weights["contrast"] * contrast(*projected, TEMPERATURE)
            terms["distill.box"] = self.weights["box"] * self.box_distance(lesson)
        return terms, {}

    def box_distance(self, lesson: Lesson) -> Tensor:
        """L1 of the student's box codes to the teacher's best boxes, matched and weighted by score, mean over them.

        Summed over the decoder layers, mean over the samples.
        """
        found = lesson.teacher.head.decode(lesson.teacher_predictions(), bounds=self.grid.bounds, score=0.0)
        head, total = lesson.student.head, 0.0
        for layer in lesson.output.predictions["layers"]:
            for sample, theirs in enumerate(found):
                boxes, scores, labels = theirs.boxes[:TOP], theirs.scores[:TOP], theirs.labels[:TOP]
                codes, logits = layer["codes"][sample].float(), layer["logits"][sample].float()
                chosen, truth = head.assign(codes.detach(), logits.detach(), boxes, labels)
                difference = (codes[chosen] - encode(boxes[truth], self.grid)).abs() * head.code_weights
                total = total + (difference.sum(dim=1) * scores[truth]).sum() / max(1, len(truth)) / len(found)
        return total


def dense(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Squared difference summed over channels, mean over the cells with the mask (B, 1, Y, X) as weight; mean over samples.

    A sample without boxes counts as 0. Published for one sample a process, so its sum over a batch is ours of each sample.
    """
    error = (student.float() - teacher.float()).square().sum(dim=1, keepdim=True) * mask
    return (error.flatten(1).sum(dim=1) / mask.flatten(1).sum(dim=1).clamp(min=1e-6)).mean()


def contrast(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """InfoNCE of points (P, C): each of the teacher's should be most like the student's at the same place."""
    with torch.autocast(student.device.type, enabled=False):
        logits = F.normalize(teacher.float(), dim=1) @ F.normalize(student.float(), dim=1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def projection(channels: int) -> nn.Sequential:
    """Linear layer and two-layer perceptron into the contrastive space."""
    return nn.Sequential(
        nn.Linear(channels, PROJECTION),
        nn.Linear(PROJECTION, PROJECTION),
        nn.BatchNorm1d(PROJECTION),
        nn.ReLU(),
        nn.Linear(PROJECTION, PROJECTION),
    )


def build(*, settings: Distill, student: BEVModel, teacher: BEVModel, teacher_name: str) -> BEVDistill:
    """The method of a run; the instance part only where student and teacher have a head with proposals."""
    ours, theirs = widths(student)["high"], widths(teacher)["high"]
    queries = all(isinstance(model.head, TransFusionHead) for model in (student, teacher))
    return BEVDistill(
        grid=teacher.grid,
        adapter=adapter("always", ours, theirs, hidden=0.0),
        projections=nn.ModuleList([projection(ours), projection(theirs)]) if queries else None,
        weights=weights_of("bevdistill", WEIGHTS, settings.weights),
    )
