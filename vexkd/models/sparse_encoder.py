"""LiDAR branch: points -> voxels -> sparse convolutions -> a dense BEV map (SECOND's encoder as BEVFusion uses it).

V voxels, C channels, Z Y X voxel grid. With four stages and the paper's grid the shapes run 41 -> 21 -> 11 -> 5 -> 2 along
z and 1440 -> 720 -> 360 -> 180 along x and y; z is folded into channels at the end: 2 x 128 = 256.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vexkd.models.blocks import BATCH_NORM
from vexkd.ops import sparse_conv as sparse
from vexkd.ops.voxelize import grid_size, voxelize


class SparseEncoder(nn.Module):
    """Point clouds to a BEV map (B, out_channels * Z', Y, X).

    bounds and voxel are in metres; `channels` are the stages' widths, each stage after the first at half the resolution.
    Order is convolution, BatchNorm (eps 1e-3, momentum 0.01), ReLU; convolutions have no bias.
    """

    def __init__(
        self,
        *,
        bounds: Sequence[float],
        voxel: Sequence[float],
        point_channels: int,
        channels: Sequence[int],
        blocks: int,
        out_channels: int,
        max_points: int,
        max_voxels_train: int,
        max_voxels_test: int,
    ) -> None:
        super().__init__()
        self.bounds, self.voxel = tuple(bounds), tuple(voxel)
        self.max_points = max_points
        self.max_voxels = {True: max_voxels_train, False: max_voxels_test}
        z, y, x = grid_size(self.bounds, self.voxel)
        self.shape = (z + 1, y, x)  # the published grids have one empty layer on top
        self.stem = ConvNormAct(
            sparse.submanifold_conv(point_channels, channels[0], kernel=3, key="stage0"), channels[0]
        )
        stages: list[nn.Module] = []
        last = len(channels) - 1
        for index, width in enumerate(channels):
            stages += [ResidualBlock(width, key=f"stage{index}") for _ in range(blocks)]
            if index < last:
                padding = (0, 1, 1) if index == last - 1 else 1  # the last halving does not pad z
                down = sparse.strided_conv(
                    width, channels[index + 1], kernel=3, stride=2, padding=padding, key=f"down{index + 1}"
                )
                stages.append(ConvNormAct(down, channels[index + 1]))
        self.stages = nn.Sequential(*stages)
        out = sparse.strided_conv(channels[-1], out_channels, kernel=(3, 1, 1), stride=(2, 1, 1), padding=0, key="out")
        self.out = ConvNormAct(out, out_channels)
        self.out_channels = out_channels * self._layers_left(last)

    def _layers_left(self, halvings: int) -> int:
        """Layers of z in the last map."""
        z = self.shape[0]
        for index in range(halvings):
            z = (z + (0 if index == halvings - 1 else 2) - 3) // 2 + 1
        return (z - 3) // 2 + 1

    def forward(self, points: list[Tensor]) -> Tensor:
        """points: B tensors (P, 5) in the LiDAR frame -> (B, C, Y, X), float32."""
        features, coordinates = voxelize(
            points,
            range=self.bounds,
            voxel=self.voxel,
            max_points=self.max_points,
            max_voxels=self.max_voxels[self.training],
        )
        x = sparse.sparse_tensor(features, coordinates, spatial_shape=self.shape, batch_size=len(points))
        x = self.out(self.stages(self.stem(x)))
        dense = sparse.to_dense(x)  # B C Z Y X
        return dense.flatten(1, 2)  # B C*Z Y X


class ConvNormAct(nn.Module):
    """A sparse convolution, BatchNorm over its voxels, ReLU."""

    def __init__(self, conv: nn.Module, channels: int) -> None:
        super().__init__()
        self.conv = conv
        self.norm = sparse.SparseBatchNorm(channels, **BATCH_NORM)

    def forward(self, x):
        return sparse.apply_to_features(self.conv(x), lambda features: torch.relu(self.norm(features)))


class ResidualBlock(nn.Module):
    """Two submanifold convolutions with a shortcut; the voxels stay the same."""

    def __init__(self, channels: int, *, key: str) -> None:
        super().__init__()
        self.first = ConvNormAct(sparse.submanifold_conv(channels, channels, kernel=3, key=key), channels)
        self.second = sparse.submanifold_conv(channels, channels, kernel=3, key=key)
        self.norm = sparse.SparseBatchNorm(channels, **BATCH_NORM)

    def forward(self, x):
        y = self.second(self.first(x))
        return sparse.apply_to_features(y, lambda features: torch.relu(self.norm(features) + x.features))
