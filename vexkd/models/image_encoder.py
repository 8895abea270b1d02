"""Camera backbone (Swin or ResNet, from transformers) and its neck: BEVFusion's GeneralizedLSSFPN or a standard FPN.

B batch, N cameras, C channels, H W image. Maps go finest first; the stages of a backbone have strides 4, 8, 16 and 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vexkd.models.blocks import conv_norm_act, start_by_fan_out
from vexkd.ops.deform_conv import ModulatedDeformConv2d

# Deviations of R, G and B in the batch's images (ImageNet's, see `vexkd.data.images`).
DEVIATIONS = (58.395, 57.12, 57.375)


def build_backbone(
    *,
    kind: Literal["swin", "resnet"],
    widths: Sequence[int],
    depths: Sequence[int],
    outputs: Sequence[int],
    heads: Sequence[int] = (),
    window: int = 7,
    drop_path: float = 0.0,
    layer: Literal["basic", "bottleneck"] = "bottleneck",
    stem: int = 64,
    style: Literal["pytorch", "caffe"] = "pytorch",
    deformable: Sequence[int] = (),
    frozen_stages: int = 0,
    frozen_norm: bool = False,
    recompute: bool = False,
) -> nn.Module:
    """A transformers backbone that returns the feature maps of the stages in `outputs` (counted from 0), random weights.

    ResNets only: style: where a bottleneck strides, in its 3x3 or (caffe) in its first 1x1. deformable: stages whose 3x3
    convolutions are modulated deformable ones. frozen_stages: the stem and this many stages learn nothing (0: all learn).
    frozen_norm: every BatchNorm keeps the statistics and weights it was given. recompute: forget what is inside a residual
    block and compute it again on the way back, for memory.
    """
    import transformers  # five seconds: only models with cameras pay for it

    names = [f"stage{index + 1}" for index in outputs]
    if kind == "swin":
        if any(w != widths[0] * 2**i for i, w in enumerate(widths)):
            raise ValueError(f"Swin's widths double from stage to stage, {list(widths)} do not")
        if style != "pytorch" or deformable or frozen_stages or frozen_norm or recompute:
            raise ValueError(
                "style, deformable, frozen_stages, frozen_norm and recompute are for ResNets, not for Swin"
            )
        config = transformers.SwinConfig(
            embed_dim=widths[0],
            depths=list(depths),
            num_heads=list(heads),
            window_size=window,
            drop_path_rate=drop_path,
            out_features=names,
        )
        return transformers.SwinBackbone(config)
    if recompute and not frozen_norm:
        raise ValueError("recompute would update running statistics twice a step; it needs frozen_norm")
    config = transformers.ResNetConfig(
        embedding_size=stem,
        hidden_sizes=list(widths),
        depths=list(depths),
        layer_type=layer,
        out_features=names,
        downsample_in_bottleneck=style == "caffe",
    )
    return adapted(
        transformers.ResNetBackbone(config),
        deformable=deformable,
        frozen_stages=frozen_stages,
        frozen_norm=frozen_norm,
        recompute=recompute,
    )


def adapted(
    backbone: nn.Module, *, deformable: Sequence[int], frozen_stages: int, frozen_norm: bool, recompute: bool
) -> nn.Module:
    """A transformers ResNet changed in place as `build_backbone` says."""
    for index in deformable:
        deform(backbone.encoder.stages[index])
    if frozen_norm:
        freeze_norms(backbone)
    if frozen_stages:
        for part in (backbone.embedder, *backbone.encoder.stages[:frozen_stages]):
            freeze_norms(part)
            part.requires_grad_(False)
    if recompute:
        backbone.encoder.stages = nn.ModuleList(RecomputedStage(stage.layers) for stage in backbone.encoder.stages)
    return backbone


def deform(stage: nn.Module) -> None:
    """Turn the 3x3 convolutions of a bottleneck stage into modulated deformable ones, in place."""
    for block in stage.layers:
        if len(block.layer) != 3:
            raise ValueError("deformable convolutions stand in bottleneck layers, not in basic ones")
        old = block.layer[1].convolution
        new = ModulatedDeformConv2d(old.in_channels, old.out_channels, stride=old.stride[0])
        new.weight = old.weight
        block.layer[1].convolution = new


def freeze_norms(module: nn.Module) -> None:
    """Replace every BatchNorm inside by a frozen one, in place; names of weights stay."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features, child.eps))
        else:
            freeze_norms(child)


