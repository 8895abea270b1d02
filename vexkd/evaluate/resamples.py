"""Scores of a prediction file on resampled scenes: how much they owe to which scenes happen to be in the split.

Scenes, not samples, are drawn with replacement, as samples of one scene are alike. Every run gets the same draws, so that
two runs are compared draw by draw: a paired bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993).
What each scene contributes is counted once; a draw is scored from these counts, as the devkit would score a data set in
which the drawn scenes stand as often as they were drawn.

For detections such a data set is never written out. A detection, and with it its hit, stands as often as its scene was
drawn, so that running sums of these weights say how many detections and hits come before each detection. The metric asks
for precision, confidence and mean errors at 101 recalls only; which detection stands there is found by bisection in the
sums. Letters: S scenes, R draws, D detections, M true positives, T distance thresholds, E errors, Q = 101 recalls.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vexkd import provenance
from vexkd.evaluate.array_scorer import RECALLS, TP_ERRORS, UNDEFINED, Matches

if TYPE_CHECKING:
    from vexkd.evaluate.segmentation import Accumulator

DRAWS = 1000
SEED = 20241210  # of the generator that draws the scenes; the same for every run
FILE = "resamples.json"
_DRAWS_TOGETHER = 16  # for speed alone


def draws(scenes: int, count: int = DRAWS) -> np.ndarray:
    """How often each scene is in each draw: (R, S), every row with the sum S."""
    chosen = np.random.default_rng(SEED).integers(scenes, size=(count, scenes))
    return np.stack([np.bincount(row, minlength=scenes) for row in chosen])


def of_detection(matches: Mapping[str, Matches], settings: Any) -> dict[str, list[float]]:
    """mAP and NDS of every draw.

    matches: by class, with scenes numbered by name. settings: a configuration of the metric.
    """
    scenes = len(next(iter(matches.values())).positives)
    mean_ap, nds = scores_of_draws(matches, draws(scenes), settings)
    return {"mAP": mean_ap.tolist(), "NDS": nds.tolist()}


def of_segmentation(counts: Mapping[str, Accumulator]) -> dict[str, list[float]]:
    """mIoU of every draw, from what `Accumulator` counted in each scene."""
    names = sorted(counts)
    each = np.stack([counts[name].histogram for name in names])  # S C 2 T+1
    total = copy.copy(counts[names[0]])
    means = []
    for weights in draws(len(names)):
        total.histogram = np.tensordot(weights, each, axes=1)
        means.append(float(total.iou().max(axis=1).mean()))
    return {"mIoU": means}


def save(path: Path, scenes: Sequence[str], scores: Mapping[str, Mapping[str, list[float]]]) -> None:
    """Write the draws' scores by seed and score name, to six digits, with what they were drawn from."""
    rounded = {
        seed: {name: [round(value, 6) for value in values] for name, values in found.items()}
        for seed, found in scores.items()
    }
    head = {"scenes": sorted(set(scenes)), "draws": DRAWS, "generator_seed": SEED}
    provenance.write_text(path, json.dumps(head | {"seeds": rounded}) + "\n")


def detection_scores(matches: Mapping[str, Matches], counts: np.ndarray, settings: Any) -> tuple[float, float]:
    """mAP and NDS of the data set in which scene s stands counts[s] times."""
    mean_ap, nds = scores_of_draws(matches, np.asarray(counts)[None], settings)
    return float(mean_ap[0]), float(nds[0])


def scores_of_draws(matches: Mapping[str, Matches], counts: np.ndarray, settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """mAP and NDS, (R,) each, of the data sets in which scene s stands counts[r, s] times: the devkit's arithmetic."""
    counts = np.asarray(counts)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(lambda job: _of_class(*job, counts, settings), matches.items()))
    mean_ap = np.mean([ap for ap, _ in parts], axis=0)
    scores = np.maximum(0.0, 1.0 - np.nanmean([errors for _, errors in parts], axis=0))  # E R
    weight = settings.mean_ap_weight
    return mean_ap, (weight * mean_ap + scores.sum(axis=0)) / (weight + len(scores))


