"""Voxelization against its dictionary loop, and against hand-worked voxels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vexkd.ops.voxelize import grid_size, voxelize, voxelize_plain

RANGE, VOXEL = (-2.0, -1.0, -1.0, 2.0, 1.0, 1.0), (0.5, 0.25, 1.0)
PAPER_RANGE, PAPER_VOXEL = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0), (0.075, 0.075, 0.2)


def cloud(count: int, seed: int, *, spread: float = 2.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 5, generator=generator, dtype=torch.float64) * 2 - 1) * spread


def test_grid_is_in_z_y_x_order():
    assert grid_size(RANGE, VOXEL) == (2, 8, 8)
    assert grid_size(PAPER_RANGE, PAPER_VOXEL) == (40, 1440, 1440)
    with pytest.raises(ValueError, match="along y"):
        grid_size((0.0, 0.0, 0.0, 1.0, 1.0, 1.0), (0.5, 0.3, 0.5))


def test_hand_worked_voxels():
    first = torch.tensor([[-2.0, -1, -1, 1], [-1.6, -0.8, -0.5, 3], [1.99, 0.99, 0.99, 5], [2.0, 0, 0, 9]])
    second = torch.tensor([[0.0, 0.0, 0.0, 7.0], [0.0, float("nan"), 0.0, 8.0], [-2.01, 0.0, 0.0, 8.0]])
    features, coordinates = voxelize([first, second], range=RANGE, voxel=VOXEL, max_points=10, max_voxels=10)
    assert coordinates.dtype == torch.int32
    assert coordinates.tolist() == [[0, 0, 0, 0], [0, 1, 7, 7], [1, 1, 4, 4]]
    torch.testing.assert_close(features[0], torch.tensor([-1.8, -0.9, -0.75, 2.0]))
    torch.testing.assert_close(features[1:, 3], torch.tensor([5.0, 7.0]))


def test_limits_keep_what_comes_first():
    points = torch.tensor([[1.8, 0.9, 0.5, 1.0], [-1.9, -0.9, -0.5, 2.0], [1.8, 0.9, 0.5, 3.0], [0.1, 0.1, 0.1, 4.0]])
    features, coordinates = voxelize([points], range=RANGE, voxel=VOXEL, max_points=1, max_voxels=2)
    assert coordinates.tolist() == [[0, 0, 0, 0], [0, 1, 7, 7]]
    assert features[:, 3].tolist() == [2.0, 1.0]


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(0, 120), min_size=1, max_size=3),
    seed=st.integers(0, 10_000),
    max_points=st.integers(1, 6),
    max_voxels=st.integers(1, 80),
)
def test_equals_the_plain_loop(counts, seed, max_points, max_voxels):
    points = [cloud(count, seed + i) for i, count in enumerate(counts)]
    limits = {"range": RANGE, "voxel": VOXEL, "max_points": max_points, "max_voxels": max_voxels}
    features, coordinates = voxelize(points, **limits)
    plain_features, plain_coordinates = voxelize_plain(points, **limits)
    assert torch.equal(coordinates, plain_coordinates)
    torch.testing.assert_close(features, plain_features)


def test_equals_the_plain_loop_on_the_papers_grid():
    points = [cloud(1500, 3, spread=60.0).float()]
    points[0][:, 2] /= 10
    limits = {"range": PAPER_RANGE, "voxel": PAPER_VOXEL, "max_points": 10, "max_voxels": 1000}
    features, coordinates = voxelize(points, **limits)
    plain_features, plain_coordinates = voxelize_plain(points, **limits)
    assert torch.equal(coordinates, plain_coordinates)
    torch.testing.assert_close(features, plain_features)


def test_gradients_equal_the_plain_loop():
    points = cloud(200, 1).requires_grad_()
    limits = {"range": RANGE, "voxel": VOXEL, "max_points": 3, "max_voxels": 40}
    gradients = [
        torch.autograd.grad(route([points], **limits)[0].square().sum(), points)[0]
        for route in (voxelize, voxelize_plain)
    ]
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(*gradients)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_gpu_makes_the_same_voxels():
    points = [cloud(400, 1).float(), cloud(300, 2).float()]
    limits = {"range": RANGE, "voxel": VOXEL, "max_points": 3, "max_voxels": 60}
    features, coordinates = voxelize([sample.cuda() for sample in points], **limits)
    expected, places = voxelize(points, **limits)
    assert torch.equal(coordinates.cpu(), places)
    torch.testing.assert_close(features.cpu(), expected)
