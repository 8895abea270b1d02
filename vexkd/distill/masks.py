"""Where to distil: a spatial mask per level, learned from the teacher's BEV query (Sec. 3.3) or drawn (Table 3).

B batch, C channels, Y X BEV, Q = Y * X queries. A new drawn mask is a function here and its line in DRAWN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from vexkd.batch import Batch
from vexkd.distill import regions
from vexkd.distill.adapters import widths
from vexkd.errors import InputError
from vexkd.geometry import BevGrid
from vexkd.models.bev_model import BEVModel
from vexkd.models.blocks import feed_forward, match_width
from vexkd.models.heatmap import cells_of
from vexkd.ops.deformable_attention import DeformableAttention, reference_points
from vexkd.settings import Distill

# BEVDistill's Gaussians: the overlap that gives the radius, and its least value in cells.
OVERLAP, MIN_RADIUS = 0.1, 1


class MaskNet(nn.Module):
    """Teacher feature of one level (B, C_in, Y, X) -> mask (B, 1, Y, X) in (0, 1).

    The query starts as a copy of the teacher's learned query (Q, C) and is trained on; each block lets it attend to the
    feature, with offsets predicted from query and feature together as in the fusion module (Eq. 2 with one sensor).
    bias: start of the last bias; sigmoid(2) = 0.88 lets the masked teacher begin near its own accuracy.
    """

    def __init__(
        self,
        *,
        query: Tensor,
        shape: Sequence[int],
        in_channels: int,
        blocks: int,
        heads: int,
        points: int,
        ffn: int,
        dropout: float,
        bias: float,
    ) -> None:
        super().__init__()
        channels = query.shape[1]
        self.shape = (shape[0], shape[1])
        self.query = nn.Parameter(query.detach().clone())
        self.project = match_width(in_channels, channels)
        self.blocks = nn.ModuleList(
            MaskBlock(channels=channels, heads=heads, points=points, ffn=ffn, dropout=dropout) for _ in range(blocks)
        )
        self.mask = nn.Linear(channels, 1)  # the 1x1 convolution, on queries
        nn.init.normal_(self.mask.weight, std=0.01)
        nn.init.constant_(self.mask.bias, bias)

    def forward(self, feature: Tensor) -> Tensor:
        value = self.project(feature).flatten(2).transpose(1, 2)  # B Q C
        query = self.query[None].expand(len(feature), -1, -1)
        reference = reference_points(*self.shape, device=feature.device)
        for block in self.blocks:
            query = block(query, value, reference, self.shape)
        logits = self.mask(query).float()  # B Q 1
        return logits.sigmoid().transpose(1, 2).unflatten(2, self.shape)  # B 1 Y X


class MaskBlock(nn.Module):
    """Deformable cross-attention of the query to the feature, then feed-forward, each with residual and LayerNorm."""

    def __init__(self, *, channels: int, heads: int, points: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.cross = DeformableAttention(channels=channels, heads=heads, points=points, query_channels=2 * channels)
        self.feed_forward = feed_forward(channels, ffn, dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, value: Tensor, reference: Tensor, shape: tuple[int, int]) -> Tensor:
        attended = self.cross(torch.cat([query, value], dim=-1), reference, value, [shape])
        query = self.norms[0](query + self.dropout(attended))
        return self.norms[1](query + self.dropout(self.feed_forward(query)))


class LearnedMasks(nn.Module):
    """One mask net per level."""

    def __init__(self, nets: dict[str, MaskNet]) -> None:
        super().__init__()
        self.nets = nn.ModuleDict(nets)

    def forward(self, teacher_features: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Masks (B, 1, Y, X) by level, each from its level's own map of the teacher."""
        return {level: net(teacher_features[level]) for level, net in self.nets.items()}


