"""What a distilled run gains over its student trained alone, how sure that is, and whether the teaching alone made it.

Two things are drawn with replacement: scenes, the same ones for both runs (see `vexkd.evaluate.resamples`), and, where the
runs share several seeds, these. The interval holds the middle 95 % of the gains found so (percentile bootstrap).
Letters: K seeds, R draws.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vexkd.report import row_provenance, runs
from vexkd.settings import Params, unequal

LEVEL = 0.95
FEW_SCENES = 20  # with fewer the interval is shown, but the table says that it is not to be trusted
SEED = 20241211  # of the generator that draws the seeds of a training


@dataclass(frozen=True)
class Gain:
    """A difference of scores (fractions): its mean over the seeds, its standard deviation seed by seed (None for one),
    its interval (None where the runs were not scored on the same draws of scenes), and how many scenes were drawn from."""

    mean: float
    deviation: float | None
    low: float | None
    high: float | None
    scenes: int


def gain(run: str, student: str, score: str, results: Path) -> Gain | None:
    """Over the student without a teacher; None where the runs have no such score."""
    own, alone = runs.metrics(run, results), runs.metrics(student, results)
    if own.get(score) is None or alone.get(score) is None:
        return None
    common = [seed for seed in own["seeds"] if seed in alone["seeds"]]
    paired = [own["seeds"][seed][score] - alone["seeds"][seed][score] for seed in common]
    deviation = statistics.stdev(paired) if len(paired) > 1 else None
    drawn = _differences(runs.resamples(run, results), runs.resamples(student, results), score)
    mean = own[score] - alone[score]
    if drawn is None:
        return Gain(mean, deviation, None, None, 0)
    differences, scenes = drawn
    low, high = interval(differences)
    return Gain(mean, deviation, low, high, scenes)


def unlike(run: str, params: Params, results: Path) -> list[str]:
    """What a distilled run has unlike its student, besides the teaching, in words that follow "it has"; none for others.

    Compared are the settings, and of the records the data, the versions, the commit and the seeds.
    """
    row = params.run(run)
    if row.kind != "distilled" or row.student is None:
        return []
    student = params.run(row.student)
    found = [_in_words(*setting) for setting in unequal(row.besides_teaching(), student.besides_teaching())]
    own, alone = runs.origin(run, results), runs.origin(row.student, results)
    if row_provenance.data(own) != row_provenance.data(alone):
        found.append("other data")
    mine, theirs = row_provenance.environment(own), row_provenance.environment(alone)
    if mine != theirs:
        found.append(f"other versions ({row_provenance.news(mine, theirs)}, not {row_provenance.news(theirs, mine)})")
    if row_provenance.code(own) != row_provenance.code(alone):
        found.append("another commit" if row_provenance.commits(own) != row_provenance.commits(alone) else "other code")
    if row_provenance.dirty(own) != row_provenance.dirty(alone):
        found.append("uncommitted changes" if row_provenance.dirty(own) else "no uncommitted changes")
    seeds = [", ".join(origin["seeds"]) for origin in (own, alone)]
    if seeds[0] != seeds[1]:
        found.append(f"seeds {seeds[0]} (not {seeds[1]})")
    return found


def _in_words(name: str, mine: Any, theirs: Any) -> str:
    """A setting that two runs do not share; of a block only its name."""
    if mine is None:
        return f"no {name}"
    if isinstance(mine, dict):
        return name
    other = "" if theirs is None else f" (not {'a block' if isinstance(theirs, dict) else _plain(theirs)})"
    return f"{name} {_plain(mine)}{other}"


def _plain(value: Any) -> str:
    """A setting as text; of a list its values."""
    return " ".join(map(_plain, value)) if isinstance(value, list) else str(value)


def interval(differences: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The middle `level` of the mean difference: (K, R), one line a seed, of which K are drawn for each column."""
    seeds, count = differences.shape
    chosen = np.random.default_rng(SEED).integers(seeds, size=(seeds, count))  # K R
    means = np.take_along_axis(differences, chosen, axis=0).mean(axis=0)  # R
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _differences(own: dict[str, Any] | None, alone: dict[str, Any] | None, score: str) -> tuple[np.ndarray, int] | None:
    """Differences draw by draw (K, R), and the number of scenes; None unless both have the same draws and a seed."""
    if own is None or alone is None:
        return None
    if any(own[key] != alone[key] for key in ("scenes", "draws", "generator_seed")):
        return None
    common = [seed for seed in own["seeds"] if score in alone["seeds"].get(seed, {}) and score in own["seeds"][seed]]
    if not common:
        return None
    lines = [np.subtract(own["seeds"][seed][score], alone["seeds"][seed][score]) for seed in common]
    return np.stack(lines), len(own["scenes"])
