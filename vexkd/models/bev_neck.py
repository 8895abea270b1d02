"""BEV encoders (`low` -> `high`): SECOND with its pyramid (teachers, LiDAR students), ResNet with FPN_LSS (BEVDet).

B batch, C channels, Y X BEV. With the paper's widths SECOND makes 512 channels, BEVDet's encoder 256, at the same
180 x 180 cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vexkd.models.blocks import BATCH_NORM, conv_norm_act, start_by_fan_out


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
            self.stages.append(start_by_fan_out(nn.Sequential(*steps)))
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
    return nn.Sequential(start_by_fan_out(up), nn.BatchNorm2d(out_channels, **BATCH_NORM), nn.ReLU(inplace=True))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut. `shortcut`: None is the identity."""

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, shortcut: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.first = conv_norm_act(in_channels, out_channels, stride=stride)
        self.second = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        rest = x if self.shortcut is None else self.shortcut(x)
        return torch.relu(self.norm(self.second(self.first(x))) + rest)


class BevResNet(nn.Module):
    """Stages of basic blocks (BEVDet's CustomResNet): each opens with a strided block whose shortcut is a 3x3 convolution.

    That convolution has a bias and no BatchNorm, as published.
    """

    def __init__(
        self, *, in_channels: int, channels: Sequence[int], layers: Sequence[int], strides: Sequence[int]
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        for width, count, stride in zip(channels, layers, strides, strict=True):
            shortcut = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1)
            blocks = [BasicBlock(in_channels, width, stride=stride, shortcut=shortcut)]
            blocks += [BasicBlock(width, width) for _ in range(count - 1)]
            self.stages.append(nn.Sequential(*blocks))
            in_channels = width
        self.out_channels = in_channels

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, Y, X) -> the output of each stage, finest first."""
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs


class ResNetBevEncoder(nn.Module):
    """BEVDet's BEV encoder: a ResNet, whose first and last stages FPN_LSS joins and brings back to the input's size.

    neck_channels: widths of the two convolutions on the joined maps. Published are strides 2, 2, 2 (BEVDet) and 2, 2, 1
    (MIT's BEVFusion). Maps are resized to the size of the finer map instead of by a fixed factor, which is the same
    where the sizes divide; with 180 cells and strides 2, 2, 2 (180, 90, 45, 23) they do not.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        channels: Sequence[int],
        layers: Sequence[int],
        strides: Sequence[int],
        neck_channels: Sequence[int],
        out_channels: int,
    ) -> None:
        super().__init__()
        self.backbone = BevResNet(in_channels=in_channels, channels=channels, layers=layers, strides=strides)
        first, second = neck_channels
        self.join = nn.Sequential(conv_norm_act(channels[0] + channels[-1], first), conv_norm_act(first, second))
        self.out = nn.Sequential(conv_norm_act(second, out_channels), nn.Conv2d(out_channels, out_channels, 1))
        self.out_channels = out_channels

    def forward(self, low: Tensor) -> Tensor:
        """low (B, C, Y, X) -> high (B, out_channels, Y, X)."""
        stages = self.backbone(low)
        fine, coarse = stages[0], stages[-1]
        joined = self.join(torch.cat([fine, _resize(coarse, fine.shape[-2:])], dim=1))
        return self.out(_resize(joined, low.shape[-2:]))


class NoBevEncoder(nn.Module):
    """`high` is `low`: for BEVFormer, which has no BEV encoder."""

    def __init__(self, *, in_channels: int) -> None:
        super().__init__()
        self.out_channels = in_channels

    def forward(self, low: Tensor) -> Tensor:
        return low


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, the corner cells' centres kept (align_corners), as published."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)
