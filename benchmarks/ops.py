"""Time of each operator's plain and fast route, forward and backward, as a markdown table: `python benchmarks/ops.py`.

Dimensions: B batch, N cameras, D depth bins, H W image cells, C channels, P points, V voxels, Q queries, K samples.
"""

import argparse
import time
from collections.abc import Callable

import shapely
import torch
from torch import Tensor

from vexkd.ops.bev_pool import lift_pool, lift_pool_plain
from vexkd.ops.deformable_attention import (
    deformable_sample,
    deformable_sample_plain,
    reference_points,
    sample_by_bags,
    sample_by_grid,
)
from vexkd.ops.rotated_iou import rotated_iou, rotated_nms
from vexkd.ops.sparse_conv import plain_sparse_conv, sparse_tensor, strided_conv, submanifold_conv
from vexkd.ops.voxelize import voxelize, voxelize_plain

Row = tuple[str, str, float, float]
RANGE, VOXEL = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0), (0.075, 0.075, 0.2)


def milliseconds(run: Callable[[], object], device: torch.device) -> float:
    """Best of up to ten runs, within about a second."""
    times: list[float] = []
    while len(times) < 10 and sum(times) < 1000:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    return min(times)


def compare(name: str, size: str, plain: Callable[[], object], fast: Callable[[], object], device: torch.device) -> Row:
    return name, size, milliseconds(plain, device), milliseconds(fast, device)


def both_ways(run: Callable[[], Tensor]) -> Callable[[], None]:
    def step() -> None:
        run().square().sum().backward()

    return step


def voxels(device: torch.device) -> list[Row]:
    points = torch.randn(20_000, 5, device=device) * torch.tensor([20.0, 20.0, 1.0, 1.0, 1.0], device=device)
    limits = {"range": RANGE, "voxel": VOXEL, "max_points": 10, "max_voxels": 120_000}
    size = "P=20000, grid 40x1440x1440, forward"
    return [
        compare(
            "voxelize", size, lambda: voxelize_plain([points], **limits), lambda: voxelize([points], **limits), device
        )
    ]


def convolutions(device: torch.device) -> list[Row]:
    shape, channels = (41, 360, 360), 16
    surface = torch.rand(20_000, 3, device=device) * torch.tensor([4.0, 360.0, 360.0], device=device)
    coordinates = torch.nn.functional.pad(surface.int(), (1, 0)).unique(dim=0)
    features = torch.randn(len(coordinates), channels, device=device, requires_grad=True)
    submanifold = submanifold_conv(channels, channels, key="same").to(device)
    strided = strided_conv(channels, 2 * channels, kernel=3, stride=2, padding=1, key="down").to(device)
    rows = []
    for name, conv in (("submanifold convolution", submanifold), ("strided convolution", strided)):

        def fast(conv: torch.nn.Module = conv) -> Tensor:
            return conv(sparse_tensor(features, coordinates, spatial_shape=shape, batch_size=1)).features

        def plain(conv: torch.nn.Module = conv) -> Tensor:
            return plain_sparse_conv(
                features,
                coordinates,
                shape,
                1,
                conv.conv.weight,
                stride=conv.stride,
                padding=conv.padding or 0,
                submanifold=conv.padding is None,
            )[0]

        size = f"V={len(coordinates)}, C={channels}, kernel 3, rulebook included"
        rows.append(compare(name, size, both_ways(plain), both_ways(fast), device))
    return rows


def pooling(device: torch.device) -> list[Row]:
    rows = []
    for batch, cameras, bins, height, width, channels, cells in [
        (2, 3, 20, 8, 22, 16, 64),
        (1, 6, 59, 16, 44, 80, 180),
        (1, 6, 118, 32, 88, 80, 360),
    ]:
        shape = (batch, cameras, bins, height, width)
        depth = torch.randn(shape, device=device).softmax(2).requires_grad_()
        context = torch.randn(batch, cameras, channels, height, width, device=device, requires_grad=True)
        places = torch.randint(-cells, cells * cells, shape, device=device)
        inputs = (depth, context, places, (cells, cells))
        size = f"B={batch} N={cameras} D={bins} H={height} W={width} C={channels}, BEV {cells}x{cells}"
        plain, fast = (both_ways(lambda route=route, i=inputs: route(*i)) for route in (lift_pool_plain, lift_pool))
        rows.append(compare("lift_pool", size, plain, fast, device))
    return rows


