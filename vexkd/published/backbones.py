"""Image backbones: the published names of ResNets and Swin transformers, and transformers' names, which are ours.

Layouts read from: torchvision models/resnet.py and models/swin_transformer.py; mmdetection models/backbones/{resnet,swin}.py
and its converter of Swin's official weights; transformers conversion_mapping.py ("swin").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from vexkd.data.images import MEAN, STD
from vexkd.published.mapping import Change, Layout, Source, Table, both, third
from vexkd.settings import Backbone

OURS = "camera.encoder.backbone"
# Swin's last norm has no part in feature maps, and files of detectors do not hold it.
UNUSED = (rf"^{re.escape(OURS)}\.swin\.layernorm\.",)
# ImageNet's weights know neither the norms of the maps that are handed on, nor where deformable convolutions look.
NEW_AFTER_IMAGENET = (r"\.hidden_states_norms\.", r"\.conv_offset\.")
IGNORED = {
    r"relative_position_index$": "follows from the window's size",
    r"^(fc|head|classifier)\.": "the classifier",
}
# What transformers renamed in Swin since the files on the hub were made.
_RENAMED = (
    ("attention.self.query", "attention.q_proj"),
    ("attention.self.key", "attention.k_proj"),
    ("attention.self.value", "attention.v_proj"),
    ("attention.self.relative_position_bias_table", "attention.relative_position_bias.relative_position_bias_table"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
)


def table(backbone: Backbone, theirs: str, *, source: Literal["torchvision", "mmdet"]) -> Table:
    """Of a backbone in the layout of torchvision or mmdetection; `theirs` is what its names begin with, dot included."""
    if backbone.kind == "resnet":
        return resnet(backbone, theirs)
    return mmdet_swin(backbone, theirs) if source == "mmdet" else torchvision_swin(backbone, theirs)


def imagenet(backbone: Backbone, published: Mapping[str, Tensor], *, source: str) -> tuple[Layout, dict[str, Tensor]]:
    """How a file that holds a backbone alone fits ours, and the file's tensors by the names that the layout means.

    source: transformers, torchvision or mmdet; detectors' files in mmdetection's layout (FCOS3D) have a prefix.
    """
    optional = (*UNUSED, *NEW_AFTER_IMAGENET)
    if source == "transformers":
        names = {OURS: Source("")}
        return Layout(names, optional, IGNORED, roots=("",)), transformers_names(published, backbone.kind)
    prefix = _prefix(published) if source == "mmdet" else ""
    chosen = table(backbone, prefix, source="mmdet" if source == "mmdet" else "torchvision")
    return Layout(chosen, optional, IGNORED, roots=(prefix,)), dict(published)


def _prefix(published: Mapping[str, Tensor]) -> str:
    """What the names of the backbone begin with in a file of a detector."""
    prefixes = [p for p in ("img_backbone.", "backbone.") if any(name.startswith(p) for name in published)]
    return prefixes[0] if prefixes else ""


def transformers_names(published: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The tensors of a file from the hub by the names of today's backbone class."""
    renamed = {}
    for name, tensor in published.items():
        if kind == "swin":
            for old, new in _RENAMED:
                name = name.replace(old, new)
            name = f"swin.{name}" if name.startswith(("embeddings.", "encoder.", "layernorm.")) else name
        renamed[name.removeprefix("backbone.").removeprefix("resnet.")] = tensor
    return renamed


def resnet(backbone: Backbone, theirs: str) -> Table:
    """torchvision's names, which mmdetection keeps; modulated deformable convolutions have theirs in the same place."""
    table = {
        f"{OURS}.embedder.embedder.convolution": Source(f"{theirs}conv1"),
        f"{OURS}.embedder.embedder.normalization": Source(f"{theirs}bn1"),
    }
    for stage, depth in enumerate(backbone.depths):
        for block in range(depth):
            ours, other = f"{OURS}.encoder.stages.{stage}.layers.{block}", f"{theirs}layer{stage + 1}.{block}"
            for conv in range(3 if backbone.layer == "bottleneck" else 2):
                table[f"{ours}.layer.{conv}.convolution"] = Source(f"{other}.conv{conv + 1}")
                table[f"{ours}.layer.{conv}.normalization"] = Source(f"{other}.bn{conv + 1}")
            table[f"{ours}.shortcut.convolution"] = Source(f"{other}.downsample.0")
            table[f"{ours}.shortcut.normalization"] = Source(f"{other}.downsample.1")
    return table


