"""TransFusion's head as BEVFusion uses it: heatmap proposals become queries of one transformer decoder layer.

B batch, Q proposals, C channels, M boxes, Y X BEV. A box code has ten numbers: x and y in cells, z (gravity centre), log
l w h, sin and cos of yaw, vx vy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from vexkd.batch import Batch, Detections
from vexkd.boxes import CLASSES
from vexkd.geometry import BevGrid
from vexkd.models import heatmap
from vexkd.models.bev_neck import conv_norm_act, start_by_fan_out
from vexkd.models.centerpoint import HEATMAP_BIAS, within
from vexkd.ops.rotated_iou import iou_3d

BRANCHES = {"centre": 2, "z": 1, "size": 3, "yaw": 2, "velocity": 2}
# Hidden width of the proposals' output branches (mmdetection3d's TransFusionHead).
PREDICTOR_CHANNELS = 64


class TransFusionHead(nn.Module):
    """`high` (B, C, Y, X) -> proposals, refined by attention over the whole map. `peak_classes` need no local maximum."""

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
        self.normalisers = 2  # length of `positives`
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

    def positives(self, batch: Batch) -> Tensor:
        """What the losses are normalised by: heatmap peaks, and matched proposals of all decoder layers (2,)."""
        peaks = self.heatmap_targets(batch.boxes, batch.labels).eq(1).sum()
        matched = sum(min(int(heatmap.cells_of(b, self.grid)[2].sum()), self.proposals) for b in batch.boxes)
        return torch.stack([peaks, torch.tensor(matched * len(self.layers), device=peaks.device)]).float()

    def divisors(self, positives: Tensor) -> Tensor:
        """What the losses of a whole batch are divided by, from its counts."""
        return positives.clamp(min=1)

    def loss(
        self,
        predictions: dict[str, Any],
        batch: Batch,
        positives: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Heatmap, class and box loss; `positives` as in CenterPoint's head."""
        boxes, labels = batch.boxes, batch.labels
        if positives is None:
            positives = self.divisors(self.positives(batch))
        peaks, matched = positives
        target = self.heatmap_targets(boxes, labels)
        losses = {
            "heatmap": self.weights["heatmap"] * heatmap.gaussian_focal_loss(predictions["heatmap"], target) / peaks
        }
        classes, codes = 0.0, 0.0
        for layer in predictions["layers"]:
            for sample in range(len(boxes)):
                inside = heatmap.cells_of(boxes[sample], self.grid)[2]
                mine, kinds = boxes[sample][inside], labels[sample][inside]
                found, logits = layer["codes"][sample].float(), layer["logits"][sample].float()
                chosen, truth = self.assign(found.detach(), logits.detach(), mine, kinds)
                wanted = torch.zeros_like(logits)
                wanted[chosen, kinds[truth]] = 1.0
                classes = classes + heatmap.sigmoid_focal_loss(logits, wanted).sum() / matched
                code = encode(mine[truth], self.grid)
                code = torch.where(code.isfinite(), code, found[chosen].detach())
                codes = codes + ((found[chosen] - code).abs() * self.code_weights).sum() / matched
        losses["class"] = self.weights["class"] * classes
        losses["box"] = self.weights["box"] * codes
        return losses

    @torch.no_grad()
    def assign(self, codes: Tensor, logits: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Hungarian matching of proposals to boxes: indices of the matched proposals and of their boxes.

        Cost: focal class cost, L1 distance of the centres over the BEV range, and minus the 3D IoU.
        """
        if len(boxes) == 0:
            empty = torch.zeros(0, dtype=torch.long, device=codes.device)
            return empty, empty
        score = logits.sigmoid()
        positive = -(score + 1e-12).log() * 0.25 * (1 - score) ** 2
        negative = -(1 - score + 1e-12).log() * 0.75 * score**2
        cost = self.costs["class"] * (positive - negative)[:, labels]  # Q M
        found = decode_codes(codes, self.grid)
        x0, y0, _, x1, y1, _ = self.grid.bounds
        extent = codes.new_tensor([x1 - x0, y1 - y0])
        cost = cost + self.costs["box"] * torch.cdist(found[:, :2] / extent, boxes[:, :2] / extent, p=1)
        cost = cost - self.costs["iou"] * iou_3d(found[:, :7], boxes[:, :7])
        proposal, box = linear_sum_assignment(cost.nan_to_num(nan=1e5, posinf=1e5, neginf=-1e5).cpu().numpy())
        return tuple(torch.as_tensor(index, device=codes.device) for index in (proposal, box))

    @torch.no_grad()
    def decode(self, predictions: dict[str, Any], *, bounds: Sequence[float], score: float) -> list[Detections]:
        """Boxes of each sample: class probability times the proposal's heatmap score, for the proposal's class alone.

        As published a score of 0 keeps all, also the proposals that are no local maximum, and bounds hold for the bottom.
        """
        last = predictions["layers"][-1]
        classes = F.one_hot(predictions["label"], len(CLASSES))
        scores = last["logits"].float().sigmoid() * predictions["score"][..., None] * classes  # B Q K
        found = []
        for sample in range(len(scores)):
            best, kind = scores[sample].max(dim=-1)
            boxes = decode_codes(last["codes"][sample].float(), self.grid)
            bottom = torch.cat([boxes[:, :2], boxes[:, 2:3] - boxes[:, 5:6] / 2], dim=1)
            keep = within(bottom, bounds)
            if score > 0:
                keep &= best > score
            order = torch.sort(best[keep], descending=True, stable=True).indices
            found.append(Detections(boxes[keep][order], best[keep][order], kind[keep][order]))
        return found


class DecoderLayer(nn.Module):
    """Self-attention among the proposals, cross-attention to every BEV cell, feed-forward; positions join q, k and v."""

    def __init__(self, *, channels: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.itself = nn.MultiheadAttention(channels, heads, dropout=dropout, batch_first=True)
        self.cross = nn.MultiheadAttention(channels, heads, dropout=dropout, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.Linear(channels, ffn), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(ffn, channels)
        )
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


def encode(boxes: Tensor, grid: BevGrid) -> Tensor:
    """Codes (M, 10) of boxes (M, 9), centre in absolute cells."""
    yaw = boxes[:, 6:7]
    size = boxes[:, 3:6].clamp(min=1e-3).log()
    return torch.cat([grid.to_cells(boxes[:, :2]), boxes[:, 2:3], size, yaw.sin(), yaw.cos(), boxes[:, 7:9]], dim=1)


def decode_codes(codes: Tensor, grid: BevGrid) -> Tensor:
    """Boxes (M, 9) of codes (M, 10)."""
    yaw = torch.atan2(codes[:, 6:7], codes[:, 7:8])
    return torch.cat([grid.to_metres(codes[:, :2]), codes[:, 2:3], codes[:, 3:6].exp(), yaw, codes[:, 8:10]], dim=1)
