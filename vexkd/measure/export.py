"""The dense part of a single-sensor model as an ONNX file, checked against PyTorch through onnxruntime.

LiDAR: from the BEV features `low` (B, C, Y, X) to the head's raw output, any batch; voxelization and the sparse encoder stay
outside. Cameras: from images (1, N, 3, H, W) to the head's raw output, for one rig: all that follows from its calibration
alone is computed once and stored in the file. Decoding (thresholds, NMS) stays outside.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from vexkd import provenance
from vexkd.batch import Batch, collate
from vexkd.data.infos import load as load_infos
from vexkd.errors import InputError
from vexkd.experiment import Experiment
from vexkd.measure import summary
from vexkd.measure.plain_attention import plain_attention
from vexkd.models.bev_model import BEVModel
from vexkd.settings import Params, Run
from vexkd.train import tasks

# 16 has GridSample and sums in ScatterND; 18 is what PyTorch's exporter writes without conversion.
OPSET = 18
# Largest difference of an output from PyTorch's, over its largest value.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Checked:
    """What came out of the check: shapes of inputs and outputs by name, and the largest relative difference of each output."""

    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    differences: dict[str, float]


def write(
    name: str | None,
    out: Path,
    *,
    params: Params | None,
    experiment: Experiment,
    seed: int,
    weights: Path | None,
    random: bool,
    root: Path | None,
    infos: Path | None,
    sample: int = 0,
) -> str:
    """Export a run's model, check it, write the file; returns what was written, in words.

    root, infos: the validation sample whose rig is stored (cameras) and on which the file is checked; default: made up.
    """
    _require_extra()
    if (root is None) != (infos is None):
        raise InputError("a real rig needs both --root and --infos; give both or neither.")
    model, run, path = summary.deployed(
        name, params=params, experiment=experiment, seed=seed, weights=weights, random=random
    )
    if root is not None and infos is not None:
        dataset = tasks.validation_set(run, root=root, infos=load_infos(infos))
        if sample >= len(dataset):
            raise InputError(f"--sample {sample}: {run.data.val_split} has {len(dataset)} samples, the first is 0.")
        batch = collate([dataset[sample]])
    elif params is not None:
        batch = collate([summary.made_up_sample(params, run)])
    else:
        raise InputError("there are neither real samples nor settings to make one up; pass --root and --infos.")
    record = {
        "run": run.name,
        "settings": json.dumps(run.training()),
        "inference": json.dumps(run.after_training()),
        "weights": provenance.file_digest(path) if path is not None else "random",
        "rig": "" if run.camera is None else batch.token[0],
        "provenance": json.dumps(provenance.record()),
    }
    checked = to_onnx(model, batch, out, run=run, record=record)
    return in_words(out, checked)


def in_words(out: Path, found: Checked) -> str:
    """The file's inputs and outputs, and how it compares."""
    lines = [f"{out}: opset {OPSET}, {out.stat().st_size / 1e6:.1f} MB"]
    lines += [f"  in   {name} {'x'.join(map(str, shape))}" for name, shape in found.inputs.items()]
    lines += [
        f"  out  {name} {'x'.join(map(str, shape))}, differs from PyTorch by {found.differences[name]:.1e}"
        for name, shape in found.outputs.items()
    ]
    return "\n".join(lines)


def to_onnx(model: BEVModel, batch: Batch, out: Path, *, run: Run, record: Mapping[str, str]) -> Checked:
    """Write `out` from a model in evaluation mode and a batch of one sample with its rig; `record` goes into the file.

    Nothing is written where the file's results differ from PyTorch's. Raises InputError for a model with both sensors and
    for one that cannot be exported.
    """
    if model.lidar is not None and model.camera is not None:
        raise InputError(
            f"{run.name}: it has both sensors, and only single-sensor models are exported; name a student."
        )
    name, module, value = _dense_part(model, batch)
    with torch.no_grad():
        names = list(named(module.predictions(value)))
    try:
        proto = _translate(module, name, value, names, one_rig=model.camera is not None)
    except Exception as error:  # PyTorch's exporter has no error of its own for what it does not know
        reason = str(error).strip().splitlines()
        raise InputError(
            f"{run.name}: it cannot be written as ONNX opset {OPSET} ({type(error).__name__}: "
            f"{reason[0] if reason else 'no reason given'}); deploy it with PyTorch, or report the operation."
        ) from error
    checked = _check(proto.SerializeToString(), module, name, value, names, run)
    for key, text in record.items():
        proto.metadata_props.add(key=key, value=text)
    with provenance.atomic(out) as temporary:
        temporary.write_bytes(proto.SerializeToString())
    return checked


def named(predictions: Any, prefix: str = "") -> dict[str, Tensor]:
    """A head's raw output as tensors by name: keys and numbers on the way to each, joined by dots."""
    if isinstance(predictions, Tensor):
        return {prefix or "predictions": predictions}
    items = predictions.items() if isinstance(predictions, Mapping) else enumerate(predictions)
    tensors: dict[str, Tensor] = {}
    for key, value in items:
        tensors |= named(value, f"{prefix}.{key}" if prefix else str(key))
    return tensors


class FromBev(nn.Module):
    """`low` to the head's raw output."""

    def __init__(self, model: BEVModel) -> None:
        super().__init__()
        self.bev_encoder, self.head = model.bev_encoder, model.head

    def predictions(self, low: Tensor) -> Any:
        return self.head(self.bev_encoder(low))

    def forward(self, low: Tensor) -> tuple[Tensor, ...]:
        return tuple(named(self.predictions(low)).values())


