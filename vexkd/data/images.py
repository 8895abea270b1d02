"""Camera images: decoding, resize / crop / flip / rotate with its exact matrix, normalisation.

Letters: H W image. Pixel coordinates (u, v) have whole numbers at pixel centres (OpenCV's convention, nuScenes'
calibration and the devkit's drawings): the corner of an image is (-0.5, -0.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vexkd.errors import InputError

# ImageNet statistics of RGB images in 0..255.
MEAN = np.array([123.675, 116.28, 103.53], dtype=np.float32)
STD = np.array([58.395, 57.12, 57.375], dtype=np.float32)


@dataclass(frozen=True)
class ImageDraw:
    """What to do with one image, in this order.

    resize: factor relative to the original. across: place of the crop in the spare width (0 left, 1 right). bottom:
    fraction of the resized height cut off below. flip: horizontally. rotation: radians, counter-clockwise as seen.
    """

    resize: float
    across: float = 0.5
    bottom: float = 0.0
    flip: bool = False
    rotation: float = 0.0


def read_image(path: Path | str, size: tuple[int, int] | None = None) -> Image.Image:
    """A fully decoded RGB image; `size` is the (width, height) that the tables promise.

    Raises InputError that names the file if it is missing, cut, undecodable or of another size.
    """
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"image {path} cannot be decoded ({error}): download it again.") from None
    if size is not None and image.size != tuple(size):
        raise InputError(
            f"image {path} is {image.width}x{image.height} instead of {size[0]}x{size[1]}: download it again."
        )
    return image


def augment(image: Image.Image, draw: ImageDraw, size: tuple[int, int]) -> tuple[Image.Image, np.ndarray]:
    """Resize, crop to `size` (H, W), flip and rotate; what the crop finds outside the image is black.

    Returns the image and augmented_from_image (3, 3) float64 for homogeneous pixels (u, v, 1).
    """
    height, width = size
    resized = max(1, int(image.width * draw.resize)), max(1, int(image.height * draw.resize))
    left = int(max(0, resized[0] - width) * draw.across)
    top = int((1 - draw.bottom) * resized[1]) - height
    matrix = _shift(-left, -top) @ _resize(resized[0] / image.width, resized[1] / image.height)
    image = _resize_and_crop(image, resized, left, top, width, height)
    if draw.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        matrix = np.array([[-1.0, 0, width - 1], [0, 1, 0], [0, 0, 1]]) @ matrix
    if draw.rotation:
        image = image.rotate(np.rad2deg(draw.rotation), resample=Image.Resampling.BILINEAR)
        matrix = _rotate(draw.rotation, (width - 1) / 2, (height - 1) / 2) @ matrix
    return image, matrix


def normalise(image: Image.Image) -> np.ndarray:
    """RGB image -> float32 (3, H, W) with ImageNet's mean 0 and deviation 1."""
    pixels = np.asarray(image)  # H W 3
    normal = np.empty((3, *pixels.shape[:2]), dtype=np.float32)  # 3 H W
    for channel in range(3):
        np.subtract(pixels[..., channel], MEAN[channel], out=normal[channel])
        normal[channel] /= STD[channel]
    return normal


def _resize_and_crop(
    image: Image.Image, resized: tuple[int, int], left: int, top: int, width: int, height: int
) -> Image.Image:
    """The window (left, top, width, height) of the resized image; only the part that lies inside is computed."""
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + width, resized[0]), min(top + height, resized[1])
    canvas = Image.new("RGB", (width, height))
    if x1 <= x0 or y1 <= y0:
        return canvas
    sx, sy = image.width / resized[0], image.height / resized[1]
    box = (x0 * sx, y0 * sy, min(x1 * sx, image.width), min(y1 * sy, image.height))
    part = image.resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC, box=box)
    if part.size == (width, height):
        return part
    canvas.paste(part, (x0 - left, y0 - top))
    return canvas


def _resize(x: float, y: float) -> np.ndarray:
    """Scaling about the image's corner (-0.5, -0.5), which is what resampling does."""
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1.0]])


def _shift(x: float, y: float) -> np.ndarray:
    """Translation in pixels."""
    return np.array([[1.0, 0, x], [0, 1.0, y], [0, 0, 1.0]])


def _rotate(angle: float, x: float, y: float) -> np.ndarray:
    """Counter-clockwise rotation as seen (v points down) about (x, y)."""
    c, s = np.cos(angle), np.sin(angle)
    return _shift(x, y) @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1.0]]) @ _shift(-x, -y)
