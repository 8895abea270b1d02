"""Overlap of rotated boxes, the two kinds of suppression CenterPoint uses, as in mmdetection3d, and BEVDet's Scale-NMS.

Dimensions: N, M boxes, K pairs of boxes. Metres and radians; yaw counter-clockwise from +x; l along the yaw, w across.
"""

import torch
from torch import Tensor


@torch.no_grad()
def rotated_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union on the ground of a (N, 5) and b (M, 5), each x y l w yaw: (N, M). 0 for empty boxes."""
    overlap = _pairwise_overlap(a, b)  # N M
    union = _area(a)[:, None] + _area(b)[None] - overlap
    return _ratio(overlap, union).to(torch.result_type(a, b))


@torch.no_grad()
def iou_3d(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of a (N, 7) and b (M, 7), each x y z l w h yaw with z at the gravity centre: (N, M)."""
    ground = [0, 1, 3, 4, 6]
    top_a, top_b = (box[:, 2].double() + box[:, 5].double().clamp(min=0) / 2 for box in (a, b))
    low_a, low_b = (box[:, 2].double() - box[:, 5].double().clamp(min=0) / 2 for box in (a, b))
    height = torch.minimum(top_a[:, None], top_b[None]) - torch.maximum(low_a[:, None], low_b[None])
    overlap = _pairwise_overlap(a[:, ground], b[:, ground]) * height.clamp(min=0)  # N M
    volume_a, volume_b = _area(a[:, ground]) * (top_a - low_a), _area(b[:, ground]) * (top_b - low_b)
    return _ratio(overlap, volume_a[:, None] + volume_b[None] - overlap).to(torch.result_type(a, b))


@torch.no_grad()
def rotated_nms(
    boxes: Tensor, scores: Tensor, *, threshold: float, pre: int | None = None, post: int | None = None
) -> Tensor:
    """Indices of the boxes (N, 5) kept, best first: a box goes when a better one kept overlaps it by over `threshold`.

    `pre` best boxes enter, at most `post` are returned. Equal scores: the earlier box is the better one.
    """
    order = torch.sort(scores, descending=True, stable=True).indices[:pre]
    suppresses = rotated_iou(boxes[order], boxes[order]) > threshold
    return order[_greedy(suppresses)][:post]


@torch.no_grad()
def scale_nms(
    boxes: Tensor,
    scores: Tensor,
    scales: Tensor,
    *,
    threshold: float,
    pre: int | None = None,
    post: int | None = None,
) -> Tensor:
    """`rotated_nms` of boxes (N, 5) whose length and width are multiplied by `scales` (N,) for the comparison.

    Larger small objects suppress their duplicates, which would not overlap; smaller large ones spare their neighbours.
    """
    scaled = torch.cat([boxes[:, :2], boxes[:, 2:4] * scales[:, None], boxes[:, 4:]], dim=1)
    return rotated_nms(scaled, scores, threshold=threshold, pre=pre, post=post)


@torch.no_grad()
def circle_nms(centers: Tensor, scores: Tensor, *, threshold: float, post: int | None = None) -> Tensor:
    """Indices of the centres (N, 2) kept, best first, at most `post`.

    As in the published code the threshold is compared with the *squared* distance: 4 means two metres.
    """
    order = torch.sort(scores, descending=True, stable=True).indices
    ranked = centers[order].double()
    squared = (ranked[:, None] - ranked[None]).square().sum(-1)
    return order[_greedy(squared <= threshold)][:post]


def _greedy(suppresses: Tensor) -> Tensor:
    """Which of the ranked candidates a greedy pass keeps; suppresses (N, N) holds for (better, worse).

    Iterates "kept, unless one kept suppresses it" to its only fixed point: after n rounds the first n are settled, and
    in practice a handful of rounds settles all, without a step in Python per candidate.
    """
    reach = suppresses.triu(diagonal=1).float()
    kept = torch.ones(len(reach), dtype=torch.bool, device=reach.device)
    while True:
        settled = kept.float() @ reach == 0
        if torch.equal(settled, kept):
            return kept
        kept = settled


