"""Deformable sampling against its definition, and what the attention does at its start."""

import pytest
import torch
from torch import nn

from vexkd.ops.deformable_attention import (
    DeformableAttention,
    deformable_sample,
    deformable_sample_plain,
    reference_points,
    sample_by_bags,
    sample_by_grid,
)


def scattered(shapes, *, batch=2, queries=11, heads=3, dim=4, points=2, margin=0.3, dtype=torch.float64):
    """Value, locations (some outside the map) and weights."""
    generator = torch.Generator().manual_seed(0)
    cells = sum(h * w for h, w in shapes)
    value = torch.randn(batch, cells, heads, dim, generator=generator, dtype=dtype)
    locations = torch.rand(batch, queries, heads, len(shapes), points, 2, generator=generator, dtype=dtype)
    weights = torch.rand(batch, queries, heads, len(shapes), points, generator=generator, dtype=dtype)
    locations = locations * (1 + 2 * margin) - margin
    return value.requires_grad_(), locations.requires_grad_(), weights.requires_grad_()


@pytest.mark.parametrize("dim", [4, 16])  # one for each fast route
@pytest.mark.parametrize("shapes", [[(5, 7)], [(6, 4), (3, 2), (1, 1)]])
def test_equals_the_definition(shapes, dim):
    inputs = scattered(shapes, dim=dim)
    fast = deformable_sample(inputs[0], shapes, *inputs[1:])
    plain = deformable_sample_plain(inputs[0], shapes, *inputs[1:])
    torch.testing.assert_close(fast, plain)
    target = torch.randn(fast.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad((out * target).sum(), inputs) for out in (fast, plain)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("route", [sample_by_grid, sample_by_bags])
def test_far_outside_is_zero_without_gradient(route):
    value, locations, weights = scattered([(5, 7)])
    value = value.unflatten(1, (5, 7))
    for far in (-3.0, 1e9):
        away = torch.full_like(locations[:, :, :, 0], far).requires_grad_()
        out = route(value, away, weights[:, :, :, 0])
        assert out.abs().sum() == 0
        assert torch.autograd.grad(out.sum(), away)[0].abs().sum() == 0


@pytest.mark.parametrize("route", [sample_by_grid, sample_by_bags])
def test_a_location_that_is_not_a_number_harms_only_its_query(route):
    """A diverging run must end with the trainer's message about its loss, not with an index error in here."""
    value, locations, weights = (t.detach() for t in scattered([(5, 7)]))
    places = locations[:, :, :, 0].clone()
    places[0, 3] = float("nan")
    out = route(value.unflatten(1, (5, 7)), places, weights[:, :, :, 0])
    expected = route(value.unflatten(1, (5, 7)), locations[:, :, :, 0], weights[:, :, :, 0])
    others = torch.ones(out.shape[:2], dtype=torch.bool)
    others[0, 3] = False
    torch.testing.assert_close(out[others], expected[others])


def test_bags_by_finite_differences_and_the_same_bits_every_time():
    value, locations, weights = scattered([(3, 4)], batch=1, queries=3, heads=2, dim=2)
    inputs = (value.unflatten(1, (3, 4)), locations[:, :, :, 0], weights[:, :, :, 0])
    inputs = tuple(t.detach().requires_grad_() for t in inputs)
    assert torch.autograd.gradcheck(sample_by_bags, inputs)
    runs = [torch.autograd.grad(sample_by_bags(*inputs).square().sum(), inputs) for _ in "ab"]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_wrong_level_shapes_are_refused():
    value, locations, weights = scattered([(5, 7)])
    with pytest.raises(ValueError, match="35 cells"):
        deformable_sample(value, [(5, 6)], locations, weights)


def test_reference_points_are_cell_centres():
    points = reference_points(2, 4)
    assert points.shape == (1, 8, 2)
    assert points[0, 1].tolist() == [0.375, 0.25]
    assert points[0, 4].tolist() == [0.125, 0.75]


def test_zero_offsets_and_identity_projections_return_the_map():
    attention = DeformableAttention(channels=16, heads=4, points=3).double()
    for projection in (attention.value, attention.output):
        nn.init.eye_(projection.weight)
    nn.init.zeros_(attention.offsets.bias)
    value = torch.randn(2, 30, 16, dtype=torch.float64)
    out = attention(torch.randn(2, 30, 16).double(), reference_points(5, 6).double(), value, [(5, 6)])
    torch.testing.assert_close(out, value, atol=1e-5, rtol=0)  # the reference is float32


def test_start_is_a_star_of_eight_rays():
    """Head h reads the cells 1..4 steps along compass direction h, each with a quarter of the weight."""
    attention = DeformableAttention(channels=8, heads=8, points=4).double()
    for projection in (attention.value, attention.output):
        nn.init.eye_(projection.weight)
    size = 13
    value = torch.eye(size * size, dtype=torch.float64)  # cell number as a one-hot channel, through each head alone
    centre = reference_points(size, size).double()[:, (size * size) // 2].unsqueeze(1)
    rays = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]  # x, y
    for head, (dx, dy) in enumerate(rays):
        impulse = torch.zeros(size * size, size * size, 8, dtype=torch.float64)
        impulse[..., head] = value
        query = torch.zeros(size * size, 1, 8, dtype=torch.float64)
        response = attention(query, centre, impulse, [(size, size)])[:, 0, head].view(size, size)
        expected = torch.zeros_like(response)
        for step in range(1, 5):
            expected[6 + step * dy, 6 + step * dx] = 0.25
        torch.testing.assert_close(response, expected, atol=1e-5, rtol=0)


def test_levels_have_their_own_reference():
    shapes = [(4, 4), (2, 2)]
    attention = DeformableAttention(channels=8, heads=2, points=2, levels=2, query_channels=5, value_channels=3)
    query, value = torch.randn(2, 16, 5), torch.randn(2, 20, 3)
    reference = reference_points(4, 4)
    shared = attention(query, reference, value, shapes)
    torch.testing.assert_close(attention(query, reference.unsqueeze(2).expand(2, -1, 2, -1), value, shapes), shared)
    moved = torch.stack([reference, reference.flip(1)], 2)
    assert not torch.allclose(attention(query, moved, value, shapes), shared)


def test_parameters_of_a_fusion_block():
    """At the paper's size: two cross attentions, a self attention, a feed-forward net and three norms."""
    cross = DeformableAttention(channels=256, heads=8, points=4, query_channels=512)
    own = DeformableAttention(channels=256, heads=8, points=4)
    count = [sum(p.numel() for p in module.parameters()) for module in (cross, own)]
    feed_forward = 2 * 256 * 512 + 512 + 256
    assert 2 * count[0] + count[1] + feed_forward + 3 * 2 * 256 == 782_368


def test_bfloat16_features_are_sampled_at_float32_places():
    value, locations, weights = (t.detach().float() for t in scattered([(5, 7)]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = deformable_sample(value.bfloat16(), [(5, 7)], locations, weights)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, deformable_sample(value, [(5, 7)], locations, weights), atol=0.05, rtol=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("route", [sample_by_grid, sample_by_bags])
def test_the_gpu_samples_alike(route):
    value, locations, weights = (t.detach() for t in scattered([(5, 7)]))
    inputs = (value.unflatten(1, (5, 7)), locations[:, :, :, 0], weights[:, :, :, 0])
    results = []
    for device in ("cpu", "cuda"):
        there = [t.to(device).requires_grad_() for t in inputs]
        out = route(*there)
        results.append([t.cpu() for t in (out, *torch.autograd.grad(out.square().sum(), there))])
    torch.testing.assert_close(*results)
