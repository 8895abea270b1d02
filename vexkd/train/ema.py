"""An exponential moving average of a model's weights (BEVDet's and BEVDepth's recipes): what is kept in place of the last ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vexkd.settings import Ema


class MovingAverage:
    """The average of all floating-point tensors of a model's state, BatchNorm's statistics included.

    After the n-th update (counted from `updates`) the average keeps decay * (1 - exp(-n / ramp)) of itself, so that it
    follows closely at first. Tensors that are not floating point (counters) are the model's own.
    """

    def __init__(self, model: nn.Module, settings: Ema) -> None:
        self.settings = settings
        self.updates = settings.updates
        self.tensors = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the model's weights after an optimiser step."""
        self.updates += 1
        decay = self.settings.decay * (1 - math.exp(-self.updates / self.settings.ramp))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.tensors[name].lerp_(value.detach(), 1 - decay)
            else:
                self.tensors[name].copy_(value)

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed training needs."""
        return {**self.tensors, "updates": torch.tensor(self.updates)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go back to a `state`."""
        self.updates = int(state["updates"])
        for name, value in self.tensors.items():
            value.copy_(state[name])
