"""What to distil: losses between a student's and a teacher's BEV map (Sec. 3.4).

B batch, C channels (student's and teacher's may differ), Y X BEV.
"""

from __future__ import annotations

from torch import Tensor

# Under the root, so that the norm's gradient is finite where both maps agree.
EPSILON = 1e-12


def energy(feature: Tensor, mask: Tensor | None, power: int) -> Tensor:
    """Eq. 6: sum over channels of |mask * F|^power, flattened (B, Y * X), float32 or better."""
    feature = feature if feature.element_size() > 2 else feature.float()
    masked = feature if mask is None else feature * mask
    return masked.abs().pow(power).sum(dim=1).flatten(1)


def attention_transfer(student: Tensor, teacher: Tensor, mask: Tensor | None, *, power: int) -> Tensor:
    """Eq. 7, mean over the batch: the distance between the two unit-norm energy maps, between 0 and sqrt(2).

    student (B, C_s, Y, X), teacher (B, C_t, Y, X), mask (B, 1, Y, X) or None. The norm is neither squared nor averaged
    over cells; dividing by the number of cells would leave lambda = 2 without effect.
    """
    difference = unit(energy(student, mask, power)) - unit(energy(teacher, mask, power))
    return (difference.square().sum(dim=1) + EPSILON).sqrt().mean()


def unit(vectors: Tensor) -> Tensor:
    """Rows of (B, N) over their length; an all-zero row stays zero."""
    return vectors / (vectors.square().sum(dim=1, keepdim=True) + EPSILON).sqrt()
