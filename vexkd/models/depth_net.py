"""BEVDepth's depth network: image features and the cameras' numbers -> depth logits and context features.

B batch, N cameras, C channels, D depth bins, H W feature map. As in BEVDet's dev2.1, without the deformable convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vexkd.batch import Batch
from vexkd.models.bev_neck import BasicBlock
from vexkd.models.blocks import conv_norm_act

# Of each camera: focal lengths and principal point, two rows of the image augmentation, five entries of the BEV
# augmentation, three rows of its pose.
CAMERA_NUMBERS = 27
# Dilations of ASPP's 3x3 convolutions (DeepLab v3 at stride 16) and its dropout.
DILATIONS = (6, 12, 18)
DROPOUT = 0.5


class DepthNet(nn.Module):
    """Features (BN, C, H, W) and camera numbers (BN, 27) -> (BN, bins + context, H, W): logits, then context.

    aspp_channels: width of each of the five ASPP branches.
    """

    def __init__(self, *, channels: int, bins: int, context: int, aspp_channels: int) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
        self.camera_norm = nn.BatchNorm1d(CAMERA_NUMBERS)
        self.context_gate, self.depth_gate = CameraGate(channels), CameraGate(channels)
        self.context = nn.Conv2d(channels, context, 1)
        self.depth = nn.Sequential(
            *(BasicBlock(channels, channels) for _ in range(3)),
            Aspp(channels, aspp_channels),
            nn.Conv2d(channels, bins, 1),
        )

    def forward(self, features: Tensor, cameras: Tensor) -> Tensor:
        x, cameras = self.reduce(features), self.camera_norm(cameras)
        context = self.context(self.context_gate(x, cameras))
        return torch.cat([self.depth(self.depth_gate(x, cameras)), context], dim=1)  # BN D+C H W


class CameraGate(nn.Module):
    """Squeeze-and-excite whose squeeze is the camera: the channels are weighted by what an MLP makes of its numbers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(CAMERA_NUMBERS, channels), nn.ReLU(), nn.Linear(channels, channels))
        self.gate = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, cameras: Tensor) -> Tensor:
        return x * self.gate(self.mlp(cameras)[..., None, None]).sigmoid()


class Aspp(nn.Module):
    """Atrous spatial pyramid: a 1x1, three dilated 3x3 and a global branch, concatenated, brought back by a 1x1."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.point = conv_norm_act(channels, width, kernel=1)
        self.dilated = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            )
            for dilation in DILATIONS
        )
        self.whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv_norm_act(channels, width, kernel=1))
        self.out = nn.Sequential(conv_norm_act(5 * width, channels, kernel=1), nn.Dropout(DROPOUT))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        whole = self.whole(x).expand(-1, -1, *x.shape[-2:])
        return self.out(torch.cat([self.point(x), *(branch(x) for branch in self.dilated), whole], dim=1))


def camera_numbers(batch: Batch) -> Tensor:
    """What the depth net is told of each camera: (B, N, 27) float32, in the published order.

    The pose is that of the camera in the LiDAR frame, where the BEV map is; the published code has both in the ego frame.
    """
    intrinsics, image = batch.intrinsics.float(), batch.image_augment.float()
    bev = batch.lidar_augment.float()[:, None].expand(-1, intrinsics.shape[1], -1, -1)  # B N 4 4
    lidar_from_camera = torch.linalg.inv(batch.camera_from_lidar.float())
    parts = [
        intrinsics[..., 0, 0:1],
        intrinsics[..., 1, 1:2],
        intrinsics[..., :2, 2],
        image[..., :2, :].flatten(-2),
        bev[..., :2, :2].flatten(-2),
        bev[..., 2, 2:3],
        lidar_from_camera[..., :3, :].flatten(-2),
    ]
    return torch.cat(parts, dim=-1)
