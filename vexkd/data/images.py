"""Camera images: decoding, resize / crop / flip / rotate with its exact matrix, colours, normalisation, grid masks.

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
_ORIENTATION = 0x0112  # EXIF's tag: 1 is upright


@dataclass(frozen=True)
class Colours:
    """What to do with the colours of one image (mmdetection's photometric distortion), in this order.

    brightness: added, in 0..255. contrast: factor, here if contrast_first, else after the hue. saturation: factor. hue:
    added, in degrees. channels: which of R, G and B stands in each place.
    """

    brightness: float = 0.0
    contrast: float = 1.0
    contrast_first: bool = True
    saturation: float = 1.0
    hue: float = 0.0
    channels: tuple[int, int, int] = (0, 1, 2)


@dataclass(frozen=True)
class ImageDraw:
    """What to do with one image, in this order.

    resize: factor relative to the original. across: place of the crop in the spare width (0 left, 1 right). bottom:
    fraction of the resized height cut off below. flip: horizontally. rotation: radians, counter-clockwise as seen.
    colours: see there; None leaves them.
    """

    resize: float
    across: float = 0.5
    bottom: float = 0.0
    flip: bool = False
    rotation: float = 0.0
    colours: Colours | None = None


def kind_problem(image: Image.Image) -> str:
    """Why an opened image is not what nuScenes' cameras write, 8-bit RGB and upright, in words; "" if it is."""
    if image.mode != "RGB":
        return f"holds pixels of the kind {image.mode}, not 8-bit RGB"
    if image.getexif().get(_ORIENTATION, 1) != 1:
        return "is marked as turned (EXIF orientation), which calibrations know nothing of"
    return ""


def read_image(path: Path | str, size: tuple[int, int] | None = None) -> Image.Image:
    """A fully decoded RGB image; `size` is the (width, height) that the tables promise.

    Raises InputError that names the file if it is missing, cut, undecodable, no 8-bit RGB or of another size.
    """
    try:
        with Image.open(path) as opened:
            problem = kind_problem(opened)
            opened.load()  # not `convert`, which would copy it
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"image {path} cannot be decoded ({error}): download it again.") from None
    if problem:
        raise InputError(f"image {path} {problem}: download it again, or convert it.")
    if size is not None and opened.size != tuple(size):
        raise InputError(
            f"image {path} is {opened.width}x{opened.height} instead of {size[0]}x{size[1]}: download it again."
        )
    return opened


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


def normalise(image: Image.Image, colours: Colours | None = None, out: np.ndarray | None = None) -> np.ndarray:
    """RGB image, its colours changed where asked -> float32 (3, H, W) with ImageNet's mean 0 and deviation 1.

    out: float32 (3, H, W) to write to, where it should stand in a larger array.
    Every model gets these numbers; `vexkd.models.image_encoder.ImageEncoder` turns them into what Caffe's weights expect.
    """
    pixels = np.moveaxis(np.asarray(image), -1, 0)  # 3 H W
    if colours is not None:
        pixels = distort(pixels, colours)
    normal = np.empty(pixels.shape, dtype=np.float32) if out is None else out
    for channel in range(3):
        np.subtract(pixels[channel], MEAN[channel], out=normal[channel])
        normal[channel] /= STD[channel]
    return normal


def distort(pixels: np.ndarray, colours: Colours) -> np.ndarray:
    """RGB pixels (3, H, W) in 0..255 with changed colours, float32, not clipped (as published)."""
    pixels = np.array(pixels, dtype=np.float32, order="C")
    pixels += np.float32(colours.brightness)
    if colours.contrast_first:
        pixels *= np.float32(colours.contrast)
    if colours.hue != 0:
        hue, saturation, value = hue_saturation_value(pixels)
        pixels = from_hue_saturation_value(hue + np.float32(colours.hue), saturation, value)
    if colours.saturation != 1:  # it is the distance from the largest channel, over it
        value = pixels.max(axis=0)
        pixels = value + np.float32(colours.saturation) * (pixels - value)
    if not colours.contrast_first:
        pixels *= np.float32(colours.contrast)
    return pixels[list(colours.channels)]


def hue_saturation_value(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """RGB (3, H, W) -> hue in degrees, saturation (1 for pure colours) and value, the largest of the three; each (H, W)."""
    red, green, blue = pixels
    tiny = np.finfo(np.float32).eps
    value = pixels.max(axis=0)
    spread = value - pixels.min(axis=0)
    step = 60 / np.maximum(spread, tiny)
    hue = np.where(value == green, (blue - red) * step + 120, (red - green) * step + 240)
    hue = np.where(value == red, (green - blue) * step, hue)
    return np.where(hue < 0, hue + 360, hue), spread / (np.abs(value) + tiny), value


def from_hue_saturation_value(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The inverse of `hue_saturation_value`, for any hue in degrees: (3, H, W)."""
    pixels = np.empty((3, *hue.shape), dtype=np.float32)
    chroma, sector = value * saturation, hue / np.float32(60)
    for channel, start in enumerate((5, 3, 1)):  # each channel falls by the chroma on its own part of the circle
        turn = sector + np.float32(start)
        turn -= 6 * np.floor(turn / 6)
        fall = np.minimum(turn, 4 - turn).clip(0, 1)
        pixels[channel] = value - chroma * fall
    return pixels


def grid_mask(size: tuple[int, int], period: int, row: int, column: int, ratio: float) -> np.ndarray:
    """Mask (H, W) float32 of zeros in a grid of squares, for all images of a sample (GridMask, its mode 1, unturned).

    Stripes of a `ratio` of the period stay, along rows and along columns, beginning at (row, column) of a canvas half as
    large again as the image, whose centre the image is; what lies between the stripes becomes zero.
    """
    width = min(max(int(period * ratio + 0.5), 1), period - 1)
    kept = []
    for length, start in zip(size, (row, column), strict=True):
        canvas = int(1.5 * length)
        pixel = np.arange(canvas) - start
        stripe = (pixel >= 0) & (pixel % period < width) & (pixel // period < canvas // period)
        kept.append(stripe[(canvas - length) // 2 :][:length])
    return (kept[0][:, None] | kept[1][None]).astype(np.float32)


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
