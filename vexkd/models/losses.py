"""The focal losses of the heads: over Gaussian heatmaps, over the classes of queries, and over map cells."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# The published heads clip sigmoids so that no logarithm leaves float16's range.
CLIP = 1e-4


def gaussian_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Sum over all cells of CornerNet's focal loss (alpha 2, gamma 4) of logits against a Gaussian target of one shape."""
    score = logits.float().sigmoid().clamp(CLIP, 1 - CLIP)
    peak = target.eq(1)
    positive = -(score.log() * (1 - score).square())[peak].sum()
    negative = -((1 - score).log() * score.square() * (1 - target).pow(4))[~peak].sum()
    return positive + negative


def balanced_focal_loss(logits: Tensor, target: Tensor, *, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """Element-wise focal loss of RetinaNet, with weights alpha and 1 - alpha of the two classes; `target` is 0 or 1."""
    logits = logits.float()
    score = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    missed = target * (1 - score) + (1 - target) * score
    balance = target * alpha + (1 - target) * (1 - alpha)
    return balance * missed.pow(gamma) * cross_entropy


def focal_loss(logits: Tensor, labels: Tensor, *, gamma: float) -> Tensor:
    """-(1 - p_t)^gamma log p_t of each element, p_t the probability given to its label (0 or 1)."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    missed = torch.where(labels > 0.5, -logits, logits).sigmoid()  # 1 - p_t
    return missed.pow(gamma) * cross_entropy
