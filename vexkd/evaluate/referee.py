"""nuscenes-devkit as the referee of the array scorer: its own loading, filters and loops, and what differs from ours.

Slow, minutes and some 5 GB at nuScenes' size: for tests, and for whoever asks for it (`vexkd evaluate --referee`).
"""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vexkd.errors import InputError
from vexkd.evaluate import array_scorer
from vexkd.evaluate.submission_file import first_line

TOLERANCE = 1e-12


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the devkit's prints and progress bars."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def open_set(root: Path, version: str) -> Any:
    """The devkit's handle on a data set. Raises InputError for one that it cannot read."""
    from nuscenes import NuScenes

    try:
        with quiet():
            return NuScenes(version=version, dataroot=str(root), verbose=False)
    except (AssertionError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{Path(root) / version}: nuscenes-devkit cannot read this data set ({first_line(error)}); run 'vexkd doctor'."
        ) from error


def score(nusc: Any, predictions: Path, split: str, config: str) -> array_scorer.Score | None:
    """The devkit's score of a prediction file; None for a file without a single box, which it cannot take.

    Raises InputError with the devkit's words if it refuses the file.
    """
    from nuscenes.eval.detection.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval

    settings = config_factory(config)
    try:
        with quiet(), tempfile.TemporaryDirectory() as scratch:
            scorer = DetectionEval(nusc, settings, str(predictions), split, scratch, verbose=False)
            metrics, _ = scorer.evaluate()
    except Exception as error:  # the devkit raises bare Exception, too
        if "Invalid box type" in str(error):
            return None
        raise InputError(f"{predictions}: nuscenes-devkit refuses it ({first_line(error)}); predict again.") from error
    classes = tuple(settings.class_names)
    return array_scorer.Score(
        classes=classes,
        ap=np.array([[metrics.get_label_ap(name, distance) for distance in settings.dist_ths] for name in classes]),
        errors=np.array([[metrics.get_label_tp(name, e) for e in array_scorer.TP_ERRORS] for name in classes]),
        weight=settings.mean_ap_weight,
    )


def hold(found: array_scorer.Score, predictions: Path, *, nusc: Any, split: str, config: str) -> float:
    """The greatest difference between a score and the devkit's of the same file.

    Raises InputError if mAP, NDS, an AP or an error differs by more than 1e-12.
    """
    expected = score(nusc, predictions, split, config)
    if expected is None:
        return 0.0
    differences = {name: abs(a - b) for name, (a, b) in _side_by_side(found, expected).items() if not _both_nan(a, b)}
    worst = max(differences, key=lambda name: math.inf if math.isnan(differences[name]) else differences[name])
    if not differences[worst] <= TOLERANCE:
        a, b = _side_by_side(found, expected)[worst]
        raise InputError(
            f"{predictions}: {worst} is {a!r} by the array scorer and {b!r} by nuscenes-devkit; report this, with the file."
        )
    return differences[worst]


def _side_by_side(found: array_scorer.Score, expected: array_scorer.Score) -> dict[str, tuple[float, float]]:
    """Every number of two scores, by a name in words."""
    pairs = {"mAP": (found.mean_ap, expected.mean_ap), "NDS": (found.nds, expected.nds)}
    for row, name in enumerate(expected.classes):
        other = found.classes.index(name)
        for number, value in enumerate(expected.ap[row]):
            pairs[f"AP of {name} at threshold {number}"] = (float(found.ap[other, number]), float(value))
        for number, error in enumerate(array_scorer.TP_ERRORS):
            pairs[f"{error} of {name}"] = (float(found.errors[other, number]), float(expected.errors[row, number]))
    return pairs


def _both_nan(first: float, second: float) -> bool:
    return math.isnan(first) and math.isnan(second)
