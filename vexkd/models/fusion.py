"""Fusion of the LiDAR and camera BEV maps: the modality-general fusion module (Sec. 3.2, Eq. 2 and 3) and BEVFusion's.

B batch, C channels, Y X BEV, Q = Y * X queries. Both take {sensor: map} and give the `low` map (B, C, Y, X).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vexkd.models.blocks import conv_norm_act, feed_forward
from vexkd.ops.deformable_attention import DeformableAttention, reference_points


class ConvFuser(nn.Module):
    """Concatenate the sensors' maps, one 3x3 convolution, BatchNorm, ReLU (BEVFusion)."""

    def __init__(self, *, in_channels: Mapping[str, int], channels: int) -> None:
        super().__init__()
        self.sensors = tuple(in_channels)
        self.conv = conv_norm_act(sum(in_channels.values()), channels)
        self.out_channels = channels

    def forward(self, maps: Mapping[str, Tensor]) -> Tensor:
        return self.conv(torch.cat([maps[sensor] for sensor in self.sensors], dim=1))


class ModalityGeneralFusion(nn.Module):
    """A learned BEV query that attends to every sensor alike, block after block; the last query map is the fused map.

    `query` (Q, C) is also where the masks of the distillation start (Sec. 3.3).
    """

    def __init__(
        self,
        *,
        in_channels: Mapping[str, int],
        shape: Sequence[int],
        channels: int,
        blocks: int,
        query_std: float,
        heads: int,
        points: int,
        ffn: int,
        dropout: float,
    ) -> None:
        super().__init__()
        rows, columns = shape
        self.shape, self.sensors = (rows, columns), tuple(in_channels)
        self.project = nn.ModuleDict({sensor: nn.Conv2d(width, channels, 1) for sensor, width in in_channels.items()})
        self.query = nn.Parameter(query_std * torch.randn(rows * columns, channels))
        self.rows = nn.Parameter(torch.rand(rows, channels // 2))
        self.columns = nn.Parameter(torch.rand(columns, channels // 2))
        self.blocks = nn.ModuleList(
            FusionBlock(sensors=self.sensors, channels=channels, heads=heads, points=points, ffn=ffn, dropout=dropout)
            for _ in range(blocks)
        )
        self.out_channels = channels

    def position(self) -> Tensor:
        """Learned row and column codes of every cell (1, Q, C)."""
        rows, columns = self.shape
        grid = [self.rows[:, None].expand(-1, columns, -1), self.columns[None].expand(rows, -1, -1)]
        return torch.cat(grid, dim=-1).flatten(0, 1)[None]

    def forward(self, maps: Mapping[str, Tensor]) -> Tensor:
        values = {s: self.project[s](maps[s]).flatten(2).transpose(1, 2) for s in self.sensors}  # B Q C
        query = self.query[None].expand(len(maps[self.sensors[0]]), -1, -1)  # B Q C
        position = self.position()
        reference = reference_points(*self.shape, device=query.device)  # 1 Q 2
        for block in self.blocks:
            query = block(query, values, position, reference, self.shape)
        return query.transpose(1, 2).unflatten(2, self.shape)  # B C Y X


class FusionBlock(nn.Module):
    """Cross-modal attention summed over the sensors without a gate (Eq. 2), self-attention (Eq. 3), feed-forward."""

    def __init__(
        self, *, sensors: Sequence[str], channels: int, heads: int, points: int, ffn: int, dropout: float
    ) -> None:
        super().__init__()
        sizes = {"channels": channels, "heads": heads, "points": points}
        self.cross = nn.ModuleDict(
            {sensor: DeformableAttention(query_channels=2 * channels, **sizes) for sensor in sensors}
        )
        self.itself = DeformableAttention(**sizes)
        self.feed_forward = feed_forward(channels, ffn, dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        query: Tensor,
        values: Mapping[str, Tensor],
        position: Tensor,
        reference: Tensor,
        shape: tuple[int, int],
    ) -> Tensor:
        """query and values (B, Q, C), position (1, Q, C), reference (1, Q, 2) -> (B, Q, C)."""
        placed = query + position
        attended = [
            attention(torch.cat([placed, values[sensor]], dim=-1), reference, values[sensor], [shape])
            for sensor, attention in self.cross.items()
        ]
        query = self.norms[0](query + self.dropout(sum(attended)))
        query = self.norms[1](query + self.dropout(self.itself(query + position, reference, query, [shape])))
        return self.norms[2](query + self.dropout(self.feed_forward(query)))
