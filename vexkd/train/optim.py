"""AdamW and the learning-rate schedules of the published recipes, as functions of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from vexkd.settings import Schedule, Train


def optimiser(module: nn.Module, train: Train) -> torch.optim.AdamW:
    """AdamW over what is trainable; the image backbone has `train.backbone_lr` times the learning rate."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            scale = train.backbone_lr if ".backbone." in f".{name}" else 1.0
            groups.setdefault(scale, []).append(parameter)
    return torch.optim.AdamW(
        [{"params": parameters, "scale": scale} for scale, parameters in groups.items()],
        lr=train.lr,
        betas=(train.schedule.beta1[0], 0.999),
        weight_decay=train.weight_decay,
    )


def apply_schedule(optimiser: torch.optim.Optimizer, train: Train, step: int, total: int) -> float:
    """Set learning rate and beta1 for optimiser step `step` of `total`; returns the learning rate of unscaled groups."""
    factor, beta1 = factors(train.schedule, step, total, epochs=train.epochs)
    for group in optimiser.param_groups:
        group["lr"] = train.lr * factor * group["scale"]
        group["betas"] = (beta1, group["betas"][1])
    return train.lr * factor


def factors(schedule: Schedule, step: int, total: int, *, epochs: int = 1) -> tuple[float, float]:
    """Learning rate over `lr`, and beta1, at one step of `total`, which make `epochs`.

    one-cycle: cosine from 1 up to `peak` over the share `rise`, then cosine down to `final`. warmup-cosine: on a cosine
    from 1 to `final`. step: 1, times `gamma` from the first step of each of the epochs `milestones` on. The latter two
    rise linearly from `warmup_from` of that over `warmup` steps. In all, beta1 falls and rises on cosines with the turning
    point of one-cycle: the ratio reading 0.9 -> 0.805 -> 0.9 of the published momentum schedule, whose configuration
    files end at beta1 = 1.0 under the absolute reading.
    """
    turn = max(1, round(schedule.rise * total))
    high, low = schedule.beta1
    if step < turn:
        beta1 = cosine(high, low, step / turn)
    else:
        beta1 = cosine(low, high, (step - turn) / max(1, total - turn))
    if schedule.kind == "one-cycle":
        if step < turn:
            return cosine(1.0, schedule.peak, step / turn), beta1
        return cosine(schedule.peak, schedule.final, (step - turn) / max(1, total - turn)), beta1
    if schedule.kind == "step":
        passed = sum(step * epochs >= milestone * total for milestone in schedule.milestones or [])
        factor = schedule.gamma**passed if passed else 1.0
    else:
        factor = cosine(1.0, schedule.final, step / max(1, total))
    if step < schedule.warmup:
        factor *= schedule.warmup_from + (1 - schedule.warmup_from) * step / schedule.warmup
    return factor, beta1


def cosine(start: float, end: float, share: float) -> float:
    """Half a cosine from start (share 0) to end (share 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0))) / 2