def _area(boxes: Tensor) -> Tensor:
    return boxes[:, 2:4].double().clamp(min=0).prod(1)


def _ratio(overlap: Tensor, union: Tensor) -> Tensor:
    return torch.where(union > 0, overlap / union.where(union > 0, 1.0), 0.0).clamp(0, 1)


def _pairwise_overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection areas (N, M) in float64; only pairs whose circumscribed circles meet are computed."""
    a, b = a.double(), b.double()
    reach = (a[:, None, 2:4].norm(dim=-1) + b[None, :, 2:4].norm(dim=-1)) / 2
    near = (a[:, None, :2] - b[None, :, :2]).norm(dim=-1) <= reach
    first, second = near.nonzero(as_tuple=True)  # K
    overlap = a.new_zeros(len(a), len(b))
    overlap[first, second] = _overlap(a[first], b[second])
    return overlap


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection area of pairs (K, 5).

    In the frame of a, where a is upright, the area is the integral along the outline of b of y, held within a, over the
    part of x within a. It needs no list of corners, and small errors of the input stay small: shared edges are no case
    of their own.
    """
    half = a[:, 2:4].clamp(min=0) / 2
    x, y = _corners_in_frame(a, b)  # K 4, counter-clockwise
    dx, dy = x.roll(-1, 1) - x, y.roll(-1, 1) - y
    limit_x, limit_y = half[:, :1], half[:, 1:]
    x0, x1 = x.clamp(-limit_x, limit_x), x.roll(-1, 1).clamp(-limit_x, limit_x)
    slope = _divide(dy, dx)
    y0, y1 = y + (x0 - x) * slope, y + (x1 - x) * slope
    return (-(x1 - x0) * _mean_within(y0, y1, limit_y)).sum(1).clamp(min=0)


def _corners_in_frame(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """x and y (K, 4) of b's corners in the frame of a."""
    shift = b[:, :2] - a[:, :2]
    cos_a, sin_a = a[:, 4].cos(), a[:, 4].sin()
    centre_x = (cos_a * shift[:, 0] + sin_a * shift[:, 1]).unsqueeze(1)
    centre_y = (cos_a * shift[:, 1] - sin_a * shift[:, 0]).unsqueeze(1)
    turn = b[:, 4] - a[:, 4]
    cos, sin = turn.cos().unsqueeze(1), turn.sin().unsqueeze(1)
    along = b[:, 2:3].clamp(min=0) / 2 * b.new_tensor([1.0, -1.0, -1.0, 1.0])  # K 4
    across = b[:, 3:4].clamp(min=0) / 2 * b.new_tensor([1.0, 1.0, -1.0, -1.0])
    return centre_x + cos * along - sin * across, centre_y + sin * along + cos * across


def _mean_within(start: Tensor, end: Tensor, limit: Tensor) -> Tensor:
    """Mean over t in [0, 1] of (start + t (end - start)) held within +-limit: trapezoids between contacts."""
    rise = end - start
    low, high = _divide(-limit - start, rise).clamp(0, 1), _divide(limit - start, rise).clamp(0, 1)
    first, second = torch.minimum(low, high), torch.maximum(low, high)

    def height(t: Tensor) -> Tensor:
        return (start + t * rise).clamp(-limit, limit)

    h0, h1, h2, h3 = start.clamp(-limit, limit), height(first), height(second), end.clamp(-limit, limit)
    return (first * (h0 + h1) + (second - first) * (h1 + h2) + (1 - second) * (h2 + h3)) / 2


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """0 where the denominator is 0, or so near that the quotient could overflow."""
    zero = denominator.abs() < 1e-30
    return torch.where(zero, 0.0, numerator / denominator.where(~zero, 1.0))
