"""Image augmentation: the matrix says where every pixel went, to a fraction of a pixel."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from vexkd.data import images as image_tools
from vexkd.data.augment import BevAugmentation, ColourAugmentation, GridMaskAugmentation, ImageAugmentation
from vexkd.data.images import Colours
from vexkd.errors import InputError

WIDTH, HEIGHT = 400, 226


def _marked(u: float, v: float) -> Image.Image:
    """A black image with a smooth bright spot whose centre is exactly (u, v), whole numbers at pixel centres."""
    columns, rows = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    spot = 255 * np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / (2 * 4.0**2))
    return Image.fromarray(np.repeat(spot[..., None], 3, axis=2).round().astype(np.uint8))


def _found(image: Image.Image) -> np.ndarray:
    """(u, v) of the spot's centre of mass."""
    weight = np.asarray(image, dtype=np.float64).sum(axis=2)
    columns, rows = np.meshgrid(np.arange(weight.shape[1]), np.arange(weight.shape[0]))
    return np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()


@settings(max_examples=40, deadline=None)
@given(
    resize=st.floats(0.35, 1.3),
    across=st.floats(0, 1),
    bottom=st.floats(0, 0.2),
    flip=st.booleans(),
    rotation=st.floats(-0.3, 0.3),
    place=st.tuples(st.floats(-24, 24), st.floats(-24, 24)),
)
def test_the_matrix_finds_the_marker(resize, across, bottom, flip, rotation, place):
    size = (96, 224)
    draw = image_tools.ImageDraw(resize, across, bottom, flip, rotation)
    blank = Image.new("RGB", (WIDTH, HEIGHT))
    _, matrix = image_tools.augment(blank, draw, size)
    target = np.array([size[1] / 2 + place[0], size[0] / 2 + place[1], 1])
    source = (np.linalg.inv(matrix) @ target)[:2]
    if not (20 < source[0] < WIDTH - 20 and 20 < source[1] < HEIGHT - 20):
        return
    image, same = image_tools.augment(_marked(*source), draw, size)
    np.testing.assert_array_equal(matrix, same)
    assert np.abs(_found(image) - target[:2]).max() < 0.15


def test_no_augmentation_is_the_identity():
    image = _marked(100, 50)
    same, matrix = image_tools.augment(image, image_tools.ImageDraw(resize=1.0), (HEIGHT, WIDTH))
    np.testing.assert_array_equal(np.asarray(same), np.asarray(image))
    np.testing.assert_array_equal(matrix, np.eye(3))


def test_crop_is_the_bottom_centre_at_test_time():
    _, matrix = image_tools.augment(Image.new("RGB", (1600, 900)), image_tools.ImageDraw(resize=0.48), (256, 704))
    centre_of_bottom_edge = matrix @ [799.5, 899.5, 1]
    np.testing.assert_allclose(centre_of_bottom_edge, [351.5, 255.5, 1], atol=1e-9)
    np.testing.assert_allclose(np.diag(matrix), [0.48, 0.48, 1])


def test_outside_is_black_and_inside_exact():
    image = Image.new("RGB", (100, 50), (10, 20, 30))
    padded, _ = image_tools.augment(image, image_tools.ImageDraw(resize=0.5), (40, 60))
    pixels = np.asarray(padded)
    assert (pixels[:15] == 0).all()
    assert (pixels[15:, :50] == [10, 20, 30]).all()
    assert (pixels[:, 50:] == 0).all()


def test_flip_twice_is_the_identity_of_matrices():
    draw = image_tools.ImageDraw(resize=1.0, flip=True)
    _, matrix = image_tools.augment(Image.new("RGB", (64, 36)), draw, (36, 64))
    np.testing.assert_allclose(matrix @ matrix, np.eye(3), atol=1e-12)


def test_normalise_is_imagenet_rgb():
    image = Image.new("RGB", (3, 2), (124, 0, 255))
    pixels = image_tools.normalise(image)
    assert pixels.shape == (3, 2, 3)
    np.testing.assert_allclose(
        pixels[:, 0, 0], [(124 - 123.675) / 58.395, -116.28 / 57.12, (255 - 103.53) / 57.375], rtol=1e-5
    )


