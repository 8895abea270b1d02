"""Scores of a prediction file on resampled scenes: how much they owe to which scenes happen to be in the split.

Scenes, not samples, are drawn with replacement, as samples of one scene are alike. Every run gets the same draws, so that
two runs are compared draw by draw: a paired bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993).
What each scene contributes is counted once; a draw is scored from these counts, as the devkit would score a data set in
which the drawn scenes stand as often as they were drawn. Letters: S scenes, R draws, D detections, M true positives,
T distance thresholds, E errors.
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

if TYPE_CHECKING:
    from vexkd.evaluate.segmentation import Accumulator

DRAWS = 1000
SEED = 20241210  # of the generator that draws the scenes; the same for every run
FILE = "resamples.json"
NELEM = 101  # recall steps of nuScenes' AP
UNDEFINED = {"traffic_cone": ("attr_err", "vel_err", "orient_err"), "barrier": ("attr_err", "vel_err")}  # as the devkit
TP_ERRORS = ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err")


@dataclass(frozen=True)
class Matches:
    """One class's detections, best first: scene (D,), score (D,), hit (T, D), errors (E, M) of the hits at the
    threshold number `strict`, NaN where there is none, and how many true boxes each scene has, (S,)."""

    scene: np.ndarray
    score: np.ndarray
    hit: np.ndarray
    errors: np.ndarray
    strict: int
    positives: np.ndarray


def draws(scenes: int, count: int = DRAWS) -> np.ndarray:
    """How often each scene is in each draw: (R, S), every row with the sum S."""
    chosen = np.random.default_rng(SEED).integers(scenes, size=(count, scenes))
    return np.stack([np.bincount(row, minlength=scenes) for row in chosen])


def of_detection(truth: Any, predicted: Any, scene_of: Mapping[str, str], settings: Any) -> dict[str, list[float]]:
    """mAP and NDS of every draw.

    `truth` and `predicted` are the devkit's filtered EvalBoxes, `scene_of` names each sample's scene, `settings` is a
    DetectionConfig of the devkit.
    """
    order = {scene: number for number, scene in enumerate(sorted({scene_of[token] for token in truth.sample_tokens}))}
    place = {token: order[scene_of[token]] for token in truth.sample_tokens}
    matches = match(truth, predicted, place, len(order), settings)
    scores = [detection_scores(matches, counts, settings) for counts in draws(len(order))]
    return {"mAP": [mean_ap for mean_ap, _ in scores], "NDS": [nds for _, nds in scores]}


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


def match(truth: Any, predicted: Any, scene_of: Mapping[str, int], scenes: int, settings: Any) -> dict[str, Matches]:
    """Match detections to ground truth by centre distance, greedily from the surest on, as the devkit's `accumulate`.

    A match depends on its own sample only, so it stays the same whichever scenes are drawn.
    """
    found = {}
    strict = settings.dist_ths.index(settings.dist_th_tp)
    for name in settings.class_names:
        boxes = [box for box in predicted.all if box.detection_name == name]
        best = np.argsort(np.array([box.detection_score for box in boxes]), kind="stable")[::-1]
        boxes = [boxes[i] for i in best]
        gts = {token: [box for box in truth[token] if box.detection_name == name] for token in truth.sample_tokens}
        partner = _partners(boxes, gts, settings.dist_ths)
        hits = [(box, gts[box.sample_token][i]) for box, i in zip(boxes, partner[strict], strict=True) if i >= 0]
        positives = np.zeros(scenes, dtype=np.int64)
        for token, there in gts.items():
            positives[scene_of[token]] += len(there)
        found[name] = Matches(
            scene=np.array([scene_of[box.sample_token] for box in boxes], dtype=np.int64),
            score=np.array([box.detection_score for box in boxes], dtype=float),
            hit=partner >= 0,
            errors=np.array([_errors(name, gt, box) for box, gt in hits], dtype=float).reshape(-1, len(TP_ERRORS)).T,
            strict=strict,
            positives=positives,
        )
    return found


def detection_scores(matches: Mapping[str, Matches], counts: np.ndarray, settings: Any) -> tuple[float, float]:
    """mAP and NDS of the data set in which scene s stands counts[s] times; the devkit's arithmetic, step by step."""
    aps, errors = [], []
    for name, each in matches.items():
        index = np.repeat(np.arange(len(each.scene)), counts[each.scene])
        positives = int(each.positives @ counts)
        curves = [_precision(each.hit[t, index], positives) for t in range(len(each.hit))]
        aps.append(np.mean([_average(curve, settings) for curve in curves]))
        values = _mean_errors(each, index, positives, counts, settings)
        undefined = UNDEFINED.get(name, ())
        errors.append([np.nan if error in undefined else v for error, v in zip(TP_ERRORS, values, strict=True)])
    mean_ap = float(np.mean(aps))
    scores = np.maximum(0.0, 1.0 - np.nanmean(errors, axis=0))
    weight = settings.mean_ap_weight
    return mean_ap, float((weight * mean_ap + scores.sum()) / (weight + len(scores)))


