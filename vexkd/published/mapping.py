"""From a published state dict to ours: tables of which module is which, and what comes of applying one.

A table has our modules and tensors as keys. A tensor is looked up by the longest key that its name begins with; what follows
the key (`weight`, `running_mean`, ...) is the same on both sides. Nothing is mapped by position or by shape.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Source:
    """Where a module (or tensor) of ours comes from.

    name: of the published module. changes: what is done to single tensors of it, by the end of their name. folded: name of
    a published bias that stands before this BatchNorm and that our convolution lacks; it goes into the running mean.
    """

    name: str
    changes: Mapping[str, Change] = field(default_factory=dict)
    folded: str | None = None


Table = dict[str, Source]


@dataclass(frozen=True)
class Layout:
    """A published file's layout for one run.

    table: see above. optional: patterns of our tensors that such files need not hold. ignored: patterns of published tensors
    that have no place here, and why. roots: beginnings of published names; where a tensor under one of them was used, a
    tensor under it that was not means another network.
    """

    table: Table
    optional: Sequence[str] = ()
    ignored: Mapping[str, str] = field(default_factory=dict)
    roots: Sequence[str] = ()


@dataclass(frozen=True)
class Result:
    """What came of it. tensors: ours by name, those that were found. The rest are names, with words where they need some."""

    tensors: dict[str, Tensor]
    missing: list[str]
    optional: list[str]
    unexpected: list[str]
    foreign: list[str]  # those of the unexpected that stand in a network that was used
    ignored: list[str]
    shapes: list[str]


def apply(layout: Layout, own: Mapping[str, Tensor], published: Mapping[str, Tensor]) -> Result:
    """Find every tensor of `own` in `published`, changed to our conventions. Values of `own` give shapes and types only."""
    tensors: dict[str, Tensor] = {}
    missing, optional, shapes = [], [], []
    used: set[str] = set()
    for key, mine in own.items():
        source, end = _source(layout.table, key)
        name = "" if source is None else f"{source.name}.{end}" if end else source.name
        name = name.removeprefix(".")
        if source is None or name not in published:
            if end == "num_batches_tracked" or _matches(layout.optional, key):
                optional.append(key)
            else:
                missing.append(key if not name else f"{key} (from {name})")
            continue
        used.add(name)
        tensor = source.changes.get(end, _same)(published[name])
        if source.folded in published and end == "running_mean":
            tensor = tensor - published[source.folded]
        if source.folded in published:
            used.add(source.folded)
        if tensor.shape != mine.shape:
            shapes.append(f"{key} {tuple(mine.shape)}, but {name} {tuple(published[name].shape)}")
            continue
        tensors[key] = tensor.to(mine.dtype).contiguous()
    rest = [name for name in published if name not in used]
    ignored = [name for name in rest if _matches((*layout.ignored, r"num_batches_tracked$"), name)]
    unexpected = [name for name in rest if name not in set(ignored)]
    alive = [root for root in layout.roots if any(name.startswith(root) for name in used)]
    foreign = [name for name in unexpected if any(name.startswith(root) for root in alive)]
    return Result(tensors, missing, optional, unexpected, foreign, ignored, shapes)


def _source(table: Table, key: str) -> tuple[Source | None, str]:
    """The entry of the longest beginning of a key, and the end of it that is left."""
    parts = key.split(".")
    for count in range(len(parts), 0, -1):
        source = table.get(".".join(parts[:count]))
        if source is not None:
            return source, ".".join(parts[count:])
    return None, parts[-1]


def _matches(patterns: Iterable[str], name: str) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _same(tensor: Tensor) -> Tensor:
    return tensor


# ---- changes


def both(change: Change) -> dict[str, Change]:
    """The same change to weight and bias, along their first axis."""
    return {"weight": change, "bias": change}


def transposed(tensor: Tensor) -> Tensor:
    """A 2D kernel, plain or of a deconvolution, for maps whose last two axes have changed places."""
    return tensor.mT


def third(index: int) -> Change:
    """Query, key or value (0, 1, 2) of a joint projection, whose first axis holds them one after another."""
    return lambda tensor: tensor.chunk(3)[index]


def rows(order: Sequence[int], signs: Sequence[float] | None = None) -> Change:
    """Other output channels: ours are these of the published ones, times `signs`."""

    def change(tensor: Tensor) -> Tensor:
        chosen = tensor[list(order)]
        if signs is None:
            return chosen
        return chosen * torch.tensor(signs, dtype=tensor.dtype).view(-1, *[1] * (tensor.dim() - 1))

    return change


def last_first(count: int) -> Change:
    """A kernel whose published input ends with the `count` channels that ours begins with."""
    return lambda tensor: torch.cat([tensor[:, -count:], tensor[:, :-count]], dim=1)


def chained(*changes: Change) -> Change:
    """One change after the other."""

    def change(tensor: Tensor) -> Tensor:
        for step in changes:
            tensor = step(tensor)
        return tensor

    return change


def sparse_kernel(*, xyz: bool) -> Change:
    """A sparse 3D kernel as (out, z, y, x, in), which is how spconv 2 keeps one over a grid (Z, Y, X).

    mmcv's own spconv 1 keeps (z, y, x, in, out); kernels have up to three cells along an axis and inputs more than three
    channels, which tells the two apart. xyz: the published grid is (X, Y, Z).
    """

    def change(tensor: Tensor) -> Tensor:
        if tensor.shape[3] > 3:
            tensor = tensor.permute(4, 0, 1, 2, 3)
        return tensor.permute(0, 3, 2, 1, 4) if xyz else tensor

    return change


# ---- modules of mmcv that hold several


def conv_module(ours: str, theirs: str, change: Change | None = None) -> Table:
    """mmcv's ConvModule (`conv`, `bn`) to a convolution and its norm; `change` is made to the kernel."""
    return {
        f"{ours}.0": Source(f"{theirs}.conv", {} if change is None else {"weight": change}),
        f"{ours}.1": Source(f"{theirs}.bn"),
    }


def sequence(ours: str, theirs: str, first: int = 0, change: Change | None = None) -> Table:
    """Convolution, norm and activation in a row, the convolution at `first`; a bias that it may have joins the norm."""
    return {
        f"{ours}.0": Source(f"{theirs}.{first}", {} if change is None else {"weight": change}),
        f"{ours}.1": Source(f"{theirs}.{first + 1}", folded=f"{theirs}.{first}.bias"),
    }


def feed_forward(ours: str, theirs: str) -> Table:
    """mmcv's FFN of two layers."""
    return {f"{ours}.0": Source(f"{theirs}.layers.0.0"), f"{ours}.3": Source(f"{theirs}.layers.1")}
