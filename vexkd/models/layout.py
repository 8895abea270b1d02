"""The order in memory of the 2D convolutions' weights and maps: channels innermost, which is faster (benchmarks/models.py),
save where torch's CPU build computes wrong gradients so.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# With channels innermost, oneDNN's kernels for AVX2 write beyond their buffers in the backward pass of a strided 1x1
# convolution of fewer input channels than the eight that fill a vector. A round number above that, below any published model.
FEWEST_CHANNELS = 16


def lay_out(model: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    """The weights of the 2D convolutions in this order of memory, in place; the maps follow the first of them.

    Strided 1x1 convolutions of few channels keep channels outermost, weights and maps, on every processor.
    """
    for module in model.modules():
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            continue
        if needs_outermost(module):
            module.weight.data = module.weight.data.clone(memory_format=torch.contiguous_format)
            if outermost not in module._forward_pre_hooks.values():
                module.register_forward_pre_hook(outermost)
        else:
            module.to(memory_format=memory_format)
    return model


def needs_outermost(conv: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    """Whether a convolution is of the kind that may go wrong with channels innermost."""
    pointwise, strided = set(conv.kernel_size) == {1}, max(conv.stride) > 1
    return pointwise and strided and conv.in_channels // conv.groups < FEWEST_CHANNELS


def outermost(_conv: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A convolution's input with channels outermost: weights alone don't decide the order, a map of the other one does.

    A copy, as `contiguous` would leave the strides of a map of one channel, which torch takes for channels innermost.
    """
    return tuple(x.clone(memory_format=torch.contiguous_format) for x in inputs)