def _swin_block(ours: str, theirs: str, *, attention: str, first: str, second: str) -> Table:
    """One block; query, key and value are joint in all published layouts but transformers'."""
    table = {
        f"{ours}.layernorm_before": Source(f"{theirs}.norm1"),
        f"{ours}.layernorm_after": Source(f"{theirs}.norm2"),
        f"{ours}.attention.o_proj": Source(f"{attention}.proj"),
        f"{ours}.attention.relative_position_bias": Source(attention),
        f"{ours}.mlp.fc1": Source(first),
        f"{ours}.mlp.fc2": Source(second),
    }
    for index, name in enumerate(("q_proj", "k_proj", "v_proj")):
        table[f"{ours}.attention.{name}"] = Source(f"{attention}.qkv", both(third(index)))
    return table


def torchvision_swin(backbone: Backbone, theirs: str) -> Table:
    """torchvision's: everything in one row, blocks and mergings by turns."""
    table = {
        f"{OURS}.swin.embeddings.patch_embeddings.projection": Source(f"{theirs}features.0.0"),
        f"{OURS}.swin.embeddings.norm": Source(f"{theirs}features.0.2"),
        f"{OURS}.swin.layernorm": Source(f"{theirs}norm"),
    }
    for stage, depth in enumerate(backbone.depths):
        ours = f"{OURS}.swin.encoder.layers.{stage}"
        for block in range(depth):
            other = f"{theirs}features.{2 * stage + 1}.{block}"
            parts = {"attention": f"{other}.attn", "first": f"{other}.mlp.0", "second": f"{other}.mlp.3"}
            table |= _swin_block(f"{ours}.blocks.{block}", other, **parts)
        table[f"{ours}.downsample"] = Source(f"{theirs}features.{2 * stage + 2}")
    return table


def mmdet_swin(backbone: Backbone, theirs: str) -> Table:
    """mmdetection's: its mergings unfold, which orders their input by channel first, then row, then column."""
    table = {
        f"{OURS}.swin.embeddings.patch_embeddings.projection": Source(f"{theirs}patch_embed.projection"),
        f"{OURS}.swin.embeddings.norm": Source(f"{theirs}patch_embed.norm"),
    }
    for stage, depth in enumerate(backbone.depths):
        ours, other = f"{OURS}.swin.encoder.layers.{stage}", f"{theirs}stages.{stage}"
        for block in range(depth):
            inner = f"{other}.blocks.{block}"
            parts = {
                "attention": f"{inner}.attn.w_msa",
                "first": f"{inner}.ffn.layers.0.0",
                "second": f"{inner}.ffn.layers.1",
            }
            table |= _swin_block(f"{ours}.blocks.{block}", inner, **parts)
        table[f"{ours}.downsample.reduction"] = Source(f"{other}.downsample.reduction", {"weight": merging_order()})
        table[f"{ours}.downsample.norm"] = Source(f"{other}.downsample.norm", both(merging_order()))
    for stage in backbone.outputs:
        table[f"{OURS}.hidden_states_norms.stage{stage + 1}"] = Source(f"{theirs}norm{stage}")
    return table


def merging_order() -> Change:
    """From (channel, row, column) of the four merged patches to Swin's own (column, row, channel), along the last axis."""

    def change(tensor: Tensor) -> Tensor:
        channels = tensor.shape[-1] // 4
        return tensor.unflatten(-1, (channels, 2, 2)).movedim(-3, -1).transpose(-3, -2).flatten(-3)

    return change


def fed_rgb(published: Mapping[str, Tensor], theirs: str) -> dict[str, Tensor]:
    """Of a backbone that was fed BGR, normalised with RGB's mean and deviation, the tensors of one that is fed RGB.

    Its first convolution changes the order and scale of its input channels; what the means differ by goes into its bias, or
    into the mean of the norm behind it. Where that convolution reads its own padding (three pixels of a ResNet's border)
    the two zeros differ, by a third of a deviation.
    """
    tensors, stem = dict(published), f"{theirs}conv1.weight"
    stem = stem if stem in tensors else f"{theirs}patch_embed.projection.weight"
    if stem not in tensors:
        return tensors
    weight, mean, deviation = tensors[stem], torch.from_numpy(MEAN), torch.from_numpy(STD)
    rest = torch.einsum("ochw,c->o", weight, ((mean.flip(0) - mean) / deviation).to(weight.dtype))
    tensors[stem] = (weight * (deviation.flip(0) / deviation).to(weight.dtype).view(1, 3, 1, 1)).flip(1)
    for name, sign in ((f"{theirs}bn1.running_mean", -1), (f"{theirs}patch_embed.projection.bias", 1)):
        if name in tensors:
            tensors[name] = tensors[name] + sign * rest
    return tensors