class DrawnMasks(nn.Module):
    """Masks that nothing learns: `draw(feature, batch)` at each level."""

    def __init__(self, draw: Callable[[Tensor, Batch], Tensor], levels: Sequence[str]) -> None:
        super().__init__()
        self.draw, self.levels = draw, tuple(levels)

    @torch.no_grad()
    def forward(self, teacher_features: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Masks (B, 1, Y, X) by level."""
        return {level: self.draw(teacher_features[level], batch) for level in self.levels}


def at_key_points(feature: Tensor, batch: Batch, *, grid: BevGrid) -> Tensor:
    """1 in the cells that hold one of the nine key points of a box (UniDistill), 0 elsewhere: (B, 1, Y, X)."""
    rows, columns = grid.shape
    mask = feature.new_zeros(len(batch.boxes), 1, rows, columns, dtype=torch.float32)
    for sample, boxes in enumerate(regions.on_grid(batch, grid)):
        _, whole, inside = cells_of(regions.key_points(boxes).flatten(0, 1), grid)
        mask[sample, 0, whole[inside, 1], whole[inside, 0]] = 1.0
    return mask


def at_gaussians(feature: Tensor, batch: Batch, *, grid: BevGrid) -> Tensor:
    """A Gaussian at each box's centre (BEVDistill): (B, 1, Y, X)."""
    return regions.gaussians(batch, grid, overlap=OVERLAP, min_radius=MIN_RADIUS)


def at_activation(feature: Tensor, batch: Batch, *, grid: BevGrid, temperature: float = 0.5) -> Tensor:
    """The teacher's normalised activation (Zhang & Ma 2020): (B, 1, Y, X) of mean 1, values above 1 included.

    They publish temperatures of 0.1 and 0.5; the paper does not say which it took.
    """
    return regions.spatial_attention(feature, temperature)


DRAWN = {"key-points": at_key_points, "gaussian": at_gaussians, "activation": at_activation}


def build(settings: Distill, teacher: BEVModel, teacher_name: str) -> LearnedMasks | DrawnMasks | None:
    """The masks of a run; None: everywhere. Raises InputError where the teacher has no query to start a learned one from."""
    if settings.mask in ("none", "ones"):
        return None
    if settings.mask in DRAWN:
        draw = partial(DRAWN[settings.mask], grid=teacher.grid)
        if settings.mask == "activation" and settings.temperature is not None:
            draw = partial(draw, temperature=settings.temperature)
        return DrawnMasks(draw, settings.levels)
    start = first_query(settings.mask, teacher, teacher_name)
    nets = {
        level: MaskNet(
            query=start,
            shape=teacher.grid.shape,
            in_channels=widths(teacher)[level],
            blocks=settings.mask_blocks,
            heads=settings.mask_heads,
            points=settings.mask_points,
            ffn=settings.mask_ffn,
            dropout=settings.mask_dropout,
            bias=settings.mask_bias,
        )
        for level in settings.levels
    }
    return LearnedMasks(nets)


def first_query(mask: str, teacher: BEVModel, teacher_name: str) -> Tensor:
    """Where the mask nets start (Q, C): the teacher's query, or noise; without a query, noise as wide as `low`."""
    query = getattr(teacher.fusion, "query", None)
    if mask == "learned-query" and query is None:
        raise InputError(
            f"teacher {teacher_name} has no BEV query to start masks from; use a teacher with fusion: mgfm "
            "or set distill.mask to random-query or none."
        )
    if mask == "learned-query":
        return query
    rows, columns = teacher.grid.shape
    return torch.randn_like(query) if query is not None else torch.randn(rows * columns, widths(teacher)["low"])


@torch.no_grad()
def statistics(mask: Tensor) -> dict[str, Tensor]:
    """Mean, mean of the samples' maxima and mean binary entropy (bits): a mask that fades or saturates shows here first.

    The entropy of a mask with values above 1 is that of the mask over its sample's maximum.
    """
    top = mask.flatten(1).amax(1)
    p = (mask / top.clamp(min=1).view(-1, 1, 1, 1)).clamp(1e-6, 1 - 1e-6)
    entropy = -(p * p.log2() + (1 - p) * (1 - p).log2())
    return {"mean": mask.mean(), "max": top.mean(), "entropy": entropy.mean()}
