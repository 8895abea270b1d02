"""Camera backbone (Swin or ResNet, from transformers) and BEVFusion's GeneralizedLSSFPN neck.

B batch, N cameras, C channels, H W image. Only the neck's finest map goes on, at the stride of the first stage handed over.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vexkd.models.bev_neck import conv_norm_act


def build_backbone(
    *,
    kind: str,
    widths: Sequence[int],
    depths: Sequence[int],
    outputs: Sequence[int],
    heads: Sequence[int],
    window: int,
    drop_path: float,
    layer: str,
    stem: int,
) -> nn.Module:
    """A transformers backbone that returns the feature maps of the stages in `outputs` (counted from 0), random weights."""
    import transformers  # five seconds: only models with cameras pay for it

    names = [f"stage{index + 1}" for index in outputs]
    if kind == "swin":
        if any(w != widths[0] * 2**i for i, w in enumerate(widths)):
            raise ValueError(f"Swin's widths double from stage to stage, {list(widths)} do not")
        config = transformers.SwinConfig(
            embed_dim=widths[0],
            depths=list(depths),
            num_heads=list(heads),
            window_size=window,
            drop_path_rate=drop_path,
            out_features=names,
        )
        return transformers.SwinBackbone(config)
    config = transformers.ResNetConfig(
        embedding_size=stem, hidden_sizes=list(widths), depths=list(depths), layer_type=layer, out_features=names
    )
    return transformers.ResNetBackbone(config)


class ImageEncoder(nn.Module):
    """Images (B, N, 3, H, W) to one feature map per camera (B, N, C, H', W')."""

    def __init__(self, *, backbone: nn.Module, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.laterals, self.smooth = nn.ModuleList(), nn.ModuleList()
        for index in range(len(widths) - 1):
            coarser = widths[index + 1] if index == len(widths) - 2 else channels
            self.laterals.append(conv_norm_act(widths[index] + coarser, channels, kernel=1))
            self.smooth.append(conv_norm_act(channels, channels))
        self.single = conv_norm_act(widths[0], channels, kernel=1) if len(widths) == 1 else None
        self.out_channels = channels

    def forward(self, images: Tensor) -> Tensor:
        batch, cameras = images.shape[:2]
        maps = self.backbone(images.flatten(0, 1)).feature_maps  # finest first, BN C H W
        finest = self._pyramid(list(maps))
        return finest.unflatten(0, (batch, cameras))

    def _pyramid(self, maps: list[Tensor]) -> Tensor:
        """From the coarsest map upwards: resize, concatenate, 1x1, 3x3."""
        if self.single is not None:
            return self.single(maps[0])
        coarse = maps[-1]
        for index in range(len(maps) - 2, -1, -1):
            size = maps[index].shape[-2:]
            coarse = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
            coarse = self.smooth[index](self.laterals[index](torch.cat([maps[index], coarse], dim=1)))
        return coarse
