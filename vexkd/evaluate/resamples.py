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
    """The recalls among the hits of each threshold: for each draw, running sums of weights and a bisection."""
    found = []
    for hit in each.hit:
        row = np.flatnonzero(hit)
        total = counts @ np.bincount(each.scene[row], minlength=counts.shape[1])
        reached = _reached(positives, total)
        found.append(_Steps(row, total, reached, *np.zeros((3, *reached.shape), dtype=np.int64)))
    weights = counts.astype(np.int32)
    for r, scene_weight in enumerate(weights):
        weight = scene_weight[each.scene]
        seen = np.cumsum(weight)
        for t, steps in enumerate(found):
            if not steps.total[r]:
                continue
            own = weight[steps.row]
            sums = np.cumsum(own)
            hit = np.searchsorted(sums, np.minimum(steps.reached[r], steps.total[r] - 1), side="right")
            row = steps.row[hit]
            steps.hit[r] = hit
            steps.place[r] = seen[row] - weight[row] + steps.reached[r] - (sums[hit] - own[hit])
            if t == each.strict:
                steps.before[r] = np.searchsorted(seen, np.minimum(steps.place[r], seen[-1]) - 1, side="right")
    return found


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
    score = each.score[row]
    known = ~np.isnan(each.errors)
    values = np.where(known, each.errors, 0.0)
    above = np.searchsorted(-score, -confidence, side="left")  # hits of which no copy counts yet, (R, Q)
    first_recall = round(100 * settings.min_recall) + 1
    numbers = np.arange(len(RECALLS))
    end = np.where(confidence != 0, numbers, 0).max(axis=1)
    errors = np.ones((len(TP_ERRORS), len(counts)))
    for r in np.flatnonzero(end >= first_recall):
        recalls = slice(first_recall, int(end[r]) + 1)
        weight = counts[r, each.scene[row]]
        curve = _error_curve(score, values, known, weight, confidence[r, recalls], above[r, recalls])
        errors[:, r] = curve.mean(axis=1)
    return errors


def _error_curve(
    score: np.ndarray,
    values: np.ndarray,
    known: np.ndarray,
    weight: np.ndarray,
    confidence: np.ndarray,
    above: np.ndarray,
) -> np.ndarray:
    """The running means of the errors of one draw, read off at confidences (Q,): (E, Q).

    score (M,), values and known (E, M): of the hits; weight (M,): how often each stands there; above (Q,): how many have
    higher scores than each confidence.
    """
    copies = _running(weight)
    sums = _running(values * weight)
    number = _running(known * weight) if not known.all() else np.broadcast_to(copies, sums.shape)
    surer = copies[above]
    some = surer < copies[-1]
    first = np.searchsorted(copies[1:], np.minimum(surer, copies[-1] - 1), side="right")  # the first not above
    last = np.searchsorted(copies[1:], np.maximum(surer - 1, 0), side="right")  # the last above
    with_first = _mean(sums[:, first] + values[:, first], number[:, first] + known[:, first])
    curve = _between(confidence, score[first], with_first, score[last], _mean(sums[:, first], number[:, first]))
    curve = np.where(surer == 0, with_first, curve)
    curve = np.where(some, curve, _mean(sums[:, -1:], number[:, -1:]))
    return np.where(number[:, -1:] == 0, 1.0, curve)  # nothing is known


def _running(values: np.ndarray) -> np.ndarray:
    """Sums along the last axis up to each place, without it: (..., N) -> (..., N + 1)."""
    sums = np.zeros((*values.shape[:-1], values.shape[-1] + 1), dtype=values.dtype)
    np.cumsum(values, axis=-1, out=sums[..., 1:])
    return sums


def _mean(total: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Sums over numbers, 0 over none."""
    return total / np.maximum(number, 1)
