"""Deformable convolution: both routes, the ordinary convolution it generalises, and one tap moved by hand."""

import pytest
import torch
import torch.nn.functional as F

from vexkd.ops.deform_conv import ModulatedDeformConv2d, deform_conv, deform_conv_plain

ROUTES = [deform_conv, deform_conv_plain]


def scattered(*, stride=1, out_channels=5, spread=2.0):
    """Input 2 x 3 x 7 x 9, weight, offsets (some far outside the map) and shares, in float64."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = -(-7 // stride), -(-9 // stride)
    x = torch.randn(2, 3, 7, 9, generator=generator, dtype=torch.float64)
    weight = torch.randn(out_channels, 3, 3, 3, generator=generator, dtype=torch.float64)
    offsets = spread * torch.randn(2, 18, rows, columns, generator=generator, dtype=torch.float64)
    shares = torch.rand(2, 9, rows, columns, generator=generator, dtype=torch.float64)
    return [t.requires_grad_() for t in (x, weight, offsets, shares)]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("out_channels", [5, 16])  # one for each route of `deformable_sample`
def test_fast_route_equals_the_definition(stride, out_channels):
    inputs = scattered(stride=stride, out_channels=out_channels)
    outputs = [route(*inputs, stride=stride) for route in ROUTES]
    torch.testing.assert_close(*outputs)
    target = torch.randn(outputs[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad((out * target).sum(), inputs) for out in outputs]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("stride", [1, 2])
def test_unmoved_taps_with_full_shares_are_a_convolution(route, stride):
    x, weight, offsets, shares = scattered(stride=stride)
    out = route(x, weight, torch.zeros_like(offsets), torch.ones_like(shares), stride=stride)
    torch.testing.assert_close(out, F.conv2d(x, weight, stride=stride, padding=1))


@pytest.mark.parametrize("route", ROUTES)
def test_one_tap_moved_by_hand(route):
    """Tap 5 (row 1, column 2 of the kernel) moved by 1.5 rows and -2 columns: channels 10 and 11, with share 0.25."""
    x = torch.arange(63, dtype=torch.float64).view(1, 1, 7, 9)
    weight = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    weight[0, 0, 1, 2] = 2.0
    offsets, shares = torch.zeros(1, 18, 7, 9).double(), torch.ones(1, 9, 7, 9).double()
    offsets[0, 10], offsets[0, 11], shares[0, 5] = 1.5, -2.0, 0.25
    out = route(x, weight, offsets, shares)[0, 0]
    assert float(out[2, 4]) == pytest.approx(2.0 * 0.25 * (3.5 * 9 + 3))  # row 2 + 1.5, column 4 + 1 - 2
    assert float(out[5, 4]) == pytest.approx(2.0 * 0.25 * 0.5 * (6 * 9 + 3))  # row 6.5: half of it outside
    assert abs(float(out[2, 0])) < 1e-9  # column -1: outside


def test_the_layer_starts_as_half_a_convolution_and_learns_its_offsets():
    torch.manual_seed(0)
    layer = ModulatedDeformConv2d(4, 6, stride=2)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "weight": (6, 4, 3, 3),
        "conv_offset.weight": (27, 4, 3, 3),
        "conv_offset.bias": (27,),
    }
    x = torch.randn(2, 4, 8, 9)
    out = layer(x)
    torch.testing.assert_close(out, 0.5 * F.conv2d(x, layer.weight, stride=2, padding=1), rtol=1e-4, atol=1e-4)
    out.square().sum().backward()
    assert layer.conv_offset.weight.grad[:18].abs().sum() > 0
    assert layer.conv_offset.weight.grad[18:].abs().sum() > 0


def test_first_eighteen_channels_are_offsets_the_last_nine_shares():
    layer = ModulatedDeformConv2d(2, 3).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    x = torch.randn(1, 2, 5, 6, generator=generator, dtype=torch.float64)
    moves = layer.conv_offset(x)
    expected = deform_conv_plain(x, layer.weight, moves[:, :18], 1 / (1 + torch.exp(-moves[:, 18:])))
    torch.testing.assert_close(layer(x), expected)


def test_half_precision_keeps_its_places_in_full():
    layer, x = ModulatedDeformConv2d(4, 16), torch.randn(1, 4, 6, 7)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)
