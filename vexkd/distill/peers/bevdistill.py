"""BEVDistill (ICLR 2023): `high` under the boxes' Gaussians and, between two query heads, instance by instance.

B batch, Q queries, C channels, P points, M boxes, Y X BEV.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vexkd.distill import regions
from vexkd.distill.adapters import adapter, widths
from vexkd.distill.lesson import Lesson, Method, weights_of
from vexkd.distill.masks import MIN_RADIUS, OVERLAP
from vexkd.geometry import BevGrid
from vexkd.models.bev_model import BEVModel
from vexkd.models.matching import hungarian
from vexkd.settings import Distill

# Published: weights, width of the contrastive space, its temperature, how many of the teacher's boxes teach, and what a
# box's distance counts against its classes when it is matched, over how many numbers of its code (all but the velocity).
WEIGHTS = {"dense": 0.01, "contrast": 0.2, "box": 0.25}
PROJECTION, TEMPERATURE, TOP, BOX_COST, MATCHED = 512, 0.07, 50, 0.25, 8


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

    def forward(self, lesson: Lesson) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        student, teacher = lesson.output.features["high"], lesson.teacher_features["high"]
        mask = regions.gaussians(lesson.batch, self.grid, overlap=OVERLAP, min_radius=MIN_RADIUS)
        terms = {"distill.dense": self.weights["dense"] * dense(self.adapter(student), teacher, mask)}
        if self.projections is not None:
            points = places(lesson.student.head, lesson.output.predictions)  # B P 2
            projected = [
                net(sampled(feature, points, self.grid).flatten(0, 1)).unflatten(0, points.shape[:2])
                for net, feature in zip(self.projections, (student, teacher), strict=True)
            ]
            terms["distill.contrast"] = self.weights["contrast"] * contrast(*projected, TEMPERATURE)
            terms["distill.box"] = self.weights["box"] * box_distance(lesson)
        return terms, {}


def places(head: nn.Module, predictions: Any) -> Tensor:
    """Where the queries of all decoder layers say that boxes are (B, P, 2), metres, without gradient."""
    codes = [layer["codes"].detach().float() for layer in head.decoder_layers(predictions)]
    return head.centres(torch.cat(codes, dim=1))


@torch.no_grad()
def best_boxes(head: nn.Module, predictions: Any) -> list[tuple[Tensor, Tensor]]:
    """Of each sample boxes (M, 9) and class scores (M, K) of the last layer's TOP queries by their largest score."""
    scores = head.class_scores(predictions)  # B Q K
    best = scores.amax(dim=2).topk(min(TOP, scores.shape[1]), dim=1).indices  # B M
    last = head.decoder_layers(predictions)[-1]["codes"]
    return [(head.boxes_of(codes[i].float()), score[i]) for codes, score, i in zip(last, scores, best, strict=True)]


@torch.no_grad()
def match(codes: Tensor, logits: Tensor, teacher_codes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Hungarian matching of queries, codes (Q, 10) and logits (Q, K), to a teacher's codes (M, 10) and scores (M, K).

    Cost: binary cross-entropy to all of the teacher's class scores, and the L1 distance of the codes.
    """
    with torch.autocast(codes.device.type, enabled=False):
        cost = F.softplus(-logits) @ scores.T + F.softplus(logits) @ (1 - scores).T  # Q M
        cost = cost + BOX_COST * torch.cdist(codes[:, :MATCHED], teacher_codes[:, :MATCHED], p=1)
    return hungarian(cost)


def sampled(feature: Tensor, points: Tensor, grid: BevGrid) -> Tensor:
    """A map (B, C, Y, X) at each sample's points (B, P, 2) in metres: (B, P, C), float32."""
    return torch.stack([regions.sample(one.float(), p, grid) for one, p in zip(feature, points, strict=True)])


def box_distance(lesson: Lesson) -> Tensor:
    """L1 of the student's box codes to the teacher's best boxes, matched, in each sample sum(s^2 d) / sum(s), s the score.

    The published code weighs a box by its score twice and divides once. Summed over the decoder layers, mean over samples.
    """
    teacher_boxes = best_boxes(lesson.teacher.head, lesson.teacher_predictions())
    head, total = lesson.student.head, 0.0
    for layer in head.decoder_layers(lesson.output.predictions):
        for sample, (boxes, scores) in enumerate(teacher_boxes):
            codes, logits = layer["codes"][sample].float(), layer["logits"][sample].float()
            teacher_codes = head.encode(boxes)
            query, box = match(codes, logits, teacher_codes, scores)
            distance = ((codes[query] - teacher_codes[box]).abs() * head.code_weights).sum(dim=1)
            weight = scores[box].amax(dim=1)
            total = total + (distance * weight.square()).sum() / weight.sum().clamp(min=1e-6) / len(teacher_boxes)
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
        teacher, student = F.normalize(teacher.float(), dim=2), F.normalize(student.float(), dim=2)
        logits = teacher @ student.transpose(1, 2) / temperature  # B P P
        same_place = torch.arange(logits.shape[1], device=logits.device).repeat(len(logits))
        return F.cross_entropy(logits.flatten(0, 1), same_place)


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
    channels, teacher_channels = widths(student)["high"], widths(teacher)["high"]
    queries = student.head.has_queries and teacher.head.has_queries
    return BEVDistill(
        grid=teacher.grid,
        adapter=adapter("always", channels, teacher_channels, hidden=0.0),
        projections=nn.ModuleList([projection(channels), projection(teacher_channels)]) if queries else None,
        weights=weights_of("bevdistill", WEIGHTS, settings.weights),
    )
