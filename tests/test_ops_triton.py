"""Triton's kernels: correct through its interpreter, in a process of its own; compiled for GPUs that need not be here."""

import importlib.util
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from vexkd.ops import kernels
from vexkd.ops.bev_pool import lift_pool

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed (the extra `gpu`)",
)


@needs_triton
def test_the_kernels_equal_the_plain_routes_in_the_interpreter():
    """Triton decides when it is imported whether it interprets, so this is a process of its own."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "interpreted_triton.py"],
        cwd=HERE,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    last = result.stdout.strip().splitlines()[-1] if result.stdout.strip() else result.stderr
    assert result.returncode == 0, result.stdout[-6000:]
    assert "passed" in last
    assert "skipped" not in last


COMPILE = """
import sys
import triton.language as tl
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vexkd.ops import bev_pool_triton, deformable_attention_triton

def cubin(kernel, types, constants):
    signature = {name: types.get(name, "constexpr" if name in constants else "i32") for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    return compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32)).asm["cubin"]

half, single, level = "*bf16", "*fp32", ("i32", "i32", "i32", "i32")
lists = {"order": "*i64", "offsets": "*i32", "numbers": "*i32"}
assert cubin(
    bev_pool_triton.sum_intervals,
    {"rows": half, "weights": half, "sums": single} | lists,
    {"BLOCK_POINTS": 16, "BLOCK_CHANNELS": 128},
)
assert cubin(
    bev_pool_triton.gradient_by_pixel,
    {"grad": single, "depth": half, "context": half, "grad_depth": half, "grad_context": half} | lists,
    {"WANTS_DEPTH": True, "WANTS_CONTEXT": True, "BLOCK_BINS": 16, "BLOCK_CHANNELS": 128},
)
inputs = {"value": half, "locations": single, "weights": single, "sizes": (level, level)}
blocks = {"POINTS": 4, "TYPE": tl.float32, "BLOCK_ROWS": 32, "BLOCK_DIM": 32}
assert cubin(deformable_attention_triton.sample_forward, inputs | {"out": single}, blocks)
results = {"grad": single, "grad_locations": single, "grad_weights": single}
for values, more, absent in ((1, {"grad_value": single}, ["corners"]), (2, {"corners": "*i32"}, ["grad_value"])):
    assert cubin(
        deformable_attention_triton.sample_backward,
        inputs | results | more,
        blocks | {"VALUES": values} | dict.fromkeys(absent),
    )
del blocks["BLOCK_ROWS"], inputs["sizes"], inputs["value"]
assert cubin(
    deformable_attention_triton.gather_values,
    inputs | lists | {"grad": single, "grad_value": single},
    blocks | {"BLOCK_ENTRIES": 8},
)
"""


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])  # A100, H100
def test_the_kernels_compile_for_a_gpu_that_is_not_here(capability, tmp_path):
    """The interpreter takes more than the compiler does; Triton brings its own assembler."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-c", COMPILE, str(capability)],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-4000:]


class OnAGpu:
    """A tensor as far as `kernels.ready` looks at it."""

    is_cuda, device = True, torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def untried():
    kernels._compiles.cache_clear()
    yield
    kernels._compiles.cache_clear()


def test_the_cpu_keeps_its_routes():
    assert not kernels.ready(torch.zeros(1))


def test_without_triton_the_other_routes_are_taken_silently(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "vexkd.ops.bev_pool_triton", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not kernels.ready(OnAGpu)
    depth, context = torch.ones(1, 1, 1, 1, 1), torch.ones(1, 1, 1, 1, 1)
    assert lift_pool(depth, context, torch.zeros(1, 1, 1, 1, 1).long(), (1, 1)).item() == 1


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which Triton should work")
def test_a_triton_that_fails_is_told_once():
    with pytest.warns(UserWarning, match="Triton is installed but fails"):
        assert not kernels.ready(OnAGpu)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not kernels.ready(OnAGpu)


def test_a_variable_turns_the_kernels_off(monkeypatch):
    monkeypatch.setattr(kernels, "_compiles", lambda device: True)
    assert kernels.ready(OnAGpu)
    monkeypatch.setenv("VEXKD_TRITON", "0")
    assert not kernels.ready(OnAGpu)
