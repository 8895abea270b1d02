"""Sparse 3D convolutions on the occupied voxels: spconv behind a thin layer, and a pure-torch route.

Dimensions: V active voxels, C channels, K kernel cells; grids, kernels and coordinates are in the order (batch) Z Y X.
spconv is imported only where it is used: its import takes seconds.
"""

from __future__ import annotations

import itertools
import logging
import math
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from spconv.pytorch import SparseConvTensor

Triple = tuple[int, int, int]


def _spconv() -> ModuleType:
    if "spconv.pytorch" not in sys.modules:  # its import calls deprecated names of torch, which warns by two ways
        logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            import spconv.pytorch  # noqa: F401
    return sys.modules["spconv.pytorch"]


def _triple(value: int | tuple[int, ...]) -> Triple:
    return (value, value, value) if isinstance(value, int) else tuple(value)


def submanifold_conv(in_channels: int, out_channels: int, *, kernel: int | Triple = 3, key: str) -> SparseConv:
    """Convolution that keeps the set of active voxels. Layers over the same set share `key`, so one rulebook."""
    conv = _spconv().SubMConv3d(in_channels, out_channels, list(_triple(kernel)), bias=False, indice_key=key)
    return SparseConv(conv, kernel=_triple(kernel), stride=(1, 1, 1), padding=None)


def strided_conv(
    in_channels: int, out_channels: int, *, kernel: int | Triple, stride: int | Triple, padding: int | Triple, key: str
) -> SparseConv:
    """Convolution whose output is active wherever its kernel touches an active voxel; no bias."""
    kernel, stride, padding = _triple(kernel), _triple(stride), _triple(padding)
    conv = _spconv().SparseConv3d(
        in_channels, out_channels, list(kernel), list(stride), list(padding), bias=False, indice_key=key
    )
    return SparseConv(conv, kernel=kernel, stride=stride, padding=padding)


class SparseConv(nn.Module):
    """One spconv convolution, made to run on any device and on an empty set of voxels.

    spconv's default algorithm exists only on the GPU, its Native one also on the CPU; both read the same weights
    (out, kz, ky, kx, in), so the choice falls with each call. It knows no bfloat16: half precision is computed as
    float32.
    """

    def __init__(self, conv: nn.Module, *, kernel: Triple, stride: Triple, padding: Triple | None) -> None:
        super().__init__()
        self.conv = conv
        self.kernel, self.stride, self.padding = kernel, stride, padding  # padding None: submanifold
        self.gpu_algorithm = conv.algo

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        features = x.features.float() if x.features.dtype in (torch.float16, torch.bfloat16) else x.features
        if len(features) == 0:
            return self._empty(x, features)
        native = _spconv().ConvAlgo.Native
        self.conv.algo = self.gpu_algorithm if features.is_cuda else native
        with torch.autocast(features.device.type, enabled=False):
            out = self.conv(x.replace_feature(features))
        if self.padding is not None and features.is_cuda and torch.are_deterministic_algorithms_enabled():
            return in_key_order(out)  # the GPU's hash table hands out voxels in an order that changes from run to run
        return out

    def _empty(self, x: SparseConvTensor, features: Tensor) -> SparseConvTensor:
        """No voxel in, none out; the weight still gets a gradient (zero), as distributed training requires."""
        features = features @ self.conv.weight[:, 0, 0, 0, :].t()  # 0 C
        if self.padding is None:
            return x.replace_feature(features)
        shape = output_shape(tuple(x.spatial_shape), kernel=self.kernel, stride=self.stride, padding=self.padding)
        return sparse_tensor(features, x.indices, spatial_shape=shape, batch_size=x.batch_size)

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}, stride={self.stride}, padding={self.padding}"


class SparseBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over the active voxels; with fewer than two of them it uses the running statistics.

    It takes features (V, C): `apply_to_features(x, norm)`. PyTorch would refuse one voxel and, with none,
    turn the running mean into NaN.
    """

    def __init__(self, channels: int, *, eps: float = 1e-3, momentum: float = 0.01) -> None:
        super().__init__(channels, eps=eps, momentum=momentum)

    def forward(self, features: Tensor) -> Tensor:  # V C
        if self.training and len(features) < 2:
            return nn.functional.batch_norm(
                features, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return super().forward(features)


def output_shape(shape: Triple, *, kernel: Triple, stride: Triple, padding: Triple) -> Triple:
    """Grid that a strided convolution makes of a grid, both (Z, Y, X)."""
    return tuple((n + 2 * p - k) // s + 1 for n, k, s, p in zip(shape, kernel, stride, padding, strict=True))


def sparse_tensor(
    features: Tensor, coordinates: Tensor, *, spatial_shape: tuple[int, int, int], batch_size: int
) -> SparseConvTensor:
    """spconv's tensor from features (V, C) and coordinates (V, 4) as (batch, z, y, x)."""
    return _spconv().SparseConvTensor(features, coordinates.int().contiguous(), list(spatial_shape), batch_size)


