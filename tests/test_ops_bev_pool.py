"""Lift-splat pooling against its outer product, and a hand-worked sum."""

import pytest
import torch

from vexkd.ops.bev_pool import lift_pool, lift_pool_plain


def frustum(
    *, batch=2, cameras=3, bins=5, rows=4, columns=6, channels=7, size=(8, 9), dtype=torch.float64, outside=0.2
):
    generator = torch.Generator().manual_seed(0)
    shape = (batch, cameras, bins, rows, columns)
    depth = torch.randn(shape, generator=generator, dtype=dtype).softmax(2).requires_grad_()
    context = torch.randn(batch, cameras, channels, rows, columns, generator=generator, dtype=dtype, requires_grad=True)
    cells = torch.randint(0, size[0] * size[1], shape, generator=generator)
    return depth, context, cells.where(torch.rand(shape, generator=generator) >= outside, -1), size


def test_hand_worked_sum():
    depth = torch.tensor([0.25, 0.75]).view(1, 1, 2, 1, 1)
    context = torch.tensor([8.0, 4.0]).view(1, 1, 2, 1, 1)
    pooled = lift_pool(depth, context, torch.tensor([5, 0]).view(1, 1, 2, 1, 1), (2, 3))
    assert pooled[0, 0].tolist() == [[6.0, 0.0, 0.0], [0.0, 0.0, 2.0]]
    assert pooled[0, 1].tolist() == [[3.0, 0.0, 0.0], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize("outside", [0.0, 0.2, 1.0])
def test_equals_the_outer_product(outside):
    depth, context, cells, size = frustum(outside=outside)
    results = [route(depth, context, cells, size) for route in (lift_pool, lift_pool_plain)]
    torch.testing.assert_close(*results)
    target = torch.randn(results[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    fast, plain = (torch.autograd.grad((pooled * target).sum(), [depth, context]) for pooled in results)
    torch.testing.assert_close(fast, plain)


def test_only_what_is_asked_for_gets_a_gradient():
    depth, context, cells, size = frustum()
    lift_pool(depth.detach(), context, cells, size).sum().backward()
    lift_pool(depth, context.detach(), cells, size).square().sum().backward()
    assert depth.grad.abs().sum() > 0
    assert context.grad.abs().sum() > 0


def test_gradient_by_finite_differences():
    depth, context, cells, size = frustum(batch=1, cameras=1, bins=2, rows=2, columns=2, channels=2, size=(2, 2))
    assert torch.autograd.gradcheck(lambda d, c: lift_pool(d, c, cells, size), (depth, context))


def test_same_bits_every_time():
    depth, context, cells, size = frustum(dtype=torch.float32, size=(2, 2), rows=16, columns=44)
    runs = [torch.autograd.grad(lift_pool(depth, context, cells, size).square().sum(), [depth, context]) for _ in "ab"]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_half_precision_sums_in_float32():
    depth, context, cells, size = frustum(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = lift_pool(depth.bfloat16(), context.bfloat16(), cells, size)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, lift_pool(depth, context, cells, size), atol=0.1, rtol=0.05)


def test_mismatched_shapes_are_refused():
    depth, context, cells, size = frustum()
    with pytest.raises(ValueError, match="one shape"):
        lift_pool(depth, context, cells[:, :, :-1], size)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_gpu_pools_alike():
    depth, context, cells, size = frustum(dtype=torch.float32)
    there = [t.detach().cuda().requires_grad_(t.requires_grad) for t in (depth, context, cells)]
    results = lift_pool(depth, context, cells, size), lift_pool(*there, size)
    torch.testing.assert_close(results[1].cpu(), results[0])
    here = torch.autograd.grad(results[0].square().sum(), [depth, context])
    torch.testing.assert_close([t.cpu() for t in torch.autograd.grad(results[1].square().sum(), there[:2])], list(here))
