"""The modality-general fusion module: symmetric, robust to a missing sensor, of the size worked out by hand."""

import copy

import pytest
import torch

from vexkd.models.fusion import ConvFuser, FusionBlock, ModalityGeneralFusion


def small_module(**more):
    torch.manual_seed(0)
    sizes = {
        "shape": (6, 5),
        "channels": 8,
        "blocks": 2,
        "query_std": 1.0,
        "heads": 2,
        "points": 4,
        "ffn": 16,
        "dropout": 0.1,
    }
    return ModalityGeneralFusion(in_channels={"lidar": 6, "camera": 3}, **{**sizes, **more}).eval()


def test_parameters_of_a_block_at_the_papers_size():
    """Two modalities of 180,832, self-attention 156,256, feed-forward 262,912, three LayerNorms 1,536."""
    block = FusionBlock(sensors=["lidar", "camera"], channels=256, heads=8, points=4, ffn=512, dropout=0.1)
    assert sum(p.numel() for p in block.parameters()) == 782_368


def test_no_sensor_is_preferred():
    """Swapping both inputs together with both sets of parameters changes nothing."""
    module = small_module()
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.3)
    swapped = copy.deepcopy(module)
    for part in [swapped.project, *(block.cross for block in swapped.blocks)]:
        part["lidar"], part["camera"] = part["camera"], part["lidar"]
    lidar, camera = torch.randn(2, 6, 6, 5), torch.randn(2, 3, 6, 5)
    one, other = module({"lidar": lidar, "camera": camera}), swapped({"lidar": camera, "camera": lidar})
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("missing", "left"), [("lidar", "camera"), ("camera", "lidar")])
def test_a_missing_sensor_leaves_the_other_in_charge(missing, left):
    module = small_module()
    maps = {"lidar": torch.randn(1, 6, 6, 5), "camera": torch.randn(1, 3, 6, 5)}
    maps[missing] = torch.zeros_like(maps[missing])
    out = module(maps)
    assert torch.isfinite(out).all()
    changed = module({**maps, left: maps[left] + 1})
    assert (out - changed).abs().max() > 1e-3


def test_both_fusers_give_a_map_of_their_channels():
    maps = {"lidar": torch.randn(2, 6, 6, 5), "camera": torch.randn(2, 3, 6, 5)}
    assert small_module()(maps).shape == (2, 8, 6, 5)
    assert ConvFuser(in_channels={"lidar": 6, "camera": 3}, channels=7)(maps).shape == (2, 7, 6, 5)
