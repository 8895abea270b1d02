"""The rules that values of nuScenes' tables must keep, each written once: who reads tables (doctor, infos) reads by them.

Rules work on whole columns, given the table's path and a token a row; each raises InputError that names the file, the
first row that breaks it, and how many more do. Distances are metres, times microseconds since 1970.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vexkd.data.tables import fault

EARLIEST, LATEST = 10**14, 10**16  # microseconds since 1970: of the years 1973 and 2286
_UNITS = {"seconds": 1e6, "milliseconds": 1e3, "nanoseconds": 1e-3}
_LONGEST = 1e-9  # of a rotation that counts as none
_UPRIGHT = 0.5  # cosine of the lean that no car and no LiDAR on its roof has
FASTEST = 150.0  # metres a second
KEYFRAME_SLACK = 1_000_000  # microseconds between a sample and its keyframes


def refuse(path: Path, tokens: Sequence[str], wrong: np.ndarray, words: str | Callable[[int], str]) -> None:
    """Raises InputError for the first row of `wrong`, if there is one. words: the problem, or what gives it for a row."""
    if not wrong.any():
        return
    first, more = int(wrong.argmax()), int(wrong.sum()) - 1
    problem = words if isinstance(words, str) else words(first)
    others = f" (and so {'does 1 row' if more == 1 else f'do {more} rows'} more)" if more else ""
    raise fault(path, tokens[first], problem + others)


def numbers(path: Path, tokens: Sequence[str], column: str, values: Sequence[Any], width: int) -> np.ndarray:
    """A column of lists of numbers as (rows, width) float64, all finite."""
    try:
        array = np.array(values, dtype=np.float64).reshape(-1, width)
    except OverflowError:
        array = np.array([[_as_float(v) for v in row] for row in values])
    refuse(path, tokens, ~np.isfinite(array).all(axis=1), lambda i: f"{column} holds a number that is not finite")
    return array


def whole(path: Path, tokens: Sequence[str], column: str, values: Sequence[int], limit: int) -> np.ndarray:
    """A column of whole numbers as (rows,) int64, none above `limit` in size."""
    try:
        array = np.array(values, dtype=np.int64).reshape(-1)
    except OverflowError:
        array = np.array([min(max(v, -limit - 1), limit + 1) for v in values], dtype=np.int64)
    refuse(
        path, tokens, np.abs(array) > limit, lambda i: f"{column} is {_short(values[i])}, which is out of all reason"
    )
    return array


def counts(path: Path, tokens: Sequence[str], column: str, values: Sequence[int]) -> np.ndarray:
    """A column of point counts as (rows,) int32: 0 or more."""
    array = whole(path, tokens, column, values, 2**31 - 1)
    refuse(path, tokens, array < 0, lambda i: f"{column} is {values[i]}, and no count is below 0")
    return array.astype(np.int32)


def times(path: Path, tokens: Sequence[str], values: Sequence[int]) -> np.ndarray:
    """A column of timestamps as (rows,) int64, in microseconds since 1970."""
    try:
        array = np.array(values, dtype=np.int64).reshape(-1)
    except OverflowError:
        array = np.array([min(max(v, 0), LATEST + 1) for v in values], dtype=np.int64)
    wrong = (array < EARLIEST) | (array > LATEST)
    refuse(
        path,
        tokens,
        wrong,
        lambda i: f"timestamp is {_short(values[i])}, not microseconds since 1970{_unit(values[i])}",
    )
    return array


def rotations(path: Path, tokens: Sequence[str], values: Sequence[Any]) -> np.ndarray:
    """A column of quaternions (w, x, y, z) as (rows, 4): finite and not 0; of any length, as the devkit takes them."""
    quaternions = numbers(path, tokens, "rotation", values, 4)
    refuse(path, tokens, np.linalg.norm(quaternions, axis=1) < _LONGEST, "it holds a rotation of length 0")
    return quaternions


def translations(path: Path, tokens: Sequence[str], values: Sequence[Any], limit: float) -> np.ndarray:
    """A column of translations as (rows, 3), none longer than `limit` metres."""
    vectors = numbers(path, tokens, "translation", values, 3)
    far = np.linalg.norm(vectors, axis=1)
    refuse(path, tokens, far > limit, lambda i: f"translation is {far[i]:.4g} m long; nuScenes counts in metres")
    return vectors


def upright(path: Path, tokens: Sequence[str], matrices: np.ndarray, what: str) -> None:
    """The z axis of (rows, 4, 4) points up, as that of a car or of a LiDAR on it does."""
    wrong = matrices[:, 2, 2] < _UPRIGHT
    refuse(path, tokens, wrong, f"rotation lays {what} on its side; nuScenes' quaternions are w, x, y, z")


def known(path: Path, tokens: Sequence[str], names: Sequence[str], table: str, rows: Any) -> None:
    """Every name, but the empty one, is a token of `rows`, the rows of another table."""
    lost = next((i for i, name in enumerate(names) if name not in rows), None)
    if lost is not None:
        raise fault(path, tokens[lost], lacks(table, names[lost]))


def lacks(table: str, name: str) -> str:
    """The problem of a row that names a row of another table that is not there."""
    article = "an" if table[0] in "aeiou" else "a"
    return f"it names {article} {table.replace('_', ' ')} that {table}.json lacks ({str(name)[:40]!r})"


def _unit(value: int) -> str:
    """Which unit a timestamp looks like."""
    if abs(value) > 10**30:
        return ""
    unit = next((name for name, factor in _UNITS.items() if 9e14 < value * factor < 4e15), "")
    return f"; it looks like {unit}" if unit else ""


def _as_float(value: float) -> float:
    """A number as float, infinite where it is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _short(value: int) -> str:
    """A whole number in a few characters."""
    return str(value) if abs(value) < 10**30 else f"a number of {len(f'{value:b}')} bits"