def _partners(boxes: list[Any], gts: Mapping[str, list[Any]], thresholds: Sequence[float]) -> np.ndarray:
    """Which true box of its sample each detection hits, -1 for none: (T, D)."""
    places = {token: np.array([gt.translation[:2] for gt in there]).reshape(-1, 2) for token, there in gts.items()}
    free = [{token: np.ones(len(there), dtype=bool) for token, there in gts.items()} for _ in thresholds]
    partner = np.full((len(thresholds), len(boxes)), -1)
    for d, box in enumerate(boxes):
        token = box.sample_token
        if not len(places[token]):
            continue
        distance = np.sqrt(((places[token] - np.array(box.translation[:2])) ** 2).sum(axis=1))
        for t, threshold in enumerate(thresholds):
            open_distance = np.where(free[t][token], distance, np.inf)
            nearest = int(open_distance.argmin())
            if open_distance[nearest] < threshold:
                partner[t, d] = nearest
                free[t][token][nearest] = False
    return partner


def _errors(name: str, gt: Any, box: Any) -> list[float]:
    """The devkit's five errors of a true positive, in the order of TP_ERRORS."""
    from nuscenes.eval.common import utils

    period = np.pi if name == "barrier" else 2 * np.pi  # a barrier has no front
    return [
        utils.center_distance(gt, box),
        1 - utils.scale_iou(gt, box),
        utils.yaw_diff(gt, box, period=period),
        utils.velocity_l2(gt, box),
        1 - utils.attr_acc(gt, box),
    ]


def _precision(hit: np.ndarray, positives: int) -> np.ndarray:
    """Precision at the 101 recalls."""
    if not positives or not hit.any():
        return np.zeros(NELEM)
    true = np.cumsum(hit).astype(float)
    precision = true / np.arange(1, len(hit) + 1)
    return np.interp(np.linspace(0, 1, NELEM), true / positives, precision, right=0)


def _average(precision: np.ndarray, settings: Any) -> float:
    """AP above the lowest recall and precision that count."""
    kept = precision[round(100 * settings.min_recall) + 1 :] - settings.min_precision
    return float(np.mean(np.maximum(kept, 0))) / (1.0 - settings.min_precision)


def _mean_errors(matches: Matches, index: np.ndarray, positives: int, counts: np.ndarray, settings: Any) -> list[float]:
    """The five errors as cumulative means, averaged over the recalls that count; 1 where none is reached."""
    hit = matches.hit[matches.strict]
    if not positives or not hit[index].any():
        return [1.0] * len(TP_ERRORS)
    recall = np.cumsum(hit[index]) / positives
    confidence = np.interp(np.linspace(0, 1, NELEM), recall, matches.score[index], right=0)
    first, last = round(100 * settings.min_recall) + 1, int(np.flatnonzero(confidence)[-1]) if confidence.any() else 0
    if last < first:
        return [1.0] * len(TP_ERRORS)
    copies = counts[matches.scene[hit]]
    scores = np.repeat(matches.score[hit], copies)[::-1]
    found = []
    for error in matches.errors:
        mean = _cumulative_mean(np.repeat(error, copies))
        found.append(float(np.mean(np.interp(confidence[::-1], scores, mean[::-1])[::-1][first : last + 1])))
    return found


def _cumulative_mean(values: np.ndarray) -> np.ndarray:
    """The mean up to each place of what is not NaN; ones where all is."""
    known = ~np.isnan(values)
    if not known.any():
        return np.ones(len(values))
    number = known.cumsum()
    return np.divide(np.nancumsum(values), number, out=np.zeros(len(values)), where=number != 0)
