"""Predictions of a trained model for a whole split in one file, made by any number of processes.

Boxes are written in nuScenes' submission format, maps as packed levels (`vexkd.data.map_predictions`).

A scene belongs to one process and a batch to one scene, so that what is computed, and in which order within a scene, does
not depend on the number of processes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm

from vexkd import boxes as box_tools
from vexkd import geometry, provenance
from vexkd.batch import Batch, Detections
from vexkd.data import map_predictions
from vexkd.data.dataset import Key
from vexkd.models.bev_model import BEVModel
from vexkd.settings import Run
from vexkd.train import checkpoint

# Speed in m/s above which an object counts as moving (mmdetection3d's rule).
MOVING = 0.2
_VEHICLES = {"car", "truck", "construction_vehicle", "bus", "trailer"}
_ATTRIBUTES = {
    "pedestrian": ("pedestrian.moving", "pedestrian.standing"),
    "bus": ("vehicle.moving", "vehicle.stopped"),
    **{name: ("vehicle.moving", "vehicle.parked") for name in _VEHICLES - {"bus"}},
    **{name: ("cycle.with_rider", "cycle.without_rider") for name in ("motorcycle", "bicycle")},
}
# Metres, the last of the four decimals that are written: scoring refuses a file with a size of zero.
_SMALLEST = 1e-4


def scene_batches(scenes: Sequence[str], *, batch: int, rank: int = 0, world: int = 1) -> list[list[Key]]:
    """Batches of one process: every `world`-th scene, in the data set's order; scenes: that of each sample."""
    members: dict[str, list[Key]] = {}
    for index, scene in enumerate(scenes):
        members.setdefault(scene, []).append(Key(0, index))
    own_scenes = list(members.values())[rank::world]
    return [keys[i : i + batch] for keys in own_scenes for i in range(0, len(keys), batch)]


def predict(
    model: BEVModel,
    batches: Iterable[Batch],
    out: Path,
    *,
    run: Run,
    device: torch.device,
    tokens: Sequence[str],
    state: PartialState,
    origin: dict[str, str] | None = None,
) -> str:
    """Write the predictions of all processes' batches, samples in the order of `tokens`; returns what they are, in words.

    origin: hashes of what they are made from, recorded beside the settings. Processes hand their share to the main one in
    files beside `out`.
    """
    maps = run.task == "segmentation"
    compute, write, read = (segment, _write_maps, _read_maps) if maps else (detect, _write_boxes, _read_boxes)
    meta = {f"use_{name}": name in run.sensors for name in ("camera", "lidar", "radar", "map", "external")}
    meta |= {f"use_{name}": False for name in model.dropped}
    meta |= {"dropped": list(model.dropped)} if model.dropped else {}
    meta["inference"] = run.after_training()
    meta |= {"made_from": origin} if origin else {}
    results = compute(model, batches, run=run, device=device, show=state.is_main_process)
    if not state.is_main_process:
        write(_share(out, state.process_index), results, meta, run)
    state.wait_for_everyone()
    if not state.is_main_process:
        return ""
    shares = [_share(out, rank) for rank in range(1, state.num_processes)]
    for share in shares:
        results |= read(share)
    with checkpoint.writing(out):
        write(out, {token: results[token] for token in tokens}, meta, run)
    for share in shares:
        share.unlink(missing_ok=True)
    return "maps" if maps else f"{sum(len(boxes) for boxes in results.values())} boxes"


def _share(out: Path, rank: int) -> Path:
    return out.with_name(f".{out.name}.rank{rank}")


def _write_boxes(path: Path, results: dict[str, list[dict]], meta: dict[str, Any], run: Run) -> None:
    provenance.write_text(path, json.dumps({"meta": meta, "results": results}))


def _read_boxes(path: Path) -> dict[str, list[dict]]:
    return json.loads(path.read_text(encoding="utf-8"))["results"]


def _write_maps(path: Path, results: dict[str, np.ndarray], meta: dict[str, Any], run: Run) -> None:
    map_predictions.write(path, results, reach=run.map.reach, cell=run.map.cell, **meta)


def _read_maps(path: Path) -> dict[str, np.ndarray]:
    maps = map_predictions.read(path)
    return {token: np.array(maps.packed[row]) for token, row in maps.rows.items()}


def detect(
    model: BEVModel, batches: Iterable[Batch], *, run: Run, device: torch.device, show: bool = True
) -> dict[str, list[dict]]:
    """Submission entries of each sample, by token; show: a progress bar."""
    results: dict[str, list[dict]] = {}
    for batch, batch_detections in _inferred(model, batches, run, device, show):
        for sample, detections in enumerate(batch_detections):
            matrix = batch.global_from_lidar[sample].double().cpu().numpy()
            results[batch.token[sample]] = submission(
                batch.token[sample], detections, matrix, limit=run.inference.max_boxes
            )
    return results


def segment(
    model: BEVModel, batches: Iterable[Batch], *, run: Run, device: torch.device, show: bool = True
) -> dict[str, np.ndarray]:
    """Packed levels of the map classes of each sample, by token; show: a progress bar."""
    results: dict[str, np.ndarray] = {}
    for batch, probabilities in _inferred(model, batches, run, device, show):
        levels = map_predictions.levels(probabilities.cpu().numpy())  # B C Y X
        results |= {token: map_predictions.pack(level) for token, level in zip(batch.token, levels, strict=True)}
    return results


def _inferred(
    model: BEVModel, batches: Iterable[Batch], run: Run, device: torch.device, show: bool
) -> Iterator[tuple[Batch, Any]]:
    """Batches with what the model says of them."""
    model = model.to(device).eval()
    for batch in tqdm(batches, desc=f"predict {run.name}", unit="batch", disable=None if show else True):
        yield batch, infer(model, batch.to(device), run)


def infer(model: BEVModel, batch: Batch, run: Run) -> list[Detections] | Tensor:
    """Decoded boxes of each sample, or probabilities of the map classes (B, C, Y, X): as the run's task is."""
    if run.task == "segmentation":
        return model.segment(batch)
    return model.detect(batch, bounds=run.inference.range, settings=getattr(run.inference, run.head).model_dump())


def submission(token: str, detections: Detections, global_from_lidar: np.ndarray, *, limit: int) -> list[dict]:
    """One sample's boxes, best first and at most `limit`, as nuScenes' submission entries in the global frame."""
    order = torch.sort(detections.scores, descending=True, stable=True).indices[:limit]
    boxes = box_tools.move(detections.boxes[order].double().cpu().numpy(), global_from_lidar)
    entries = []
    for box, score, label in zip(
        boxes, detections.scores[order].tolist(), detections.labels[order].tolist(), strict=True
    ):
        name = box_tools.CLASSES[label]
        entries.append(
            {
                "sample_token": token,
                "translation": [round(float(v), 4) for v in box[:3]],
                "size": [max(_SMALLEST, round(float(v), 4)) for v in box[[4, 3, 5]]],  # w l h
                "rotation": [round(float(v), 6) for v in geometry.yaw_rotation(box[6]).elements],
                "velocity": [round(float(v), 4) for v in box[7:9]],
                "detection_name": name,
                "detection_score": round(float(score), 6),
                "attribute_name": attribute(name, float(np.hypot(box[7], box[8]))),
            }
        )
    return entries


def attribute(name: str, speed: float) -> str:
    """The attribute that a class has at a speed in m/s; classes without attributes have the empty one."""
    moving, still = _ATTRIBUTES.get(name, ("", ""))
    return moving if speed > MOVING else still
