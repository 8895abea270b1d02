"""CenterPoint's head: per task a class heatmap and box maps, trained on Gaussians at the objects' centres.

B batch, M boxes, O objects, K classes of a task, T tasks, Y X BEV. A box code (see `box_code`) has the centre as the fraction
of its cell in x and y.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vexkd.batch import Batch, Detections
from vexkd.boxes import CLASSES
from vexkd.geometry import BevGrid
from vexkd.models import box_code, heatmap
from vexkd.models.blocks import conv_norm_act, start_by_fan_out
from vexkd.models.losses import gaussian_focal_loss
from vexkd.models.targets import Counts, Targets
from vexkd.ops.rotated_iou import circle_nms, rotated_nms, scale_nms

# Channels of each branch, in the order of the box code.
BRANCHES = {"offset": 2, **box_code.BRANCHES}
# Added to the number of objects that the box loss is divided by, as published.
SPARE_OBJECT = 1e-4


@dataclass
class TaskTargets:
    """What one task has to predict for a batch: heatmap (B, K, Y, X) and, per object, sample, row, column and code."""

    heatmap: Tensor
    sample: Tensor
    row: Tensor
    column: Tensor
    code: Tensor  # O 10


class TaskHead(nn.Module):
    """Two convolutions per branch: boxes and heatmap of one task."""

    def __init__(self, *, in_channels: int, channels: int, classes: int) -> None:
        super().__init__()
        outputs = {**BRANCHES, "heatmap": classes}
        self.branches = nn.ModuleDict(
            {
                name: nn.Sequential(
                    start_by_fan_out(conv_norm_act(in_channels, channels)), nn.Conv2d(channels, width, 3, padding=1)
                )
                for name, width in outputs.items()
            }
        )
        nn.init.constant_(self.branches["heatmap"][1].bias, heatmap.HEATMAP_BIAS)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, C, Y, X) -> {branch: (B, its channels, Y, X)}."""
        return {name: branch(x) for name, branch in self.branches.items()}


