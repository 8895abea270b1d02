"""BEVFusion's map segmentation metric: IoU of each class at seven thresholds, over the whole data set at once.

IoU = TP / (TP + FP + FN + 1e-7) with counts summed over all cells of all samples; a class scores its best threshold,
mIoU is the mean over classes. Only between which thresholds a probability lies matters: its level, 0 to T, which is how
predictions are stored (`vexkd.data.map_predictions`). Letters: C classes, T thresholds, Y X cells, K bit planes of a level.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vexkd.data.map_predictions import THRESHOLDS, unpack
from vexkd.data.maps import CLASSES
from vexkd.errors import InputError


class Accumulator:
    """Counts over a data set, sample by sample. histogram (C, 2, T + 1): cells by class, label and level."""

    def __init__(self, classes: Sequence[str] = CLASSES, thresholds: Sequence[float] = THRESHOLDS) -> None:
        self.classes, self.thresholds = tuple(classes), tuple(thresholds)
        self.histogram = np.zeros((len(self.classes), 2, len(self.thresholds) + 1), dtype=np.int64)

    def add(self, level: np.ndarray, labels: np.ndarray) -> None:
        """Count the cells of samples: levels and labels (0 or 1), both (..., C, Y, X)."""
        level, labels = np.asarray(level), np.asarray(labels)
        count, top = len(self.classes), len(self.thresholds)
        if level.shape != labels.shape or level.ndim < 3 or level.shape[-3] != count:
            raise InputError(
                f"map predictions {level.shape} and labels {labels.shape} are not both of {count} classes, rows and "
                "columns: evaluate with the label grid that was predicted on."
            )
        if level.size and (level.min() < 0 or level.max() > top or labels.min() < 0 or labels.max() > 1):
            raise InputError(
                f"map predictions must be levels of 0 to {top} and labels 0 or 1: pass them through levels()."
            )
        joint = level.astype(np.int64) + (top + 1) * labels.astype(np.int64)
        for number in range(count):
            cells = np.bincount(joint[..., number, :, :].reshape(-1), minlength=2 * (top + 1))
            self.histogram[number] += cells.reshape(2, top + 1)

    def add_packed(self, prediction: np.ndarray, labels: np.ndarray, columns: int) -> None:
        """Count one sample: levels (K, C, Y, X / 8) as of `pack`, labels (C, Y, X / 8) as of np.packbits, X columns."""
        self.add(unpack(prediction, columns), np.unpackbits(labels, axis=-1, count=columns))

    def merge(self, other: Accumulator) -> None:
        """Take in what another process counted."""
        if (self.classes, self.thresholds) != (other.classes, other.thresholds):
            raise InputError("map scores of other classes or thresholds cannot be added: count both alike.")
        self.histogram += other.histogram

    def iou(self) -> np.ndarray:
        """IoU (C, T); 0 where a class is neither there nor predicted."""
        reached = self.histogram[..., ::-1].cumsum(axis=-1)[..., ::-1][..., 1:]  # C 2 T: cells at or above a threshold
        false, true = reached[:, 0], reached[:, 1]
        missed = self.histogram[:, 1].sum(axis=-1, keepdims=True) - true
        return true / (true + false + missed + 1e-7)

    def result(self) -> dict[str, Any]:
        """{"mIoU", "IoU": {class: best}, "threshold": {class: where; the lowest of equals}, "curve": ...}.

        curve: {"thresholds": [...], "IoU": {class: [one for each threshold]}}. All are fractions in [0, 1].
        Raises InputError if nothing was counted.
        """
        if not self.histogram.any():
            raise InputError("there is no map prediction to score: predict at least one sample.")
        iou = self.iou()
        best = iou.argmax(axis=1)
        return {
            "mIoU": float(iou.max(axis=1).mean()),
            "IoU": {name: float(iou[i].max()) for i, name in enumerate(self.classes)},
            "threshold": {name: self.thresholds[best[i]] for i, name in enumerate(self.classes)},
            "curve": {
                "thresholds": list(self.thresholds),
                "IoU": {name: iou[i].tolist() for i, name in enumerate(self.classes)},
            },
        }


def score(pairs: Iterable[tuple[np.ndarray, np.ndarray]], *, columns: int) -> dict[str, Any]:
    """Result of `Accumulator` for (packed prediction, packed labels) of each sample, X columns wide."""
    counts = Accumulator()
    for prediction, labels in pairs:
        counts.add_packed(prediction, labels, columns)
    return counts.result()