def test_unreadable_images_are_named(tmp_path):
    path = tmp_path / "x.jpg"
    canvas = Image.new("RGB", (64, 36))
    ImageDraw.Draw(canvas).line((0, 0, 63, 35), fill=(255, 0, 0))
    canvas.save(path)
    assert image_tools.read_image(path, (64, 36)).size == (64, 36)
    with pytest.raises(InputError, match=r"x\.jpg is 64x36 instead of 64x32: download it again"):
        image_tools.read_image(path, (64, 32))
    data = path.read_bytes()
    for kept in (len(data) - 60, len(data) // 2, 100, 0):
        path.write_bytes(data[:kept])
        with pytest.raises(InputError, match=r"x\.jpg cannot be decoded"):
            image_tools.read_image(path)
    path.unlink()
    with pytest.raises(InputError, match=r"x\.jpg cannot be decoded"):
        image_tools.read_image(path)


def test_draws_stay_in_their_ranges():
    augmentation = ImageAugmentation(resize=(0.4, 0.5), bottom=(0.0, 0.1), rotation=0.1, flip=0.25)
    draws = [augmentation.draw(np.random.default_rng(i)) for i in range(300)]
    assert all(0.4 <= d.resize <= 0.5 and 0 <= d.bottom <= 0.1 and abs(d.rotation) <= 0.1 for d in draws)
    assert 0.15 < np.mean([d.flip for d in draws]) < 0.35


def test_bev_draws_are_similarities_in_their_ranges():
    augmentation = BevAugmentation(rotation=0.3, scale=(0.9, 1.1), translation=0.5, flip_x=1.0, flip_y=0.0)
    matrices = np.array([augmentation.draw(np.random.default_rng(i)) for i in range(300)])
    scales = np.cbrt(-np.linalg.det(matrices[:, :3, :3]))
    assert scales.min() >= 0.9
    assert scales.max() <= 1.1
    assert 0.4 < matrices[:, :3, 3].std() < 0.6
    unit = matrices[:, :3, :3] / scales[:, None, None]
    np.testing.assert_allclose(unit @ unit.transpose(0, 2, 1), np.tile(np.eye(3), (300, 1, 1)), atol=1e-12)
    assert np.abs(np.arctan2(unit[:, 1, 0], unit[:, 1, 1])).max() <= 0.3


def test_colours_are_the_standard_librarys():
    """Hue, saturation and value of a thousand colours against colorsys, there and back, and with both changed."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 10, 100)).astype(np.float32)
    hue, saturation, value = image_tools.hue_saturation_value(pixels)
    colours = [colorsys.rgb_to_hsv(*pixel / 255) for pixel in pixels.reshape(3, -1).T]
    expected = np.array(colours).T.reshape(3, 10, 100)
    assert np.abs((hue / 360 - expected[0] + 0.5) % 1 - 0.5).max() < 1e-4
    np.testing.assert_allclose(saturation, expected[1], atol=1e-5)
    np.testing.assert_allclose(value / 255, expected[2], atol=1e-5)
    np.testing.assert_allclose(image_tools.from_hue_saturation_value(hue, saturation, value), pixels, atol=0.01)
    changed = image_tools.distort(pixels.astype(np.uint8), Colours(hue=-17.0, saturation=0.7))
    for found, (h, s, v) in zip(changed.reshape(3, -1).T, colours, strict=True):
        np.testing.assert_allclose(found / 255, colorsys.hsv_to_rgb((h - 17 / 360) % 1, 0.7 * s, v), atol=1e-3)


def test_grey_has_no_hue_to_change():
    grey = np.full((3, 1, 2), 77, np.uint8)
    np.testing.assert_allclose(image_tools.distort(grey, Colours(hue=90.0, saturation=1.5)), 77, atol=1e-3)


def test_distortion_by_hand():
    """Brightness, then contrast first or last, then the channels; nothing is clipped; no change is no change."""
    pixels = np.array([10, 100, 250], np.uint8).reshape(3, 1, 1)
    found = image_tools.distort(pixels, Colours(brightness=20, contrast=1.5, channels=(2, 0, 1)))
    np.testing.assert_allclose(found.flatten(), [270 * 1.5, 30 * 1.5, 120 * 1.5])
    np.testing.assert_array_equal(image_tools.distort(pixels, Colours()), pixels)
    late = image_tools.distort(pixels, Colours(contrast=0.5, contrast_first=False, saturation=0.0))
    np.testing.assert_allclose(late.flatten(), 125, atol=1e-3)
    image = Image.new("RGB", (1, 1), (10, 100, 250))
    normal = image_tools.normalise(image, Colours(brightness=-10.0))
    np.testing.assert_allclose(
        normal[:, 0, 0], [-123.675 / 58.395, (90 - 116.28) / 57.12, (240 - 103.53) / 57.375], rtol=1e-5
    )


def test_colour_draws_use_each_part_on_half_of_the_images():
    draws = [ColourAugmentation().draw(np.random.default_rng(i)) for i in range(400)]
    assert max(abs(d.brightness) for d in draws) > 28
    assert all(abs(d.brightness) <= 32 and abs(d.hue) <= 18 for d in draws)
    assert all(0.5 <= d.contrast <= 1.5 and 0.5 <= d.saturation <= 1.5 for d in draws)
    shares = [
        [d.brightness != 0 for d in draws],
        [d.contrast != 1 for d in draws],
        [d.saturation != 1 for d in draws],
        [d.hue != 0 for d in draws],
        [d.contrast_first for d in draws],
    ]
    assert all(0.4 < np.mean(share) < 0.6 for share in shares)
    assert all(sorted(d.channels) == [0, 1, 2] for d in draws)
    assert (
        0.3 < np.mean([d.channels != (0, 1, 2) for d in draws]) < 0.55
    )  # half of them, a sixth of which changes nothing


def test_what_is_off_draws_nothing():
    """Settings of before give the draws of before, number for number."""
    rng, again = np.random.default_rng(3), np.random.default_rng(3)
    draw = ImageAugmentation().draw(rng)
    assert ImageAugmentation().draw_mask(rng, (90, 160)) is None
    assert draw.colours is None
    for _ in range(5):  # resize, across, bottom, flip, rotation
        again.random()
    assert rng.random() == again.random()


def test_grid_mask_by_hand():
    """Period 4, half of it stays: canvas 12 x 18 for an image of 8 x 12, so the image begins at (2, 3) of it."""
    mask = image_tools.grid_mask((8, 12), period=4, row=1, column=3, ratio=0.5)
    rows = {r for start in (1, 5, 9) for r in (start, start + 1)}
    columns = {c for start in (3, 7, 11, 15) for c in (start, start + 1)}
    for row in range(8):
        for column in range(12):
            assert mask[row, column] == float(row + 2 in rows or column + 3 in columns)


def test_grid_masks_leave_three_quarters():
    augmentation = ImageAugmentation(mask=GridMaskAugmentation(probability=0.7, ratio=0.5))
    masks = [augmentation.draw_mask(np.random.default_rng(i), (64, 112)) for i in range(400)]
    drawn = [mask for mask in masks if mask is not None]
    assert 0.64 < len(drawn) / len(masks) < 0.76
    assert all(mask.shape == (64, 112) and set(np.unique(mask)) <= {0.0, 1.0} for mask in drawn)
    assert 0.6 < np.mean([mask.mean() for mask in drawn]) < 0.85
    always = ImageAugmentation(mask=GridMaskAugmentation(probability=1.0, ratio=0.5))
    assert all(always.draw_mask(np.random.default_rng(i), (9, 16)) is not None for i in range(50))


def test_pixels_are_pillows_own_whatever_the_way_there(tmp_path):
    """Decoding without a second copy, and normalising into a larger array, change no bit."""
    path = tmp_path / "image.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (36, 64, 3), dtype=np.uint8)).save(path, quality=85)
    image = image_tools.read_image(path)
    with Image.open(path) as opened:
        converted = opened.convert("RGB")
    np.testing.assert_array_equal(np.asarray(image), np.asarray(converted))
    draw = image_tools.ImageDraw(resize=0.47, across=0.3, flip=True, rotation=0.05)
    cropped, plain = (image_tools.augment(i, draw, (12, 20))[0] for i in (image, converted))
    np.testing.assert_array_equal(np.asarray(cropped), np.asarray(plain))
    many = np.full((2, 3, 12, 20), np.nan, dtype=np.float32)
    image_tools.normalise(cropped, out=many[1])
    np.testing.assert_array_equal(many[1], image_tools.normalise(plain))
    assert np.isnan(many[0]).all()
