"""Drawn masks and the regions behind them, on coordinates worked out by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vexkd.distill import masks, regions
from vexkd.geometry import BevGrid

GRID = BevGrid((-8.0, -4.0, -5.0, 8.0, 4.0, 3.0), 1.0)  # 8 rows, 16 columns


def box(x=0.0, y=0.0, length=4.0, width=2.0, yaw=0.0):
    return torch.tensor([[x, y, 0.0, length, width, 1.5, yaw, 0.0, 0.0]])


def batch(*boxes):
    return SimpleNamespace(boxes=list(boxes))


def test_key_points_of_a_turned_box():
    """4 x 2 m at (1, -1), turned by 90 degrees: its length runs along y."""
    found = regions.key_points(box(1.0, -1.0, yaw=math.pi / 2).double())[0]
    expected = [[0, 1], [0, -3], [2, -3], [2, 1], [1, -1], [1, 1], [0, -1], [1, -3], [2, -1]]
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), atol=1e-6)


def test_key_points_of_a_box_at_thirty_degrees():
    found = regions.key_points(box(yaw=math.pi / 6).double())[0]
    c, s = math.sqrt(3) / 2, 0.5
    assert found[0].tolist() == pytest.approx([2 * c - s, 2 * s + c], abs=1e-6)  # front left
    assert found[5].tolist() == pytest.approx([2 * c, 2 * s], abs=1e-6)  # front
    assert found[6].tolist() == pytest.approx([-s, c], abs=1e-6)  # left


def test_samples_are_bilinear_with_x_along_columns():
    """A ramp 10 * x + y sampled anywhere inside is itself; beyond the map there is nothing."""
    y, x = torch.meshgrid(torch.arange(8) - 3.5, torch.arange(16) - 7.5, indexing="ij")
    ramp = (10 * x + y)[None].double()
    points = torch.tensor([[0.0, 0.0], [3.25, -1.5], [-6.1, 2.7], [40.0, 0.0]], dtype=torch.float64)
    assert regions.sample(ramp, points, GRID)[:, 0].tolist() == pytest.approx([0.0, 31.0, -58.3, 0.0])


def test_cells_of_a_turned_box_by_a_loop():
    boxes = torch.cat([box(1.3, 0.4, 5.0, 2.2, 0.6), box(-6.1, 2.1, 0.4, 0.4, 1.0)])
    expected = np.zeros((2, 8, 16), dtype=bool)
    for m, (bx, by, _, length, width, _, yaw, *_) in enumerate(boxes.tolist()):
        for row in range(8):
            for column in range(16):
                dx, dy = column - 7.5 - bx, row - 3.5 - by
                along, across = dx * math.cos(yaw) + dy * math.sin(yaw), dy * math.cos(yaw) - dx * math.sin(yaw)
                expected[m, row, column] = abs(along) <= length / 2 and abs(across) <= width / 2
    assert not expected[1].any()  # too small for any cell's centre: it gets the cell it stands on
    expected[1, 6, 1] = True
    assert np.array_equal(regions.covered(boxes, GRID).numpy(), expected)


def test_mask_at_key_points():
    """4 x 2 m at (0.5, 0.5): corners at 2.5 and -1.5 by 1.5 and -0.5; a box beyond the grid is left out."""
    feature = torch.zeros(2, 3, 8, 16)
    mask = masks.at_key_points(feature, batch(torch.cat([box(0.5, 0.5), box(20.0)]), box()[:0]), grid=GRID)
    expected = torch.zeros(8, 16)
    for column in (6, 8, 10):
        for row in (3, 4, 5):
            expected[row, column] = 1
    assert torch.equal(mask[0, 0], expected)
    assert mask[1].sum() == 0


def test_mask_at_gaussians():
    """A box of 0.3 m has radius 1 at least: sigma 3 / 6, so the neighbours read exp(-2) and the diagonals exp(-4)."""
    mask = masks.at_gaussians(torch.zeros(1, 1, 8, 16), batch(box(2.5, 0.5, 0.3, 0.3)), grid=GRID)[0, 0]
    assert mask[4, 10] == 1
    assert [float(mask[4, 11]), float(mask[3, 10])] == pytest.approx([math.exp(-2)] * 2)
    assert float(mask[5, 11]) == pytest.approx(math.exp(-4))
    assert int((mask > 0).sum()) == 9


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_mask_of_activation(temperature):
    feature = torch.randn(2, 5, 8, 16, dtype=torch.float64)
    mask = masks.at_activation(feature, batch(), grid=GRID, temperature=temperature)
    for b in range(2):
        means = np.abs(feature[b].numpy()).mean(axis=0)
        expected = np.exp(means / temperature) / np.exp(means / temperature).sum() * 128
        assert mask[b, 0].numpy() == pytest.approx(expected, rel=1e-4)
    assert float(mask.mean()) == pytest.approx(1, rel=1e-5)


def test_channel_attention_has_mean_one():
    feature = torch.randn(2, 5, 8, 16)
    found = regions.channel_attention(feature, 0.5)
    means = np.abs(feature.numpy()).mean(axis=(2, 3))
    expected = np.exp(means / 0.5) / np.exp(means / 0.5).sum(axis=1, keepdims=True) * 5
    assert found[:, :, 0, 0].numpy() == pytest.approx(expected, rel=1e-5)


def test_statistics_of_masks_below_and_above_one():
    even = masks.statistics(torch.full((1, 1, 4, 4), 0.5))
    assert even == pytest.approx({"mean": 0.5, "max": 0.5, "entropy": 1.0})
    peaked = torch.zeros(1, 1, 4, 4)
    peaked[0, 0, 0, :2] = torch.tensor([8.0, 4.0])
    assert masks.statistics(peaked) == pytest.approx({"mean": 0.75, "max": 8.0, "entropy": 1 / 16}, abs=1e-3)