class FromImages(nn.Module):
    """Images of one rig to the head's raw output."""

    def __init__(self, model: BEVModel, rig: Batch) -> None:
        super().__init__()
        self.model, self.rig = model, rig

    def predictions(self, images: Tensor) -> Any:
        return self.model(replace(self.rig, images=images)).predictions

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(named(self.predictions(images)).values())


def _dense_part(model: BEVModel, batch: Batch) -> tuple[str, FromBev | FromImages, Tensor]:
    """The input's name, the module from there on, and the input's value for this batch."""
    if model.camera is not None:
        return "images", FromImages(model, replace(batch, points=None)).eval(), batch.images
    with torch.no_grad():
        low = model.features(batch)["low"]
    return "low", FromBev(model).eval(), low


# ----------------------------------------------------------------------------------------------------------- translation


def _translate(module: nn.Module, name: str, value: Tensor, names: list[str], *, one_rig: bool) -> Any:
    """The ONNX model of a module with one input."""
    with torch.no_grad(), plain_attention(), _quiet():
        if one_rig:
            program = torch.export.export(_for_one_rig(module, value), (value,))
        else:
            two = torch.cat([value, value])  # of one sample the exporter would take the batch for fixed
            program = torch.export.export(module, (two,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        exported = torch.onnx.export(
            program,
            input_names=[name],
            output_names=names,
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return exported.model_proto


def _for_one_rig(module: nn.Module, images: Tensor) -> nn.Module:
    """The module as a graph of what depends on the images; the rest is computed now and stored as constants."""

    def run(value: Tensor) -> Any:
        with _FoldRig(value, *module.parameters()):
            return module(value)

    with _marked_as_exporting():
        return make_fx(run)(images)


class _FoldRig(TorchDispatchMode):
    """Lets the tracer see only operations that depend on given tensors, and computes the others at once.

    Two kinds are rewritten for the exporter: weighted sums of bags, and selections by a constant mask.
    """

    def __init__(self, *sources: Tensor) -> None:
        super().__init__()
        self._dependent = WeakTensorKeyDictionary()
        for source in sources:
            self._dependent[source] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(self._depends(leaf) for leaf in tree_leaves((args, kwargs))):
            with disable_proxy_modes_tracing():
                return func(*args, **kwargs)
        if func in (torch.ops.aten._embedding_bag_forward_only.default, torch.ops.aten._embedding_bag.default):
            with self:
                return _sum_bags(*args, **kwargs)
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], [inner for index in args[1] for inner in self._as_numbers(index)])
        out = func(*args, **kwargs)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._dependent[leaf] = True
        return out

    def _depends(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value in self._dependent

    def _as_numbers(self, index: Tensor | None) -> tuple[Tensor | None, ...]:
        """A constant mask as the numbers of the places where it is true."""
        if index is None or index.dtype != torch.bool or self._depends(index):
            return (index,)
        with disable_proxy_modes_tracing():
            return torch.nonzero(index, as_tuple=True)


def _sum_bags(
    rows: Tensor,
    entries: Tensor,
    offsets: Tensor,
    scale: bool = False,
    mode: int = 0,
    sparse: bool = False,
    weights: Tensor | None = None,
    last: bool = False,
    padding: int = -1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`embedding_bag` in mode sum over (E,) entries whose bags are constant, as one scattered sum."""
    count = len(offsets) - 1 if last else len(offsets)
    bounds = offsets if last else torch.cat([offsets, offsets.new_tensor([len(entries)])])
    bag = torch.repeat_interleave(torch.arange(count), bounds.diff())  # E
    values = rows.index_select(0, entries)  # E C
    if weights is not None:
        values = values * weights[:, None]
    sums = values.new_zeros(count, values.shape[1]).scatter_add(0, bag[:, None].expand_as(values), values)
    empty = entries.new_zeros(0)
    return sums, empty, empty, empty


@contextlib.contextmanager
def _marked_as_exporting() -> Iterator[None]:
    """Meanwhile `torch.compiler.is_exporting()` says so, as it does within torch.export."""
    before = torch.compiler._is_exporting_flag
    torch.compiler._is_exporting_flag = True
    try:
        yield
    finally:
        torch.compiler._is_exporting_flag = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of every step; errors come as exceptions anyway."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# ----------------------------------------------------------------------------------------------------------------- check


def _check(
    content: bytes, module: FromBev | FromImages, name: str, value: Tensor, names: list[str], run: Run
) -> Checked:
    """Run the file on the sample it was made from and on another input, and compare with PyTorch; refuse what differs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(1)
    other = value + value.std() * torch.rand(value.shape, generator=generator)
    outputs: dict[str, tuple[int, ...]] = {}
    differences = dict.fromkeys(names, 0.0)
    for given in (value, other):
        with torch.no_grad():
            wanted = named(module.predictions(given))
        found = dict(zip(names, session.run(names, {name: given.numpy()}), strict=True))
        for key, tensor in wanted.items():
            outputs[key] = tuple(tensor.shape)
            differences[key] = max(differences[key], relative_difference(torch.from_numpy(found[key]), tensor))
    worst = max(names, key=differences.__getitem__)
    if not differences[worst] <= TOLERANCE:
        raise InputError(
            f"{run.name}: the exported {worst} differs from PyTorch's by {differences[worst]:.1e} of its largest value, "
            f"more than {TOLERANCE:g}; nothing was written, deploy it with PyTorch."
        )
    return Checked({name: tuple(value.shape)}, outputs, differences)


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    """The largest difference over the largest value; infinite where either has numbers that are not finite."""
    found, wanted = found.double(), wanted.double()
    if not (found.isfinite().all() and wanted.isfinite().all()):
        return math.inf
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6))


def _require_extra() -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"{package} is not installed; install the extra: pip install -c constraints.txt -e '.[export]'."
            )
