"""Random draws of BEVFusion's augmentations, of the scene in BEV and of the images, and of BEVFormer's, of pixels.

A draw is a matrix or a small record; applying it is the business of `boxes.move`, `geometry.move` and `images.augment`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vexkd.data.images import Colours, ImageDraw, grid_mask


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
class ColourAugmentation:
    """Ranges of the photometric distortion (mmdetection's, which BEVFormer uses); each part acts on half of the images.

    brightness: uniform in +-brightness, of 255. contrast, saturation: factors, uniform in (low, high). hue: uniform in
    +-hue degrees. swap: probability that the colour channels change places.
    """

    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 18.0
    swap: float = 0.5

    def draw(self, rng: np.random.Generator) -> Colours:
        """The draw for one image; every number is drawn, so that what is used does not shift the next."""
        brightness = rng.uniform(-self.brightness, self.brightness)
        contrast, saturation = rng.uniform(*self.contrast), rng.uniform(*self.saturation)
        hue, channels = rng.uniform(-self.hue, self.hue), rng.permutation(3)
        first, *used = rng.random(5) < 0.5
        return Colours(
            brightness=brightness if used[0] else 0.0,
            contrast=contrast if used[1] else 1.0,
            contrast_first=bool(first),
            saturation=saturation if used[2] else 1.0,
            hue=hue if used[3] else 0.0,
            channels=tuple(int(c) for c in channels) if rng.random() < self.swap else (0, 1, 2),
        )


@dataclass(frozen=True)
class GridMaskAugmentation:
    """GridMask as BEVFormer uses it: `probability` of a mask, and the `ratio` of its stripes that stay."""

    probability: float = 0.7
    ratio: float = 0.5


@dataclass(frozen=True)
class ImageAugmentation:
    """Ranges of the image augmentation.

    resize: factor relative to the original image, uniform in (low, high). bottom: fraction of the resized image cut
    off at the bottom, uniform in (low, high). rotation: uniform in +-rotation (radians). flip: probability of a
    horizontal flip. colours and mask: see there; None does not draw.
    """

    resize: tuple[float, float] = (0.38, 0.55)
    bottom: tuple[float, float] = (0.0, 0.0)
    rotation: float = np.deg2rad(5.4)
    flip: float = 0.5
    colours: ColourAugmentation | None = None
    mask: GridMaskAugmentation | None = None

    def draw(self, rng: np.random.Generator) -> ImageDraw:
        """The draw for one image; the crop lies anywhere across, at the bottom in height."""
        return ImageDraw(
            resize=rng.uniform(*self.resize),
            across=rng.uniform(),
            bottom=rng.uniform(*self.bottom),
            flip=bool(rng.random() < self.flip),
            rotation=rng.uniform(-self.rotation, self.rotation),
            colours=self.colours.draw(rng) if self.colours else None,
        )

    def draw_mask(self, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray | None:
        """A mask (H, W) to multiply all normalised images of a sample with, or None: no mask this time."""
        if self.mask is None or rng.random() >= self.mask.probability:
            return None
        period = int(rng.integers(2, size[0]))
        row, column = (int(start) for start in rng.integers(period, size=2))
        return grid_mask(size, period, row, column, self.mask.ratio)
