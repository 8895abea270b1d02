"""nuScenes' detection metric on columns of boxes: the numbers of nuscenes-devkit, without its loops over boxes.

The devkit makes an object of each box and compares it with every true box of its sample, once for each class and
threshold: minutes at nuScenes' size. Here the filtered boxes are arrays (`box_columns`), matched all at once
(`matching`), and only what follows from the matches is computed for each class and threshold, by the devkit's own
formulas and in its order of operations, so that the results have the same bits:

- precision at 101 recalls from the running numbers of hits and detections, AP as its mean above the lowest recall and
  precision that count;
- the five errors of the hits at the threshold of the true positives as running means, read off at the confidences that
  belong to the 101 recalls, and averaged up to the highest recall that is reached.

`Matches` is also what `resamples` needs to score draws of scenes. Letters: D detections of a class, M hits at the
threshold of the true positives, T thresholds, E errors, S scenes.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vexkd.boxes import CLASSES
from vexkd.errors import InputError
from vexkd.evaluate import box_columns, matching
from vexkd.evaluate.box_columns import Boxes

NELEM = 101  # recall steps of nuScenes' AP
RECALLS = np.linspace(0, 1, NELEM)
TP_ERRORS = ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err")
UNDEFINED = {"traffic_cone": ("attr_err", "vel_err", "orient_err"), "barrier": ("attr_err", "vel_err")}  # as the devkit
# Our name of each mean error -> the devkit's name of the error.
ERRORS = {"mATE": "trans_err", "mASE": "scale_err", "mAOE": "orient_err", "mAVE": "vel_err", "mAAE": "attr_err"}


@dataclass(frozen=True)
class Settings:
    """A configuration of the metric, by the devkit's names: class_range and thresholds in metres, lowest recall and
    precision that count, boxes that a sample may have, weight of mAP in NDS."""

    class_range: Mapping[str, float]
    dist_fcn: str
    dist_ths: list[float]
    dist_th_tp: float
    min_recall: float
    min_precision: float
    max_boxes_per_sample: int
    mean_ap_weight: float

    @property
    def strict(self) -> int:
        """The number of the threshold of the true positives."""
        return self.dist_ths.index(self.dist_th_tp)

    @property
    def first(self) -> int:
        """The first of the 101 recalls that counts."""
        return round(100 * self.min_recall) + 1


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


@dataclass(frozen=True)
class Score:
    """What the metric says of one file: AP by class and threshold, (C, T), errors by class, (C, E), NaN where nuScenes
    defines none. Classes in the order of `classes`, errors in that of TP_ERRORS; weight: of mAP in NDS."""

    classes: tuple[str, ...]
    ap: np.ndarray
    errors: np.ndarray
    weight: float

    @property
    def mean_ap(self) -> float:
        return float(np.mean([np.mean(row) for row in self.ap]))

    @property
    def mean_errors(self) -> np.ndarray:
        """Over the classes, (E,)."""
        return np.array([np.nanmean(column) for column in self.errors.T])

    @property
    def nds(self) -> float:
        scores = np.maximum(0.0, 1.0 - self.mean_errors)
        return float((self.weight * self.mean_ap + np.sum(scores)) / (self.weight + len(scores)))

    def plain(self) -> dict[str, Any]:
        """As metrics.json has it."""
        means = dict(zip(TP_ERRORS, self.mean_errors.tolist(), strict=True))
        row_of = {name: self.classes.index(name) for name in CLASSES}
        return {
            "mAP": self.mean_ap,
            "NDS": self.nds,
            **{name: means[error] for name, error in ERRORS.items()},
            "AP": {name: float(np.mean(self.ap[row])) for name, row in row_of.items()},
            "errors": {
                name: {error: _or_none(self.errors[row, TP_ERRORS.index(error)]) for error in ERRORS.values()}
                for name, row in row_of.items()
            },
        }


def configuration(name: str) -> Settings:
    """The devkit's detection configuration of this name, read from its file: importing the devkit takes seconds."""
    spec = importlib.util.find_spec("nuscenes")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("nuscenes-devkit is not installed: install what pyproject.toml lists.")
    path = Path(spec.submodule_search_locations[0]) / "eval" / "detection" / "configs" / f"{Path(name).name}.json"
    if not path.is_file():
        raise InputError(
            f"inference.evaluation: nuscenes-devkit has no configuration '{name}'; use detection_cvpr_2019."
        )
    settings = Settings(**json.loads(path.read_text(encoding="utf-8")))
    if settings.dist_fcn != "center_distance":
        raise InputError(f"inference.evaluation: '{name}' matches by {settings.dist_fcn}; use detection_cvpr_2019.")
    return settings


def matches(truth: Boxes, predicted: Boxes, scene: np.ndarray, scenes: int, settings: Settings) -> dict[str, Matches]:
    """Match filtered predictions to filtered true boxes; by class, in the order of the configuration.

    scene: the scene of each sample, numbers below `scenes`. A match depends on its own sample only, so it stays the same
    whichever scenes are drawn.
    """
    found = matching.match(truth, predicted, settings.dist_ths)
    ordered = predicted[found.order]
    strict = found.partner[settings.strict]
    hit = np.flatnonzero(strict >= 0)
    errors = _errors(truth[strict[hit]], ordered[hit])
    result = {}
    for name in settings.class_range:
        number = box_columns.CLASS_NUMBER[name]
        own = slice(*np.searchsorted(ordered.label, [number, number + 1]))
        result[name] = Matches(
            scene=scene[ordered.sample[own]],
            score=ordered.score[own],
            hit=found.partner[:, own] >= 0,
            errors=errors[:, slice(*np.searchsorted(hit, [own.start, own.stop]))],
            strict=settings.strict,
            positives=np.bincount(scene[truth.sample[truth.label == number]], minlength=scenes),
        )
    return result


