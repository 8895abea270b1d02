"""Predicted maps as they are stored: of each probability only between which thresholds of the metric it lies, its level.

Levels of 0 to T take three bits for the seven thresholds of BEVFusion's metric. One safetensors file holds a whole split:
`levels` (S, K, C, Y, X / 8) uint8, and in its header the tokens of the samples and what they were made with. Letters:
S samples, K bit planes of a level, C classes, Y X cells, T thresholds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from vexkd import provenance, seal
from vexkd.errors import InputError
from vexkd.settings import MAP_CLASSES

THRESHOLDS = (0.35, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65)  # BEVFusion's metric
FORMAT = "vexkd-map-predictions-1"


def levels(probabilities: np.ndarray, thresholds: Sequence[float] = THRESHOLDS) -> np.ndarray:
    """How many of the rising thresholds each probability reaches (p >= t in float32): uint8 of the same shape.

    Raises InputError for values that are no probabilities: not finite, or outside [0, 1] (logits, say).
    """
    probabilities = np.asarray(probabilities, dtype=np.float32)
    if probabilities.size and not (probabilities.min() >= 0 and probabilities.max() <= 1):
        raise InputError("a map prediction is not finite or not within 0 and 1: give probabilities, after the sigmoid.")
    return np.searchsorted(np.asarray(thresholds, dtype=np.float32), probabilities, side="right").astype(np.uint8)


def pack(level: np.ndarray, top: int = len(THRESHOLDS)) -> np.ndarray:
    """Levels (C, Y, X) of 0 to `top` -> packed bits (K, C, Y, X / 8) uint8, lowest bit first; 3 planes for 7."""
    planes = [np.packbits((level >> k) & 1, axis=-1) for k in range(top.bit_length())]
    return np.stack(planes)


def unpack(packed: np.ndarray, columns: int) -> np.ndarray:
    """Levels (C, Y, X) of packed bits (K, C, Y, X / 8)."""
    planes = np.unpackbits(packed, axis=-1, count=columns)  # K C Y X
    return sum((plane << k for k, plane in enumerate(planes)), np.zeros_like(planes[0]))


def write(path: Path, packed: Mapping[str, np.ndarray], *, reach: float, cell: float, **more: Any) -> None:
    """Write the packed levels of samples, by token and in this order.

    reach, cell: of the label grid, metres. more: what else the header shall say, such as the settings of inference.
    """
    header = {"format": FORMAT, **more, "classes": MAP_CLASSES, "thresholds": THRESHOLDS}
    header |= {"grid": {"reach": reach, "cell": cell}, "tokens": list(packed)}
    everything = np.zeros((len(packed), *_shape(header)), dtype=np.uint8)
    for row, one in zip(everything, packed.values(), strict=True):
        row[:] = one
    with provenance.atomic(path) as temporary:  # one key: safetensors writes several in any order
        save_file({"levels": everything}, temporary, metadata={"vexkd": json.dumps(header)})


@dataclass(frozen=True)
class MapPredictions:
    """An opened file of predicted maps. packed (S, K, C, Y, X / 8) uint8: on disk, a token's in its row."""

    path: Path
    header: dict[str, Any]
    rows: dict[str, int]
    packed: np.ndarray

    def levels(self, token: str) -> np.ndarray:
        """Levels (C, Y, X) uint8 of a sample, read from the file."""
        if token not in self.rows:
            raise InputError(f"{self.path}: sample {token} is missing; predict the whole split.")
        return unpack(self.packed[self.rows[token]], _shape(self.header)[2])


def read(path: Path) -> MapPredictions:
    """Open a file that `write` made. Raises InputError for one that is missing, cut, or something else."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such prediction file; make it with 'vexkd predict'.")
    try:
        found, start = seal.safetensors_header(path)
        header, shape = json.loads(found["__metadata__"]["vexkd"]), tuple(found["levels"]["shape"])
        packed = np.memmap(path, np.uint8, "r", offset=start, shape=shape)
        rows = {token: row for row, token in enumerate(header["tokens"])}
        same = (header["format"], tuple(header["classes"]), tuple(header["thresholds"]))
        wanted = (len(rows), *_shape(header))
    except (KeyError, ValueError, TypeError):
        raise InputError(f"{path}: this is not a whole file of predicted maps; predict again.") from None
    if same != (FORMAT, MAP_CLASSES, THRESHOLDS) or shape != wanted:
        raise InputError(f"{path}: these maps are of another format, other classes or thresholds; predict again.")
    return MapPredictions(path, header, rows, packed)


def _shape(header: dict[str, Any]) -> tuple[int, int, int, int]:
    """(K, C, Y, X / 8) of a sample; the grid is square."""
    side = round(2 * header["grid"]["reach"] / header["grid"]["cell"])
    return len(THRESHOLDS).bit_length(), len(MAP_CLASSES), side, -(-side // 8)
