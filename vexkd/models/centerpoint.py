"""CenterPoint's head: per task a class heatmap and box maps, trained on Gaussians at the objects' centres.

B batch, M boxes, K classes of a task, Y X BEV. A box code has ten numbers: fraction of the cell in x and y, z (gravity
centre), log l w h, sin and cos of yaw, vx vy.
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
from vexkd.models import heatmap
from vexkd.models.bev_neck import conv_norm_act, start_by_fan_out
from vexkd.ops.rotated_iou import circle_nms, rotated_nms, scale_nms

# Channels of each branch, in the order of the box code.
BRANCHES = {"offset": 2, "z": 1, "size": 3, "yaw": 2, "velocity": 2}
# Start of the heatmap's bias: sigmoid(-2.19) = 0.1 (CenterNet).
HEATMAP_BIAS = -2.19
# Added to the number of objects that the box loss is divided by, as published.
SPARE_OBJECT = 1e-4


@dataclass
class Targets:
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
        nn.init.constant_(self.branches["heatmap"][1].bias, HEATMAP_BIAS)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, C, Y, X) -> {branch: (B, its channels, Y, X)}."""
        return {name: branch(x) for name, branch in self.branches.items()}


class CenterPointHead(nn.Module):
    """`high` (B, C, Y, X) -> one prediction per task; `tasks` lists the class names of each."""

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
        self.normalisers = 2 * len(tasks)  # length of `positives`
        self.register_buffer("code_weights", torch.tensor(list(code_weights)), persistent=False)

    def forward(self, high: Tensor) -> list[dict[str, Tensor]]:
        shared = self.shared(high)
        return [task(shared) for task in self.tasks]

    @torch.no_grad()
    def targets(self, boxes: list[Tensor], labels: list[Tensor]) -> list[Targets]:
        """Targets per task from B lists of boxes (M, 9) and labels (M,), LiDAR frame."""
        return [self._task_targets(task, boxes, labels) for task in self.labels]

    def _task_targets(self, task: list[int], boxes: list[Tensor], labels: list[Tensor]) -> Targets:
        heatmaps, parts = [], []
        for sample, (all_boxes, all_labels) in enumerate(zip(boxes, labels, strict=True)):
            channel = torch.full((len(CLASSES),), -1, device=all_labels.device)
            channel[task] = torch.arange(len(task), device=all_labels.device)
            mine = channel[all_labels] >= 0
            chosen, channels = all_boxes[mine][: self.max_objects], channel[all_labels[mine]][: self.max_objects]
            heatmaps.append(
                heatmap.draw(chosen, channels, len(task), self.grid, overlap=self.overlap, min_radius=self.min_radius)
            )
            exact, whole, inside = heatmap.cells_of(chosen, self.grid)
            chosen, exact, whole = chosen[inside], exact[inside], whole[inside]
            parts.append(
                (torch.full_like(whole[:, 0], sample), whole[:, 1], whole[:, 0], encode(chosen, exact - whole))
            )
        sample, row, column, code = (torch.cat(column) for column in zip(*parts, strict=True))
        return Targets(torch.stack(heatmaps), sample, row, column, code)

    def positives(self, batch: Batch) -> Tensor:
        """What the losses are normalised by: per task the number of heatmap peaks, then of objects (2T,)."""
        targets = self.targets(batch.boxes, batch.labels)
        peaks = [t.heatmap.eq(1).sum() for t in targets]
        return torch.stack(peaks + [torch.tensor(len(t.code), device=peaks[0].device) for t in targets]).float()

    def divisors(self, positives: Tensor) -> Tensor:
        """What the losses of a whole batch are divided by, from its counts."""
        peaks, objects = positives.chunk(2)
        return torch.cat([peaks.clamp(min=1), objects + SPARE_OBJECT])

    def loss(
        self,
        predictions: list[dict[str, Tensor]],
        batch: Batch,
        positives: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Heatmap and box loss, each summed over tasks.

        `positives` replaces the divisors of this batch's own counts where it is one part of a larger batch: the whole's
        divisors over the number of parts.
        """
        targets = self.targets(batch.boxes, batch.labels)
        if positives is None:
            positives = self.divisors(self.positives(batch))
        peaks, objects = positives.chunk(2)
        heat, box = 0.0, 0.0
        for index, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
            heat = heat + heatmap.gaussian_focal_loss(prediction["heatmap"], target.heatmap) / peaks[index]
            codes = torch.cat([prediction[name].float() for name in BRANCHES], dim=1)  # B 10 Y X
            found = codes[target.sample, :, target.row, target.column]  # O 10
            known = target.code.isfinite()
            difference = (found - torch.where(known, target.code, found.detach())).abs() * self.code_weights
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
        found = []
        for sample in range(len(scores)):
            cell = cells[sample] % (rows * columns)
            centre = torch.stack([cell % columns, cell // columns], dim=-1).float()
            boxes = decode_codes(codes[sample, :, cell].T, centre, self.grid)
            kind = torch.tensor(labels, device=cell.device)[cells[sample] // (rows * columns)]
            keep = (scores[sample] > score) & within(boxes, bounds)
            boxes, points, kind = boxes[keep], scores[sample][keep], kind[keep]
            ground = boxes[:, [0, 1, 3, 4, 6]]
            if nms == "rotated":
                order = rotated_nms(ground, points, threshold=threshold, pre=pre, post=post)
            elif nms == "scale":
                factors = ground.new_tensor(list(scales))[kind]
                order = scale_nms(ground, points, factors, threshold=threshold, pre=pre, post=post)
            else:
                order = circle_nms(boxes[:, :2], points, threshold=radius[index], post=post)
            found.append(Detections(boxes[order], points[order], kind[order]))
        return found


def encode(boxes: Tensor, fraction: Tensor) -> Tensor:
    """Box codes (M, 10) of boxes (M, 9) whose centre lies `fraction` (M, 2) into its cell, in cells."""
    yaw = boxes[:, 6:7]
    size = boxes[:, 3:6].clamp(min=1e-3).log()
    return torch.cat([fraction, boxes[:, 2:3], size, yaw.sin(), yaw.cos(), boxes[:, 7:9]], dim=1)


def decode_codes(codes: Tensor, cell: Tensor, grid: BevGrid) -> Tensor:
    """Boxes (M, 9) from codes (M, 10) at the cells (M, 2) as (column, row)."""
    xy = grid.to_metres(cell + codes[:, 0:2])
    yaw = torch.atan2(codes[:, 6:7], codes[:, 7:8])
    return torch.cat([xy, codes[:, 2:3], codes[:, 3:6].exp(), yaw, codes[:, 8:10]], dim=1)


def within(boxes: Tensor, bounds: Sequence[float]) -> Tensor:
    """Which boxes (M, 9) have their centre inside bounds (x0, y0, z0, x1, y1, z1)."""
    low, high = boxes.new_tensor(list(bounds)).chunk(2)
    return ((boxes[:, :3] >= low) & (boxes[:, :3] <= high)).all(dim=1)
