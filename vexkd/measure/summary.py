"""What a model is made of: parameters, multiply-adds, output shapes and activation memory of its parts, for one sample.

Counted are convolutions (sparse ones by the pairs of their rulebook), matrix products, attention, bilinear sampling (four
multiply-adds a channel) and the pooling of camera features. Normalisation, activations, sums and resizing are not, as in
published counts. FLOPs are two a multiply-add; what the field prints as GFLOPs is mostly giga-multiply-adds.
V voxels, P points.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from vexkd import provenance, seal
from vexkd.batch import Batch, Sample, collate
from vexkd.data.infos import load as load_infos
from vexkd.errors import InputError
from vexkd.experiment import Experiment
from vexkd.measure import forecast
from vexkd.measure.plain_attention import plain_attention
from vexkd.models import bev_model
from vexkd.models.bev_model import BEVModel
from vexkd.ops.sparse_conv import SparseConv
from vexkd.settings import Params, Run
from vexkd.train import checkpoint, tasks
from vexkd.train.seeding import seed_everything

# Parts that are shown by their own parts; `depth` opens those further.
OPENED = ("camera", "camera.encoder")


@dataclass(frozen=True)
class Part:
    """One part of a model, by its path in it; the whole has the path "".

    macs: multiply-adds of one sample. activations: bytes of the outputs of its layers, which are the modules without others
    inside; what a layer writes in place counts once. outputs: how many tensors of which shape its first call returned.
    calls: how often it was called (a temporal model calls its image encoder once a frame).
    """

    name: str
    parameters: int
    macs: int = 0
    activations: int = 0
    outputs: tuple[tuple[int, tuple[int, ...]], ...] = ()
    calls: int = 0


@dataclass(frozen=True)
class Summary:
    """A run's model and its parts. sample: what one sample held, in words. graph: see `graph`."""

    run: str
    sample: str
    graph: str
    whole: Part
    parts: tuple[Part, ...]

    def values(self) -> dict[str, Any]:
        """As plain values; FLOPs are two a multiply-add."""
        parts = [asdict(part) | {"flops": 2 * part.macs} for part in self.parts]
        total = {k: v for k, v in asdict(self.whole).items() if k in ("parameters", "macs", "activations")}
        return {
            "run": self.run,
            "sample": self.sample,
            "graph": self.graph,
            **total,
            "flops": 2 * self.whole.macs,
            "parts": parts,
        }


def summarise(params: Params, run: Run, *, batch: Batch | None = None, depth: int = 0) -> Summary:
    """Build a run's model with random weights and send one sample through it; default: a made-up one of realistic size.

    depth: how many levels each part is opened further.
    """
    if batch is None:
        batch = collate([made_up_sample(params, run)])
    return of_model(bev_model.build(run).eval(), batch, name=run.name, depth=depth)


