"""BEVFormer's query head: learned queries look into the BEV map, layer after layer, and each becomes one box or none.

B batch, Q queries, C channels, M boxes, K classes, Y X BEV. A box code has ten numbers: x y z (gravity centre) in metres, log
l w h, sin and cos of yaw, vx vy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from vexkd.batch import Batch, Detections
from vexkd.boxes import CLASSES
from vexkd.geometry import BevGrid
from vexkd.models import heatmap
from vexkd.models.centerpoint import within
from vexkd.ops.deformable_attention import DeformableAttention

CODE = 10
# Leading numbers of the code that the matching compares: all but the velocity (BEVFormer).
MATCHED = 8
# Start of the class logits: a probability of 0.01 (RetinaNet).
CLASS_BIAS = -4.59511985
# The inverse sigmoid is clipped here (Deformable DETR).
EDGE = 1e-5


class DetrHead(nn.Module):
    """`high` (B, C, Y, X) -> per decoder layer box codes and class logits of `queries` queries.

    Costs and weights: class (focal) and box (L1 of the codes, in the matching without the velocity).
    """

    def __init__(
        self,
        *,
        in_channels: int,
        grid: BevGrid,
        channels: int,
        queries: int,
        layers: int,
        heads: int,
        points: int,
        ffn: int,
        dropout: float,
        class_cost: float,
        box_cost: float,
        class_weight: float,
        box_weight: float,
        code_weights: Sequence[float],
    ) -> None:
        super().__init__()
        self.grid = grid
        self.costs = {"class": class_cost, "box": box_cost}
        self.weights = {"class": class_weight, "box": box_weight}
        self.normalisers = 1  # length of `positives`
        self.register_buffer("code_weights", torch.tensor(list(code_weights)), persistent=False)
        self.query = nn.Parameter(torch.randn(queries, channels))
        self.position = nn.Parameter(torch.randn(queries, channels))
        self.reference = nn.Linear(channels, 3)
        nn.init.xavier_uniform_(self.reference.weight)
        nn.init.zeros_(self.reference.bias)
        sizes = {"channels": channels, "value_channels": in_channels, "heads": heads, "points": points, "ffn": ffn}
        self.layers = nn.ModuleList(DecoderLayer(**sizes, dropout=dropout) for _ in range(layers))
        self.classes = nn.ModuleList(class_branch(channels, len(CLASSES)) for _ in range(layers))
        self.boxes = nn.ModuleList(box_branch(channels) for _ in range(layers))

    def forward(self, high: Tensor) -> list[dict[str, Tensor]]:
        """Per layer codes (B, Q, 10) and class logits (B, Q, K); each layer starts from the place that the last one found."""
        batch, shape = len(high), tuple(high.shape[-2:])
        memory = high.flatten(2).transpose(1, 2)  # B Y*X C
        query, position = (t[None].expand(batch, -1, -1) for t in (self.query, self.position))
        with torch.autocast(high.device.type, enabled=False):  # bfloat16 would move places by decimetres
            place = self.reference(position).sigmoid()  # B Q 3, over the range
        outputs = []
        for layer, classes, boxes in zip(self.layers, self.classes, self.boxes, strict=True):
            query = layer(query, position, place[..., :2], memory, shape)
            with torch.autocast(high.device.type, enabled=False):
                raw = boxes(query.to(self.query.dtype))
            place = (raw[..., :3] + inverse_sigmoid(place)).sigmoid()
            outputs.append(
                {"codes": torch.cat([self._metres(place), raw[..., 3:]], -1), "logits": classes(query).float()}
            )
            place = place.detach()
        return outputs

    def _metres(self, place: Tensor) -> Tensor:
        """Places (B, Q, 3) in [0, 1] over the range -> x, y, z in metres."""
        low, high = place.new_tensor(self.grid.bounds).chunk(2)
        return place * (high - low) + low

    def _inside(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Boxes and labels of each sample whose centre lies on the grid: no query can say another place."""
        masks = [heatmap.cells_of(boxes, self.grid)[2] for boxes in batch.boxes]
        return [(b[m], k[m]) for b, k, m in zip(batch.boxes, batch.labels, masks, strict=True)]

    def positives(self, batch: Batch) -> Tensor:
        """What the losses are divided by: the matched queries (1,)."""
        count = sum(min(len(boxes), len(self.query)) for boxes, _ in self._inside(batch))
        return torch.tensor([float(count)], device=self.query.device)

    def divisors(self, positives: Tensor) -> Tensor:
        """What the losses of a whole batch are divided by, from its count."""
        return positives.clamp(min=1)

    def loss(
        self, predictions: list[dict[str, Tensor]], batch: Batch, positives: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Class and box loss, each summed over the decoder layers; `positives` as in CenterPoint's head."""
        if positives is None:
            positives = self.divisors(self.positives(batch))
        classes, boxes = 0.0, 0.0
        for layer in predictions:
            for sample, (wanted, labels) in enumerate(self._inside(batch)):
                codes, logits = layer["codes"][sample], layer["logits"][sample]
                chosen, truth = self.assign(codes.detach(), logits.detach(), wanted, labels)
                target = torch.zeros_like(logits)
                target[chosen, labels[truth]] = 1.0
                classes = classes + heatmap.sigmoid_focal_loss(logits, target).sum()
                code = encode(wanted[truth])
                known = code.isfinite()
                code = torch.where(known, code, codes[chosen].detach())
                boxes = boxes + ((codes[chosen] - code).abs() * self.code_weights).sum()
        matched = positives.squeeze()
        return {"class": self.weights["class"] * classes / matched, "box": self.weights["box"] * boxes / matched}

    @torch.no_grad()
    def assign(self, codes: Tensor, logits: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Hungarian matching of queries to boxes: indices of the matched queries and of their boxes."""
        if len(boxes) == 0:
            empty = torch.zeros(0, dtype=torch.long, device=codes.device)
            return empty, empty
        cost = self.costs["class"] * class_cost(logits)[:, labels]  # Q M
        cost = cost + self.costs["box"] * torch.cdist(codes[:, :MATCHED], encode(boxes)[:, :MATCHED], p=1)
        query, box = linear_sum_assignment(cost.nan_to_num(nan=1e5, posinf=1e5, neginf=-1e5).cpu().numpy())
        return tuple(torch.as_tensor(index, device=codes.device) for index in (query, box))

    @torch.no_grad()
    def decode(self, predictions: list[dict[str, Tensor]], *, bounds: Sequence[float], top: int) -> list[Detections]:
        """The `top` best pairs of query and class of the last layer, best first, without suppression."""
        last = predictions[-1]
        found = []
        for codes, logits in zip(last["codes"].float(), last["logits"].float(), strict=True):
            score, index = logits.sigmoid().flatten().sort(descending=True, stable=True)
            score, index = score[:top], index[:top]
            boxes = decode_codes(codes[index // logits.shape[1]])
            keep = within(boxes, bounds)
            found.append(Detections(boxes[keep], score[keep], (index % logits.shape[1])[keep]))
        return found


class DecoderLayer(nn.Module):
    """Self-attention among the queries, deformable attention into the BEV map, feed-forward; each with its sum and norm."""

    def __init__(
        self, *, channels: int, value_channels: int, heads: int, points: int, ffn: int, dropout: float
    ) -> None:
        super().__init__()
        self.itself = nn.MultiheadAttention(channels, heads, dropout=dropout, batch_first=True)
        self.cross = DeformableAttention(channels=channels, value_channels=value_channels, heads=heads, points=points)
        self.feed_forward = nn.Sequential(
            nn.Linear(channels, ffn), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(ffn, channels)
        )
        for linear in (self.itself.out_proj, self.feed_forward[0], self.feed_forward[3]):
            nn.init.xavier_uniform_(linear.weight)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, position: Tensor, place: Tensor, memory: Tensor, shape: tuple[int, int]) -> Tensor:
        """query and position (B, Q, C), place (B, Q, 2) in [0, 1], memory (B, Y*X, C') -> (B, Q, C)."""
        placed = query + position
        query = self.norms[0](query + self.dropout(self.itself(placed, placed, query, need_weights=False)[0]))
        query = self.norms[1](query + self.dropout(self.cross(query + position, place, memory, [shape])))
        return self.norms[2](query + self.dropout(self.feed_forward(query)))


def class_branch(channels: int, classes: int) -> nn.Sequential:
    """Class logits of a query."""
    steps = [
        step
        for _ in range(2)
        for step in (nn.Linear(channels, channels), nn.LayerNorm(channels), nn.ReLU(inplace=True))
    ]
    last = nn.Linear(channels, classes)
    nn.init.constant_(last.bias, CLASS_BIAS)
    return nn.Sequential(*steps, last)


def box_branch(channels: int) -> nn.Sequential:
    """Raw box code of a query, its place relative to the one it looked at."""
    steps = [step for _ in range(2) for step in (nn.Linear(channels, channels), nn.ReLU(inplace=True))]
    return nn.Sequential(*steps, nn.Linear(channels, CODE))


def class_cost(logits: Tensor) -> Tensor:
    """Focal cost (Q, K) of calling a query each class: what its loss as one is above its loss as none."""
    score = logits.float().sigmoid()
    positive = -(score + 1e-12).log() * 0.25 * (1 - score) ** 2
    negative = -(1 - score + 1e-12).log() * 0.75 * score**2
    return positive - negative


def inverse_sigmoid(share: Tensor) -> Tensor:
    """Logits of probabilities, clipped."""
    return share.clamp(min=EDGE).log() - (1 - share).clamp(min=EDGE).log()


def encode(boxes: Tensor) -> Tensor:
    """Codes (M, 10) of boxes (M, 9)."""
    yaw = boxes[:, 6:7]
    return torch.cat([boxes[:, :3], boxes[:, 3:6].clamp(min=1e-3).log(), yaw.sin(), yaw.cos(), boxes[:, 7:9]], dim=1)


def decode_codes(codes: Tensor) -> Tensor:
    """Boxes (M, 9) of codes (M, 10)."""
    yaw = torch.atan2(codes[:, 6:7], codes[:, 7:8])
    return torch.cat([codes[:, :3], codes[:, 3:6].exp(), yaw, codes[:, 8:10]], dim=1)
