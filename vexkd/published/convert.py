"""`vexkd import-weights`: a published checkpoint as a weights file of one of our runs, with a report of what fitted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vexkd import provenance
from vexkd.errors import InputError
from vexkd.models import bev_model
from vexkd.published import backbones, detectors, files
from vexkd.published.mapping import Layout, Result, apply
from vexkd.settings import Run
from vexkd.train import checkpoint
from vexkd.train.loop import write_curve

Origin = Literal[
    "mmdet3d-bevfusion", "mmdet3d-centerpoint", "mmdet3d-bevdet", "bevformer", "torchvision", "transformers"
]
Part = Literal["backbone", "lidar", "camera", "all"]
Boxes = Literal["current", "legacy"]

_DETECTORS: dict[str, Callable[..., Layout]] = {
    "mmdet3d-bevfusion": detectors.bevfusion,
    "mmdet3d-centerpoint": detectors.centerpoint,
    "mmdet3d-bevdet": detectors.bevdet,
    "bevformer": detectors.bevformer,
}


def write(
    run: Run,
    file: Path,
    out: Path,
    *,
    origin: Origin,
    part: Part | None = None,
    boxes: Boxes | None = None,
    weights: files.Kept | None = None,
) -> str:
    """Import `file` for a run and write `out`; returns the report. What the file does not give keeps its random start.

    part: what must be complete, default all, and for files of a backbone alone the backbone. boxes: the convention of the
    file's boxes, legacy for those from before mmdetection3d 1.0; default: legacy for bevformer, else current. weights: which
    of two sets, raw or averaged (`files.read`). Where `out` is a run's weights.safetensors, the records that stand beside it
    in a trained run are written too. Raises InputError where the required part is not complete, with the report in front of
    the sentence, and then writes nothing.
    """
    alone = origin not in _DETECTORS
    part = part or ("backbone" if alone else "all")
    boxes = boxes or ("legacy" if origin == "bevformer" else "current")
    _refuse_absent(run, part, origin)
    if out.resolve() == file.resolve():
        raise InputError(f"{out}: that is the checkpoint itself; name another file for the weights.")
    run = _as_published(run, part)
    torch.manual_seed(0)  # what stays new is the same each time
    model = bev_model.build(run)
    state = model.state_dict()
    result = convert(run, state, files.read(file, weights), origin=origin, legacy=boxes == "legacy")
    lines = report(result, part)
    trouble = _trouble(result, part)
    if trouble:
        print("\n".join(lines), flush=True)
        raise InputError(f"{file}: {trouble}, so {out} was not written.")
    model.load_state_dict({**state, **result.tensors})
    new = sorted({".".join(key.split(".")[:2]) for key in _unfilled(result) if not key.endswith("num_batches_tracked")})
    chosen = {"weights": weights} if weights else {}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    _save(out, model, run, _record(run, file, parameters, origin=origin, part=part, boxes=boxes, new=new, **chosen))
    return "\n".join([*lines, f"{file} -> {out}"])


def convert(run: Run, own: dict[str, Tensor], published: dict[str, Tensor], *, origin: Origin, legacy: bool) -> Result:
    """The tensors of a published state dict under our names and conventions, and what did not fit."""
    if origin in ("torchvision", "transformers"):
        layout, published = backbones.imagenet(run.camera.backbone, published, source=origin)
        return apply(layout, own, published)
    if origin == "mmdet3d-bevdet":
        published = detectors.one_bevdet(published)
    return apply(_DETECTORS[origin](run, legacy=legacy), own, published)


def report(result: Result, part: Part) -> list[str]:
    """Mapped, missing, unexpected, shapes: a line for each count, and the names below it."""
    needed = [name for name in result.missing if belongs(name, part)]
    beyond = [name for name in result.missing if not belongs(name, part)]
    blocks = [
        ("mapped", [], len(result.tensors)),
        (f"missing in {part}", needed, len(needed)),
        ("of another shape", result.shapes, len(result.shapes)),
        ("unexpected within what was used", result.foreign, len(result.foreign)),
        ("unexpected elsewhere", _roots(set(result.unexpected) - set(result.foreign)), None),
        (f"new, not asked of {part}", _roots(beyond), None),
        ("without meaning here", _roots(result.ignored), None),
    ]
    lines = []
    for title, names, count in blocks:
        lines.append(f"{title}: {count if count is not None else ', '.join(names) or 'none'}")
        lines += [f"  {name}" for name in names] if count is not None else []
    return lines


def belongs(key: str, part: Part) -> bool:
    """Whether a tensor of ours is asked for by `--part`: lidar is all that a LiDAR-only model has."""
    if part == "backbone":
        return key.startswith(backbones.OURS)
    if part == "camera":
        return key.startswith("camera.")
    return part == "all" or not key.startswith(("camera.", "fusion."))


def _as_published(run: Run, part: Part) -> Run:
    """The run with the published border of the lifted space, which such weights were trained with, unless it names one."""
    view = run.camera.view if run.camera is not None else None
    if part not in ("camera", "all") or view is None or view.kind != "lift-splat" or view.border is not None:
        return run
    camera = run.camera.model_copy(update={"view": view.model_copy(update={"border": "published"})})
    return run.model_copy(update={"camera": camera})


def _refuse_absent(run: Run, part: Part, origin: Origin) -> None:
    """A part that the run has not cannot be complete."""
    sensor = "lidar" if part == "lidar" else "camera" if part in ("backbone", "camera") else None
    if sensor is not None and getattr(run, sensor) is None:
        raise InputError(
            f"{run.name}: it has no {sensor}, so its part {part} cannot be filled from {origin}; name another."
        )


def _trouble(result: Result, part: Part) -> str:
    """Why the required part is not complete, in words; empty: it is."""
    missing = [name for name in result.missing if belongs(name, part)]
    shapes = [line for line in result.shapes if belongs(line, part)]
    if missing:
        return f"{len(missing)} tensors of {part} are missing, the first {missing[0]}"
    if shapes:
        return f"{len(shapes)} tensors of {part} have another shape, the first {shapes[0]}"
    if result.foreign:
        return f"{len(result.foreign)} tensors in it have no place, the first {result.foreign[0]}: it is of another network"
    broken = [name for name, tensor in result.tensors.items() if not tensor.isfinite().all()]
    if broken:
        return f"{len(broken)} tensors in it have numbers that are not finite, the first becomes {broken[0]}"
    if not any(belongs(name, part) for name in result.tensors):
        return f"none of its tensors belongs to {part}"
    return ""


def _unfilled(result: Result) -> list[str]:
    """Our tensors that keep their random start."""
    return [line.split(" ")[0] for line in (*result.missing, *result.optional, *result.shapes)]


def _roots(names: Iterable[str]) -> list[str]:
    """The modules that names belong to, two levels deep, each with how many tensors it has."""
    counts: dict[str, int] = {}
    for name in sorted(names):
        root = ".".join(name.split(" ")[0].split(".")[:2])
        counts[root] = counts.get(root, 0) + 1
    return [f"{root} ({count})" for root, count in counts.items()]


def _record(run: Run, file: Path, parameters: int, **how: Any) -> dict[str, Any]:
    """The provenance of imported weights, as of a training that cost nothing; `imported` tells them from trained ones."""
    imported = {"file": file.name, "sha256": provenance.file_digest(file), **how}
    return provenance.record(
        run=run.name,
        settings_digest=provenance.digest(run.training()),
        imported=imported,
        parameters=parameters,
        training_seconds=0.0,
        devices=0,
        device="none: imported",
        steps=0,
        samples_seen=0,
    )


def _save(out: Path, model: torch.nn.Module, run: Run, record: dict[str, Any]) -> None:
    if out.name == "weights.safetensors":
        write_curve(out.parent / "curve.csv", [{"step": 0, "epoch": 0, "loss": math.nan}])
        provenance.write_json(out.parent / "provenance.json", record)
    inputs = {"checkpoint": record["imported"]["sha256"]}
    checkpoint.save_weights(out, model, run=run, inputs=inputs, record=record)
