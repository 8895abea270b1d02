"""What the tests of imported weights share: a state dict in a published layout that grows by being read, and our models.

Numbers are float64.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from conftest import tiny_settings
from torch import Tensor, nn

from vexkd import settings
from vexkd.models import bev_model
from vexkd.published import convert


class Published:
    """A state dict that grows by being read."""

    def __init__(self, seed: int = 0) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.random = torch.Generator().manual_seed(seed)

    def get(self, name: str, *shape: int) -> Tensor:
        if name not in self.tensors:
            value = torch.randn(*shape, generator=self.random, dtype=torch.float64)
            self.tensors[name] = value / math.sqrt(max(1, value[0].numel())) if value.dim() > 1 else value / 2
        return self.tensors[name]

    def conv(self, x: Tensor, name: str, out: int, kernel: int, *, bias: bool = False, **how) -> Tensor:
        size = (kernel,) * (x.dim() - 2)
        weight = self.get(f"{name}.weight", out, x.shape[1], *size)
        op = F.conv1d if x.dim() == 3 else F.conv2d
        return op(x, weight, self.get(f"{name}.bias", out) if bias else None, padding=kernel // 2, **how)

    def norm(self, x: Tensor, name: str, eps: float = 1e-5) -> Tensor:
        count = x.shape[1]
        mean, scale, shift = (self.get(f"{name}.{end}", count) for end in ("running_mean", "weight", "bias"))
        if f"{name}.running_var" not in self.tensors:
            self.tensors[f"{name}.running_var"] = torch.rand(count, generator=self.random, dtype=torch.float64) + 0.5
            self.tensors[f"{name}.num_batches_tracked"] = torch.tensor(7)
        return F.batch_norm(x, mean, self.tensors[f"{name}.running_var"], scale, shift, eps=eps)

    def module(self, x: Tensor, name: str, out: int, kernel: int) -> Tensor:
        """mmcv's ConvModule."""
        return self.norm(self.conv(x, f"{name}.conv", out, kernel), f"{name}.bn").relu()

    def linear(self, x: Tensor, name: str, out: int) -> Tensor:
        return F.linear(x, self.get(f"{name}.weight", out, x.shape[-1]), self.get(f"{name}.bias", out))

    def layer_norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(
            x, x.shape[-1:], self.get(f"{name}.weight", x.shape[-1]), self.get(f"{name}.bias", x.shape[-1])
        )

    def attention(self, query: Tensor, key: Tensor, value: Tensor, name: str, heads: int) -> Tensor:
        """nn.MultiheadAttention, batch first, by hand."""
        width = query.shape[-1]
        weights = self.get(f"{name}.in_proj_weight", 3 * width, width).chunk(3)
        biases = self.get(f"{name}.in_proj_bias", 3 * width).chunk(3)
        q, k, v = (
            F.linear(x, w, b).unflatten(-1, (heads, -1)).transpose(1, 2)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        found = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
        return self.linear(found.transpose(1, 2).flatten(2), f"{name}.out_proj", width)

    def feed_forward(self, x: Tensor, name: str, hidden: int) -> Tensor:
        return self.linear(self.linear(x, f"{name}.layers.0.0", hidden).relu(), f"{name}.layers.1", x.shape[-1])


def tiny(name: str, change=lambda raw: None) -> settings.Run:
    raw = copy.deepcopy(tiny_settings())
    raw["bev"] |= {"range": [-6.4, -6.4, -5.0, 6.4, 6.4, 3.0]}
    raw["map"] |= {"reach": 6.0}
    raw["students"]["camera-only"] = {
        "task": "detection",
        "sensors": ["camera"],
        "head": "centerpoint",
        "camera": {"view": {"depth_net": "plain", "depth_channels": None, "step": 1.6}},
        "bev_encoder": {"kind": "resnet", "channels": [8, 8, 8], "layers": [1, 1, 1], "strides": [2, 2, 2]}
        | {"neck_channels": [8, 8], "out_channels": 8},
    }
    change(raw)
    return settings.parse(raw).run(name)


def built(run: settings.Run) -> bev_model.BEVModel:
    torch.manual_seed(1)
    return bev_model.build(run).double().eval()


def put(model: nn.Module, run: settings.Run, source: Published, origin: str, *prefixes: str, legacy: bool = False):
    """Import into a model; everything of ours under the prefixes must be filled, and nothing be left over."""
    own = model.state_dict()
    result = convert.convert(run, own, source.tensors, origin=origin, legacy=legacy)
    lacking = [name for name in result.missing if name.startswith(prefixes)]
    assert (lacking, result.shapes, result.unexpected) == ([], [], [])
    model.load_state_dict({**own, **result.tensors})
    return result
