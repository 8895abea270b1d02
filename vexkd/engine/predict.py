"""Predictions of a trained model in nuScenes' submission format, one file for a whole split, made by any number of processes.

A scene belongs to one process and a batch to one scene, so that what is computed, and in which order within a scene, does
not depend on the number of processes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from tqdm import tqdm

from vexkd import boxes as box_tools
from vexkd import geometry, provenance
from vexkd.batch import Batch, Detections
from vexkd.data.dataset import Key
from vexkd.engine import checkpoint
from vexkd.models.bev_model import BEVModel
from vexkd.params import Run

# Speed in m/s above which an object counts as moving (mmdetection3d's rule).
MOVING = 0.2
_VEHICLES = {"car", "truck", "construction_vehicle", "bus", "trailer"}
_ATTRIBUTES = {
    "pedestrian": ("pedestrian.moving", "pedestrian.standing"),
    "bus": ("vehicle.moving", "vehicle.stopped"),
    **{name: ("vehicle.moving", "vehicle.parked") for name in _VEHICLES - {"bus"}},
    **{name: ("cycle.with_rider", "cycle.without_rider") for name in ("motorcycle", "bicycle")},
}


def scene_batches(scenes: Sequence[str], *, batch: int, rank: int = 0, world: int = 1) -> list[list[Key]]:
    """Batches of one process: every `world`-th scene, in the data set's order; scenes: that of each sample."""
    members: dict[str, list[Key]] = {}
    for index, scene in enumerate(scenes):
        members.setdefault(scene, []).append(Key(0, index))
    mine = list(members.values())[rank::world]
    return [keys[i : i + batch] for keys in mine for i in range(0, len(keys), batch)]


def predict(
    model: BEVModel,
    batches: Iterable[Batch],
    out: Path,
    *,
    run: Run,
    device: torch.device,
    tokens: Sequence[str],
    state: PartialState,
) -> int:
    """Write the submission JSON of all processes' batches, samples in the order of `tokens`; returns the number of boxes.

    Processes hand their share to the main one in files beside `out`; the count is the main process's.
    """
    results = detect(model, batches, run=run, device=device, show=state.is_main_process)
    if not state.is_main_process:
        provenance.write_text(_share(out, state.process_index), json.dumps(results))
    state.wait_for_everyone()
    if not state.is_main_process:
        return 0
    shares = [_share(out, rank) for rank in range(1, state.num_processes)]
    for share in shares:
        results |= json.loads(share.read_text())
    meta = {f"use_{name}": name in run.sensors for name in ("camera", "lidar", "radar", "map", "external")}
    meta["inference"] = run.after_training()
    ordered = {token: results[token] for token in tokens}
    with checkpoint.writing(out), provenance.atomic(out) as temporary:
        temporary.write_text(json.dumps({"meta": meta, "results": ordered}))
    for share in shares:
        share.unlink(missing_ok=True)
    return sum(len(boxes) for boxes in results.values())


def _share(out: Path, rank: int) -> Path:
    return out.with_name(f".{out.name}.rank{rank}")


@torch.no_grad()
def detect(
    model: BEVModel, batches: Iterable[Batch], *, run: Run, device: torch.device, show: bool = True
) -> dict[str, list[dict]]:
    """Submission entries of each sample, by token; show: a progress bar."""
    model = model.to(device).eval()
    settings = getattr(run.inference, run.head).model_dump()
    results: dict[str, list[dict]] = {}
    for batch in tqdm(batches, desc=f"predict {run.name}", unit="batch", disable=None if show else True):
        found = model.detect(batch.to(device), bounds=run.inference.range, settings=settings)
        for sample, detections in enumerate(found):
            matrix = batch.global_from_lidar[sample].double().cpu().numpy()
            results[batch.token[sample]] = submission(
                batch.token[sample], detections, matrix, limit=run.inference.max_boxes
            )
    return results


def submission(token: str, found: Detections, global_from_lidar: np.ndarray, *, limit: int) -> list[dict]:
    """One sample's boxes, best first and at most `limit`, as nuScenes' submission entries in the global frame."""
    order = torch.sort(found.scores, descending=True, stable=True).indices[:limit]
    boxes = box_tools.move(found.boxes[order].double().cpu().numpy(), global_from_lidar)
    entries = []
    for box, score, label in zip(boxes, found.scores[order].tolist(), found.labels[order].tolist(), strict=True):
        name = box_tools.CLASSES[label]
        entries.append(
            {
                "sample_token": token,
                "translation": [round(float(v), 4) for v in box[:3]],
                "size": [round(float(v), 4) for v in box[[4, 3, 5]]],  # w l h
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