def sampling(device: torch.device) -> list[Row]:
    rows = []
    for batch, side, heads, dim in [(2, 24, 4, 8), (2, 96, 4, 8), (2, 96, 4, 16), (1, 180, 8, 32)]:
        points, shapes = 4, [(side, side)]
        value = torch.randn(batch, side * side, heads, dim, device=device, requires_grad=True)
        spread = torch.randn(batch, side * side, heads, 1, points, 2, device=device) * 3 / side
        locations = (reference_points(side, side, device)[:, :, None, None, None] + spread).requires_grad_()
        weights = torch.rand(batch, side * side, heads, 1, points, device=device, requires_grad=True)

        def one_level(route: Callable, value=value, shape=shapes[0], locations=locations, weights=weights) -> Tensor:
            return route(value.unflatten(1, shape), locations[:, :, :, 0], weights[:, :, :, 0])

        inputs = (value, shapes, locations, weights)
        size = f"B={batch}, {side}x{side}, {heads} heads of {dim}, K={points}"
        plain = milliseconds(both_ways(lambda i=inputs: deformable_sample_plain(*i)), device)
        for name, route in (
            ("deformable_sample", lambda i=inputs: deformable_sample(*i)),
            ("- by grid_sample", lambda f=one_level: f(sample_by_grid)),
            ("- by bags", lambda f=one_level: f(sample_by_bags)),
        ):
            rows.append((name, size, plain, milliseconds(both_ways(route), device)))
    return rows


def outline(boxes: Tensor) -> list[shapely.Polygon]:
    unit = torch.tensor([[0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5], [0.5, -0.5]], dtype=torch.float64)
    local = boxes[:, None, 2:4].double() * unit  # N 4 2
    cos, sin = boxes[:, 4:].double().cos(), boxes[:, 4:].double().sin()
    x = boxes[:, :1] + cos * local[..., 0] - sin * local[..., 1]
    y = boxes[:, 1:2] + sin * local[..., 0] + cos * local[..., 1]
    return [shapely.Polygon(corners) for corners in torch.stack([x, y], -1).numpy()]


def plain_iou(a: Tensor, b: Tensor) -> Tensor:
    others = outline(b)
    overlap = torch.tensor([[p.intersection(q).area for q in others] for p in outline(a)])
    return overlap / (a[:, 2:4].prod(1)[:, None] + b[:, 2:4].prod(1)[None] - overlap)


def plain_nms(boxes: Tensor, scores: Tensor, threshold: float) -> list[int]:
    overlap, kept = plain_iou(boxes, boxes), []
    for candidate in scores.argsort(descending=True, stable=True).tolist():
        if not kept or overlap[kept, candidate].max() <= threshold:
            kept.append(candidate)
    return kept


def boxes_on_a_street(count: int) -> Tensor:
    return torch.rand(count, 5) * torch.tensor([60.0, 20.0, 4.0, 2.0, 6.28]) + torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0])


def overlaps(device: torch.device) -> list[Row]:
    """The plain routes go through shapely, on the CPU."""
    a, b, many = boxes_on_a_street(200), boxes_on_a_street(60), boxes_on_a_street(300)
    scores = torch.rand(len(many))
    there = [t.to(device) for t in (a, b, many, scores)]
    return [
        compare(
            "rotated_iou",
            "200 x 60 boxes, forward",
            lambda: plain_iou(a, b),
            lambda: rotated_iou(there[0], there[1]),
            device,
        ),
        compare(
            "rotated_nms",
            "300 boxes, forward",
            lambda: plain_nms(many, scores, 0.2),
            lambda: rotated_nms(there[2], there[3], threshold=0.2),
            device,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(parser.parse_args().device)
    torch.manual_seed(0)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}; forward and backward, milliseconds\n")
    print("| operator | size | plain | fast | plain / fast |\n|---|---|---:|---:|---:|")
    for part in (voxels, convolutions, pooling, sampling, overlaps):
        for operator, size, plain, fast in part(device):
            print(f"| {operator} | {size} | {plain:.1f} | {fast:.1f} | {plain / fast:.1f} |", flush=True)


if __name__ == "__main__":
    main()
