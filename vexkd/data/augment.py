"""Random draws of BEVFusion's augmentations: of the scene in BEV, and of the images.

A draw is a matrix or a small record; applying it is the business of `boxes.move`, `geometry.move` and `images.augment`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vexkd.data.images import ImageDraw


@dataclass(frozen=True)
class BevAugmentation:
    """Ranges of the BEV augmentation.

    rotation: about z, uniform in +-rotation (radians). scale: uniform in (low, high). translation: standard deviation
    along each of x, y, z (metres). flip_x, flip_y: probability that x (y) changes its sign.
    """

    rotation: float = np.pi / 4
    scale: tuple[float, float] = (0.9, 1.1)
    translation: float = 0.5
    flip_x: float = 0.5
    flip_y: float = 0.5

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """lidar_augment (4, 4): augmented LiDAR frame from LiDAR frame; rotates, scales, moves, flips in this order."""
        angle = rng.uniform(-self.rotation, self.rotation)
        scale = rng.uniform(*self.scale)
        shift = rng.normal(0.0, self.translation, 3)
        flips = np.where(rng.random(2) < [self.flip_x, self.flip_y], -1.0, 1.0)
        matrix = np.eye(4)
        c, s = np.cos(angle), np.sin(angle)
        matrix[:3, :3] = scale * np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        matrix[:3, 3] = shift
        return np.diag([*flips, 1.0, 1.0]) @ matrix


@dataclass(frozen=True)
class ImageAugmentation:
    """Ranges of the image augmentation.

    resize: factor relative to the original image, uniform in (low, high). bottom: fraction of the resized image cut
    off at the bottom, uniform in (low, high). rotation: uniform in +-rotation (radians). flip: probability of a
    horizontal flip.
    """

    resize: tuple[float, float] = (0.38, 0.55)
    bottom: tuple[float, float] = (0.0, 0.0)
    rotation: float = np.deg2rad(5.4)
    flip: float = 0.5

    def draw(self, rng: np.random.Generator) -> ImageDraw:
        """The draw for one image; the crop lies anywhere across, at the bottom in height."""
        return ImageDraw(
            resize=rng.uniform(*self.resize),
            across=rng.uniform(),
            bottom=rng.uniform(*self.bottom),
            flip=bool(rng.random() < self.flip),
            rotation=rng.uniform(-self.rotation, self.rotation),
        )
