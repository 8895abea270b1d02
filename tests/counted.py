"""Losses of a batch that is the whole global batch: its own counts divide them."""

from __future__ import annotations

from torch import Tensor

from vexkd.models.targets import Counts


def loss_of(part, output, batch) -> dict[str, Tensor]:
    """The loss terms of a head or model."""
    targets = part.targets(batch)
    return part.loss(output, targets, Counts.of([targets]))


def step_of(task, batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The loss terms of a training task, and the figures it watches."""
    targets = task.targets(batch)
    return task(batch, targets, Counts.of([targets]))


def depth_loss(view, auxiliary, batch) -> Tensor:
    """The loss of a view, or camera branch, that learns depth."""
    targets = view.targets(batch)
    return view.auxiliary_loss(auxiliary, targets, Counts.of([targets]))["depth"]
