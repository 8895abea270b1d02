"""Boxes: conventions by hand, and what no augmentation may break."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vexkd import boxes as box_tools
from vexkd import geometry
from vexkd.data.augment import BevAugmentation

numbers = st.floats(-50, 50)
sizes = st.floats(0.3, 12)


def _box(*values: float) -> np.ndarray:
    return np.array([values], dtype=np.float64)


def test_nuscenes_sizes_are_w_l_h():
    turn = geometry.yaw_rotation(2.5).elements
    box = box_tools.from_nuscenes([[1, 2, 3]], [[2.0, 4.5, 1.5]], [turn])[0]
    np.testing.assert_allclose(box[:7], [1, 2, 3, 4.5, 2.0, 1.5, 2.5])
    assert np.isnan(box[7:]).all()


def test_no_boxes_are_fine():
    none = box_tools.from_nuscenes(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 4)))
    assert none.shape == (0, 9)
    assert box_tools.move(none, np.eye(4)).shape == (0, 9)


def test_corners_by_hand():
    corners = box_tools.corners(_box(10, 5, 1, 4, 2, 2, np.pi / 2, 0, 0))[0]
    np.testing.assert_allclose(corners[0], [9, 7, 0], atol=1e-12)  # front left, below
    np.testing.assert_allclose(corners[4], [9, 7, 2], atol=1e-12)
    np.testing.assert_allclose(corners[2], [11, 3, 0], atol=1e-12)  # rear right, below


def test_points_inside_and_its_margin():
    box = _box(0, 0, 0, 4, 2, 2, np.pi / 4, 0, 0)[0]
    along = np.array([np.cos(np.pi / 4), np.sin(np.pi / 4), 0])
    points = np.stack([1.99 * along, 2.01 * along, [0, 0, 0.99], [0, 0, 1.01]])
    np.testing.assert_array_equal(box_tools.points_inside(points, box), [True, False, True, False])
    assert box_tools.points_inside(points, box, margin=0.1).all()


def test_range_is_half_open_and_ignores_height():
    boxes = np.zeros((4, 9))
    boxes[:, :3] = [[-54, 0, 99], [54, 0, 0], [0, 53.99, 0], [0, -54.01, 0]]
    np.testing.assert_array_equal(box_tools.in_range(boxes, (-54, -54, -5, 54, 54, 3)), [True, False, True, False])


def test_velocity_turns_flips_and_scales():
    box = _box(1, 0, 0, 4, 2, 1, 0, 3, 1)
    moved = box_tools.move(box, np.diag([2.0, -2, 2, 1]))[0]
    np.testing.assert_allclose(moved, [2, 0, 0, 8, 4, 2, 0, 6, -2], atol=1e-12)


@settings(deadline=None)
@given(numbers, numbers, sizes, sizes, sizes, st.floats(-4, 4), st.integers(0, 2**32 - 1))
def test_points_stay_in_their_box_under_any_augmentation(x, y, length, width, height, yaw, seed):
    """Also the other way round: points outside stay outside."""
    rng = np.random.default_rng(seed)
    box = _box(x, y, 0.5, length, width, height, yaw, 1, 2)
    local = rng.uniform(-1, 1, (40, 3)) * [length, width, height]
    inside = (np.abs(local) <= np.array([length, width, height]) / 2).all(axis=1)
    points = geometry.move(geometry.rigid(geometry.yaw_rotation(yaw).elements, box[0, :3]), local)
    np.testing.assert_array_equal(box_tools.points_inside(points, box[0]), inside)
    augment = BevAugmentation(rotation=np.pi, scale=(0.8, 1.2), translation=2.0).draw(rng)
    moved = box_tools.points_inside(geometry.move(augment, points), box_tools.move(box, augment)[0])
    np.testing.assert_array_equal(moved, inside)


@given(st.integers(0, 2**32 - 1))
def test_moving_there_and_back_is_the_identity(seed):
    rng = np.random.default_rng(seed)
    boxes = rng.uniform(0.5, 5, (5, 9))
    boxes[:, 6] = rng.uniform(-3.1, 3.1, 5)
    augment = BevAugmentation().draw(rng)
    back = box_tools.move(box_tools.move(boxes, augment), geometry.inverse(augment))
    np.testing.assert_allclose(back, boxes, atol=1e-9)


def test_unknown_velocity_stays_unknown():
    moved = box_tools.move(_box(0, 0, 0, 1, 1, 1, 0, np.nan, np.nan), BevAugmentation().draw(np.random.default_rng(0)))
    assert np.isnan(moved[0, 7:]).all()
    assert np.isfinite(moved[0, :7]).all()


def test_every_class_has_a_category():
    assert set(box_tools.CLASS_OF_CATEGORY.values()) == set(box_tools.CLASSES)
    assert box_tools.CLASS_OF_CATEGORY["vehicle.bus.bendy"] == "bus"
    with pytest.raises(KeyError):
        box_tools.CLASS_OF_CATEGORY["animal"]