def summaries(
    params: Params,
    names: list[str] | None = None,
    *,
    depth: int = 0,
    only_parameters: bool = False,
    root: Path | None = None,
    infos: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Plain values of these runs' models, or of every distinct one; with the runs that deploy it and what teaches those.

    root, infos: measure on the first validation sample in place of a made-up one.
    """
    if (root is None) != (infos is None):
        raise InputError("real samples need both --root and --infos; give both or neither.")
    groups = list(distinct(params).values())
    for members in groups if names is None else [[name] for name in names]:
        run = params.run(members[0])
        if only_parameters:
            whole, *parts = parameters(run)
            summary = Summary(run.name, "none, parameters alone", "", whole, tuple(parts))
        else:
            batch = None
            if root is not None and infos is not None:
                batch = collate([tasks.validation_set(run, root=root, infos=load_infos(infos))[0]])
            summary = summarise(params, run, batch=batch, depth=depth)
        teaching_counts = {name: teaching(params, params.run(name)) for name in members if params.run(name).teacher}
        yield {
            **summary.values(),
            "runs": members,
            "teaching": teaching_counts,
            "settings_digest": seal.model_digest(params, run),
        }


def deployed(
    name: str | None, *, params: Params | None, experiment: Experiment, seed: int, weights: Path | None, random: bool
) -> tuple[BEVModel, Run, Path | None]:
    """A run's model in evaluation mode, the run, and the weights file that was read (None: random weights).

    Without a name the weights say which run they are; with both they must agree.
    """
    if name is None and weights is None:
        raise InputError("name a run, or its weights with --weights.")
    if random and weights is not None:
        raise InputError(f"--random and --weights {weights} exclude each other; pass one of them.")
    run = params.run(name) if name is not None and params is not None else None
    if random and run is not None:
        seed_everything(0)
        return bev_model.build(run).eval(), run, None
    path = weights or experiment.training(str(name), seed).weights
    if not path.is_file():
        raise InputError(f"{path}: there are no such weights; train {name or 'the run'} first, or pass --random.")
    model, trained = checkpoint.load_model(path)
    if name is not None and trained.name != name:
        raise InputError(f"{path}: these are the weights of {trained.name}, not of {name}; name that run.")
    return model, trained, path


def made_up_sample(params: Params, run: Run) -> Sample:
    """The sample that models are measured on where there is no real one: always the same for a run's settings."""
    return forecast.made_up_sample(params, run, run, np.random.default_rng(0), points="lidar" in run.sensors)


def of_model(model: BEVModel, batch: Batch, *, name: str, depth: int = 0) -> Summary:
    """The summary of a model in evaluation mode, measured on a batch of one sample where its weights are."""
    traced = trace(model, batch)
    return Summary(name, _in_words(batch), graph(model), traced.part(""), tuple(traced.parts(depth)))


def trace(model: nn.Module, *inputs: Any) -> Trace:
    """Call a module once, without gradients, and count."""
    traced = Trace(model)
    with torch.no_grad(), plain_attention(), traced:
        model(*inputs)
    return traced


def parameters(run: Run) -> list[Part]:
    """The parts of a run's model with their parameters alone, the whole first: no weights are made, nothing is computed."""
    with torch.device("meta"):
        traced = Trace(bev_model.build(run))
    return [traced.part(""), *traced.parts(0)]


def teaching(params: Params, run: Run) -> int:
    """Learned parameters that exist in training alone: the masks' and adapters' of a distilled run."""
    with torch.device("meta"):
        task = forecast.build_task(params, run)
    model_parameters = {id(parameter) for parameter in task.model.parameters()}
    return sum(p.numel() for p in task.parameters() if p.requires_grad and id(p) not in model_parameters)


def distinct(params: Params) -> dict[str, list[str]]:
    """Runs whose deployed models are one and the same, by a hash of the settings that make it."""
    groups: dict[str, list[str]] = {}
    for name, run in params.runs.items():
        groups.setdefault(provenance.digest(seal.deployed_settings(run)), []).append(name)
    return groups


def graph(model: nn.Module) -> str:
    """Hash of what is computed: every module's place, class and settings, and the shapes of its parameters and buffers."""
    modules = [[name, type(module).__name__, module.extra_repr()] for name, module in model.named_modules()]
    shapes = [[name, list(tensor.shape)] for name, tensor in model.state_dict().items()]
    return provenance.digest([modules, shapes])


def _in_words(batch: Batch) -> str:
    parts = [f"{len(batch.points[0]):,} points"] if batch.points is not None else []
    if batch.images is not None:
        _, count, _, height, width = batch.images.shape
        parts.append(f"{count} images of {height}x{width}")
    return ", ".join(parts)


# ------------------------------------------------------------------------------------------------------------- counting


class _Operations(TorchDispatchMode):
    """Adds up the multiply-adds of all operations while it is the context."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operation, or those that it is made of."""
        kwargs = kwargs or {}
        formula = _FORMULAS.get(func.overloadpacket)
        if formula is None:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if formula is not None:
            self.macs += formula(*args, **kwargs, out_val=out) // 2
        return out


class Trace:
    """Counts what the modules inside a module do while it is the context; each operation belongs to the innermost module."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.macs: dict[str, int] = defaultdict(int)
        self.activations: dict[str, int] = defaultdict(int)
        self.outputs: dict[str, tuple] = {}
        self.calls: dict[str, int] = defaultdict(int)
        self._stack: list[_Call] = []
        self._operations = _Operations()
        self._counted = 0
        self._pairs: dict[Any, int] = {}

    def __enter__(self) -> Trace:
        self._operations.__enter__()
        self._hooks = []
        for name, module in self.model.named_modules():
            self._hooks.append(module.register_forward_pre_hook(lambda m, inputs, name=name: self._enter(name, inputs)))
            self._hooks.append(
                module.register_forward_hook(lambda m, inputs, output, name=name: self._leave(m, inputs, output, name))
            )
        return self

    def __exit__(self, *details: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        self._operations.__exit__(*details)

    def _enter(self, name: str, inputs: Any) -> None:
        self._settle()
        if self._stack:
            self._stack[-1].is_layer = False
        self._stack.append(_Call(name, {tensor.data_ptr() for tensor in tensors(inputs)}))

    def _leave(self, module: nn.Module, inputs: Any, output: Any, name: str) -> None:
        self._settle()
        call = self._stack.pop()
        outputs = list(tensors(output))
        self.calls[name] += 1
        self.outputs.setdefault(name, tuple(Counter(tuple(tensor.shape) for tensor in outputs).items()))
        if call.is_layer:
            self.activations[name] += sum(
                t.numel() * t.element_size() for t in outputs if t.data_ptr() not in call.sources
            )
        if isinstance(module, SparseConv):
            self._recount(module, inputs[0], output, name)

    def _settle(self) -> None:
        """What was counted since the last call or return belongs to the module that is running."""
        if self._stack:
            self.macs[self._stack[-1].name] += self._operations.macs - self._counted
        self._counted = self._operations.macs

    def _recount(self, module: SparseConv, x: Any, output: Any, name: str) -> None:
        """A sparse convolution by its rulebook: which of its products the counter sees depends on spconv's algorithm."""
        for key in self.macs:
            self.macs[key] *= not _is_in(key, name)
        submanifold = module.padding is None
        key = module.conv.indice_key
        if key not in self._pairs:
            padding = tuple(k // 2 for k in module.kernel) if submanifold else module.padding
            self._pairs[key] = rulebook_pairs(
                x.indices, output.indices, tuple(x.spatial_shape), module.kernel, module.stride, padding
            )
        self.macs[name] = self._pairs[key] * module.conv.in_channels * module.conv.out_channels

    # ------------------------------------------------------------------------------------------------------ as parts

    def part(self, name: str) -> Part:
        """A part by its path, with all inside it."""
        module = self.model.get_submodule(name)
        return Part(
            name=name,
            parameters=sum(p.numel() for p in module.parameters()),
            macs=_inside(self.macs, name),
            activations=_inside(self.activations, name),
            outputs=tuple((count, shape) for shape, count in self.outputs.get(name, ())),
            calls=self.calls.get(name, 0),
        )

    def parts(self, depth: int) -> Iterator[Part]:
        """The model's parts in their order, the opened ones by their own; those without parameters and work are left out."""
        yield from self._parts("", depth)

    def _parts(self, path: str, depth: int) -> Iterator[Part]:
        for child, module in self.model.get_submodule(path).named_children():
            name = f"{path}.{child}" if path else child
            part = self.part(name)
            if not part.parameters and not part.macs:
                continue
            if name in OPENED:
                yield from self._parts(name, depth)
            elif depth > 0 and any(True for _ in module.children()):
                yield from self._parts(name, depth - 1)
            else:
                yield part
                continue
            direct = sum(p.numel() for p in module.parameters(recurse=False))
            if direct or self.macs.get(name):
                yield Part(f"{name} (itself)", direct, self.macs.get(name, 0), self.activations.get(name, 0))


@dataclass
class _Call:
    """A module that is running: its path, where its inputs lie in memory, and whether no other module runs inside it."""

    name: str
    sources: set[int]
    is_layer: bool = True


def _is_in(key: str, name: str) -> bool:
    """Whether one path is another or lies inside it."""
    return not name or key == name or key.startswith(f"{name}.")


def _inside(counts: Mapping[str, int], name: str) -> int:
    return sum(value for key, value in counts.items() if _is_in(key, name))


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in an output: of lists, dictionaries, dataclasses and sparse tensors (their features), in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from tensors(inner)
    elif isinstance(getattr(value, "features", None), Tensor):
        yield value.features
    elif hasattr(value, "__dataclass_fields__"):
        for field in value.__dataclass_fields__:
            yield from tensors(getattr(value, field))


def rulebook_pairs(
    inputs: Tensor,
    outputs: Tensor,
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
) -> int:
    """Pairs (input voxel, output voxel) that a sparse convolution multiplies; each costs C_in x C_out multiply-adds.

    inputs, outputs: active voxels (V, 4) as (batch, z, y, x); shape: the input's grid (Z, Y, X).
    """
    limits = inputs.new_tensor(shape).long()
    keys = _keys(inputs.long(), limits).sort().values
    corner = outputs[:, 1:].long() * limits.new_tensor(stride) - limits.new_tensor(padding)  # V 3
    pairs = 0
    for cell in itertools.product(*(range(k) for k in kernel)):
        position = corner + limits.new_tensor(cell)
        inside = ((position >= 0) & (position < limits)).all(1)
        wanted = _keys(torch.cat([outputs[inside, :1].long(), position[inside]], 1), limits)
        nearest = torch.searchsorted(keys, wanted).clamp(max=max(len(keys) - 1, 0))
        pairs += int((keys[nearest] == wanted).sum()) if len(keys) else 0
    return pairs


def _keys(coordinates: Tensor, limits: Tensor) -> Tensor:
    batch, z, y, x = coordinates.unbind(1)
    return ((batch * limits[0] + z) * limits[1] + y) * limits[2] + x


def _sampled(*inputs: Any, out_val: Tensor, **rest: Any) -> int:
    """FLOPs of bilinear sampling: four corners for every number that comes out."""
    return 2 * 4 * out_val.numel()


def _bagged(weight: Tensor, indices: Tensor, *others: Any, **rest: Any) -> int:
    """FLOPs of weighted sums of rows: every entry multiplies and adds one row."""
    return 2 * indices.numel() * weight.shape[1]


_aten = torch.ops.aten
_FORMULAS = {
    **flop_registry,
    _aten.grid_sampler_2d: _sampled,
    _aten._embedding_bag: _bagged,
    _aten._embedding_bag_forward_only: _bagged,
}
