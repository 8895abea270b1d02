"""Sparse convolutions, spconv's and the plain route, against F.conv3d on the dense grid."""

import pytest
import torch
import torch.nn.functional as F

from vexkd.ops.sparse_conv import (
    SparseBatchNorm,
    apply_to_features,
    in_key_order,
    plain_sparse_conv,
    sparse_tensor,
    strided_conv,
    submanifold_conv,
    to_dense,
)

SHAPE, BATCH, IN, OUT = (7, 9, 8), 2, 3, 4
CASES = [  # kernel, stride, padding; None is a submanifold convolution
    (3, 1, None),
    ((1, 3, 5), 1, None),
    (3, 2, 1),
    (3, 2, (0, 1, 1)),
    ((3, 1, 1), (2, 1, 1), 0),
    (2, (1, 2, 2), 0),
]


def scattered_voxels(fill: float = 0.15) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    coordinates = (torch.rand(BATCH, *SHAPE, generator=generator) < fill).nonzero()
    coordinates = coordinates[torch.randperm(len(coordinates), generator=generator)].int()
    return torch.randn(len(coordinates), IN, generator=generator, dtype=torch.float64), coordinates


def layer(kernel, stride, padding):
    torch.manual_seed(1)
    if padding is None:
        return submanifold_conv(IN, OUT, kernel=kernel, key="same").double()
    return strided_conv(IN, OUT, kernel=kernel, stride=stride, padding=padding, key="down").double()


def dense_conv(features, coordinates, weight, stride, padding):
    """Values on the whole grid, and where a kernel touches an active voxel."""
    index = tuple(coordinates.long().t())
    dense = features.new_zeros(BATCH, *SHAPE, IN).index_put(index, features).permute(0, 4, 1, 2, 3)
    active = features.new_zeros(BATCH, 1, *SHAPE)
    active[index[0], 0, index[1], index[2], index[3]] = 1
    submanifold, size = padding is None, weight.shape[1:4]
    padding = tuple(k // 2 for k in size) if submanifold else padding
    values = F.conv3d(dense, weight.permute(0, 4, 1, 2, 3), stride=stride, padding=padding)
    touched = active if submanifold else F.conv3d(active, active.new_ones(1, 1, *size), stride=stride, padding=padding)
    return values * (touched > 0), touched[:, 0] > 0


@pytest.mark.parametrize(("kernel", "stride", "padding"), CASES)
def test_both_routes_equal_the_dense_convolution(kernel, stride, padding):
    features, coordinates = scattered_voxels()
    features.requires_grad_()
    conv = layer(kernel, stride, padding)
    weight = conv.conv.weight
    expected, active = dense_conv(features, coordinates, weight, stride, padding)
    fast = conv(sparse_tensor(features, coordinates, spatial_shape=SHAPE, batch_size=BATCH))
    plain_features, plain_coordinates, plain_shape = plain_sparse_conv(
        features, coordinates, SHAPE, BATCH, weight, stride=stride, padding=padding or 0, submanifold=padding is None
    )
    plain = sparse_tensor(plain_features, plain_coordinates, spatial_shape=plain_shape, batch_size=BATCH)
    target = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    wanted = torch.autograd.grad((expected * target).sum(), [features, weight])
    for result in (fast, plain):
        torch.testing.assert_close(to_dense(result), expected)
        assert set(map(tuple, result.indices.tolist())) == set(map(tuple, active.nonzero().tolist()))
        assert len(result.indices) == active.sum()
        gradients = torch.autograd.grad((to_dense(result) * target).sum(), [features, weight])
        torch.testing.assert_close(gradients, wanted)


def test_submanifold_keeps_the_order_of_the_voxels():
    features, coordinates = scattered_voxels()
    weight = layer(3, 1, None).conv.weight
    fast = layer(3, 1, None)(sparse_tensor(features, coordinates, spatial_shape=SHAPE, batch_size=BATCH))
    plain, plain_coordinates, _ = plain_sparse_conv(features, coordinates, SHAPE, BATCH, weight, submanifold=True)
    assert torch.equal(fast.indices, coordinates)
    assert torch.equal(plain_coordinates, coordinates)
    torch.testing.assert_close(plain, fast.features)


def test_layers_of_one_key_and_a_residual_sum():
    features, coordinates = scattered_voxels()
    first, second = (submanifold_conv(IN, IN, key="stage").double() for _ in range(2))
    norm = SparseBatchNorm(IN).double()
    x = sparse_tensor(features, coordinates, spatial_shape=SHAPE, batch_size=BATCH)
    out = apply_to_features(second(apply_to_features(first(x), norm)), lambda f: F.relu(f + x.features))
    plain = features
    for conv, after in ((first, norm), (second, lambda f: F.relu(f + features))):
        plain = after(plain_sparse_conv(plain, coordinates, SHAPE, BATCH, conv.conv.weight, submanifold=True)[0])
    torch.testing.assert_close(out.features, plain)


@pytest.mark.parametrize("padding", [None, 1])
def test_no_active_voxel(padding):
    features, coordinates = torch.zeros(0, IN, requires_grad=True), torch.zeros(0, 4, dtype=torch.int32)
    conv = layer(3, 1 if padding is None else 2, padding).float()
    norm = SparseBatchNorm(OUT)
    out = apply_to_features(conv(sparse_tensor(features, coordinates, spatial_shape=SHAPE, batch_size=BATCH)), norm)
    dense = to_dense(out)
    assert dense.shape == ((BATCH, OUT, *SHAPE) if padding is None else (BATCH, OUT, 4, 5, 4))
    assert dense.abs().sum() == 0
    dense.sum().backward()
    assert torch.equal(conv.conv.weight.grad, torch.zeros_like(conv.conv.weight))
    assert torch.equal(norm.running_mean, torch.zeros(OUT))
    assert norm(torch.ones(1, OUT)).isfinite().all()


def test_half_precision_is_computed_in_float32():
    features, coordinates = scattered_voxels()
    conv = layer(3, 1, None).float()
    exact = conv(sparse_tensor(features.float(), coordinates, spatial_shape=SHAPE, batch_size=BATCH)).features
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = conv(sparse_tensor(features.bfloat16(), coordinates, spatial_shape=SHAPE, batch_size=BATCH)).features
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, atol=0.05, rtol=0.05)


