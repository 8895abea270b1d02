"""BEVDistill (ICLR 2023): `high` under the boxes' Gaussians and, between two query heads, instance by instance.

B batch, Q queries, C channels, P points, M boxes, Y X BEV.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vexkd.batch import Detections
from vexkd.distill import regions
from vexkd.distill.adapters import adapter, widths
from vexkd.distill.lesson import Lesson, Method, weights_of
from vexkd.distill.masks import MIN_RADIUS, OVERLAP
from vexkd.geometry import BevGrid
from vexkd.models import detr_head, transfusion
from vexkd.models.bev_model import BEVModel
from vexkd.models.detr_head import DetrHead
from vexkd.models.transfusion import TransFusionHead
from vexkd.params import Distill

# Published: weights, width of the contrastive space, its temperature, and how many of the teacher's boxes teach.
WEIGHTS = {"dense": 0.01, "contrast": 0.2, "box": 0.25}
PROJECTION, TEMPERATURE, TOP = 512, 0.07, 50


class BEVDistill(Method):
    """Term `dense` always; `contrast` and `box` where `projections` are given, for two query heads.

    projections: student's and teacher's network into the space where the same place should look the same.
    """

    masks = None

    def __init__(
        self, *, grid: BevGrid, adapter: nn.Module, projections: nn.ModuleList | None, weights: Mapping[str, float]
    ) -> None:
        super().__init__()
        self.grid, self.adapter, self.projections, self.weights = grid, adapter, projections, dict(weights)

    def forward(self, lesson: Lesson) -> tuple[dict[str, Tensor], dict[str, float]]:
        ours, theirs = lesson.output.features["high"], lesson.taught["high"]
        mask = regions.gaussians(lesson.batch, self.grid, overlap=OVERLAP, min_radius=MIN_RADIUS)
        terms = {"distill.dense": self.weights["dense"] * dense(self.adapter(ours), theirs, mask)}
        if self.projections is not None:
            points = places(lesson.student.head, lesson.output.predictions)  # B P 2
            projected = [
                net(sampled(feature, points, self.grid).flatten(0, 1)).unflatten(0, points.shape[:2])
                for net, feature in zip(self.projections, (ours, theirs), strict=True)
            ]
            terms["distill.contrast"] = self.weights["contrast"] * contrast(*projected, TEMPERATURE)
            terms["distill.box"] = self.weights["box"] * box_distance(lesson)
        return terms, {}


def places(head: nn.Module, predictions: Any) -> Tensor:
    """Where the queries of all decoder layers say that boxes are (B, P, 2), metres, without gradient."""
    found = torch.cat([layer["codes"][..., :2].detach().float() for layer in decoder_layers(predictions)], dim=1)
    return found if isinstance(head, DetrHead) else head.grid.to_metres(found)


def decoder_layers(predictions: Any) -> list[dict[str, Tensor]]:
    """Codes (B, Q, 10) and class logits (B, Q, K) of each decoder layer, of either query head."""
    return predictions if isinstance(predictions, list) else predictions["layers"]


def best_boxes(head: nn.Module, predictions: Any) -> list[Detections]:
    """The TOP best boxes of each sample."""
    options = {"top": TOP} if isinstance(head, DetrHead) else {"score": 0.0}
    found = head.decode(predictions, bounds=head.grid.bounds, **options)
    return [Detections(d.boxes[:TOP], d.scores[:TOP], d.labels[:TOP]) for d in found]


def codes_of(head: nn.Module, boxes: Tensor) -> Tensor:
    """Boxes (M, 9) as the codes (M, 10) of a query head."""
    return detr_head.encode(boxes) if isinstance(head, DetrHead) else transfusion.encode(boxes, head.grid)


def sampled(feature: Tensor, points: Tensor, grid: BevGrid) -> Tensor:
    """A map (B, C, Y, X) at each sample's points (B, P, 2) in metres: (B, P, C), float32."""
    return torch.stack([regions.sample(one.float(), p, grid) for one, p in zip(feature, points, strict=True)])


def box_distance(lesson: Lesson) -> Tensor:
    """L1 of the student's box codes to the teacher's best boxes, matched and weighted by score, mean over them.

    Summed over the decoder layers, mean over the samples.
    """
    found = best_boxes(lesson.teacher.head, lesson.teacher_predictions())
    head, total = lesson.student.head, 0.0
    for layer in decoder_layers(lesson.output.predictions):
        for sample, theirs in enumerate(found):
            codes, logits = layer["codes"][sample].float(), layer["logits"][sample].float()
            chosen, truth = head.assign(codes.detach(), logits.detach(), theirs.boxes, theirs.labels)
            difference = (codes[chosen] - codes_of(head, theirs.boxes[truth])).abs() * head.code_weights
            total = total + (difference.sum(dim=1) * theirs.scores[truth]).sum() / max(1, len(truth)) / len(found)
    return total


def dense(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Squared difference summed over channels, mean over the cells with the mask (B, 1, Y, X) as weight; mean over samples.

    A sample without boxes counts as 0. Published for one sample a process, so its sum over a batch is ours of each sample.
    """
    error = (student.float() - teacher.float()).square().sum(dim=1, keepdim=True) * mask
    return (error.flatten(1).sum(dim=1) / mask.flatten(1).sum(dim=1).clamp(min=1e-6)).mean()


def contrast(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """InfoNCE of points (B, P, C): each of the teacher's should be most like the student's at the same place.

    The other points are those of the same sample, as where it was published.
    """
    with torch.autocast(student.device.type, enabled=False):
        theirs, ours = F.normalize(teacher.float(), dim=2), F.normalize(student.float(), dim=2)
        logits = theirs @ ours.transpose(1, 2) / temperature  # B P P
        own = torch.arange(logits.shape[1], device=logits.device).repeat(len(logits))
        return F.cross_entropy(logits.flatten(0, 1), own)


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
    """The method of a run; the instance part only where student and teacher have a query head."""
    ours, theirs = widths(student)["high"], widths(teacher)["high"]
    queries = all(isinstance(model.head, TransFusionHead | DetrHead) for model in (student, teacher))
    return BEVDistill(
        grid=teacher.grid,
        adapter=adapter("always", ours, theirs, hidden=0.0),
        projections=nn.ModuleList([projection(ours), projection(theirs)]) if queries else None,
        weights=weights_of("bevdistill", WEIGHTS, settings.weights),
    )
