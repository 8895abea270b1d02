"""What a batch asks a model to predict, drawn once a step, and the counts by which its losses are divided.

A loss is a sum over objects, peaks or cells, divided by their number in the whole global batch, however many parts and
processes share it. So the targets of every part are drawn first, their counts are added up, and each part's loss divides
by the sum.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Targets:
    """values: what only the part that drew them reads. counts: how many there are in this batch, by name, float32."""

    values: Any = None
    counts: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def join(cls, **parts: Targets) -> Targets:
        """The targets of several parts of a model: values by part, and counts under `part.name`."""
        counts = {f"{part}.{name}": c for part, targets in parts.items() for name, c in targets.counts.items()}
        return cls(parts, counts)

    def under(self, part: str) -> Targets:
        """Those of one part of a model (see `join`)."""
        return self.values[part]


@dataclass(frozen=True)
class Counts:
    """The counts of a global batch, by name, and the number of parts in which its loss is computed.

    Each part's loss divides by its equal share of a count, so that the mean over the parts is the loss of the whole batch.
    """

    total: dict[str, Tensor]
    parts: int = 1

    @classmethod
    def of(cls, batches: Iterable[Targets]) -> Counts:
        """The sum over batches that are each one part."""
        counts = [targets.counts for targets in batches]
        return cls({name: sum(each[name] for each in counts) for name in counts[0]}, len(counts))

    def under(self, part: str) -> Counts:
        """The counts of one part of a model (see `Targets.join`)."""
        of_part = {name.removeprefix(f"{part}."): c for name, c in self.total.items() if name.startswith(f"{part}.")}
        return Counts(of_part, self.parts)

    def share(self, name: str, *, at_least: float | None = None, extra: float = 0.0) -> Tensor:
        """One part's share of a count; the count is raised to `at_least`, or by `extra`, before it is shared."""
        count = self.total[name] + extra if extra else self.total[name]
        return (count if at_least is None else count.clamp(min=at_least)) / self.parts
