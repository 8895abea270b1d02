"""The LiDAR branch and the BEV encoder: the published shape trace, and which voxel reaches which cell."""

import pytest
import torch

from vexkd.models.bev_neck import SecondBackbone
from vexkd.models.sparse_encoder import SparseEncoder

PAPER = {
    "bounds": (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0),
    "voxel": (0.075, 0.075, 0.2),
    "point_channels": 5,
    "channels": (16, 32, 64, 128),
    "blocks": 2,
    "out_channels": 128,
    "max_points": 10,
    "max_voxels_train": 1000,
    "max_voxels_test": 1000,
}


def test_shape_trace_of_the_paper():
    """41 -> 21 -> 11 -> 5 -> 5 -> 2 along z, 1440 -> 720 -> 360 -> 180 along x and y, 256 channels at the end."""
    encoder = SparseEncoder(**PAPER).eval()
    trace = []
    for stage in [encoder.stem, *encoder.stages, encoder.out]:
        stage.register_forward_hook(lambda _m, _i, out: trace.append(tuple(out.spatial_shape)))
    points = torch.tensor([[0.0, 0.0, 0.0, 10.0, 0.0], [30.0, -20.0, 1.0, 5.0, 0.1]])
    dense = encoder([points])
    assert dense.shape == (1, 256, 180, 180)
    assert encoder.out_channels == 256
    assert [t[0] for t in dict.fromkeys(trace)] == [41, 21, 11, 5, 2]
    assert [t[2] for t in dict.fromkeys(trace)] == [1440, 720, 360, 180, 180]


def test_a_point_lights_up_its_own_cell():
    """Rows are y and columns are x, counted from the low corner."""
    torch.manual_seed(0)
    encoder = SparseEncoder(**{**PAPER, "voxel": (0.3, 0.3, 0.4), "channels": (4, 8, 8), "out_channels": 4}).eval()
    x, y = 30.1, -20.2
    points = torch.tensor([[x, y, 0.0, 100.0, 0.0]]).repeat(4, 1)
    energy = encoder([points])[0].abs().sum(0)  # Y X
    row, column = divmod(int(energy.argmax()), energy.shape[1])
    cell = 0.3 * 4
    assert abs((row + 0.5) * cell - 54 - y) <= 1.5 * cell
    assert abs((column + 0.5) * cell - 54 - x) <= 1.5 * cell


def test_empty_point_cloud_gives_a_map():
    encoder = SparseEncoder(**{**PAPER, "voxel": (0.6, 0.6, 0.4), "channels": (4, 8), "out_channels": 4}).train()
    dense = encoder([torch.zeros(0, 5)])
    assert torch.isfinite(dense).all()


@pytest.mark.parametrize("size", [20, 22])
def test_bev_encoder_keeps_the_size(size):
    encoder = SecondBackbone(in_channels=6, channels=[8, 16], layers=[2, 2], strides=[1, 2], neck_channels=[8, 8])
    assert encoder(torch.randn(2, 6, size, size)).shape == (2, 16, size, size)


def test_bev_encoder_of_the_paper_makes_512_channels():
    encoder = SecondBackbone(
        in_channels=256, channels=[128, 256], layers=[5, 5], strides=[1, 2], neck_channels=[256, 256]
    )
    assert encoder.out_channels == 512
