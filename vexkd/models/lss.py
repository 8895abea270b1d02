"""Lift-splat view transform with a LiDAR depth image (BEVFusion's DepthLSSTransform): image features -> camera BEV map.

B batch, N cameras, D depth bins, H W feature map, C channels, Y X BEV. All geometry is float32, whatever the precision of
the network. Frames: image (augmented) -> image -> camera -> LiDAR -> LiDAR (augmented).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vexkd.batch import Batch
from vexkd.models.bev_neck import conv_norm_act
from vexkd.ops.bev_pool import lift_pool


class LiftSplat(nn.Module):
    """Camera features (B, N, C_in, H, W) to a BEV map (B, channels, Y, X) at `cell` metres.

    depth: (first, last, step) of the bins in metres. The map is pooled at `step` metres and brought to `cell` by a strided
    convolution. `depth_channels`: widths of the three convolutions over the depth image that the LiDAR points make.
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
        depth_channels: Sequence[int],
    ) -> None:
        super().__init__()
        self.bounds, self.z, self.step = tuple(bounds), tuple(z), step
        self.size = (round((bounds[4] - bounds[1]) / step), round((bounds[3] - bounds[0]) / step))
        self.register_buffer("bins", torch.arange(*depth, dtype=torch.float32), persistent=False)  # D
        self.channels, self.stride = channels, stride
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
        ratio = round(cell / step)
        self.down = nn.Sequential(
            conv_norm_act(channels, channels),
            conv_norm_act(channels, channels, stride=ratio),
            conv_norm_act(channels, channels),
        )
        self.out_channels = channels

    def forward(self, features: Tensor, batch: Batch) -> Tensor:
        """features (B, N, C_in, H, W) of the images in `batch` -> (B, channels, Y, X)."""
        image_size = tuple(batch.images.shape[-2:])
        with torch.autocast(features.device.type, enabled=False):
            sparse_depth = depth_image(batch, image_size)  # B N 1 H_image W_image
            cells = self.cells(batch, features.shape[-2:], image_size)  # B N D H W
        guidance = self.depth_image(sparse_depth.flatten(0, 1))  # BN C H W
        raw = self.depth_net(torch.cat([features.flatten(0, 1), guidance], dim=1)).float()
        raw = raw.unflatten(0, features.shape[:2])  # B N D+C H W
        depth, context = raw.split([len(self.bins), self.channels], dim=2)
        return self.down(lift_pool(depth.softmax(dim=2), context, cells, self.size))

    @torch.no_grad()
    def cells(self, batch: Batch, shape: Sequence[int], image_size: Sequence[int]) -> Tensor:
        """BEV cell y * X + x into which each frustum point falls, -1 outside: (B, N, D, H, W) int64."""
        points = unproject(batch, frustum(self.bins, shape, image_size))  # B N D H W 3
        x = torch.floor((points[..., 0] - self.bounds[0]) / self.step).long()
        y = torch.floor((points[..., 1] - self.bounds[1]) / self.step).long()
        rows, columns = self.size
        inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
        inside &= (points[..., 2] >= self.z[0]) & (points[..., 2] < self.z[1])
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
def depth_image(batch: Batch, image_size: tuple[int, int]) -> Tensor:
    """Depth in metres of the nearest LiDAR point per pixel, 0 where there is none: (B, N, 1, H, W)."""
    height, width = image_size
    images = []
    for sample in range(len(batch)):
        pixels, depth = project(batch, sample)
        column, row = pixels.round().long().unbind(-1)  # N P
        seen = (depth > 0.1) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        cameras = torch.arange(len(depth), device=depth.device)[:, None].expand_as(depth)
        index = (cameras * height + row) * width + column
        image = torch.full((len(depth) * height * width,), torch.inf, device=depth.device)
        image.scatter_reduce_(0, index[seen], depth[seen], reduce="amin")
        images.append(torch.where(image.isinf(), 0.0, image).view(-1, 1, height, width))
    return torch.stack(images)
