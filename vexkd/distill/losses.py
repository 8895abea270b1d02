"""What to distil: losses between a student's and a teacher's BEV map (Sec. 3.4; Table 4 and its neighbours).

B batch, C channels, Y X BEV. Every loss takes the student's map after its adapter, the teacher's, and a mask (B, 1, Y, X)
or None that is laid on both, and gives a scalar in float32 or better. A new one is a function here and its line in LOSSES.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from vexkd.distill.adapters import Adapter

# Under the root of the distance, so that its gradient is finite where both maps agree; they are then 1e-12 apart.
EPSILON = 1e-24
# Under the root of a map's length, so that an all-zero map stays zero.
SHORTEST = 1e-12
# Added to a channel's deviation as published, and under its root: a channel that is the same everywhere has no
# correlation, and no infinite gradient.
DEVIATION, FLAT = 1e-6, 1e-24


def laid_on(feature: Tensor, mask: Tensor | None) -> Tensor:
    """mask * F in float32 or better."""
    feature = feature if feature.element_size() > 2 else feature.float()
    return feature if mask is None else feature * mask


def energy(feature: Tensor, mask: Tensor | None, power: int) -> Tensor:
    """Eq. 6: sum over channels of |mask * F|^power, flattened (B, Y * X), float32 or better."""
    return laid_on(feature, mask).abs().pow(power).sum(dim=1).flatten(1)


def attention_transfer(student: Tensor, teacher: Tensor, mask: Tensor | None, *, power: int) -> Tensor:
    """Eq. 7, mean over the batch: the distance between the two unit-norm energy maps, between 0 and sqrt(2).

    student (B, C_s, Y, X), teacher (B, C_t, Y, X), mask (B, 1, Y, X) or None. The norm is neither squared nor averaged
    over cells; dividing by the number of cells would leave lambda = 2 without effect.
    """
    difference = unit(energy(student, mask, power)) - unit(energy(teacher, mask, power))
    return (difference.square().sum(dim=1) + EPSILON).sqrt().mean()


def unit(vectors: Tensor) -> Tensor:
    """Rows of (B, N) over their length; an all-zero row stays zero."""
    return vectors / (vectors.square().sum(dim=1, keepdim=True) + SHORTEST).sqrt()


def l1(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Mean absolute difference."""
    return (laid_on(student, mask) - laid_on(teacher, mask)).abs().mean()


def l2(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Mean squared difference (FitNets)."""
    return (laid_on(student, mask) - laid_on(teacher, mask)).square().mean()


def smooth_l1(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of half the squared difference below 1, of the absolute one less a half above."""
    return F.smooth_l1_loss(laid_on(student, mask), laid_on(teacher, mask))


def pearson(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """PKD: half the mean squared difference of maps standardised per channel over (B, Y, X): 1 - r, mean over channels.

    As published the deviations are those of a sample, so that the value is (N - 1) / N of it for N numbers a channel. The
    statistics are those of the samples that are computed together: of one process and one part of a batch.
    """
    return (standard(laid_on(student, mask)) - standard(laid_on(teacher, mask))).square().mean() / 2


def standard(feature: Tensor) -> Tensor:
    """Each channel less its mean and over its standard deviation (that of a sample), over (B, Y, X)."""
    centred = feature - feature.mean(dim=(0, 2, 3), keepdim=True)
    count = feature[:, 0].numel()
    variance = centred.square().sum(dim=(0, 2, 3), keepdim=True) / max(1, count - 1)
    return centred / ((variance + FLAT).sqrt() + DEVIATION)


def channel_divergence(student: Tensor, teacher: Tensor, mask: Tensor | None, *, tau: float = 1.0) -> Tensor:
    """CWD: KL(teacher || student) of each channel's softmax over the cells at temperature tau, times tau^2 / (B C)."""
    log_s, log_t = (((laid_on(x, mask) / tau).flatten(2)).log_softmax(dim=2) for x in (student, teacher))  # B C Y*X
    return (log_t.exp() * (log_t - log_s)).sum(dim=2).mean() * tau**2


def generated(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """MGD: squared difference between the generated and the teacher's map, summed over a sample, mean over the batch."""
    return (laid_on(student, mask) - laid_on(teacher, mask)).square().flatten(1).sum(dim=1).mean()


@dataclass(frozen=True)
class FeatureLoss:
    """A loss, the settings it reads, its adapter, and the scale that lambda and mu multiply.

    The default scale gives the published weight at the paper's lambda = 2. Table 4 names no weights for L1, L2 and
    Smooth-L1, so these keep lambda as it is (inferred).
    """

    compare: Callable[..., Tensor]
    options: tuple[str, ...] = ()
    adapter: Adapter = "always"
    scale: float = 1.0


LOSSES = {
    "attention": FeatureLoss(attention_transfer, options=("power",), adapter="none"),
    "l1": FeatureLoss(l1),
    "l2": FeatureLoss(l2),
    "smooth-l1": FeatureLoss(smooth_l1),
    "pkd": FeatureLoss(pearson, adapter="where-widths-differ", scale=5.0),  # 10 for FCOS3D (mmrazor 1.0.0)
    "cwd": FeatureLoss(
        channel_divergence, options=("tau",), adapter="where-widths-differ", scale=5.0
    ),  # 10 on FPN maps (mmrazor 1.0.0)
    "mgd": FeatureLoss(generated, adapter="generator", scale=1e-5),  # alpha 2e-5 (mmrazor 1.0.0)
}