def test_key_order_changes_the_order_only():
    features, coordinates = scattered_voxels()
    x = sparse_tensor(features, coordinates, spatial_shape=SHAPE, batch_size=BATCH)
    ordered = in_key_order(x)
    assert ordered.indices.tolist() == sorted(coordinates.tolist())
    assert torch.equal(to_dense(ordered), to_dense(x))


def test_the_encoders_grids():
    """BEVFusion's: 41 -> 21 -> 11 -> 5 -> 2 in z and 1440 -> 720 -> 360 -> 180 in the plane."""
    generator = torch.Generator().manual_seed(0)
    high = torch.tensor([1, 41, 1440, 1440])
    coordinates = (torch.rand(300, 4, generator=generator) * high).int().unique(dim=0)
    x = sparse_tensor(torch.ones(len(coordinates), 1), coordinates, spatial_shape=(41, 1440, 1440), batch_size=1)
    shapes = []
    for number, padding in enumerate([1, 1, (0, 1, 1)]):
        x = strided_conv(1, 1, kernel=3, stride=2, padding=padding, key=f"down{number}")(x)
        shapes.append(tuple(x.spatial_shape))
    x = strided_conv(1, 1, kernel=(3, 1, 1), stride=(2, 1, 1), padding=0, key="out")(x)
    assert [*shapes, tuple(x.spatial_shape)] == [(21, 720, 720), (11, 360, 360), (5, 180, 180), (2, 180, 180)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("kernel", "stride", "padding"), CASES)
def test_the_gpu_convolves_alike(kernel, stride, padding):
    features, coordinates = scattered_voxels()
    conv = layer(kernel, stride, padding).float()
    expected = to_dense(conv(sparse_tensor(features.float(), coordinates, spatial_shape=SHAPE, batch_size=BATCH)))
    there = sparse_tensor(features.float().cuda(), coordinates.cuda(), spatial_shape=SHAPE, batch_size=BATCH)
    torch.testing.assert_close(to_dense(conv.cuda()(there)).cpu(), expected, atol=1e-3, rtol=1e-3)
