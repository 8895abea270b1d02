"""BEV encoders: sizes at the paper's 180 cells, weights counted by hand, and BEVDet's layout written out with torch alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vexkd.models.bev_neck import BevResNet, ResNetBevEncoder, SecondBackbone


def encoder(**more) -> ResNetBevEncoder:
    settings = {
        "in_channels": 3, "channels": [4, 6, 8], "layers": [2, 2, 2], "strides": [2, 2, 2], "neck_channels": [10, 12],
        "out_channels": 7,
    }  # fmt: skip
    return ResNetBevEncoder(**{**settings, **more})


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("strides", "sizes"), [([2, 2, 2], [90, 45, 23]), ([2, 2, 1], [90, 45, 45])])
def test_sizes_at_180_cells(strides, sizes):
    """Four times the 23 cells of stride 8 would be 92, not 90: maps are resized to one another's size."""
    net, low = encoder(strides=strides).eval(), torch.randn(1, 3, 180, 180)
    assert [stage.shape[-1] for stage in net.backbone(low)] == sizes
    assert net(low).shape == (1, 7, 180, 180)
    assert net(low[..., :174]).shape == (1, 7, 180, 174)


def test_same_as_fixed_factors_where_sizes_divide():
    """At 32 cells: up by four, joined, two convolutions, up by two, a convolution and a 1x1 one, as FPN_LSS is published."""
    torch.manual_seed(0)
    net, low = encoder().eval(), torch.randn(2, 3, 32, 32)
    fine, _, coarse = net.backbone(low)
    up4 = nn.Upsample(scale_factor=4, mode="bilinear", align_corners=True)
    up2 = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
    wanted = net.out(up2(net.join(torch.cat([fine, up4(coarse)], dim=1))))
    torch.testing.assert_close(net(low), wanted)


def test_first_block_of_a_stage_by_hand():
    """ReLU(norm(conv(ReLU(norm(conv x)))) + conv x): the shortcut is a strided 3x3 convolution with a bias."""
    torch.manual_seed(0)
    net = BevResNet(in_channels=3, channels=[4], layers=[1], strides=[2]).double().eval()
    x = torch.randn(1, 3, 9, 9, dtype=torch.float64)
    weights = list(net.parameters())
    by_shape = {tuple(w.shape): w for w in weights if w.dim() == 4}
    first, shortcut = (w for w in weights if w.shape == (4, 3, 3, 3))
    (bias,) = (b for name, b in net.named_parameters() if name.endswith("shortcut.bias"))
    scale = (1 + 1e-5) ** -0.5  # BatchNorm as it starts, in evaluation
    inner = F.relu(F.conv2d(x, first, stride=2, padding=1) * scale)
    inner = F.conv2d(inner, by_shape[4, 4, 3, 3], padding=1) * scale
    wanted = F.relu(inner + F.conv2d(x, shortcut, bias, stride=2, padding=1))
    torch.testing.assert_close(net(x)[0], wanted)


@pytest.mark.parametrize(
    ("low", "channels", "total"), [(64, [128, 256, 512], 18_950_784), (720, [160, 320, 640], 28_500_576)]
)
def test_weights_of_the_papers_size(low, channels, total):
    """BEVDet-R50 and BEVDet4D-Longterm, layer by layer: three stages of two blocks, then FPN_LSS with 512, 512, 256, 256."""
    net = ResNetBevEncoder(
        in_channels=low, channels=channels, layers=[2, 2, 2], strides=[2, 2, 2], neck_channels=[512, 512], out_channels=256
    )  # fmt: skip
    backbone, before = 0, low
    for width in channels:
        backbone += 2 * 9 * before * width + width  # first convolution and shortcut, whose bias it is
        backbone += 3 * 9 * width * width + 4 * 2 * width  # the other convolutions, and every BatchNorm
        before = width
    neck = 9 * (channels[0] + channels[2]) * 512 + 9 * 512 * 512 + 9 * 512 * 256 + 2 * (512 + 512 + 256)
    assert count(net.backbone) == backbone
    assert count(net) == backbone + neck + 256 * 256 + 256 == total


def test_second_backbone_of_the_papers_size():
    net = SecondBackbone(in_channels=256, channels=[128, 256], layers=[5, 5], strides=[1, 2], neck_channels=[256, 256])
    stages = 9 * (256 * 128 + 5 * 128 * 128 + 128 * 256 + 5 * 256 * 256) + 6 * 2 * (128 + 256)
    ups = 128 * 256 + 4 * 256 * 256 + 2 * 2 * 256
    assert count(net) == stages + ups
    assert net.eval()(torch.zeros(1, 256, 18, 18)).shape == (1, 512, 18, 18)


def test_gradients_are_finite_and_reach_every_weight():
    torch.manual_seed(0)
    net = encoder()
    net(torch.randn(2, 3, 20, 20)).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


def test_second_starts_as_published():
    """He's normal by what leaves a convolution, in the stages and the up-sampling; the 1x1 keeps PyTorch's start."""
    torch.manual_seed(0)
    net = SecondBackbone(in_channels=16, channels=[32, 64], layers=[1, 1], strides=[1, 2], neck_channels=[48, 48])
    for convolution, leaving in ((net.stages[0][0][0], 9 * 32), (net.stages[1][1][0], 9 * 64), (net.ups[1][0], 4 * 64)):
        assert float(convolution.weight.detach().std()) == pytest.approx((2 / leaving) ** 0.5, rel=0.1)
    assert net.ups[0][0].weight.abs().max() <= 32**-0.5
