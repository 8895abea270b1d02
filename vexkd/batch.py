"""What passes between data, models, distillation and evaluation.

Letters: B samples, N cameras, H W image, P points, M boxes, C channels, Y X BEV rows and columns.
Points, boxes and labels live in the LiDAR frame *after* augmentation; the matrices that undo the augmentation travel along.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass
class Sample:
    """One keyframe as the dataset gives it, on the CPU.

    token: nuScenes sample token.
    points (P, 5) float32: x, y, z, intensity (0..255), time lag in seconds (0 for the keyframe), or None without LiDAR.
    images (N, 3, H, W) float32, RGB, normalised; None without cameras.
    intrinsics (N, 3, 3): image_from_camera of the original image; None without cameras.
    camera_from_lidar (N, 4, 4): from the un-augmented LiDAR frame at the keyframe's time; None without cameras.
    image_augment (N, 3, 3): augmented image from original image, homogeneous pixels; None without cameras.
    lidar_augment (4, 4): augmented LiDAR frame from LiDAR frame.
    global_from_lidar (4, 4) float64: un-augmented LiDAR frame to the map.
    boxes (M, 9) float32 (see `vexkd.boxes`; velocity may be NaN), labels (M,) int64 index into `boxes.CLASSES`.
    teacher_images (N, 3, H', W'), teacher_image_augment (N, 3, 3): the keyframe's images as the teacher sees them, where it
    sees them otherwise than the student. With a history the images of F frames follow one another, N is then F times the
    number of cameras, and `camera_from_lidar` leads from the keyframe's LiDAR frame to each camera at its own time.
    maps (K, Y', X') uint8: 1 where a map class is, in the grid of map segmentation; None for runs that need none.
    """

    token: str
    points: Tensor | None
    images: Tensor | None
    intrinsics: Tensor | None
    camera_from_lidar: Tensor | None
    image_augment: Tensor | None
    lidar_augment: Tensor
    global_from_lidar: Tensor
    boxes: Tensor
    labels: Tensor
    maps: Tensor | None = None
    teacher_images: Tensor | None = None
    teacher_image_augment: Tensor | None = None


_STACKED = {"maps", "teacher_images", "teacher_image_augment", "images", "intrinsics", "camera_from_lidar"}
_STACKED |= {"image_augment", "lidar_augment", "global_from_lidar"}


@dataclass
class Batch:
    """B samples; fields as in `Sample`, stacked (leading B) where shapes agree, lists of B where they don't."""

    token: list[str]
    points: list[Tensor] | None
    images: Tensor | None  # B N 3 H W
    intrinsics: Tensor | None  # B N 3 3
    camera_from_lidar: Tensor | None  # B N 4 4
    image_augment: Tensor | None  # B N 3 3
    lidar_augment: Tensor  # B 4 4
    global_from_lidar: Tensor  # B 4 4
    boxes: list[Tensor]
    labels: list[Tensor]
    maps: Tensor | None = None  # B K Y' X'
    teacher_images: Tensor | None = None  # B N 3 H' W'
    teacher_image_augment: Tensor | None = None  # B N 3 3

    def __len__(self) -> int:
        return len(self.token)

    def for_teacher(self) -> Batch:
        """The batch as the teacher sees it: the keyframe alone, in its own images."""
        if self.teacher_images is None:
            return self
        cameras = self.teacher_images.shape[1]
        return replace(
            self,
            images=self.teacher_images,
            image_augment=self.teacher_image_augment,
            intrinsics=self.intrinsics[:, :cameras],
            camera_from_lidar=self.camera_from_lidar[:, :cameras],
            teacher_images=None,
            teacher_image_augment=None,
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(**{f.name: _to(getattr(self, f.name), device) for f in fields(self)})


def collate(samples: list[Sample]) -> Batch:
    """Samples -> one batch; None where the samples hold None."""
    columns: dict[str, Any] = {f.name: [getattr(s, f.name) for s in samples] for f in fields(Sample)}
    for name, column in columns.items():
        if column[0] is None:
            columns[name] = None
        elif name in _STACKED:
            columns[name] = torch.stack(column)
    return Batch(**columns)


def _to(value: Any, device: torch.device | str) -> Any:
    """Tensors, and lists of tensors, to the device; anything else unchanged."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, list):
        return [_to(v, device) for v in value]
    return value


@dataclass
class Output:
    """What a `BEVModel` returns.

    features: named BEV maps (B, C, Y, X): `lidar_bev`, `camera_bev` (where there is such a sensor), `low` (before the BEV
    encoder), `high` (after it). predictions: the head's raw output, which only that head reads. auxiliary: what the camera
    branch's own loss reads, if it has one.
    """

    features: dict[str, Tensor] = field(default_factory=dict)
    predictions: Any = None
    auxiliary: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Detections:
    """Decoded boxes of one sample in the LiDAR frame of the batch: boxes (K, 9), scores (K,), labels (K,)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