def score(found: Mapping[str, Matches], settings: Settings) -> Score:
    """The metric of matched boxes. Raises InputError for scores below 0 where the devkit refuses them."""
    ap, errors = [], []
    for name, each in found.items():
        positives = int(each.positives.sum())
        if len(each.score) and each.score[-1] < 0 and any(_rises(each, hit, positives) for hit in each.hit):
            raise InputError(f"the predictions have a {name} with a score below 0; nuScenes' scores are 0 to 1.")
        ap.append([_average_precision(hit, positives, settings) for hit in each.hit])
        values = _mean_errors(each, positives, settings)
        undefined = UNDEFINED.get(name, ())
        errors.append([math.nan if error in undefined else v for error, v in zip(TP_ERRORS, values, strict=True)])
    return Score(tuple(found), ap=np.array(ap), errors=np.array(errors), weight=settings.mean_ap_weight)


def _average_precision(hit: np.ndarray, positives: int, settings: Settings) -> float:
    """AP above the lowest recall and precision that count."""
    if not positives or not hit.any():
        return 0.0
    true = np.cumsum(hit).astype(float)
    precision = np.interp(RECALLS, true / float(positives), true / np.arange(1, len(hit) + 1), right=0)
    kept = precision[settings.first :] - settings.min_precision
    kept[kept < 0] = 0
    return float(np.mean(kept)) / (1.0 - settings.min_precision)


def _confidence(matches: Matches, hit: np.ndarray, positives: int) -> np.ndarray:
    """The score down to which detections must be taken to reach each recall, 0 where none is enough: (101,)."""
    return np.interp(RECALLS, np.cumsum(hit).astype(float) / float(positives), matches.score, right=0)


def _rises(matches: Matches, hit: np.ndarray, positives: int) -> bool:
    """Whether confidence is not the lower, the higher the recall, as it is where a score below 0 stands before the 0."""
    return bool(positives and hit.any() and (np.diff(_confidence(matches, hit, positives)) > 0).any())


def _mean_errors(matches: Matches, positives: int, settings: Settings) -> list[float]:
    """The five errors as running means, averaged over the recalls that count; 1 where none is reached."""
    hit = matches.hit[matches.strict]
    if not positives or not hit.any():
        return [1.0] * len(TP_ERRORS)
    confidence = _confidence(matches, hit, positives)
    reached = np.flatnonzero(confidence)
    last = int(reached[-1]) if len(reached) else 0
    if last < settings.first:
        return [1.0] * len(TP_ERRORS)
    scores = matches.score[hit][::-1]
    errors = []
    for error in matches.errors:
        curve = np.interp(confidence[::-1], scores, _running_mean(error)[::-1])[::-1]
        errors.append(float(np.mean(curve[settings.first : last + 1])))
    return errors


def _running_mean(values: np.ndarray) -> np.ndarray:
    """The mean up to each place of what is not NaN; ones where all is."""
    known = ~np.isnan(values)
    if not known.any():
        return np.ones(len(values))
    number = known.cumsum()
    return np.divide(np.nancumsum(values), number, out=np.zeros(len(values)), where=number != 0)


def _errors(truth: Boxes, hits: Boxes) -> np.ndarray:
    """The five errors of pairs of a true box and its hit, in the order of TP_ERRORS: (E, M). Rounded as the devkit's."""
    offset = hits.translation[:, :2] - truth.translation[:, :2]
    velocity = hits.velocity - truth.velocity
    wrong = np.where(truth.attribute == 0, np.nan, 1.0 - (truth.attribute == hits.attribute))
    return np.stack(
        [
            np.sqrt(box_columns.dot(offset, offset)),
            1 - _scale_iou(truth.size, hits.size),
            _turn(truth, hits),
            np.sqrt(box_columns.dot(velocity, velocity)),
            wrong,
        ]
    )


def _scale_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU of boxes with these sizes (M, 3), put into each other: (M,)."""
    shared = np.minimum(first, second)
    volumes = [sizes[:, 0] * sizes[:, 1] * sizes[:, 2] for sizes in (first, second, shared)]
    return volumes[2] / (volumes[0] + volumes[1] - volumes[2])


def _turn(truth: Boxes, hits: Boxes) -> np.ndarray:
    """The smallest angle between headings, radians in [0, pi]: (M,). A barrier has no front."""
    period = np.where(truth.label == box_columns.CLASS_NUMBER["barrier"], np.pi, 2 * np.pi)
    difference = _yaw(truth.rotation) - _yaw(hits.rotation)
    difference = (difference + period / 2) % period - period / 2
    return np.abs(np.where(difference > np.pi, difference - 2 * np.pi, difference))


def _yaw(rotation: np.ndarray) -> np.ndarray:
    """Where quaternions turn the x axis to, in the ground plane: (M,)."""
    matrices = box_columns.rotation_matrices(rotation)
    return np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0])


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