def apply_to_features(x: SparseConvTensor, fn: Callable[[Tensor], Tensor]) -> SparseConvTensor:
    """The same active voxels with features fn(features): normalisation, activation, a residual sum."""
    return x.replace_feature(fn(x.features))


def to_dense(x: SparseConvTensor) -> Tensor:
    """(B, C, Z, Y, X), zero where no voxel is active."""
    batch, z, y, x_ = x.indices.long().unbind(1)
    dense = x.features.new_zeros(x.batch_size, *x.spatial_shape, x.features.shape[1])  # B Z Y X C
    return dense.index_put((batch, z, y, x_), x.features).permute(0, 4, 1, 2, 3).contiguous()  # B C Z Y X


def in_key_order(x: SparseConvTensor) -> SparseConvTensor:
    """The same voxels in ascending (batch, z, y, x), without the rulebooks made for the old order."""
    order = torch.argsort(_keys(x.indices.long(), tuple(x.spatial_shape)))
    return sparse_tensor(
        x.features[order], x.indices[order], spatial_shape=tuple(x.spatial_shape), batch_size=x.batch_size
    )


def plain_sparse_conv(
    features: Tensor,
    coordinates: Tensor,
    spatial_shape: Triple,
    batch_size: int,
    weight: Tensor,
    *,
    stride: int | Triple = 1,
    padding: int | Triple = 0,
    submanifold: bool = False,
) -> tuple[Tensor, Tensor, Triple]:
    """Either convolution in plain torch: per kernel cell gather, multiply, add.

    features (V, in), coordinates (V, 4), weight (out, kz, ky, kx, in). A submanifold convolution ignores stride and
    padding and keeps the voxels and their order; a strided one returns them in ascending order of coordinates.
    Returns features (V', out), coordinates (V', 4) int32 and the new grid (Z, Y, X).
    """
    kernel = tuple(weight.shape[1:4])
    stride = (1, 1, 1) if submanifold else _triple(stride)
    padding = tuple(k // 2 for k in kernel) if submanifold else _triple(padding)
    shape = spatial_shape if submanifold else output_shape(spatial_shape, kernel=kernel, stride=stride, padding=padding)
    pairs = [  # per kernel cell: the input voxels that reach an output, and the output's key
        _reached(coordinates.long(), cell, stride=stride, padding=padding, shape=shape)
        for cell in itertools.product(*(range(k) for k in kernel))
    ]
    if submanifold:
        keys, order = _keys(coordinates.long(), shape).sort()
    else:
        keys = torch.cat([key for _, key in pairs]).unique()
        order = torch.arange(len(keys), device=keys.device)
    out = features.new_zeros(len(keys), weight.shape[0])  # V' C
    for (source, key), matrix in zip(pairs, weight.flatten(1, 3).unbind(1), strict=True):
        nearest = torch.searchsorted(keys, key).clamp(max=max(len(keys) - 1, 0))
        active = keys[nearest] == key
        out = out.index_add(0, order[nearest[active]], features[source[active]] @ matrix.t())
    return out, (coordinates.int() if submanifold else _from_keys(keys, shape)), shape


def _reached(
    coordinates: Tensor, cell: tuple[int, ...], *, stride: Triple, padding: Triple, shape: Triple
) -> tuple[Tensor, Tensor]:
    """Numbers of the input voxels that kernel cell (kz, ky, kx) carries to an output inside the grid, and its key."""
    shifted = coordinates[:, 1:] + coordinates.new_tensor(padding) - coordinates.new_tensor(cell)
    steps = coordinates.new_tensor(stride)
    target = shifted.div(steps, rounding_mode="floor")
    fits = (target * steps == shifted) & (target >= 0) & (target < coordinates.new_tensor(shape))
    source = fits.all(1).nonzero().squeeze(1)
    return source, _keys(torch.cat([coordinates[source, :1], target[source]], 1), shape)


def _keys(coordinates: Tensor, shape: Triple) -> Tensor:
    batch, z, y, x = coordinates.unbind(1)
    return ((batch * shape[0] + z) * shape[1] + y) * shape[2] + x


def _from_keys(keys: Tensor, shape: Triple) -> Tensor:
    zyx = [keys // (shape[1] * shape[2]) % shape[0], keys // shape[2] % shape[1], keys % shape[2]]
    return torch.stack([keys // math.prod(shape), *zyx], 1).int()
