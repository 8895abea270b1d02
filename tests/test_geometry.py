"""Frames and the BEV grid, against hand-worked numbers and invariants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyquaternion import Quaternion

from vexkd import geometry

HALF = float(np.sqrt(0.5))
angles = st.floats(-10, 10)


def test_quarter_turn_about_z_and_shift():
    matrix = geometry.rigid([HALF, 0, 0, HALF], [1, 2, 3])
    moved = geometry.move(matrix, np.array([[1.0, 0, 0], [0, 1, 5]]))
    np.testing.assert_allclose(moved, [[1, 3, 3], [0, 2, 8]], atol=1e-12)


def test_many_rigids_equal_one_by_one():
    rng = np.random.default_rng(0)
    rotations, translations = rng.normal(size=(20, 4)), rng.normal(size=(20, 3))
    one_by_one = [
        geometry.rigid(Quaternion(r).normalised.elements, t) for r, t in zip(rotations, translations, strict=True)
    ]
    np.testing.assert_allclose(geometry.rigids(rotations, translations), one_by_one, atol=1e-12)
    assert geometry.rigids(np.zeros((0, 4)), np.zeros((0, 3))).shape == (0, 4, 4)


def test_inverse_undoes():
    matrices = geometry.rigids(np.random.default_rng(1).normal(size=(4, 4)), np.ones((4, 3)))
    matrices[:, :3, :3] *= 1.1
    np.testing.assert_allclose(geometry.inverse(matrices) @ matrices, np.tile(np.eye(4), (4, 1, 1)), atol=1e-12)


def test_move_keeps_the_points_precision():
    assert geometry.move(np.eye(4), np.zeros((2, 3), np.float32)).dtype == np.float32
    assert geometry.move(np.eye(4), np.zeros((2, 3))).dtype == np.float64


def test_projection_by_hand():
    image_from_camera = [[100.0, 0, 50], [0, 200, 30], [0, 0, 1]]
    pixels, depths = geometry.project(image_from_camera, np.array([[1.0, 0.5, 2], [0, 0, 4], [1, 1, -1]]))
    np.testing.assert_allclose(pixels[:2], [[100, 80], [50, 30]])
    np.testing.assert_array_equal(depths, [2, 4, -1])


def test_heading_under_flip_and_rotation():
    yaw = np.array([0.3])
    assert geometry.heading(np.diag([-1.0, 1, 1, 1]), yaw)[0] == pytest.approx(np.pi - 0.3)
    assert geometry.heading(np.diag([1.0, -1, 1, 1]), yaw)[0] == pytest.approx(-0.3)
    turn = geometry.rigid(geometry.yaw_rotation(0.5).elements, [0, 0, 0])
    assert geometry.heading(1.05 * turn, yaw)[0] == pytest.approx(0.8)


@given(angles)
def test_wrap_keeps_the_direction(angle):
    wrapped = geometry.wrap(np.array(angle))
    assert -np.pi <= wrapped < np.pi
    assert np.cos(wrapped) == pytest.approx(np.cos(angle), abs=1e-9)
    assert np.sin(wrapped) == pytest.approx(np.sin(angle), abs=1e-9)


def test_bev_grid_by_hand():
    grid = geometry.BevGrid((-54.0, -54.0, -5.0, 54.0, 54.0, 3.0), 0.6)
    assert grid.shape == (180, 180)
    assert grid.origin == (-54.0, -54.0)
    np.testing.assert_allclose(grid.to_cells(np.array([[-53.7, 0.3]])), [[0.5, 90.5]])
    wide = geometry.BevGrid((0.0, -10.0, 0.0, 40.0, 10.0, 1.0), 0.5)
    assert wide.shape == (40, 80), "rows are y, columns are x"


@given(st.floats(-60, 60), st.floats(-60, 60))
def test_cells_to_metres_and_back(x, y):
    grid = geometry.BevGrid((-51.2, -50.0, -5.0, 51.2, 50.0, 3.0), 0.8)
    np.testing.assert_allclose(grid.to_metres(grid.to_cells(np.array([x, y]))), [x, y], atol=1e-9)