class CenterPointHead(nn.Module):
    """`high` (B, C, Y, X) -> one prediction per task; `tasks` lists the class names of each."""

    has_queries = False

    def __init__(
        self,
        *,
        in_channels: int,
        grid: BevGrid,
        tasks: Sequence[Sequence[str]],
        shared_channels: int,
        branch_channels: int,
        overlap: float,
        min_radius: int,
        max_objects: int,
        box_weight: float,
        code_weights: Sequence[float],
        heatmap_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.grid, self.max_objects = grid, max_objects
        self.box_weight, self.heatmap_weight = box_weight, heatmap_weight
        self.overlap, self.min_radius = overlap, min_radius
        self.shared = start_by_fan_out(conv_norm_act(in_channels, shared_channels))
        self.tasks = nn.ModuleList(
            TaskHead(in_channels=shared_channels, channels=branch_channels, classes=len(task)) for task in tasks
        )
        self.labels = [[CLASSES.index(name) for name in task] for task in tasks]
        self.register_buffer("code_weights", torch.tensor(list(code_weights)), persistent=False)

    def forward(self, high: Tensor) -> list[dict[str, Tensor]]:
        shared = self.shared(high)
        return [task(shared) for task in self.tasks]

    @property
    def box_maps(self) -> list[list[int]]:
        """What the dense box maps are of: the class labels of each task."""
        return self.labels

    @torch.no_grad()
    def targets(self, batch: Batch) -> Targets:
        """`TaskTargets` of each task; counts by task (T,): `peaks` of the heatmaps, and `objects`."""
        tasks = [self._task_targets(task, batch.boxes, batch.labels) for task in self.labels]
        peaks = torch.stack([task.heatmap.eq(1).sum() for task in tasks]).float()
        objects = torch.tensor([float(len(task.code)) for task in tasks], device=peaks.device)
        return Targets(tasks, {"peaks": peaks, "objects": objects})

    def _task_targets(self, task: list[int], boxes: list[Tensor], labels: list[Tensor]) -> TaskTargets:
        heatmaps, parts = [], []
        for sample, (all_boxes, all_labels) in enumerate(zip(boxes, labels, strict=True)):
            channel = torch.full((len(CLASSES),), -1, device=all_labels.device)
            channel[task] = torch.arange(len(task), device=all_labels.device)
            of_task = channel[all_labels] >= 0
            chosen, channels = all_boxes[of_task][: self.max_objects], channel[all_labels[of_task]][: self.max_objects]
            heatmaps.append(
                heatmap.draw(chosen, channels, len(task), self.grid, overlap=self.overlap, min_radius=self.min_radius)
            )
            exact, whole, inside = heatmap.cells_of(chosen, self.grid)
            chosen, exact, whole = chosen[inside], exact[inside], whole[inside]
            parts.append(
                (torch.full_like(whole[:, 0], sample), whole[:, 1], whole[:, 0], box_code.encode(exact - whole, chosen))
            )
        sample, row, column, code = (torch.cat(column) for column in zip(*parts, strict=True))
        return TaskTargets(torch.stack(heatmaps), sample, row, column, code)

    def loss(self, predictions: list[dict[str, Tensor]], targets: Targets, counts: Counts) -> dict[str, Tensor]:
        """Heatmap and box loss, each summed over tasks and divided by its task's count."""
        peaks, objects = counts.share("peaks", at_least=1), counts.share("objects", extra=SPARE_OBJECT)
        heat, box = 0.0, 0.0
        for index, (prediction, target) in enumerate(zip(predictions, targets.values, strict=True)):
            heat = heat + gaussian_focal_loss(prediction["heatmap"], target.heatmap) / peaks[index]
            codes = torch.cat([prediction[name].float() for name in BRANCHES], dim=1)  # B 10 Y X
            predicted = codes[target.sample, :, target.row, target.column]  # O 10
            known = target.code.isfinite()
            difference = (predicted - torch.where(known, target.code, predicted.detach())).abs() * self.code_weights
            box = box + difference.sum() / objects[index]
        return {"heatmap": heat * self.heatmap_weight, "box": box * self.box_weight}

    @torch.no_grad()
    def decode(
        self, predictions: list[dict[str, Tensor]], *, bounds: Sequence[float], **settings: Any
    ) -> list[Detections]:
        """Boxes of each sample, best first within a task; settings are those of `inference.centerpoint`.

        nms: rotated, circle, or scale (BEVDet's Scale-NMS: rotated, with sizes multiplied by their class' entry of `scales`,
        in the order of `boxes.CLASSES`). `nms` and `threshold` may be lists, one entry a task.
        """
        per_task = [
            self._decode_task(prediction, labels, index, bounds, **settings)
            for index, (prediction, labels) in enumerate(zip(predictions, self.labels, strict=True))
        ]
        return [
            Detections(*(torch.cat([getattr(d, name) for d in sample]) for name in ("boxes", "scores", "labels")))
            for sample in zip(*per_task, strict=True)
        ]

    def _decode_task(
        self,
        prediction: dict[str, Tensor],
        labels: list[int],
        index: int,
        bounds: Sequence[float],
        *,
        top: int,
        score: float,
        nms: str | Sequence[str],
        threshold: float | Sequence[float],
        radius: Sequence[float] | None = None,
        scales: Sequence[float] | None = None,
        pre: int,
        post: int,
    ) -> list[Detections]:
        rows, columns = self.grid.shape
        nms = nms if isinstance(nms, str) else nms[index]
        threshold = threshold if isinstance(threshold, int | float) else threshold[index]
        scores, cells = prediction["heatmap"].float().sigmoid().flatten(1).topk(min(top, len(labels) * rows * columns))
        codes = torch.cat([prediction[name].float() for name in BRANCHES], dim=1).flatten(2)  # B 10 Y*X
        detections = []
        for sample in range(len(scores)):
            cell = cells[sample] % (rows * columns)
            centre = torch.stack([cell % columns, cell // columns], dim=-1).float()
            code = codes[sample, :, cell].T  # top 10
            boxes = box_code.decode(self.grid.to_metres(centre + code[:, :2]), code)
            kind = torch.tensor(labels, device=cell.device)[cells[sample] // (rows * columns)]
            keep = (scores[sample] > score) & box_code.within(boxes, bounds)
            boxes, points, kind = boxes[keep], scores[sample][keep], kind[keep]
            ground = boxes[:, [0, 1, 3, 4, 6]]
            if nms == "rotated":
                order = rotated_nms(ground, points, threshold=threshold, pre=pre, post=post)
            elif nms == "scale":
                factors = ground.new_tensor(list(scales))[kind]
                order = scale_nms(ground, points, factors, threshold=threshold, pre=pre, post=post)
            else:
                order = circle_nms(boxes[:, :2], points, threshold=radius[index], post=post)
            detections.append(Detections(boxes[order], points[order], kind[order]))
        return detections
