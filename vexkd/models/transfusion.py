"""TransFusion's head as BEVFusion uses it: heatmap proposals become queries of one transformer decoder layer.

B batch, Q proposals, C channels, M boxes, K classes, Y X BEV. A box code (see `box_code`) has the centre in cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vexkd.batch import Batch, Detections
from vexkd.boxes import CLASSES
from vexkd.geometry import BevGrid
from vexkd.models import box_code, heatmap
from vexkd.models.blocks import conv_norm_act, feed_forward, start_by_fan_out
from vexkd.models.heatmap import HEATMAP_BIAS
from vexkd.models.losses import gaussian_focal_loss
from vexkd.models.matching import focal_class_cost, hungarian, matched_loss
from vexkd.models.targets import Counts, Targets
from vexkd.ops.rotated_iou import iou_3d

BRANCHES = {"centre": 2, **box_code.BRANCHES}
# Hidden width of the proposals' output branches (mmdetection3d's TransFusionHead).
PREDICTOR_CHANNELS = 64


class TransFusionHead(nn.Module):
    """`high` (B, C, Y, X) -> proposals, refined by attention over the whole map. `peak_classes` need no local maximum."""

    has_queries = True
    box_maps = None

    def __init__(
        self,
        *,
        in_channels: int,
        grid: BevGrid,
        channels: int,
        proposals: int,
        layers: int,
        heads: int,
        ffn: int,
        dropout: float,
        peak_classes: Sequence[str],
        overlap: float,
        min_radius: int,
        class_cost: float,
        box_cost: float,
        iou_cost: float,
        class_weight: float,
        heatmap_weight: float,
        box_weight: float,
        code_weights: Sequence[float],
    ) -> None:
        super().__init__()
        self.grid, self.proposals = grid, proposals
        self.overlap, self.min_radius = overlap, min_radius
        self.costs = {"class": class_cost, "box": box_cost, "iou": iou_cost}
        self.weights = {"class": class_weight, "heatmap": heatmap_weight, "box": box_weight}
        self.anywhere = [CLASSES.index(name) for name in peak_classes]
        self.register_buffer("code_weights", torch.tensor(list(code_weights)), persistent=False)
        classes = len(CLASSES)
        self.shared = nn.Conv2d(in_channels, channels, 3, padding=1)
        hidden = start_by_fan_out(conv_norm_act(channels, channels))
        self.heatmap = nn.Sequential(hidden, nn.Conv2d(channels, classes, 3, padding=1))
        nn.init.constant_(self.heatmap[1].bias, HEATMAP_BIAS)
        self.class_code = nn.Linear(classes, channels)
        self.layers = nn.ModuleList(
            DecoderLayer(channels=channels, heads=heads, ffn=ffn, dropout=dropout) for _ in range(layers)
        )
        self.predictors = nn.ModuleList(Predictor(channels, classes) for _ in range(layers))

    def forward(self, high: Tensor) -> dict[str, Any]:
        """Dense heatmap logits, the proposals' scores and classes, and per decoder layer the codes and class logits."""
        shared = self.shared(high)  # B C Y X
        dense = self._dense(shared)  # B K Y X
        score, label, cell = self._propose(dense.detach())
        memory = shared.flatten(2).transpose(1, 2)  # B Y*X C
        query = memory.gather(1, cell[..., None].expand(-1, -1, memory.shape[-1]))  # B Q C
        query = query + self.class_code(F.one_hot(label, len(CLASSES)).to(query.dtype))
        columns = self.grid.shape[1]
        place = torch.stack([cell % columns, cell // columns], dim=-1).float() + 0.5  # B Q 2
        memory_place = self._cell_centres(memory.device)  # 1 Y*X 2
        outputs = []
        for layer, predictor in zip(self.layers, self.predictors, strict=True):
            query = layer(query, place, memory, memory_place)
            codes, logits = predictor(query, place)
            outputs.append({"codes": codes, "logits": logits})
            place = codes[..., :2].detach()
        return {"heatmap": dense, "score": score, "label": label, "layers": outputs}

    def _dense(self, shared: Tensor) -> Tensor:
        """Heatmap logits, the last step in float32: rounded to bfloat16, neighbours of a peak would equal it."""
        hidden = self.heatmap[0](shared)
        with torch.autocast(hidden.device.type, enabled=False):
            return self.heatmap[1](hidden.to(self.heatmap[1].weight.dtype))

    def _cell_centres(self, device: torch.device) -> Tensor:
        rows, columns = self.grid.shape
        y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
        return torch.stack([x, y], dim=-1).view(1, -1, 2) + 0.5

    def _propose(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (B, Q), classes (B, Q) and cells (B, Q) of the strongest local maxima over classes and cells.

        As in the published head, border cells are no local maxima, save for the classes that need none.
        """
        score = logits.float().sigmoid()
        highest = F.pad(F.max_pool2d(score, 3, stride=1), (1, 1, 1, 1))  # B K Y X
        highest[:, self.anywhere] = score[:, self.anywhere]
        peaks = score * (score == highest)
        top, index = peaks.flatten(1).topk(min(self.proposals, peaks[0].numel()))
        area = self.grid.shape[0] * self.grid.shape[1]
        return top, index // area, index % area

    @torch.no_grad()
    def heatmap_targets(self, boxes: list[Tensor], labels: list[Tensor]) -> Tensor:
        """Gaussian targets (B, K, Y, X)."""
        sizes = {"overlap": self.overlap, "min_radius": self.min_radius}
        drawn = [heatmap.draw(b, k, len(CLASSES), self.grid, **sizes) for b, k in zip(boxes, labels, strict=True)]
        return torch.stack(drawn)

    @torch.no_grad()
    def targets(self, batch: Batch) -> Targets:
        """The heatmap (B, K, Y, X), and boxes and labels of each sample whose centre lies on the grid.

        Which proposal is matched to which box depends on the predictions and is part of the loss. Counts: `peaks` of the
        heatmap, and `matched` proposals of all decoder layers.
        """
        heat = self.heatmap_targets(batch.boxes, batch.labels)
        on_grid = [heatmap.cells_of(boxes, self.grid)[2] for boxes in batch.boxes]
        boxes_on_grid = [(b[mask], k[mask]) for b, k, mask in zip(batch.boxes, batch.labels, on_grid, strict=True)]
        matched = sum(min(len(boxes), self.proposals) for boxes, _ in boxes_on_grid) * len(self.layers)
        counts = {"peaks": heat.eq(1).sum().float(), "matched": torch.tensor(float(matched), device=heat.device)}
        return Targets((heat, boxes_on_grid), counts)

    def loss(self, predictions: dict[str, Any], targets: Targets, counts: Counts) -> dict[str, Tensor]:
        """Heatmap loss over its peaks, class and box loss over the matched proposals of all decoder layers."""
        heat, boxes_on_grid = targets.values
        peaks, count = counts.share("peaks", at_least=1), counts.share("matched", at_least=1)
        heat_loss = self.weights["heatmap"] * gaussian_focal_loss(predictions["heatmap"], heat) / peaks
        class_loss, box_loss = 0.0, 0.0
        for layer in predictions["layers"]:
            for sample, (boxes, labels) in enumerate(boxes_on_grid):
                codes, logits = layer["codes"][sample].float(), layer["logits"][sample].float()
                matched, box = self.assign(codes.detach(), logits.detach(), boxes, labels)
                truth = {"target_codes": self.encode(boxes[box]), "labels": labels[box]}
                losses = matched_loss(codes, logits, matched, **truth, code_weights=self.code_weights)
                class_loss, box_loss = class_loss + losses[0] / count, box_loss + losses[1] / count
        return {
            "heatmap": heat_loss,
            "class": self.weights["class"] * class_loss,
            "box": self.weights["box"] * box_loss,
        }

    @torch.no_grad()
    def assign(self, codes: Tensor, logits: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Hungarian matching of proposals to boxes: indices of the matched proposals and of their boxes.

        Cost: focal class cost, L1 distance of the centres over the BEV range, and minus the 3D IoU.
        """
        cost = self.costs["class"] * focal_class_cost(logits)[:, labels]  # Q M
        proposed = self.boxes_of(codes)
        x0, y0, _, x1, y1, _ = self.grid.bounds
        extent = codes.new_tensor([x1 - x0, y1 - y0])
        cost = cost + self.costs["box"] * torch.cdist(proposed[:, :2] / extent, boxes[:, :2] / extent, p=1)
        return hungarian(cost - self.costs["iou"] * iou_3d(proposed[:, :7], boxes[:, :7]))

    def encode(self, boxes: Tensor) -> Tensor:
        """Codes (M, 10) of boxes (M, 9)."""
        return box_code.encode(self.grid.to_cells(boxes[:, :2]), boxes)

    def boxes_of(self, codes: Tensor) -> Tensor:
        """Boxes (M, 9) of codes (M, 10)."""
        return box_code.decode(self.centres(codes), codes)

    def centres(self, codes: Tensor) -> Tensor:
        """Where codes (..., 10) say that boxes are: (..., 2) in metres."""
        return self.grid.to_metres(codes[..., :2])

    def decoder_layers(self, predictions: dict[str, Any]) -> list[dict[str, Tensor]]:
        """Codes (B, Q, 10) and class logits (B, Q, K) of each decoder layer."""
        return predictions["layers"]

    def class_scores(self, predictions: dict[str, Any]) -> Tensor:
        """Of each proposal of the last layer (B, Q, K): for its own class alone, and times its place's score."""
        scores = predictions["layers"][-1]["logits"].float().sigmoid()
        return scores * predictions["score"][..., None] * F.one_hot(predictions["label"], scores.shape[2])

    @torch.no_grad()
    def decode(self, predictions: dict[str, Any], *, bounds: Sequence[float], score: float) -> list[Detections]:
        """Boxes of each sample: class probability times the proposal's heatmap score, for the proposal's class alone.

        As published a score of 0 keeps all, also the proposals that are no local maximum, and bounds hold for the bottom.
        """
        last = predictions["layers"][-1]
        scores = self.class_scores(predictions)  # B Q K
        detections = []
        for sample in range(len(scores)):
            best, kind = scores[sample].max(dim=-1)
            boxes = self.boxes_of(last["codes"][sample].float())
            bottom = torch.cat([boxes[:, :2], boxes[:, 2:3] - boxes[:, 5:6] / 2], dim=1)
            keep = box_code.within(bottom, bounds)
            if score > 0:
                keep &= best > score
            order = torch.sort(best[keep], descending=True, stable=True).indices
            detections.append(Detections(boxes[keep][order], best[keep][order], kind[keep][order]))
        return detections


class DecoderLayer(nn.Module):
    """Self-attention among the proposals, cross-attention to every BEV cell, feed-forward; positions join q, k and v."""

    def __init__(self, *, channels: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.itself = nn.MultiheadAttention(channels, heads, dropout=dropout, batch_first=True)
        self.cross = nn.MultiheadAttention(channels, heads, dropout=dropout, batch_first=True)
        self.feed_forward = feed_forward(channels, ffn, dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.dropout = nn.Dropout(dropout)
        self.query_place, self.memory_place = PositionCode(channels), PositionCode(channels)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, query: Tensor, place: Tensor, memory: Tensor, memory_place: Tensor) -> Tensor:
        """query (B, Q, C) at place (B, Q, 2), memory (B, S, C) at memory_place (1, S, 2), in cells."""
        code = self.query_place(place)
        placed = query + code
        query = self.norms[0](query + self.dropout(self.itself(placed, placed, placed, need_weights=False)[0]))
        seen = memory + self.memory_place(memory_place)
        query = self.norms[1](query + self.dropout(self.cross(query + code, seen, seen, need_weights=False)[0]))
        return self.norms[2](query + self.dropout(self.feed_forward(query)))


class PositionCode(nn.Module):
    """Learned code of a position in cells: (B, S, 2) -> (B, S, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, channels, 1)
        self.norm = nn.BatchNorm1d(channels)
        self.second = nn.Conv1d(channels, channels, 1)

    def forward(self, place: Tensor) -> Tensor:
        with torch.autocast(place.device.type, enabled=False):  # bfloat16 tells cells apart up to 128 only
            return self.second(
                torch.relu(self.norm(self.first(place.to(self.first.weight.dtype).transpose(1, 2))))
            ).transpose(1, 2)


class Predictor(nn.Module):
    """Box codes and class logits of each query, two 1x1 convolutions a branch."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        outputs = {**BRANCHES, "heatmap": classes}
        self.branches = nn.ModuleDict(
            {
                name: nn.Sequential(
                    start_by_fan_out(nn.Conv1d(channels, PREDICTOR_CHANNELS, 1, bias=False)),
                    nn.BatchNorm1d(PREDICTOR_CHANNELS),
                    nn.ReLU(inplace=True),
                    nn.Conv1d(PREDICTOR_CHANNELS, width, 1),
                )
                for name, width in outputs.items()
            }
        )
        nn.init.constant_(self.branches["heatmap"][3].bias, HEATMAP_BIAS)

    def forward(self, query: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """query (B, Q, C), place (B, Q, 2) in cells -> codes (B, Q, 10) with absolute cells, logits (B, Q, K)."""
        outputs = {
            name: branch(query.transpose(1, 2)).transpose(1, 2).float() for name, branch in self.branches.items()
        }
        centre = outputs["centre"] + place
        codes = torch.cat([centre, *(outputs[name] for name in BRANCHES if name != "centre")], dim=-1)
        return codes, outputs["heatmap"]
