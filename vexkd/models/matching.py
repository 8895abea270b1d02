"""Hungarian matching of predictions to boxes, its focal class cost, and the loss of what was matched.

Q queries, M boxes, K classes.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vexkd.models.losses import balanced_focal_loss

# Stands for a cost that is not a number or not finite.
WORST = 1e5


@torch.no_grad()
def hungarian(cost: Tensor) -> tuple[Tensor, Tensor]:
    """The cheapest assignment of a cost (Q, M): indices of the matched queries and of their boxes, (min(Q, M),) each."""
    pairs = linear_sum_assignment(cost.nan_to_num(nan=WORST, posinf=WORST, neginf=-WORST).cpu().numpy())
    return tuple(torch.as_tensor(index, device=cost.device) for index in pairs)


def focal_class_cost(logits: Tensor) -> Tensor:
    """Cost (Q, K) of calling a query each class: what its focal loss as one is above its loss as none."""
    score = logits.float().sigmoid()
    positive = -(score + 1e-12).log() * 0.25 * (1 - score) ** 2
    negative = -(1 - score + 1e-12).log() * 0.75 * score**2
    return positive - negative


def matched_loss(
    codes: Tensor, logits: Tensor, matched: Tensor, *, target_codes: Tensor, labels: Tensor, code_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Focal class loss of all queries and weighted L1 of the matched ones' codes, both summed, of one sample.

    codes (Q, 10), logits (Q, K); matched (N,): numbers of the matched queries; target_codes (N, 10) and labels (N,): of
    their boxes. An entry of `target_codes` that is not finite, an unknown velocity, costs nothing.
    """
    classes = torch.zeros_like(logits)
    classes[matched, labels] = 1.0
    predicted = codes[matched]
    target_codes = torch.where(target_codes.isfinite(), target_codes, predicted.detach())
    return balanced_focal_loss(logits, classes).sum(), ((predicted - target_codes).abs() * code_weights).sum()
