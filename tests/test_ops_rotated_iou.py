"""Overlap and suppression against shapely and a greedy loop, and the invariants of an overlap."""

import math

import pytest
import shapely
import shapely.affinity
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vexkd.ops.rotated_iou import circle_nms, iou_3d, rotated_iou, rotated_nms

coordinate = st.floats(-5, 5, allow_nan=False, width=32)
extent = st.floats(0.0625, 6, allow_nan=False, width=32)
angle = st.one_of(st.floats(-4, 4, allow_nan=False), st.sampled_from([k * math.pi / 4 for k in range(-4, 5)]))
box = st.tuples(coordinate, coordinate, extent, extent, angle).map(lambda b: torch.tensor([b], dtype=torch.float64))


def polygon(box: torch.Tensor) -> shapely.Polygon:
    x, y, length, width, yaw = box.tolist()
    upright = shapely.box(x - length / 2, y - width / 2, x + length / 2, y + width / 2)
    return shapely.affinity.rotate(upright, yaw, origin=(x, y), use_radians=True)


def plain_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    result = torch.zeros(len(a), len(b), dtype=torch.float64)
    others = [polygon(other) for other in b]
    for i, first in enumerate(map(polygon, a)):
        for j, second in enumerate(others):
            overlap = first.intersection(second).area
            result[i, j] = overlap / (first.area + second.area - overlap)
    return result


def plain_greedy(order: list[int], suppresses) -> list[int]:
    kept = []
    for candidate in order:
        if not any(suppresses(better, candidate) for better in kept):
            kept.append(candidate)
    return kept


def scattered_boxes(count: int, *, spread: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 5, generator=generator, dtype=torch.float64)
    return boxes * torch.tensor([spread, spread, 5, 3, 2 * math.pi]) + torch.tensor([0, 0, 0.3, 0.3, 0])


def test_equals_shapely_on_scattered_boxes():
    a, b = scattered_boxes(60, spread=10.0), scattered_boxes(40, spread=10.0, seed=1)
    expected = plain_iou(a, b)
    assert (expected > 0).sum() > 300
    torch.testing.assert_close(rotated_iou(a, b), expected, atol=1e-9, rtol=0)


@settings(max_examples=150, deadline=None)
@given(a=box, b=box)
def test_equals_shapely_and_is_symmetric(a, b):
    iou = rotated_iou(a, b)
    assert 0 <= iou.item() <= 1
    torch.testing.assert_close(iou, plain_iou(a, b), atol=1e-9, rtol=0)
    torch.testing.assert_close(iou, rotated_iou(b, a), atol=1e-9, rtol=0)


@settings(max_examples=100, deadline=None)
@given(a=box, turns=st.integers(-3, 3))
def test_a_box_and_itself(a, turns):
    turned = a + torch.tensor([0, 0, 0, 0, turns * math.pi], dtype=torch.float64)
    assert rotated_iou(a, turned).item() == pytest.approx(1, abs=1e-9)
    other_way = turned[:, [0, 1, 3, 2, 4]] + torch.tensor([0, 0, 0, 0, math.pi / 2], dtype=torch.float64)
    assert rotated_iou(a, other_way).item() == pytest.approx(1, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(a=box, b=box, shift=st.tuples(coordinate, coordinate), turn=angle)
def test_moving_both_changes_nothing(a, b, shift, turn):
    rotation = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]], dtype=torch.float64)
    moved = []
    for boxes in (a, b):
        centre = boxes[:, :2] @ rotation.t() + torch.tensor(shift, dtype=torch.float64)
        moved.append(torch.cat([centre, boxes[:, 2:4], boxes[:, 4:] + turn], 1))
    torch.testing.assert_close(rotated_iou(*moved), rotated_iou(a, b), atol=1e-9, rtol=0)


@pytest.mark.parametrize("yaw", [0.0, 0.3, math.pi / 4, math.pi / 2, 3.0])
def test_shared_edges_by_hand(yaw):
    along = torch.tensor([math.cos(yaw), math.sin(yaw)], dtype=torch.float64)
    across = torch.tensor([-math.sin(yaw), math.cos(yaw)], dtype=torch.float64)

    def place(x: float, y: float, length: float, width: float) -> torch.Tensor:
        return torch.tensor([[*(x * along + y * across).tolist(), length, width, yaw]], dtype=torch.float64)

    whole = place(0, 0, 4, 2)
    assert rotated_iou(whole, place(1, 0, 2, 2)).item() == pytest.approx(0.5, abs=1e-12)  # three edges in common
    assert rotated_iou(whole, place(0, 0.5, 4, 1)).item() == pytest.approx(0.5, abs=1e-12)
    assert rotated_iou(whole, place(4, 0, 4, 2)).item() == pytest.approx(0, abs=1e-12)  # side by side
    assert rotated_iou(whole, place(4, 2, 4, 2)).item() == pytest.approx(0, abs=1e-12)  # corner to corner
    assert rotated_iou(whole, place(0, 0, 0, 2)).item() == 0  # empty


