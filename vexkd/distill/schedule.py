"""When the masks learn: until a given epoch or iteration, after which they are frozen and distillation goes on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MaskSchedule:
    """Mask learning ends before epoch `stop_epoch` or iteration `stop_iteration`, counted from 0; None: never."""

    stop_epoch: int | None = None
    stop_iteration: int | None = None

    def learning(self, epoch: int, iteration: int) -> bool:
        """Whether the masks learn in this iteration of this epoch."""
        before_epoch = self.stop_epoch is None or epoch < self.stop_epoch
        return before_epoch and (self.stop_iteration is None or iteration < self.stop_iteration)
