"""Cameras over time (BEVDet4D-Longterm): BEV maps of the current and of past keyframes, all in the current LiDAR frame.

B batch, F frames (the current one first), N cameras, C channels, Y X BEV. A sample carries its own history and nothing is
remembered from one sample to the next: results depend neither on the order of samples nor on the number of processes.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from vexkd.batch import Batch
from vexkd.models.bev_neck import BevResNet
from vexkd.models.targets import Counts, Targets


class TemporalCameraBranch(nn.Module):
    """Images (B, F N, 3, H, W), frame by frame, to a BEV map (B, F channels, Y, X).

    The matrices of a past frame lead from the current LiDAR frame straight into its cameras, so the view transform puts
    every frame into the current one ("align before view transform", the best of the published logs). Past frames run
    without gradients, and are zero in the epochs before `start_epoch` (from 0). `view`: a `LiftSplat` of `channels`.
    """

    def __init__(self, *, encoder: nn.Module, view: nn.Module, frames: int, channels: int, start_epoch: int) -> None:
        super().__init__()
        self.encoder, self.view = encoder, view
        self.frames, self.start_epoch = frames, start_epoch
        self.pre_process = BevResNet(in_channels=channels, channels=[channels], layers=[2], strides=[1])
        self.remembers = True
        self.learns_depth = view.learns_depth
        self.out_channels = frames * channels

    def begin_epoch(self, epoch: int) -> None:
        """Training tells which epoch begins, counted from 0."""
        self.remembers = epoch >= self.start_epoch

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The map, and in training what `auxiliary_loss` reads, of the current frame alone."""
        current = frame_of(batch, 0, self.frames)
        cameras = self.view.camera_numbers(current)
        bev, auxiliary = self._lift(current, cameras)
        maps = [bev]
        for index in range(1, self.frames):
            if self.remembers:
                with torch.no_grad():
                    maps.append(self._lift(frame_of(batch, index, self.frames), cameras)[0])
            else:
                maps.append(torch.zeros_like(bev))
        return torch.cat(maps, dim=1), auxiliary if self.training else {}

    def targets(self, batch: Batch) -> Targets:
        """What the view's own loss reads, of the current frame."""
        return self.view.targets(frame_of(batch, 0, self.frames))

    def auxiliary_loss(self, auxiliary: dict[str, Tensor], targets: Targets, counts: Counts) -> dict[str, Tensor]:
        """The view's own loss, on the current frame."""
        return self.view.auxiliary_loss(auxiliary, targets, counts)

    def _lift(self, frame: Batch, cameras: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """One frame's map (B, C, Y, X). Of every frame the depth net is told the current cameras, as published."""
        bev, auxiliary = self.view.forward_with_auxiliary(self.encoder(frame.images), frame, cameras=cameras)
        return self.pre_process(bev)[-1], auxiliary


def frame_of(batch: Batch, index: int, frames: int) -> Batch:
    """The batch with the images and matrices of one of its `frames` alone; 0 is the current one."""
    count = batch.images.shape[1] // frames
    window = slice(index * count, (index + 1) * count)
    names = ("images", "intrinsics", "camera_from_lidar", "image_augment")
    return replace(batch, **{name: getattr(batch, name)[:, window] for name in names})
