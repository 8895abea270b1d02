"""Hard voxelization with the mean of the points as voxel feature (mmdetection3d's HardSimpleVFE).

Dimensions: B batch, P points, F point features, V voxels; a grid is Z Y X, a range x0 y0 z0 x1 y1 z1 in metres.
"""

import math

import torch
from torch import Tensor

from vexkd.errors import InputError


def grid_size(range: tuple[float, ...], voxel: tuple[float, ...]) -> tuple[int, int, int]:
    """Number of voxels (Z, Y, X) of a range; a range that is not a whole number of voxels is refused."""
    cells = []
    for axis, name in enumerate("xyz"):
        length = (range[axis + 3] - range[axis]) / voxel[axis]
        if round(length) < 1 or abs(length - round(length)) > 1e-3:
            raise InputError(
                f"range {tuple(range)} holds {length:.4f} voxels of {voxel[axis]} m along {name}: "
                "make it a whole number, at least 1."
            )
        cells.append(round(length))
    return cells[2], cells[1], cells[0]


def voxelize(
    points: list[Tensor],
    *,
    range: tuple[float, ...],
    voxel: tuple[float, ...],
    max_points: int,
    max_voxels: int,
) -> tuple[Tensor, Tensor]:
    """Mean feature of each occupied voxel, and where it is.

    points: per sample (P, F), the first three features being x, y, z in metres. Points outside the range are dropped.
    A voxel averages its first `max_points` points; a sample keeps the `max_voxels` voxels whose first point comes
    first.
    Returns features (V, F) and coordinates (V, 4) int32 as (batch, z, y, x), in ascending order of coordinates.
    No atomic sums: the result is the same bits on every run, on the GPU too.
    """
    flat = torch.cat(points)  # P F
    key = _voxel_keys(points, range=range, voxel=voxel)
    kept = (key >= 0).nonzero().squeeze(1)
    sorted_key, order = torch.sort(key[kept], stable=True)
    order = kept[order]
    keys, inverse, counts = torch.unique_consecutive(sorted_key, return_inverse=True, return_counts=True)  # V
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(order), device=flat.device) - starts[inverse]
    width = min(max_points, int(counts.max()) if len(counts) else 1)
    first = rank < width
    padded = flat.new_zeros(len(keys), width, flat.shape[1])  # V max_points F
    padded = padded.index_put((inverse[first], rank[first]), flat[order[first]])
    features = padded.sum(1) / counts.clamp(max=width).unsqueeze(1)  # V F
    size = grid_size(range, voxel)
    chosen = _earliest(order[starts], keys // math.prod(size), samples=len(points), limit=max_voxels)
    return features[chosen], _coordinates(keys[chosen], size)


def _voxel_keys(points: list[Tensor], *, range: tuple[float, ...], voxel: tuple[float, ...]) -> Tensor:
    """Linear voxel number of each point over (batch, z, y, x), -1 outside; in float64, so every device floors alike."""
    size = grid_size(range, voxel)
    flat = torch.cat(points)[:, :3].detach().double()
    low = flat.new_tensor(range[:3])
    index = ((flat - low) / flat.new_tensor(voxel)).floor()  # P 3 as x y z
    inside = ((index >= 0) & (index < flat.new_tensor(size[::-1]))).all(1)
    x, y, z = index.where(inside.unsqueeze(1), 0.0).long().unbind(1)
    lengths = torch.tensor([len(sample) for sample in points], device=flat.device)
    batch = torch.repeat_interleave(torch.arange(len(points), device=flat.device), lengths)
    return torch.where(inside, ((batch * size[0] + z) * size[1] + y) * size[2] + x, -1)


def _earliest(first_point: Tensor, batch: Tensor, *, samples: int, limit: int) -> Tensor:
    """Indices, ascending, of the `limit` voxels of each sample whose first point has the lowest number."""
    by_age = torch.argsort(first_point)  # also groups the samples, since point numbers run through the batch
    per_sample = torch.bincount(batch, minlength=samples)
    rank = torch.arange(len(batch), device=batch.device) - (per_sample.cumsum(0) - per_sample)[batch[by_age]]
    return by_age[rank < limit].sort().values


def _coordinates(key: Tensor, size: tuple[int, int, int]) -> Tensor:
    zyx = [key // (size[1] * size[2]) % size[0], key // size[2] % size[1], key % size[2]]
    return torch.stack([key // math.prod(size), *zyx], 1).int()  # V 4


def voxelize_plain(
    points: list[Tensor],
    *,
    range: tuple[float, ...],
    voxel: tuple[float, ...],
    max_points: int,
    max_voxels: int,
) -> tuple[Tensor, Tensor]:
    """`voxelize` as a loop over points and a dictionary of voxels: its definition, for tests and the benchmark."""
    size = grid_size(range, voxel)
    features, coordinates = [], []
    for batch, sample in enumerate(points):
        voxels: dict[tuple[int, ...], list[Tensor]] = {}
        for point in sample:
            offsets = [(point[a].item() - range[a]) / voxel[a] for a in (2, 1, 0)]
            if not all(0 <= offset < n for offset, n in zip(offsets, size, strict=True)):
                continue
            cell = tuple(math.floor(offset) for offset in offsets)
            if cell in voxels or len(voxels) < max_voxels:
                members = voxels.setdefault(cell, [])
                if len(members) < max_points:
                    members.append(point)
        features += [torch.stack(voxels[cell]).mean(0) for cell in sorted(voxels)]
        coordinates += [(batch, *cell) for cell in sorted(voxels)]
    empty = points[0].new_zeros(0, points[0].shape[1])
    return (torch.stack(features) if features else empty), torch.tensor(coordinates, dtype=torch.int32).reshape(-1, 4)
