"""What a distilled run gains over its student trained alone, how sure that is, and whether the teaching alone made it.

Two things are drawn with replacement: scenes, the same ones for both runs (see `vexkd.evaluate.resamples`), and, where the
runs share several seeds, these. The interval holds the middle 95 % of the gains found so (percentile bootstrap).
Letters: K seeds, R draws.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vexkd.report import row_provenance
from vexkd.settings import unequal

if TYPE_CHECKING:
    from vexkd.report.results import FinishedRun

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


def gain(run: FinishedRun, score: str) -> Gain | None:
    """Of a distilled run over its student without a teacher; None for other runs, and where there is no such score."""
    student = run.student if run.settings.kind == "distilled" else None
    if student is None or run.metrics.get(score) is None or student.metrics.get(score) is None:
        return None
    distilled, alone = run.metrics["seeds"], student.metrics["seeds"]
    paired = [distilled[seed][score] - alone[seed][score] for seed in distilled if seed in alone]
    deviation = statistics.stdev(paired) if len(paired) > 1 else None
    mean = run.metrics[score] - student.metrics[score]
    drawn = _differences(run.resamples, student.resamples, score)
    if drawn is None:
        return Gain(mean, deviation, None, None, 0)
    differences, scenes = drawn
    low, high = interval(differences)
    return Gain(mean, deviation, low, high, scenes)


def unlike(run: FinishedRun) -> list[str]:
    """What a distilled run has unlike its student, besides the teaching, in words that follow "it has"; none for others.

    Compared are the settings, and of the records the data, the versions, the commit and the seeds.
    """
    student = run.student
    if run.settings.kind != "distilled" or student is None:
        return []
    settings = unequal(run.settings.besides_teaching(), student.settings.besides_teaching())
    differences = [_in_words(*setting) for setting in settings]
    distilled, alone = run.provenance, student.provenance
    if row_provenance.data(distilled) != row_provenance.data(alone):
        differences.append("other data")
    versions, versions_alone = row_provenance.environment(distilled), row_provenance.environment(alone)
    if versions != versions_alone:
        new, old = (row_provenance.only_in(*p) for p in ((versions, versions_alone), (versions_alone, versions)))
        differences.append(f"other versions ({new}, not {old})")
    if row_provenance.code(distilled) != row_provenance.code(alone):
        same_commit = row_provenance.commits(distilled) == row_provenance.commits(alone)
        differences.append("other code" if same_commit else "another commit")
    if row_provenance.dirty(distilled) != row_provenance.dirty(alone):
        differences.append("uncommitted changes" if row_provenance.dirty(distilled) else "no uncommitted changes")
    seeds, seeds_alone = (", ".join(record["seeds"]) for record in (distilled, alone))
    if seeds != seeds_alone:
        differences.append(f"seeds {seeds} (not {seeds_alone})")
    return differences


def _in_words(name: str, value: Any, student_value: Any) -> str:
    """A setting that two runs do not share; of a block only its name."""
    if value is None:
        return f"no {name}"
    if isinstance(value, dict):
        return name
    other = "a block" if isinstance(student_value, dict) else _plain(student_value)
    return f"{name} {_plain(value)}" + ("" if student_value is None else f" (not {other})")


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


def _differences(
    taught: dict[str, Any] | None, alone: dict[str, Any] | None, score: str
) -> tuple[np.ndarray, int] | None:
    """Differences draw by draw (K, R), and the number of scenes; None unless both have the same draws and a seed."""
    if taught is None or alone is None:
        return None
    if any(taught[key] != alone[key] for key in ("scenes", "draws", "generator_seed")):
        return None
    pairs = [(scores, alone["seeds"].get(seed, {})) for seed, scores in taught["seeds"].items()]
    lines = [np.subtract(one[score], other[score]) for one, other in pairs if score in one and score in other]
    return (np.stack(lines), len(taught["scenes"])) if lines else None
