"""Where to distil: a spatial mask per level, learned from the teacher's BEV query (Sec. 3.3).

B batch, C channels, Y X BEV, Q = Y * X queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vexkd.ops.deformable_attention import DeformableAttention, reference_points


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
        self.project = nn.Conv2d(in_channels, channels, 1) if in_channels != channels else nn.Identity()
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
        self.feed_forward = nn.Sequential(
            nn.Linear(channels, ffn), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(ffn, channels)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, value: Tensor, reference: Tensor, shape: tuple[int, int]) -> Tensor:
        seen = self.cross(torch.cat([query, value], dim=-1), reference, value, [shape])
        query = self.norms[0](query + self.dropout(seen))
        return self.norms[1](query + self.dropout(self.feed_forward(query)))


@torch.no_grad()
def statistics(mask: Tensor) -> dict[str, float]:
    """Mean, mean of the samples' maxima and mean binary entropy (bits): a mask that fades or saturates shows here first."""
    p = mask.clamp(1e-6, 1 - 1e-6)
    entropy = -(p * p.log2() + (1 - p) * (1 - p).log2())
    return {"mean": mask.mean().item(), "max": mask.flatten(1).amax(1).mean().item(), "entropy": entropy.mean().item()}
