"""BEVFormer's query head: learned queries look into the BEV map, layer after layer, and each becomes one box or none.

B batch, Q queries, C channels, M boxes, K classes, Y X BEV. A box code (see `box_code`) has the centre in metres.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vexkd.batch import Batch, Detections
from vexkd.boxes import CLASSES
from vexkd.geometry import BevGrid
from vexkd.models import box_code, heatmap
from vexkd.models.blocks import feed_forward
from vexkd.models.matching import focal_class_cost, hungarian, matched_loss
from vexkd.models.targets import Counts, Targets
from vexkd.ops.deformable_attention import DeformableAttention

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

    has_queries = True
    box_maps = None

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
            reference = self.reference(position).sigmoid()  # B Q 3, over the range
        outputs = []
        for layer, classes, boxes in zip(self.layers, self.classes, self.boxes, strict=True):
            query = layer(query, position, reference[..., :2], memory, shape)
            with torch.autocast(high.device.type, enabled=False):
                raw = boxes(query.to(self.query.dtype))
            reference = (raw[..., :3] + inverse_sigmoid(reference)).sigmoid()
            outputs.append(
                {"codes": torch.cat([self._metres(reference), raw[..., 3:]], -1), "logits": classes(query).float()}
            )
            reference = reference.detach()
        return outputs

    def _metres(self, place: Tensor) -> Tensor:
        """Places (B, Q, 3) in [0, 1] over the range -> x, y, z in metres."""
        low, high = place.new_tensor(self.grid.bounds).chunk(2)
        return place * (high - low) + low

    @torch.no_grad()
    def targets(self, batch: Batch) -> Targets:
        """Boxes and labels of each sample whose centre lies on the grid: no query can say another place.

        Which query is matched to which box depends on the predictions and is part of the loss. Count: `matched` queries.
        """
        on_grid = [heatmap.cells_of(boxes, self.grid)[2] for boxes in batch.boxes]
        boxes_on_grid = [(b[mask], k[mask]) for b, k, mask in zip(batch.boxes, batch.labels, on_grid, strict=True)]
        matched = sum(min(len(boxes), len(self.query)) for boxes, _ in boxes_on_grid)
        return Targets(boxes_on_grid, {"matched": torch.tensor(float(matched), device=self.query.device)})

    def loss(self, predictions: list[dict[str, Tensor]], targets: Targets, counts: Counts) -> dict[str, Tensor]:
        """Class and box loss, each summed over the decoder layers and divided by the matched queries of one layer."""
        class_loss, box_loss = 0.0, 0.0
        for layer in predictions:
            for sample, (boxes, labels) in enumerate(targets.values):
                codes, logits = layer["codes"][sample], layer["logits"][sample]
                matched, box = self.assign(codes.detach(), logits.detach(), boxes, labels)
                truth = {"target_codes": self.encode(boxes[box]), "labels": labels[box]}
                losses = matched_loss(codes, logits, matched, **truth, code_weights=self.code_weights)
                class_loss, box_loss = class_loss + losses[0], box_loss + losses[1]
        count = counts.share("matched", at_least=1)
        return {"class": self.weights["class"] * class_loss / count, "box": self.weights["box"] * box_loss / count}

    @torch.no_grad()
    def assign(self, codes: Tensor, logits: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Hungarian matching of queries to boxes: indices of the matched queries and of their boxes."""
        cost = self.costs["class"] * focal_class_cost(logits)[:, labels]  # Q M
        cost = cost + self.costs["box"] * torch.cdist(codes[:, :MATCHED], self.encode(boxes)[:, :MATCHED], p=1)
        return hungarian(cost)

    def encode(self, boxes: Tensor) -> Tensor:
        """Codes (M, 10) of boxes (M, 9)."""
        return box_code.encode(boxes[:, :2], boxes)

    def boxes_of(self, codes: Tensor) -> Tensor:
        """Boxes (M, 9) of codes (M, 10)."""
        return box_code.decode(codes[:, :2], codes)

    def centres(self, codes: Tensor) -> Tensor:
        """Where codes (..., 10) say that boxes are: (..., 2) in metres."""
        return codes[..., :2]

    def decoder_layers(self, predictions: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Codes (B, Q, 10) and class logits (B, Q, K) of each decoder layer."""
        return predictions

    def class_scores(self, predictions: list[dict[str, Tensor]]) -> Tensor:
        """Of each query of the last layer (B, Q, K)."""
        return predictions[-1]["logits"].float().sigmoid()

    @torch.no_grad()
    def decode(self, predictions: list[dict[str, Tensor]], *, bounds: Sequence[float], top: int) -> list[Detections]:
        """The `top` best pairs of query and class of the last layer, best first, without suppression."""
        last = predictions[-1]
        detections = []
        for codes, logits in zip(last["codes"].float(), last["logits"].float(), strict=True):
            score, index = logits.sigmoid().flatten().sort(descending=True, stable=True)
            score, index = score[:top], index[:top]
            boxes = self.boxes_of(codes[index // logits.shape[1]])
            keep = box_code.within(boxes, bounds)
            detections.append(Detections(boxes[keep], score[keep], (index % logits.shape[1])[keep]))
        return detections


class DecoderLayer(nn.Module):
    """Self-attention among the queries, deformable attention into the BEV map, feed-forward; each with its sum and norm."""

    def __init__(
        self, *, channels: int, value_channels: int, heads: int, points: int, ffn: int, dropout: float
    ) -> None:
        super().__init__()
        self.itself = nn.MultiheadAttention(channels, heads, dropout=dropout, batch_first=True)
        self.cross = DeformableAttention(channels=channels, value_channels=value_channels, heads=heads, points=points)
        self.feed_forward = feed_forward(channels, ffn, dropout)
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
    return nn.Sequential(*steps, nn.Linear(channels, box_code.CODE))


def inverse_sigmoid(share: Tensor) -> Tensor:
    """Logits of probabilities, clipped."""
    return share.clamp(min=EDGE).log() - (1 - share).clamp(min=EDGE).log()
