"""Lift-splat view transforms: image features, spread along their depth distributions, to a camera BEV map.

B batch, N cameras, D depth bins, H W feature map, C channels, Y X BEV, P points. All geometry is float32, whatever the
precision of the network. Frames: image (augmented) -> image -> camera -> LiDAR -> LiDAR (augmented).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vexkd.batch import Batch
from vexkd.errors import InputError
from vexkd.models import depth_net as depth_nets
from vexkd.models.blocks import conv_norm_act
from vexkd.models.targets import Counts, Targets
from vexkd.ops.bev_pool import lift_pool


class LiftSplat(nn.Module):
    """Camera features (B, N, C_in, H, W) at `stride` pixels to a BEV map (B, channels, Y, X) at `cell` metres.

    depth: (first, last, step) of the bins in metres. The map is pooled at `step` metres and brought to `cell` by a strided
    convolution. depth_net: where the depth distribution comes from.
    - lidar: image features and a depth image of the LiDAR points (BEVFusion's DepthLSSTransform); `depth_channels` are the
      widths of the three convolutions over the depth image.
    - plain: a 1x1 convolution of the image features (BEVDet).
    - bevdepth: image features and the cameras' numbers (BEVDepth), taught by the LiDAR's depth with weight `depth_weight`;
      `aspp_channels` is the width of its ASPP branches. Points are read in training only.
    border: which points below the lowest corner of the lifted space still count; see `cells`.
    Without LiDAR no convolution follows the pooling where `step` is `cell` already, as published.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int,
        bounds: Sequence[float],
        z: Sequence[float],
        depth: Sequence[float],
        step: float,
        cell: float,
        stride: int,
        depth_net: Literal["lidar", "plain", "bevdepth"] = "lidar",
        depth_channels: Sequence[int] | None = None,
        aspp_channels: int = 96,
        depth_weight: float = 3.0,
        border: Literal["exact", "published"] = "exact",
    ) -> None:
        super().__init__()
        self.truncates = border == "published"
        self.bounds, self.z, self.step, self.depth_range = tuple(bounds), tuple(z), step, tuple(depth)
        self.size = (round((bounds[4] - bounds[1]) / step), round((bounds[3] - bounds[0]) / step))
        self.register_buffer("bins", torch.arange(*depth, dtype=torch.float32), persistent=False)  # D
        self.channels, self.stride, self.kind, self.depth_weight = channels, stride, depth_net, depth_weight
        if depth_net == "lidar":
            first, second, third = depth_channels
            self.depth_image = nn.Sequential(
                conv_norm_act(1, first, kernel=1),
                conv_norm_act(first, second, kernel=5, stride=min(4, stride)),
                conv_norm_act(second, third, kernel=5, stride=max(1, stride // 4)),
            )
            self.depth_net = nn.Sequential(
                conv_norm_act(in_channels + third, in_channels),
                conv_norm_act(in_channels, in_channels),
                nn.Conv2d(in_channels, len(self.bins) + channels, 1),
            )
        elif depth_net == "plain":
            self.depth_net = nn.Conv2d(in_channels, len(self.bins) + channels, 1)
        else:
            self.depth_net = depth_nets.DepthNet(
                channels=in_channels, bins=len(self.bins), context=channels, aspp_channels=aspp_channels
            )
        ratio = round(cell / step)
        self.down = nn.Identity()
        if depth_net == "lidar" or ratio > 1:
            self.down = nn.Sequential(
                conv_norm_act(channels, channels),
                conv_norm_act(channels, channels, stride=ratio),
                conv_norm_act(channels, channels),
            )
        self.learns_depth = depth_net == "bevdepth"  # from the LiDAR's, in `auxiliary_loss`
        self.out_channels = channels

    def forward(self, features: Sequence[Tensor], batch: Batch, *, cameras: Tensor | None = None) -> Tensor:
        """The finest of `features`, of the images in `batch` -> (B, channels, Y, X)."""
        return self.forward_with_auxiliary(features, batch, cameras=cameras)[0]

    def forward_with_auxiliary(
        self, features: Sequence[Tensor], batch: Batch, *, cameras: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The map, and for `auxiliary_loss` the depth logits (B, N, D, H, W) where LiDAR teaches them.

        cameras (B, N, 27): what BEVDepth's net is told instead of the batch's own camera numbers.
        """
        finest = features[0]  # B N C H W
        with torch.autocast(finest.device.type, enabled=False):
            cells = self.cells(batch, finest.shape[-2:], tuple(batch.images.shape[-2:]))  # B N D H W
        raw = self._depth_and_context(finest.flatten(0, 1), batch, cameras).float()  # BN D+C H W
        raw = raw.unflatten(0, finest.shape[:2])
        logits, context = raw.split([len(self.bins), self.channels], dim=2)
        bev = self.down(lift_pool(logits.softmax(dim=2), context, cells, self.size))
        return bev, {"depth": logits} if self.learns_depth else {}

    def _depth_and_context(self, features: Tensor, batch: Batch, cameras: Tensor | None) -> Tensor:
        """Depth logits and context (BN, D + C, H, W) of features (BN, C, H, W)."""
        if self.kind == "plain":
            return self.depth_net(features)
        if self.kind == "bevdepth":
            cameras = self.camera_numbers(batch) if cameras is None else cameras
            return self.depth_net(features, cameras.flatten(0, 1))
        with torch.autocast(features.device.type, enabled=False):
            sparse_depth = depth_image(batch, tuple(batch.images.shape[-2:]))  # B N 1 H_image W_image
            guidance = self.depth_image(sparse_depth.flatten(0, 1))  # bfloat16 would round depths to half a bin
        return self.depth_net(torch.cat([features, guidance], dim=1))

    @torch.no_grad()
    def camera_numbers(self, batch: Batch) -> Tensor:
        """What the depth net is told of the batch's cameras, (B, N, 27)."""
        return depth_nets.camera_numbers(batch)

    def targets(self, batch: Batch) -> Targets:
        """The LiDAR's depth bin of each feature cell (B, N, H, W), -1 for none; count: `cells` with a depth."""
        bins = depth_targets(batch, self.stride, self.depth_range)
        return Targets(bins, {"cells": (bins >= 0).sum().float()})

    def auxiliary_loss(self, auxiliary: dict[str, Tensor], targets: Targets, counts: Counts) -> dict[str, Tensor]:
        """Binary cross-entropy of the depth distribution with the LiDAR's bin, summed over bins, per cell with a depth."""
        bins = targets.values
        known = bins >= 0  # B N H W
        with torch.autocast(bins.device.type, enabled=False):
            predicted = auxiliary["depth"].float().softmax(dim=2).movedim(2, -1)[known]  # K D
            truth = F.one_hot(bins[known], len(self.bins)).float()
            total = F.binary_cross_entropy(predicted, truth, reduction="sum")
        return {"depth": self.depth_weight * total / counts.share("cells", at_least=1)}

    @torch.no_grad()
    def cells(self, batch: Batch, shape: Sequence[int], image_size: Sequence[int]) -> Tensor:
        """BEV cell y * X + x into which each frustum point falls, -1 outside: (B, N, D, H, W) int64.

        The published code truncates toward zero: what lies up to a cell below the lowest corner falls into the first cell
        along x and y, and along z, where the one cell is the whole range, as deep as the range is high.
        """
        points = unproject(batch, frustum(self.bins, shape, image_size))  # B N D H W 3
        whole = torch.trunc if self.truncates else torch.floor
        x = whole((points[..., 0] - self.bounds[0]) / self.step).long()
        y = whole((points[..., 1] - self.bounds[1]) / self.step).long()
        z, (low, high) = points[..., 2], self.z
        rows, columns = self.size
        inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows) & (z < high)
        inside &= z > low - (high - low) if self.truncates else z >= low
        return torch.where(inside, y * columns + x, -1)


def frustum(bins: Tensor, shape: Sequence[int], image_size: Sequence[int]) -> Tensor:
    """Pixel and depth (u, v, d) of each frustum point (D, H, W, 3).

    As in the published code the feature cells span the image from its first to its last pixel centre.
    """
    v = torch.linspace(0, image_size[0] - 1, shape[0], device=bins.device)
    u = torch.linspace(0, image_size[1] - 1, shape[1], device=bins.device)
    d, v, u = torch.meshgrid(bins, v, u, indexing="ij")
    return torch.stack([u, v, d], dim=-1)


def unproject(batch: Batch, pixels: Tensor) -> Tensor:
    """Pixels with depth (..., 3) as (u, v, d) of the augmented images -> points (B, N, ..., 3), augmented LiDAR frame."""
    flat = pixels.reshape(-1, 3)  # K 3
    ones = torch.ones_like(flat[:, :1])
    image = torch.cat([flat[:, :2], ones], dim=1) @ torch.linalg.inv(batch.image_augment.float()).mT  # B N K 3
    rays = image[..., :2] / image[..., 2:]
    scaled = torch.cat([rays * flat[:, 2:], flat[:, 2:].expand_as(rays[..., :1])], dim=-1)  # u d, v d, d
    camera = scaled @ torch.linalg.inv(batch.intrinsics.float()).mT  # B N K 3
    lidar_from_camera = batch.lidar_augment.float()[:, None] @ torch.linalg.inv(batch.camera_from_lidar.float())
    lidar = camera @ lidar_from_camera[..., :3, :3].mT + lidar_from_camera[..., None, :3, 3]
    return lidar.reshape(*lidar.shape[:2], *pixels.shape[:-1], 3)


def project(batch: Batch, sample: int) -> tuple[Tensor, Tensor]:
    """Points of one sample into its augmented images: pixels (N, P, 2) as (u, v) and depths (N, P) in metres."""
    points = batch.points[sample][:, :3].float()
    undo = torch.linalg.inv(batch.lidar_augment[sample].float())
    camera_from_augmented = batch.camera_from_lidar[sample].float() @ undo  # N 4 4
    camera = points @ camera_from_augmented[:, :3, :3].mT + camera_from_augmented[:, None, :3, 3]  # N P 3
    depth = camera[..., 2]
    homogeneous = camera / depth.clamp(min=1e-3)[..., None] @ batch.intrinsics[sample].float().mT
    pixels = homogeneous @ batch.image_augment[sample].float().mT
    return pixels[..., :2] / pixels[..., 2:], depth


@torch.no_grad()
def depth_image(
    batch: Batch, image_size: tuple[int, int], *, limits: tuple[float, float] = (0.1, math.inf), lag: float = math.inf
) -> Tensor:
    """Depth in metres of the nearest LiDAR point per pixel, 0 where there is none: (B, N, 1, H, W).

    Only points at a depth within `limits` (metres, the upper excluded) and with a time lag of at most `lag` seconds count.
    """
    height, width = image_size
    images = []
    for sample in range(len(batch)):
        pixels, depth = project(batch, sample)
        column, row = pixels.round().long().unbind(-1)  # N P
        visible = (depth >= limits[0]) & (depth < limits[1])
        visible &= (column >= 0) & (column < width) & (row >= 0) & (row < height)
        if lag < math.inf:
            visible &= batch.points[sample][:, 4] <= lag
        cameras = torch.arange(len(depth), device=depth.device)[:, None].expand_as(depth)
        index = (cameras * height + row) * width + column
        image = torch.full((len(depth) * height * width,), torch.inf, device=depth.device)
        image.scatter_reduce_(0, index[visible], depth[visible], reduce="amin")
        images.append(torch.where(image.isinf(), 0.0, image).view(-1, 1, height, width))
    return torch.stack(images)


@torch.no_grad()
def depth_targets(batch: Batch, stride: int, depth: Sequence[float]) -> Tensor:
    """The depth bin of the nearest keyframe point in each cell of `stride` x `stride` pixels: (B, N, H, W), -1 for none.

    depth: (first, last, step) of the bins in metres; points beyond them do not count. Sweeps don't either: the published
    recipe reads the keyframe alone.
    """
    if batch.points is None:
        raise InputError("the depth loss needs LiDAR points, this data set gives none: let it read lidar in training.")
    first, last, step = depth
    with torch.autocast(batch.images.device.type, enabled=False):
        image = depth_image(batch, tuple(batch.images.shape[-2:]), limits=(first, last), lag=0.0).flatten(0, 1)
        nearest = -F.max_pool2d(torch.where(image > 0, -image, -torch.inf), stride, ceil_mode=True)  # BN 1 H W
    count = math.ceil((last - first) / step)
    bins = torch.where(nearest.isinf(), -1.0, ((nearest - first) / step).floor().clamp(max=count - 1)).long()
    return bins.squeeze(1).unflatten(0, batch.images.shape[:2])
