"""Scores of a prediction file on resampled scenes: how much they owe to which scenes happen to be in the split.

Scenes, not samples, are drawn with replacement, as samples of one scene are alike. Every run gets the same draws, so that
two runs are compared draw by draw: a paired bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993).
What each scene contributes is counted once; a draw is scored from these counts, as the devkit would score a data set in
which the drawn scenes stand as often as they were drawn.

For detections such a data set is never written out. A detection, and with it its hit, stands as often as its scene was
drawn, so that running sums of these weights say how many detections and hits come before each detection. The metric asks
for precision, confidence and mean errors at 101 recalls only; which detection stands there is found by bisection, for many
draws at once. Letters: S scenes, R draws, D detections, M true positives, T distance thresholds, E errors, Q = 101 recalls.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
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
_AT_ONCE = 1 << 25  # running sums, of detections times draws, that are in memory at a time


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
    found = []
    for weights in draws(len(names)):
        total.histogram = np.tensordot(weights, each, axes=1)
        found.append(float(total.iou().max(axis=1).mean()))
    return {"mIoU": found}


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
    aps, errors = [], []
    for name, each in matches.items():
        step = max(1, _AT_ONCE // (len(each.scene) + 1))
        parts = [_of_class(name, each, counts[start : start + step], settings) for start in range(0, len(counts), step)]
        aps.append(np.concatenate([ap for ap, _ in parts]))
        errors.append(np.concatenate([error for _, error in parts], axis=1))
    mean_ap = np.mean(aps, axis=0)
    scores = np.maximum(0.0, 1.0 - np.nanmean(errors, axis=0))  # E R
    weight = settings.mean_ap_weight
    return mean_ap, (weight * mean_ap + scores.sum(axis=0)) / (weight + len(scores))


@dataclass(frozen=True)
class _Sums:
    """Running sums over one class's detections, best first, in each draw.

    weight: how often each detection stands there, by scene, (S, R). seen (D + 1, R): detections before each one.
    positives (R,): true boxes.
    """

    weight: np.ndarray
    seen: np.ndarray
    positives: np.ndarray


@dataclass(frozen=True)
class _Steps:
    """Where the 101 recalls lie among the hits at one threshold: each array (Q, R) but `before`, `row`, `total`.

    row (M,): the hits' places among the detections. before (M + 1, R): hits before each. total (R,). reached: hits up to a
    recall. hit: the next one, a number into `row`. place: how many detections come before that.
    """

    row: np.ndarray
    before: np.ndarray
    total: np.ndarray
    reached: np.ndarray
    hit: np.ndarray
    place: np.ndarray


def _of_class(name: str, each: Matches, counts: np.ndarray, settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """AP, mean over the thresholds (R,), and the five errors (E, R) of one class."""
    ap = np.zeros((len(each.hit), len(counts)))
    errors = np.ones((len(TP_ERRORS), len(counts)))
    weight = np.ascontiguousarray(counts.T, dtype=np.int32)
    sums = _Sums(weight, _running(weight[each.scene]), counts @ each.positives)
    for t, hit in enumerate(each.hit):
        if not hit.any():
            continue
        steps = _steps(each, sums, np.flatnonzero(hit))
        found = steps.total > 0  # of no use without a hit: then scores stay as they are
        found &= sums.positives > 0
        ap[t, found] = _average_precision(steps, sums, settings)[found]
        if t == each.strict:
            errors[:, found] = _mean_errors(each, steps, sums, settings)[:, found]
    for error in UNDEFINED.get(name, ()):
        errors[TP_ERRORS.index(error)] = np.nan
    return ap.mean(axis=0), errors


def _running(values: np.ndarray) -> np.ndarray:
    """Sums down to each row, without it: (N, R) -> (N + 1, R)."""
    sums = np.zeros((len(values) + 1, values.shape[1]), dtype=values.dtype)
    np.cumsum(values, axis=0, out=sums[1:])
    return sums


def _at(table: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """What stands in each draw's column in these rows: table (N, R), rows (Q, R) -> (Q, R)."""
    return np.take_along_axis(table, rows, axis=0)


