"""Modulated deformable convolution (DCNv2): each tap of the kernel reads a learned place, with a learned share.

B batch, C channels, H W input, K taps of the kernel row by row, Y X output. Offsets hold y and x of tap after tap in cells of
the input (2K channels), shares one channel a tap: the order of mmcv's kernels, so that published weights need no permutation.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vexkd.ops.deformable_attention import deformable_sample


def deform_conv(
    x: Tensor, weight: Tensor, offsets: Tensor, shares: Tensor, *, stride: int = 1, padding: int = 1
) -> Tensor:
    """x (B, C, H, W), weight (C', C, k, k), offsets (B, 2K, Y, X), shares (B, K, Y, X) -> (B, C', Y, X).

    Bilinear, zero outside the map. By linearity each tap's product with the weight comes first, for all cells at once; the K
    maps then stand side by side as one map, of which `deformable_sample` sums K places: no samples are stored.
    """
    batch, _, h, w = x.shape
    out_channels, in_channels, taps = weight.shape[0], weight.shape[1], weight.shape[2] * weight.shape[3]
    products = F.conv2d(x, weight.permute(2, 3, 0, 1).reshape(taps * out_channels, in_channels, 1, 1))  # B K*C' H W
    products = F.pad(products.unflatten(1, (taps, out_channels)), (0, 1))  # B K C' H W+1, a column of zeros between
    value = products.permute(0, 3, 1, 4, 2).reshape(batch, h * taps * (w + 1), 1, out_channels)
    rows, columns = tap_places(offsets, tuple(weight.shape[2:]), stride=stride, padding=padding)  # B K Y X
    columns = columns.clamp(-1, w) + torch.arange(taps, device=x.device).view(1, -1, 1, 1) * (w + 1)
    places = torch.stack([(columns + 0.5) / (taps * (w + 1)), (rows + 0.5) / h], dim=-1)  # B K Y X 2
    locations = places.flatten(2, 3).transpose(1, 2).contiguous()[:, :, None, None]  # B Y*X 1 1 K 2
    weights = shares.flatten(2).transpose(1, 2).contiguous()[:, :, None, None]  # B Y*X 1 1 K
    sampled = deformable_sample(value, [(h, taps * (w + 1))], locations, weights)  # B Y*X C'
    return sampled.transpose(1, 2).unflatten(2, offsets.shape[-2:]).to(products.dtype)


def deform_conv_plain(
    x: Tensor, weight: Tensor, offsets: Tensor, shares: Tensor, *, stride: int = 1, padding: int = 1
) -> Tensor:
    """`deform_conv` written from the definition: gather four corners for every tap, weigh, multiply by the weight."""
    batch, channels, h, w = x.shape
    rows, columns = tap_places(offsets, tuple(weight.shape[2:]), stride=stride, padding=padding)  # B K Y X
    cells = x.flatten(2)  # B C H*W
    taken = x.new_zeros(batch, channels, *rows.shape[1:])  # B C K Y X
    for dy in (0, 1):
        for dx in (0, 1):
            row, column = rows.floor() + dy, columns.floor() + dx
            inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
            nearness = (1 - (rows - row).abs()) * (1 - (columns - column).abs()) * inside * shares
            index = row.clamp(0, h - 1).long() * w + column.clamp(0, w - 1).long()  # B K Y X
            corner = cells.gather(2, index.flatten(1)[:, None].expand(-1, channels, -1)).view_as(taken)
            taken = taken + corner * nearness[:, None]
    return torch.einsum("bckyx,ock->boyx", taken, weight.flatten(2))


def tap_places(offsets: Tensor, kernel: tuple[int, int], *, stride: int, padding: int) -> tuple[Tensor, Tensor]:
    """Row and column (B, K, Y, X) in cells of the input that each tap of each output cell reads."""
    moved = offsets.unflatten(1, (-1, 2))  # B K 2 Y X, of each pair y first
    y, x = (torch.arange(size, device=offsets.device) * stride - padding for size in offsets.shape[-2:])
    i, j = (torch.arange(size, device=offsets.device) for size in kernel)
    tap_row, tap_column = (grid.reshape(1, -1, 1, 1) for grid in torch.meshgrid(i, j, indexing="ij"))  # 1 K 1 1
    return moved[:, :, 0] + tap_row + y.view(1, 1, -1, 1), moved[:, :, 1] + tap_column + x.view(1, 1, 1, -1)


class ModulatedDeformConv2d(nn.Module):
    """A square convolution without bias whose taps move: offsets and shares come from a convolution that starts at zero.

    At the start no tap moves and every share is one half. Names and channel order are mmcv's: `weight`, `conv_offset`.
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.stride, self.padding, self.taps = stride, kernel // 2, kernel * kernel
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel))
        self.conv_offset = nn.Conv2d(in_channels, 3 * self.taps, kernel, stride=stride, padding=self.padding)
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, C', Y, X)."""
        moves = self.conv_offset(x).float() if x.dtype != torch.float64 else self.conv_offset(x)  # B 3K Y X
        offsets, shares = moves.split([2 * self.taps, self.taps], dim=1)
        return deform_conv(x, self.weight, offsets, shares.sigmoid(), stride=self.stride, padding=self.padding)
