"""BEV encoder of teachers and LiDAR students: SECOND's 2D backbone and its feature pyramid (`low` -> `high`).

B batch, C channels, Y X BEV. With the paper's widths 256 channels become 512 at the same 180 x 180 cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vexkd.models.sparse_encoder import BATCH_NORM


def conv_norm_act(in_channels: int, out_channels: int, *, kernel: int = 3, stride: int = 1, **norm) -> nn.Sequential:
    """Convolution without bias that keeps the map's size (over its stride), BatchNorm, ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels, **norm), nn.ReLU(inplace=True))


class SecondBackbone(nn.Module):
    """Stages of 3x3 convolutions, the first of each strided, whose outputs are brought back to one size and concatenated."""

    def __init__(
        self,
        *,
        in_channels: int,
        channels: Sequence[int],
        layers: Sequence[int],
        strides: Sequence[int],
        neck_channels: Sequence[int],
    ) -> None:
        super().__init__()
        self.stages, self.ups = nn.ModuleList(), nn.ModuleList()
        scale = 1
        for width, count, stride, neck in zip(channels, layers, strides, neck_channels, strict=True):
            steps = [conv_norm_act(in_channels, width, stride=stride, **BATCH_NORM)]
            steps += [conv_norm_act(width, width, **BATCH_NORM) for _ in range(count)]
            self.stages.append(nn.Sequential(*steps))
            scale *= stride
            self.ups.append(_up(width, neck, scale))
            in_channels = width
        self.out_channels = sum(neck_channels)

    def forward(self, low: Tensor) -> Tensor:
        """low (B, C, Y, X) -> high (B, sum of neck_channels, Y, X)."""
        outputs, x = [], low
        for stage, up in zip(self.stages, self.ups, strict=True):
            x = stage(x)
            outputs.append(up(x))
        return torch.cat(outputs, dim=1)


def _up(in_channels: int, out_channels: int, scale: int) -> nn.Sequential:
    """Learned up-sampling by an integer factor; a 1x1 convolution where the factor is one."""
    if scale == 1:
        return conv_norm_act(in_channels, out_channels, kernel=1, **BATCH_NORM)
    up = nn.ConvTranspose2d(in_channels, out_channels, scale, stride=scale, bias=False)
    return nn.Sequential(up, nn.BatchNorm2d(out_channels, **BATCH_NORM), nn.ReLU(inplace=True))
