"""Whether an operator takes its Triton route: on CUDA, where Triton is installed and compiles; VEXKD_TRITON=0 says no."""

import os
import warnings
from functools import cache

import torch
from torch import Tensor


def ready(tensor: Tensor) -> bool:
    """Whether Triton's kernels can work on this tensor. Graphs that are exported get the operators of PyTorch."""
    if not tensor.is_cuda or torch.compiler.is_exporting() or os.environ.get("VEXKD_TRITON") == "0":
        return False
    return _compiles(tensor.device.type)


@cache
def _compiles(device: str) -> bool:
    """Try a small kernel once: Triton also needs a C compiler and a GPU it knows. A failure is told, not hidden."""
    try:
        from vexkd.ops.bev_pool_triton import pixel_sums
    except ImportError:
        return False
    try:
        one = torch.ones(1, 1, device=device)
        pixel_sums(one, one, torch.zeros(1, 1, dtype=torch.int32, device=device), 1)
    except Exception as failure:  # whatever it is, the other routes give the same
        warnings.warn(f"Triton is installed but fails ({failure}); PyTorch's own operators are used.", stacklevel=2)
        return False
    return True
