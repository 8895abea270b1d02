"""Triton's kernels against the plain routes in float64: run by test_ops_triton.py on the CPU, through Triton's interpreter.

On a GPU: `python -m pytest tests/interpreted_triton.py`, without TRITON_INTERPRET, checks the compiled kernels.
"""

import os

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from test_ops_bev_pool import frustum
from test_ops_deformable_attention import scattered as scattered_widely

from vexkd.ops import bev_pool, deformable_attention, kernels
from vexkd.ops.bev_pool import lift_pool, lift_pool_plain
from vexkd.ops.bev_pool_triton import pixel_sums
from vexkd.ops.deformable_attention import deformable_sample, deformable_sample_plain

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
if DEVICE == "cuda" and not torch.cuda.is_available():
    pytest.skip("there is no GPU, and TRITON_INTERPRET is not 1", allow_module_level=True)


@pytest.fixture(autouse=True)
def triton_route(monkeypatch):
    """The operators take Triton's route on the interpreter's CPU tensors too."""
    monkeypatch.setattr(kernels, "ready", lambda tensor: True)


@pytest.fixture(params=[False, True], ids=["fast", "deterministic"])
def deterministic(request):
    torch.use_deterministic_algorithms(request.param)
    yield request.param
    torch.use_deterministic_algorithms(False)


def scattered(shapes, **sizes):
    """Few samples: the interpreter is slow."""
    return scattered_widely(shapes, **{"queries": 6, "heads": 2, "dim": 3} | sizes)


def moved(tensors):
    return [t.detach().to(DEVICE).requires_grad_(t.requires_grad) for t in tensors]


def values_and_gradients(route, inputs, leaves):
    """A route's result and its gradients for one fixed slope."""
    out = route(*inputs)
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out)
    return [out, *torch.autograd.grad((out * slope).sum(), leaves, allow_unused=True)]


def bits(tensors):
    return [t.cpu() for t in tensors]


# ------------------------------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("dim", [1, 5])
@pytest.mark.parametrize("shapes", [[(3, 5)], [(4, 2), (3, 1), (1, 1)]])
def test_sampling_equals_the_definition(shapes, dim, deterministic):
    value, locations, weights = moved(scattered(shapes, dim=dim))
    fast, plain = (
        values_and_gradients(route, (value, shapes, locations, weights), (value, locations, weights))
        for route in (deformable_sample, deformable_sample_plain)
    )
    torch.testing.assert_close(fast, plain)


def test_more_rows_than_a_block():
    """Blocks of one row (many channels) and of many, the last one not full."""
    for dim, queries in ((700, 1), (2, 300)):
        value, locations, weights = moved(scattered([(3, 4)], dim=dim, queries=queries, heads=2))
        inputs = (value, [(3, 4)], locations, weights)
        leaves = (value, locations, weights)
        fast, plain = (
            values_and_gradients(route, inputs, leaves) for route in (deformable_sample, deformable_sample_plain)
        )
        torch.testing.assert_close(fast, plain)