def test_single_precision_and_empty_sets():
    a = scattered_boxes(30, spread=5.0)
    assert rotated_iou(a.float(), a.float()).dtype == torch.float32
    torch.testing.assert_close(rotated_iou(a.float(), a.float()).double(), rotated_iou(a, a), atol=1e-5, rtol=0)
    assert rotated_iou(a, a[:0]).shape == (30, 0)
    assert rotated_nms(a[:0], torch.zeros(0), threshold=0.2).shape == (0,)


def test_iou_3d_by_hand():
    a = torch.tensor([[0.0, 0, 0, 4, 2, 2, 0.5]], dtype=torch.float64)
    raised, apart, half = a.clone(), a.clone(), a.clone()
    raised[0, 2], apart[0, 2] = 1, 2
    half[0, 5], half[0, 2] = 1, 0.5
    result = iou_3d(a, torch.cat([a, raised, apart, half]))
    torch.testing.assert_close(result, torch.tensor([[1.0, 1 / 3, 0.0, 0.5]], dtype=torch.float64))


def test_iou_3d_is_the_ground_overlap_times_height():
    boxes = scattered_boxes(20, spread=6.0)
    solid = torch.stack(
        [*boxes[:, :2].t(), torch.linspace(-1, 1, 20), *boxes[:, 2:4].t(), torch.full((20,), 1.5), boxes[:, 4]], 1
    )
    expected = torch.zeros(20, 20, dtype=torch.float64)
    shapes = [polygon(b) for b in boxes]
    for i in range(20):
        for j in range(20):
            overlap = shapes[i].intersection(shapes[j]).area * max(0, 1.5 - abs(solid[i, 2] - solid[j, 2]).item())
            expected[i, j] = overlap / ((shapes[i].area + shapes[j].area) * 1.5 - overlap)
    torch.testing.assert_close(iou_3d(solid, solid), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("pre", "post"), [(None, None), (80, 10)])
def test_rotated_nms_is_the_greedy_loop(pre, post):
    boxes = scattered_boxes(120, spread=15.0)
    scores = torch.rand(120, generator=torch.Generator().manual_seed(3)).mul(20).round() / 20  # with equal scores
    overlap = plain_iou(boxes, boxes)
    order = sorted(range(120), key=lambda i: (-scores[i].item(), i))[:pre]
    expected = plain_greedy(order, lambda better, worse: overlap[better, worse] > 0.2)[:post]
    assert rotated_nms(boxes, scores, threshold=0.2, pre=pre, post=post).tolist() == expected
    assert post is not None or 20 < len(expected) < 100


def test_circle_nms_is_the_greedy_loop():
    centers, scores = scattered_boxes(150, spread=20.0)[:, :2], torch.rand(150)
    order = scores.argsort(descending=True).tolist()
    expected = plain_greedy(order, lambda a, b: (centers[a] - centers[b]).square().sum() <= 4)
    assert circle_nms(centers, scores, threshold=4.0).tolist() == expected
    assert circle_nms(centers, scores, threshold=4.0, post=5).tolist() == expected[:5]


def test_circle_nms_compares_the_squared_distance():
    centers = torch.tensor([[0.0, 0], [1.9, 0], [2.1, 0]])
    assert circle_nms(centers, torch.tensor([0.9, 0.8, 0.7]), threshold=4.0).tolist() == [0, 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_gpu_suppresses_alike():
    boxes, scores = scattered_boxes(200, spread=15.0), torch.rand(200)
    torch.testing.assert_close(rotated_iou(boxes.cuda(), boxes.cuda()).cpu(), rotated_iou(boxes, boxes))
    there = rotated_nms(boxes.cuda(), scores.cuda(), threshold=0.2)
    assert there.tolist() == rotated_nms(boxes, scores, threshold=0.2).tolist()
