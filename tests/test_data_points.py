"""Reading whole sweeps and stacking them in the keyframe's frame."""

from __future__ import annotations

import numpy as np
import pytest
from test_data_tiny import POST, VERSION, write

from vexkd import geometry
from vexkd.data import infos as info_tools
from vexkd.data import infos_build
from vexkd.data.points import Sweep, choose_sweeps, in_bounds, move_in_place, read_lidar, stack_sweeps
from vexkd.errors import InputError


@pytest.mark.parametrize("size", [0, 1, 4, 19, 21, 4000 - 512])
def test_partial_points_are_refused(tmp_path, size):
    path = tmp_path / "cut.pcd.bin"
    path.write_bytes(bytes(size))
    with pytest.raises(InputError, match=rf"cut\.pcd\.bin has {size} bytes, not a whole number"):
        read_lidar(path)


def test_every_cut_is_refused_where_the_size_is_known(tmp_path):
    path = tmp_path / "cut.pcd.bin"
    for size in range(0, 400):
        path.write_bytes(bytes(size))
        with pytest.raises(InputError, match=rf"has {size} bytes instead of 400"):
            read_lidar(path, 400)
    path.write_bytes(bytes(400))
    assert read_lidar(path, 400).shape == (20, 5)
    with pytest.raises(InputError, match=r"none\.bin cannot be read .*: download it again"):
        read_lidar(tmp_path / "none.bin")


def test_a_static_point_lands_on_itself(tmp_path):
    """The post, seen from moving and turning sweeps, is one place in the keyframe's frame and on the map."""
    root = write(tmp_path / "set")
    infos_build.build(root, VERSION, tmp_path / "infos", progress=False)
    keyframe = info_tools.load(tmp_path / "infos")[2]
    assert len(keyframe.sweep_paths) == 8
    sweeps = [
        Sweep(read_lidar(root / path), matrix, lag)
        for path, matrix, lag in zip(keyframe.sweep_paths, keyframe.lidar_from_sweep, keyframe.sweep_lags, strict=True)
    ]
    points = stack_sweeps(read_lidar(root / keyframe.lidar_path), sweeps)
    post = points[points[:, 3] == 255]
    assert len(post) == 9
    assert np.ptp(post[:, :3], axis=0).max() < 1e-4
    post_global = geometry.move(keyframe.global_from_lidar, post[:, :3].astype(np.float64))
    np.testing.assert_allclose(post_global, np.tile(POST, (9, 1)), atol=1e-4)
    np.testing.assert_allclose(post[:, 4], np.arange(9) * 0.05, atol=1e-6)


def test_close_points_are_dropped_from_sweeps_only():
    key = np.array([[0.5, -0.5, 0, 9, 31], [5, 0, 0, 8, 3]], np.float32)
    earlier = np.array([[0.9, 0.9, 0, 7, 0], [0.9, 1.0, 0, 6, 0]], np.float32)
    shift = geometry.rigid([1, 0, 0, 0], [0, 1, 0])
    stacked = stack_sweeps(key, [Sweep(earlier, shift, 0.25)])
    expected = [[0.5, -0.5, 0, 9, 0], [5, 0, 0, 8, 0], [0.9, 2.0, 0, 6, 0.25]]
    np.testing.assert_allclose(stacked, expected, rtol=1e-6)
    assert stacked.dtype == np.float32
    assert key[0, 4] == 31, "the input is left alone"


def test_missing_sweeps_are_padded_with_the_keyframe():
    key = np.array([[0.5, -0.5, 0, 9, 31], [5, 0, 0, 8, 3]], np.float32)
    stacked = stack_sweeps(key, [], pad_to=2)
    np.testing.assert_array_equal(stacked[:, 0], [0.5, 5, 5, 5])
    assert (stacked[:, 4] == 0).all()


def test_choice_of_sweeps():
    np.testing.assert_array_equal(choose_sweeps(10, 4, None), [0, 1, 2, 3])
    np.testing.assert_array_equal(choose_sweeps(3, 9, np.random.default_rng(0)), [0, 1, 2])
    drawn = [tuple(choose_sweeps(10, 9, np.random.default_rng(seed))) for seed in range(40)]
    assert all(len(set(d)) == 9 for d in drawn)
    assert len(set(drawn)) > 5


def test_fast_move_and_bounds_equal_the_plain_ones():
    rng = np.random.default_rng(0)
    points = rng.uniform(-60, 60, (1000, 5)).astype(np.float32)
    points[0, :3], points[1, :3] = [-54, -54, -5], [54, 0, 0]
    bounds = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)
    plain = ((points[:, :3] >= bounds[:3]) & (points[:, :3] < bounds[3:])).all(axis=1)
    np.testing.assert_array_equal(in_bounds(points, bounds), np.flatnonzero(plain))
    assert plain[0]
    assert not plain[1]
    matrix = geometry.rigid(geometry.yaw_rotation(0.7).elements, [1, 2, 3])
    moved = points.copy()
    move_in_place(moved, matrix)
    np.testing.assert_allclose(moved[:, :3], geometry.move(matrix, points[:, :3]), atol=2e-5)
    np.testing.assert_array_equal(moved[:, 3:], points[:, 3:])
