"""Which true box each detection hits: nuScenes' greedy matching by centre distance, for whole arrays at once.

nuscenes-devkit goes through the detections of a class from the surest on. Each takes the nearest true box of its sample
that is still free, if it is nearer than the threshold; at equal distance the first true box, and of equally sure
detections the last one goes first. All true boxes thus rank the detections alike, and then going in turn gives the same
pairs as proposing in rounds (Gale and Shapley, 1962): in each round every detection without a partner asks the nearest
true box that it has not asked yet, and a true box keeps the surest of those that asked it. A round is a few array
operations over all samples and classes, and few rounds are needed, since few detections compete for a box.

Letters: D detections, N true boxes, P pairs near enough to matter, T distance thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vexkd.evaluate import box_columns
from vexkd.evaluate.box_columns import Boxes

_AT_ONCE = 1 << 20  # pairs whose distances are computed at a time


@dataclass(frozen=True)
class Matching:
    """Detections by class and from the surest on (`order`, (D,), rows of the boxes), and the row of the true box that each
    hits at each threshold, -1 for none: `partner` (T, D), in this order."""

    order: np.ndarray
    partner: np.ndarray


@dataclass(frozen=True)
class _Pairs:
    """Pairs of a detection and a true box, nearest first for each detection: start (D + 1,) where each detection's pairs
    begin, truth (P,) rows, distance (P,) metres."""

    start: np.ndarray
    truth: np.ndarray
    distance: np.ndarray


def match(truth: Boxes, predicted: Boxes, thresholds: Sequence[float]) -> Matching:
    """Match the filtered predictions of a split to its filtered true boxes."""
    order = np.lexsort((-np.arange(len(predicted)), -predicted.score, predicted.label))
    pairs = _pairs(truth, predicted[order], max(thresholds))
    partner = [_propose(pairs, len(truth), threshold) for threshold in thresholds]
    return Matching(order=order, partner=np.stack(partner))


def _pairs(truth: Boxes, predicted: Boxes, farthest: float) -> _Pairs:
    """The pairs of one sample and class with centres nearer than `farthest`."""
    group, wanted = _groups(truth), _groups(predicted)
    by_group = np.argsort(group, kind="stable")
    first = np.searchsorted(group[by_group], wanted, side="left")
    count = np.searchsorted(group[by_group], wanted, side="right") - first
    ends = np.cumsum(count)
    detections, rows, distances = [], [], []
    begin = 0
    while begin < len(predicted):
        done = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, done + _AT_ONCE, side="right")))
        detection, place = box_columns.pairs(first[begin:end], count[begin:end])
        detection, row = detection + begin, by_group[place]
        offset = predicted.translation[detection, :2] - truth.translation[row, :2]
        near = np.flatnonzero((offset**2).sum(axis=1) < 1.001 * farthest**2)
        distance = np.sqrt(box_columns.dot(offset[near], offset[near]))  # rounded as np.linalg.norm rounds it
        near = near[distance < farthest]
        detections.append(detection[near])
        rows.append(row[near])
        distances.append(distance[distance < farthest])
        begin = end
    detection, row, distance = (np.concatenate(parts or [np.zeros(0)]) for parts in (detections, rows, distances))
    nearest_first = np.lexsort((distance, detection))  # stable: at equal distance the first true box stays first
    numbers = np.bincount(detection.astype(np.int64), minlength=len(predicted))
    return _Pairs(
        start=np.concatenate([[0], np.cumsum(numbers)]).astype(np.int64),
        truth=row[nearest_first].astype(np.int64),
        distance=distance[nearest_first],
    )


def _groups(boxes: Boxes) -> np.ndarray:
    """A number for each sample and class."""
    return boxes.sample * len(box_columns.CLASS_NUMBER) + boxes.label


def _propose(pairs: _Pairs, truths: int, threshold: float) -> np.ndarray:
    """The true box of each detection at one threshold, -1 for none: (D,). The lower a detection's number, the surer it is."""
    detections = len(pairs.start) - 1
    near = np.concatenate([[0], np.cumsum(pairs.distance < threshold)])
    last = pairs.start[:-1] + near[pairs.start[1:]] - near[pairs.start[:-1]]
    following = pairs.start[:-1].copy()
    holder = np.full(truths, detections)  # of each true box; `detections` stands for nobody
    asking = np.flatnonzero(following < last)
    while len(asking):
        asked = pairs.truth[following[asking]]
        before = holder[asked]
        np.minimum.at(holder, asked, asking)
        refused = asking[holder[asked] != asking]
        left = np.unique(before[(before < detections) & (holder[asked] != before)])
        asking = np.concatenate([refused, left])
        following[asking] += 1
        asking = asking[following[asking] < last[asking]]
    partner = np.full(detections, -1)
    held = np.flatnonzero(holder < detections)
    partner[holder[held]] = held
    return partner
