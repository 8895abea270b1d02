"""Blocks that several parts of a model are built of. B batch, C channels, Y X BEV or H W image."""

from __future__ import annotations

from torch import nn

# BatchNorm of the published LiDAR encoders (mmdetection3d), also used by the BEV encoder behind them.
BATCH_NORM = {"eps": 1e-3, "momentum": 0.01}


def conv_norm_act(in_channels: int, out_channels: int, *, kernel: int = 3, stride: int = 1, **norm) -> nn.Sequential:
    """Convolution without bias that keeps the map's size (over its stride), BatchNorm, ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels, **norm), nn.ReLU(inplace=True))


def start_by_fan_out(module: nn.Module) -> nn.Module:
    """Draw the convolutions inside anew as mmcv starts them: He's normal by what leaves them, no bias. The same module."""
    for part in module.modules():
        if isinstance(part, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return module


def feed_forward(channels: int, hidden: int, dropout: float) -> nn.Sequential:
    """The two linear layers of a transformer's block, (..., channels) -> the same shape."""
    return nn.Sequential(
        nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(hidden, channels)
    )


def match_width(in_channels: int, out_channels: int) -> nn.Module:
    """A 1x1 convolution to another number of channels; the identity where it is the same."""
    return nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