def _holder(before: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Which row holds the copy of this number, counted from 0 in its draw; for one beyond the end, the last that holds any.

    before (N + 1, R), number (Q, R) -> (Q, R).
    """
    number = np.minimum(number, before[-1] - 1)
    low = np.zeros(number.shape, dtype=np.int64)
    high = np.full(number.shape, len(before) - 2)
    while (low < high).any():
        middle = (low + high) // 2
        later = _at(before, middle + 1) <= number
        low, high = np.where(later, middle + 1, low), np.where(later, high, middle)
    return low


def _steps(each: Matches, sums: _Sums, row: np.ndarray) -> _Steps:
    """The recalls among the hits in these rows."""
    before = _running(sums.weight[each.scene[row]])
    positives = np.maximum(sums.positives, 1)
    reached = np.floor(RECALLS[:, None] * positives)  # Q R, perhaps one off by rounding
    reached += (reached + 1) / positives <= RECALLS[:, None]
    reached -= reached / positives > RECALLS[:, None]
    reached = np.minimum(reached.astype(np.int64), before[-1])
    hit = _holder(before, reached)
    place = _at(sums.seen, row[hit]) + reached - _at(before, hit)
    return _Steps(row, before, before[-1], reached, hit, place)


def _between(x: np.ndarray, x0: np.ndarray, y0: np.ndarray, x1: np.ndarray, y1: np.ndarray) -> np.ndarray:
    """Linear interpolation as `np.interp` rounds it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(x == x0, y0, (y1 - y0) / (x1 - x0) * (x - x0) + y0)


def _at_recalls(steps: _Steps, sums: _Sums, here: np.ndarray, following: np.ndarray, final: np.ndarray) -> np.ndarray:
    """A curve over the recalls of the detections, read off at the 101 as by `np.interp(..., right=0)`: (Q, R).

    here, following (Q, R): its values at the last detection before the next hit, and at that hit. final (R,): its value at
    the very last detection.
    """
    positives = np.maximum(sums.positives, 1)
    values = _between(RECALLS[:, None], steps.reached / positives, here, (steps.reached + 1) / positives, following)
    values = np.where(steps.place == 0, following, values)  # before the first detection
    end = np.where(steps.total / positives == RECALLS[:, None], final, 0.0)
    return np.where(steps.reached == steps.total, end, values)


def _average_precision(steps: _Steps, sums: _Sums, settings: Any) -> np.ndarray:
    """AP above the lowest recall and precision that count: (R,)."""
    here = steps.reached / np.maximum(steps.place, 1)
    following = (steps.reached + 1) / (steps.place + 1)
    precision = _at_recalls(steps, sums, here, following, steps.total / np.maximum(sums.seen[-1], 1))
    kept = precision[round(100 * settings.min_recall) + 1 :] - settings.min_precision
    return np.maximum(kept, 0).mean(axis=0) / (1.0 - settings.min_precision)


def _confidence(each: Matches, steps: _Steps, sums: _Sums) -> np.ndarray:
    """The score down to which detections must be taken to reach each recall, 0 where none is enough: (Q, R)."""
    following = each.score[steps.row[steps.hit]]
    here = each.score[_holder(sums.seen, np.maximum(steps.place - 1, 0))]
    final = each.score[_holder(sums.seen, np.maximum(sums.seen[-1:] - 1, 0))[0]]
    return _at_recalls(steps, sums, here, following, final)


def _mean_errors(each: Matches, steps: _Steps, sums: _Sums, settings: Any) -> np.ndarray:
    """The five errors as running means, averaged over the recalls that count, 1 where none is reached: (E, R)."""
    confidence = _confidence(each, steps, sums)
    score = each.score[steps.row]
    surer = _at(steps.before, np.searchsorted(-score, -confidence, side="left"))  # hits above this confidence
    some = surer < steps.total
    first = _holder(steps.before, np.where(some, surer, 0))  # the first hit that is not above it
    last = _holder(steps.before, np.maximum(surer - 1, 0))  # the last hit that is
    first_recall = round(100 * settings.min_recall) + 1
    numbers = np.arange(len(RECALLS))[:, None]
    end = np.where(confidence != 0, numbers, 0).max(axis=0)
    counted = (numbers >= first_recall) & (numbers <= end)
    weight = sums.weight[each.scene[steps.row]]
    found = []
    for error in each.errors:
        known = ~np.isnan(error)
        value = np.where(known, error, 0.0)
        total = _running(weight * value[:, None])
        number = steps.before if known.all() else _running(weight * known[:, None].astype(np.int32))
        with_first = _mean(_at(total, first) + value[first], _at(number, first) + known[first])
        before_it = _mean(_at(total, first), _at(number, first))
        curve = _between(confidence, score[first], with_first, score[last], before_it)
        curve = np.where(surer == 0, with_first, curve)
        curve = np.where(some, curve, _mean(total[-1], number[-1]))
        curve = np.where(number[-1] == 0, 1.0, curve)  # nothing is known
        mean = np.where(counted, curve, 0.0).sum(axis=0) / np.maximum(counted.sum(axis=0), 1)
        found.append(np.where(end < first_recall, 1.0, mean))
    return np.stack(found)


def _mean(total: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Sums over numbers, 0 over none."""
    return total / np.maximum(number, 1)
