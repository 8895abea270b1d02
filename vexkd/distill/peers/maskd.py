"""MasKD (ICLR 2023): masks that tokens learn to find in the teacher's maps, and each mask distilled by its own mean.

B batch, C channels, K tokens, Y X BEV. The published tokens learn first and the student after; here both learn beside one
another until the schedule of the masks stops the tokens, so that one run has the same length as the others'.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vexkd.distill import masks as mask_parts
from vexkd.distill.adapters import adapter, widths
from vexkd.distill.lesson import Lesson, Method, weights_of
from vexkd.models.bev_model import BEVModel
from vexkd.settings import Distill

# Published: number of tokens, their start, and the weight for RetinaNet; the diversity enters the tokens' loss as it is.
TOKENS, START = 6, 0.01
WEIGHTS = {"feature": 7.0, "diversity": 1.0}


class MaskTokens(nn.Module):
    """A level's tokens: a map (B, C, Y, X) -> masks (B, K, Y, X) in (0, 1) and their shares (B, K), which sum to 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(START * torch.randn(TOKENS, channels))
        self.look = nn.Conv2d(channels, channels, 3, padding=1)
        self.share = nn.Conv2d(channels, TOKENS, 1)
        for layer in (self.look, self.share):
            fan = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan))
            nn.init.zeros_(layer.bias)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        masks = torch.einsum("kc,bcyx->bkyx", self.tokens, feature).float().sigmoid()
        pooled = self.look(feature).mean(dim=(2, 3), keepdim=True)
        return masks, self.share(pooled).flatten(1).float().softmax(dim=1)


class MasKD(Method):
    """Terms `distill.<level>` for the student; while masks learn, `masked.<task loss>` and `mask.diversity.<level>`."""

    def __init__(
        self,
        *,
        tokens: dict[str, MaskTokens],
        adapters: dict[str, nn.Module],
        levels: Sequence[str],
        weights: Mapping[str, float],
    ) -> None:
        super().__init__()
        self.masks, self.adapters = nn.ModuleDict(tokens), nn.ModuleDict(adapters)
        self.levels, self.weights = tuple(levels), dict(weights)

    def forward(self, lesson: Lesson) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        with torch.set_grad_enabled(lesson.learning and torch.is_grad_enabled()):
            masks_by_level = {level: self.masks[level](lesson.teacher_features[level]) for level in self.levels}
        joint = {
            level: (m * shares[..., None, None]).sum(dim=1, keepdim=True)
            for level, (m, shares) in masks_by_level.items()
        }
        terms: dict[str, Tensor] = {}
        if lesson.learning:
            terms |= {f"masked.{name}": value for name, value in lesson.masked_teacher_loss(joint).items()}
        for level, (masks, shares) in masks_by_level.items():
            student = self.adapters[level](lesson.output.features[level])
            distance = masked_distance(student, lesson.teacher_features[level], masks.detach(), shares.detach())
            terms[f"distill.{level}"] = self.weights["feature"] * distance
            if lesson.learning:
                terms[f"mask.diversity.{level}"] = self.weights["diversity"] * dice(masks)
        watched = {f"mask.{lvl}.{k}": v for lvl, m in joint.items() for k, v in mask_parts.statistics(m).items()}
        return terms, watched


def masked_distance(student: Tensor, teacher: Tensor, masks: Tensor, shares: Tensor) -> Tensor:
    """Sum over masks of share * |mask * (S - T)|^2 over the mask's area, mean over channels and batch.

    masks (B, K, Y, X), shares (B, K).
    """
    error = (student.float() - teacher.float()).square().mean(dim=1)  # B Y X
    each = (error[:, None] * masks.square()).sum(dim=(2, 3)) / masks.sum(dim=(2, 3)).clamp(min=1e-6)  # B K
    return (each * shares).sum(dim=1).mean()


def dice(masks: Tensor) -> Tensor:
    """Mean over all pairs of two masks (B, K, Y, X) of 2 a.b / (a.a + b.b): 1 where they are equal."""
    flat = masks.flatten(2)  # B K Y*X
    with torch.autocast(flat.device.type, enabled=False):
        products = flat @ flat.transpose(1, 2)  # B K K
    squares = products.diagonal(dim1=1, dim2=2)
    alike = 2 * products / (squares[:, :, None] + squares[:, None, :]).clamp(min=1e-12)
    others = ~torch.eye(masks.shape[1], dtype=torch.bool, device=masks.device)
    return alike[:, others].mean()


def build(*, settings: Distill, student: BEVModel, teacher: BEVModel, teacher_name: str) -> MasKD:
    """The method of a run, on the levels of `distill.levels`."""
    channels, teacher_channels = widths(student), widths(teacher)
    return MasKD(
        tokens={level: MaskTokens(teacher_channels[level]) for level in settings.levels},
        adapters={k: adapter("always", channels[k], teacher_channels[k], hidden=0.0) for k in settings.levels},
        levels=settings.levels,
        weights=weights_of("maskd", WEIGHTS, settings.weights),
    )