@dataclass(frozen=True)
class _Steps:
    """Where the 101 recalls lie among the hits of each draw at one threshold: arrays (R, Q) but `row` and `total`.

    row (M,): the hits' places among the detections. total (R,): hits of the draw. reached: hits up to a recall. hit: which
    one follows, a number into `row`. place: how many detections come before that. before: at the threshold of the errors,
    the detection before it.
    """

    row: np.ndarray
    total: np.ndarray
    reached: np.ndarray
    hit: np.ndarray
    place: np.ndarray
    before: np.ndarray


def _of_class(name: str, each: Matches, counts: np.ndarray, settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """AP, mean over the thresholds (R,), and the five errors (E, R) of one class."""
    ap = np.zeros((len(each.hit), len(counts)))
    errors = np.ones((len(TP_ERRORS), len(counts)))
    positives = counts @ each.positives
    number = counts @ np.bincount(each.scene, minlength=counts.shape[1])  # of detections
    for t, steps in enumerate(_steps(each, counts, positives)):
        scored = (steps.total > 0) & (positives > 0)  # without a hit scores stay as they are
        ap[t, scored] = _average_precision(steps, positives, number, settings)[scored]
        if t == each.strict and scored.any():
            confidence = _confidence(each, steps, positives, counts)
            errors[:, scored] = _mean_errors(each, steps.row, confidence, counts, settings)[:, scored]
    for error in UNDEFINED.get(name, ()):
        errors[TP_ERRORS.index(error)] = np.nan
    return ap.mean(axis=0), errors


def _steps(each: Matches, counts: np.ndarray, positives: np.ndarray) -> list[_Steps]:
    """The recalls among the hits of each threshold, in every draw."""
    detections = _Copies(each.scene, counts)
    steps = []
    for t, hits in enumerate(each.hit):
        row = np.flatnonzero(hits)
        total = counts @ np.bincount(each.scene[row], minlength=counts.shape[1])
        reached = _reached(positives, total)
        hit, place, before = np.zeros((3, *reached.shape), dtype=np.int64)
        if len(row):
            hit, copies = _Copies(each.scene[row], counts).beyond(np.minimum(reached, total[:, None] - 1))
            place = detections.before(row[hit]) + reached - copies
            if t == each.strict:
                before, _ = detections.beyond(np.minimum(place, detections.ends[:, -1:]) - 1)
            hit, place, before = (np.where(total[:, None] > 0, found, 0) for found in (hit, place, before))
        steps.append(_Steps(row, total, reached, hit, place, before))
    return steps


class _Copies:
    """Items in a fixed order, each standing in a draw as often as its scene was drawn: running sums of these copies.

    Sums are kept at the ends of blocks, for all draws in one product of matrices; within a block they are made when asked
    for. scene (N,): of each item. counts (R, S).
    """

    def __init__(self, scene: np.ndarray, counts: np.ndarray) -> None:
        draws, scenes = counts.shape
        self._size = 2 ** int(np.clip(np.log2(max(len(scene), 1) / 500), 1, 5))  # of a block: few large ones pay
        number = max(1, -(-len(scene) // self._size))
        block = np.arange(len(scene)) // self._size
        held = np.bincount(block * scenes + scene, minlength=number * scenes).reshape(number, scenes)
        self.ends = np.cumsum((counts.astype(float) @ held.T.astype(float)).astype(np.int64), axis=1)  # R blocks
        self._weights = np.concatenate([counts, np.zeros((draws, 1), counts.dtype)], axis=1).astype(np.int32)
        self._scene = np.full(number * self._size, scenes)  # the last, of weight 0, fills up the last block
        self._scene[: len(scene)] = scene
        self._last = max(len(scene) - 1, 0)
        self._scene = self._scene.reshape(number, self._size)

    def beyond(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first item at which the copies up to it are more than a value (R, Q), else the last; and the copies before it."""
        apart = np.arange(len(values))[:, None] * (self.ends[:, -1].max() + 2)
        place = np.searchsorted((self.ends + apart).ravel(), np.maximum(values, -1) + apart, side="right")
        block = np.minimum(place - np.arange(len(values))[:, None] * self.ends.shape[1], self.ends.shape[1] - 1)
        item, copies = np.empty((2, *values.shape), dtype=np.int64)
        for part in self._parts():
            start = self._start(block, part)
            sums = np.cumsum(self._of_blocks(block, part), axis=2)
            offset = (sums + start[..., None] <= values[part][..., None]).sum(axis=2)
            inside = np.take_along_axis(sums, np.maximum(offset - 1, 0)[..., None], axis=2)[..., 0]
            item[part] = np.minimum(block[part] * self._size + offset, self._last)
            copies[part] = start + np.where(offset > 0, inside, 0)
        return item, copies

    def before(self, item: np.ndarray) -> np.ndarray:
        """How many copies come before an item: (R, Q)."""
        block, offset = self._place(item)
        copies = np.empty(item.shape, dtype=np.int64)
        for part in self._parts():
            earlier = np.arange(self._size) < offset[part][..., None]
            copies[part] = self._start(block, part) + (self._of_blocks(block, part) * earlier).sum(axis=2)
        return copies

    def sums(self, values: np.ndarray, item: np.ndarray) -> np.ndarray:
        """Sums of values (K, N), one of each copy, over the copies before an item: (K, R, Q)."""
        block, offset = self._place(item)
        scenes = self._weights.shape[1]
        at = (np.arange(len(self._scene))[:, None] * scenes + self._scene).ravel()
        padded = np.zeros((len(values), self._scene.size))
        padded[:, : values.shape[1]] = values
        weights = self._weights.astype(float)
        held = [np.bincount(at, each, len(self._scene) * scenes).reshape(-1, scenes) for each in padded]
        ends = [np.cumsum(weights @ each.T, axis=1) for each in held]
        padded = padded.reshape(len(values), *self._scene.shape)
        sums = np.empty((len(values), *item.shape))
        for part in self._parts():
            counted = self._of_blocks(block, part) * (np.arange(self._size) < offset[part][..., None])
            for k in range(len(values)):
                start = np.take_along_axis(ends[k][part], np.maximum(block[part] - 1, 0), axis=1)
                inside = np.einsum("rqb,rqb->rq", counted, padded[k][block[part]])
                sums[k, part] = np.where(block[part] > 0, start, 0.0) + inside
        return sums

    def _place(self, item: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The block of an item, which may be one past the end, and its place in it."""
        block = np.minimum(item // self._size, self.ends.shape[1] - 1)
        return block, item - block * self._size

    def _parts(self) -> list[slice]:
        """Draws a few at a time, so that their blocks stay in the processor's cache."""
        return [slice(start, start + _DRAWS_TOGETHER) for start in range(0, len(self.ends), _DRAWS_TOGETHER)]

    def _start(self, block: np.ndarray, part: slice) -> np.ndarray:
        """The copies before these blocks of some draws."""
        ends = np.take_along_axis(self.ends[part], np.maximum(block[part] - 1, 0), axis=1)
        return np.where(block[part] > 0, ends, 0)

    def _of_blocks(self, block: np.ndarray, part: slice) -> np.ndarray:
        """The copies of each item of these blocks of some draws: (part, Q, items)."""
        draw = np.arange(len(self.ends))[part][:, None, None]
        return self._weights[draw, self._scene[block[part]]]


def _reached(positives: np.ndarray, total: np.ndarray) -> np.ndarray:
    """How many hits lie within each recall, of `positives` true boxes and `total` hits: (R, Q)."""
    number = np.maximum(positives, 1)[:, None]
    reached = np.floor(RECALLS * number)  # perhaps one off by rounding
    reached += (reached + 1) / number <= RECALLS
    reached -= reached / number > RECALLS
    return np.minimum(reached.astype(np.int64), total[:, None])


def _between(x: np.ndarray, x0: np.ndarray, y0: np.ndarray, x1: np.ndarray, y1: np.ndarray) -> np.ndarray:
    """Linear interpolation as `np.interp` rounds it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(x == x0, y0, (y1 - y0) / (x1 - x0) * (x - x0) + y0)


def _at_recalls(
    steps: _Steps, positives: np.ndarray, here: np.ndarray, following: np.ndarray, final: np.ndarray
) -> np.ndarray:
    """A curve over the recalls of the detections, read off at the 101 as by `np.interp(..., right=0)`: (R, Q).

    here, following (R, Q): its values at the last detection before the next hit, and at that hit. final (R,): its value at
    the very last detection.
    """
    number = np.maximum(positives, 1)[:, None]
    values = _between(RECALLS, steps.reached / number, here, (steps.reached + 1) / number, following)
    values = np.where(steps.place == 0, following, values)  # before the first detection
    end = np.where(steps.total[:, None] / number == RECALLS, final[:, None], 0.0)
    return np.where(steps.reached == steps.total[:, None], end, values)


def _average_precision(steps: _Steps, positives: np.ndarray, number: np.ndarray, settings: Any) -> np.ndarray:
    """AP above the lowest recall and precision that count: (R,). number: of detections in each draw."""
    here = steps.reached / np.maximum(steps.place, 1)
    following = (steps.reached + 1) / (steps.place + 1)
    precision = _at_recalls(steps, positives, here, following, steps.total / np.maximum(number, 1))
    kept = precision[:, round(100 * settings.min_recall) + 1 :] - settings.min_precision
    return np.maximum(kept, 0).mean(axis=1) / (1.0 - settings.min_precision)


def _confidence(each: Matches, steps: _Steps, positives: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The score down to which detections must be taken to reach each recall, 0 where none is enough: (R, Q)."""
    final = np.zeros(len(counts))
    lowest = np.full(counts.shape[1], -1)
    np.maximum.at(lowest, each.scene, np.arange(len(each.scene)))  # the last detection of each scene
    last = np.where(counts > 0, lowest, -1).max(axis=1)
    final[last >= 0] = each.score[last[last >= 0]]
    return _at_recalls(steps, positives, each.score[steps.before], each.score[steps.row[steps.hit]], final)


def _mean_errors(
    each: Matches, row: np.ndarray, confidence: np.ndarray, counts: np.ndarray, settings: Any
) -> np.ndarray:
    """The five errors as running means, averaged over the recalls that count, 1 where none is reached: (E, R).

    row (M,): the hits' places among the detections.
    """
    curves = _error_curves(each, row, confidence, counts)
    first_recall = round(100 * settings.min_recall) + 1
    end = np.where(confidence != 0, np.arange(len(RECALLS)), 0).max(axis=1)
    errors = np.ones((len(TP_ERRORS), len(counts)))
    for r in np.flatnonzero(end >= first_recall):
        errors[:, r] = curves[:, r, first_recall : end[r] + 1].mean(axis=1)
    return errors


def _error_curves(each: Matches, row: np.ndarray, confidence: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The running means of the errors of every draw, read off at its confidences: (E, R, Q)."""
    score, known = each.score[row], ~np.isnan(each.errors)
    values = np.where(known, each.errors, 0.0)
    hits = _Copies(each.scene[row], counts)
    total = hits.ends[:, -1:]
    surer = hits.before(np.searchsorted(-score, -confidence, side="left"))  # copies with higher scores
    first, copies = hits.beyond(np.minimum(surer, total - 1))  # the first not above, and what stands before it
    last, _ = hits.beyond(np.maximum(surer - 1, 0))  # the last above
    every = np.arange(len(counts))[:, None]
    partly = [e for e in range(len(values)) if not known[e].all()]
    both = hits.sums(np.concatenate([values, known[partly]]), first)
    numbers = {e: both[len(values) + i] for i, e in enumerate(partly)}
    curves = np.empty((len(values), *confidence.shape))
    for e in range(len(values)):
        sums, number = both[e], numbers.get(e, copies)
        whole = counts @ np.bincount(each.scene[row], values[e], counts.shape[1])
        whole_number = counts @ np.bincount(each.scene[row], known[e], counts.shape[1])
        with_first = _mean(sums + values[e, first], number + known[e, first])
        curve = _between(confidence, score[first], with_first, score[last], _mean(sums, number))
        curve = np.where(surer == 0, with_first, curve)
        curve = np.where(surer < total, curve, _mean(whole, whole_number)[every])
        curves[e] = np.where(whole_number[every] == 0, 1.0, curve)  # nothing is known
    return curves


def _mean(total: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Sums over numbers, 0 over none."""
    return total / np.maximum(number, 1)