@pytest.mark.parametrize(("dtype", "band"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half_precision_values_are_summed_in_float32(dtype, band, deterministic):
    """As under autocast: values in half precision, locations and weights in float32."""
    shapes = [(3, 4), (2, 3)]
    reference = moved(scattered(shapes, dim=8))
    inputs = [reference[0].detach().to(dtype).requires_grad_(), *(t.detach().float() for t in reference[1:])]
    reference[0] = inputs[0].detach().double().requires_grad_()  # the same values, so only sums differ
    for leaf in inputs[1:]:
        leaf.requires_grad_()
    fast = values_and_gradients(lambda *i: deformable_sample(i[0], shapes, *i[1:]), inputs, inputs)
    plain = values_and_gradients(lambda *i: deformable_sample_plain(i[0], shapes, *i[1:]), reference, reference)
    assert [t.dtype for t in fast] == [torch.float32, dtype, torch.float32, torch.float32]
    torch.testing.assert_close([t.double() for t in (fast[0], *fast[2:])], [plain[0], *plain[2:]], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(fast[1].double(), plain[1], atol=band, rtol=band)  # rounded once, at the end


def test_all_in_half_precision_gives_half_precision():
    inputs = [t.detach().bfloat16() for t in moved(scattered([(3, 4)], margin=0.0))]
    out = deformable_sample(inputs[0], [(3, 4)], *inputs[1:])
    assert out.dtype == torch.bfloat16
    plain = deformable_sample_plain(inputs[0].double(), [(3, 4)], *(t.double() for t in inputs[1:]))
    torch.testing.assert_close(out.double(), plain, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("empty", [{"queries": 0}, {"batch": 0}, {"points": 0}])
def test_nothing_to_sample(empty, deterministic):
    value, locations, weights = moved(scattered([(3, 4)], **empty))
    results = values_and_gradients(
        lambda *i: deformable_sample(i[0], [(3, 4)], *i[1:]), (value, locations, weights), (value, locations, weights)
    )
    assert [t.shape for t in results[1:]] == [value.shape, locations.shape, weights.shape]
    assert all(not t.any() for t in results)


@pytest.mark.parametrize("far", [-3.0, 1e30])
def test_far_outside_is_zero_without_gradient(far, deterministic):
    value, locations, weights = moved(scattered([(3, 4)]))
    away = torch.full_like(locations, far).requires_grad_()
    results = values_and_gradients(
        lambda *i: deformable_sample(i[0], [(3, 4)], *i[1:]), (value, away, weights), (value, away, weights)
    )
    assert all(not t.any() for t in results)


def test_a_location_that_is_not_a_number_harms_only_its_query(deterministic):
    value, locations, weights = moved(scattered([(3, 4)]))
    broken = locations.detach().clone()
    broken[0, 3] = float("nan")
    broken.requires_grad_()
    out = deformable_sample(value, [(3, 4)], broken, weights)
    others = torch.ones(out.shape[:2], dtype=torch.bool)
    others[0, 3] = False
    torch.testing.assert_close(out[others], deformable_sample_plain(value, [(3, 4)], locations, weights)[others])
    assert out[0, 3].isnan().all()
    slopes = torch.autograd.grad(out[others].sum(), (value, weights))
    assert all(slope.isfinite().all() for slope in (slopes[0], slopes[1][others]))


def test_deterministic_sampling_gives_the_same_bits():
    torch.use_deterministic_algorithms(True)
    try:
        inputs = [t.detach().float().requires_grad_() for t in moved(scattered([(3, 2)], queries=20))]
        runs = [
            values_and_gradients(lambda *i: deformable_sample(i[0], [(3, 2)], *i[1:]), inputs, inputs) for _ in "ab"
        ]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_only_what_is_asked_for_gets_a_gradient(wanted, deterministic):
    inputs = [t.detach() for t in moved(scattered([(3, 4)]))]
    inputs[wanted].requires_grad_()
    (slope,) = torch.autograd.grad(deformable_sample(inputs[0], [(3, 4)], *inputs[1:]).square().sum(), inputs[wanted])
    (plain,) = torch.autograd.grad(
        deformable_sample_plain(inputs[0], [(3, 4)], *inputs[1:]).square().sum(), inputs[wanted]
    )
    torch.testing.assert_close(slope, plain)


def test_values_that_are_not_contiguous():
    value, locations, weights = moved(scattered([(3, 4)]))
    strided = value.detach().transpose(2, 3).contiguous().transpose(2, 3)
    assert not strided.is_contiguous()
    fast = deformable_sample(strided, [(3, 4)], locations, weights)
    torch.testing.assert_close(fast, deformable_sample_plain(value, [(3, 4)], locations, weights))


# -------------------------------------------------------------------------------------------------------------- pooling


@pytest.mark.parametrize("outside", [0.2, 1.0])
@pytest.mark.parametrize(("channels", "bins", "size"), [(7, 5, (3, 5)), (130, 19, (2, 3))])
def test_pooling_equals_the_outer_product(channels, bins, size, outside):
    sizes = {"cameras": 1, "rows": 2, "columns": 3, "channels": channels, "bins": bins, "size": size}
    depth, context, cells = moved(frustum(outside=outside, **sizes)[:3])
    fast, plain = (
        values_and_gradients(route, (depth, context, cells, size), (depth, context))
        for route in (lift_pool, lift_pool_plain)
    )
    torch.testing.assert_close(fast, plain)


def test_pooling_by_finite_differences():
    depth, context, cells = moved(frustum(batch=1, cameras=1, bins=2, rows=2, columns=2, channels=2, size=(2, 2))[:3])
    assert torch.autograd.gradcheck(lambda d, c: lift_pool(d, c, cells, (2, 2)), (depth, context))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    """One cell with hundreds of points: a sum in half precision would lose digits, in bfloat16 it would stop at 256."""
    depth, context, cells, size = frustum(bins=3, rows=4, columns=8, channels=3, size=(1, 1), outside=0.0)
    depth, context, cells = moved((depth.detach().to(dtype), context.detach().abs().to(dtype) + 4, cells))
    exact = [t.double().requires_grad_() for t in (depth, context)]
    depth.requires_grad_(), context.requires_grad_()
    fast = values_and_gradients(lift_pool, (depth, context, cells, size), (depth, context))
    plain = values_and_gradients(lift_pool_plain, (*exact, cells, size), exact)
    assert [t.dtype for t in fast] == [torch.float32, dtype, dtype]
    assert fast[0].max() > 256
    torch.testing.assert_close(fast[0].double(), plain[0], atol=0, rtol=1e-5)
    torch.testing.assert_close([t.double() for t in fast[1:]], plain[1:], atol=0.02, rtol=0.01)


@pytest.mark.parametrize("empty", [{"batch": 0}, {"cameras": 0}, {"bins": 0}, {"columns": 0}, {"channels": 0}])
def test_nothing_to_pool(empty):
    sizes = {"batch": 2, "cameras": 2, "bins": 3, "rows": 2, "columns": 2, "channels": 3, "size": (2, 3)} | empty
    depth, context, cells, size = frustum(**sizes)
    depth, context, cells = moved((depth, context, cells))
    out, *slopes = values_and_gradients(lift_pool, (depth, context, cells, size), (depth, context))
    assert out.shape == (len(depth), context.shape[2], 2, 3)
    assert not out.any()
    assert [t.shape for t in slopes] == [depth.shape, context.shape]


def test_pooling_gives_the_same_bits():
    depth, context, cells, size = frustum(dtype=torch.float32, size=(2, 2), rows=4, columns=6)
    depth, context, cells = moved((depth, context, cells))
    runs = [values_and_gradients(lift_pool, (depth, context, cells, size), (depth, context)) for _ in "ab"]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("wanted", [0, 1])
def test_only_one_side_of_the_product_learns(wanted):
    depth, context, cells, size = frustum(rows=2, columns=3)
    leaves = [t.detach() for t in moved((depth, context))]
    leaves[wanted].requires_grad_()
    routes = [route(*leaves, cells.to(DEVICE), size).square().sum() for route in (lift_pool, lift_pool_plain)]
    fast, plain = (torch.autograd.grad(result, leaves[wanted]) for result in routes)
    torch.testing.assert_close(fast, plain)


def test_numbers_beyond_the_grid_count_nowhere():
    depth = torch.ones(1, 3, device=DEVICE)
    context = torch.full((1, 2), 5.0, device=DEVICE)
    numbers = torch.tensor([[0, 2, 7]], dtype=torch.int32, device=DEVICE)
    assert pixel_sums(depth, context, numbers, 2).tolist() == [[5.0, 5.0], [0.0, 0.0]]


def test_the_operators_take_this_route(monkeypatch):
    """What the tests above compare is Triton's: without it both operators would not be reached."""
    monkeypatch.setattr(bev_pool, "_PixelSums", None)
    monkeypatch.setattr(deformable_attention, "sample_by_grid", None)
    monkeypatch.setattr(deformable_attention, "sample_by_bags", None)
    depth, context, cells, size = frustum(rows=2, columns=3)
    assert lift_pool(*moved((depth, context, cells)), size).isfinite().all()
    value, locations, weights = moved(scattered([(3, 4)]))
    assert deformable_sample(value, [(3, 4)], locations, weights).isfinite().all()