class FrozenBatchNorm2d(nn.Module):
    """BatchNorm in evaluation mode, always: statistics and weights are buffers, set by loading published weights."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class RecomputedStage(nn.Module):
    """A stage that keeps only the inputs of its blocks for the backward pass."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = (
                checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False)
                if torch.is_grad_enabled()
                else layer(x)
            )
        return x


class ImageEncoder(nn.Module):
    """Images (B, N, 3, H, W) to feature maps per camera, a list of (B, N, C, H', W'), finest first.

    pixels: what the backbone's weights expect. The batch's images are RGB with ImageNet's mean and deviation taken out
    (imagenet); Caffe's weights want BGR in 0..255 with the same mean taken out and no deviation (caffe).
    """

    def __init__(
        self, *, backbone: nn.Module, neck: nn.Module, pixels: Literal["imagenet", "caffe"] = "imagenet"
    ) -> None:
        super().__init__()
        self.backbone, self.neck, self.pixels = backbone, neck, pixels
        self.register_buffer("deviations", torch.tensor(DEVIATIONS).view(3, 1, 1), persistent=False)
        self.out_channels = neck.out_channels

    def forward(self, images: Tensor) -> list[Tensor]:
        if self.pixels == "caffe":
            images = (images * self.deviations).flip(-3)
        maps = self.backbone(images.flatten(0, 1)).feature_maps  # finest first, each BN C H W
        return [level.unflatten(0, images.shape[:2]) for level in self.neck(list(maps))]


def build_neck(*, kind: Literal["lss-fpn", "fpn"], widths: Sequence[int], channels: int, levels: int = 1) -> nn.Module:
    """The neck over maps of these widths, finest first; `levels` maps come out of an fpn, always one of an lss-fpn."""
    if kind == "lss-fpn":
        return LssFpn(widths=widths, channels=channels)
    return Fpn(widths=widths, channels=channels, levels=levels)


class LssFpn(nn.Module):
    """BEVFusion's GeneralizedLSSFPN: from the coarsest map upwards resize, concatenate, 1x1, 3x3; the finest alone goes on."""

    def __init__(self, *, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        self.laterals, self.smooth = nn.ModuleList(), nn.ModuleList()
        for index in range(len(widths) - 1):
            coarser = widths[index + 1] if index == len(widths) - 2 else channels
            self.laterals.append(conv_norm_act(widths[index] + coarser, channels, kernel=1))
            self.smooth.append(conv_norm_act(channels, channels))
        self.single = conv_norm_act(widths[0], channels, kernel=1) if len(widths) == 1 else None
        start_by_fan_out(self)
        self.out_channels = channels

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """maps (BN, C_i, H_i, W_i), finest first -> [(BN, channels, H_0, W_0)]."""
        if self.single is not None:
            return [self.single(maps[0])]
        coarse = maps[-1]
        for index in range(len(maps) - 2, -1, -1):
            size = maps[index].shape[-2:]
            coarse = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
            coarse = self.smooth[index](self.laterals[index](torch.cat([maps[index], coarse], dim=1)))
        return [coarse]


class Fpn(nn.Module):
    """The standard pyramid as mmdetection builds it, without norms: 1x1 laterals, nearest top-down sums, 3x3 outputs.

    levels: the finest maps that go on. More levels than widths: further ones by 3x3 convolutions of stride 2, each from
    the last output before it, through a ReLU from the second on.
    """

    def __init__(self, *, widths: Sequence[int], channels: int, levels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.outputs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, stride=1 if level < len(widths) else 2, padding=1)
            for level in range(levels)
        )
        for conv in (*self.laterals, *self.outputs):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)
        self.out_channels = channels

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """maps (BN, C_i, H_i, W_i), finest first -> `levels` maps (BN, channels, H_l, W_l)."""
        summed = [lateral(level) for lateral, level in zip(self.laterals, maps, strict=True)]
        for index in range(len(summed) - 1, 0, -1):
            size = summed[index - 1].shape[-2:]
            summed[index - 1] = summed[index - 1] + F.interpolate(summed[index], size=size, mode="nearest")
        levels = [output(level) for output, level in zip(self.outputs, summed, strict=False)]
        for index in range(len(maps), len(self.outputs)):
            last = levels[-1] if index == len(maps) else F.relu(levels[-1])
            levels.append(self.outputs[index](last))
        return levels
