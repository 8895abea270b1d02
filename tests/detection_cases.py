"""Small nuScenes data sets and prediction files that are hard to score: what tests hold the array scorer to the devkit on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vexkd.boxes import CLASS_OF_CATEGORY, CLASSES

VERSION, SPLIT, CONFIG = "v1.0-mini", "mini_val", "detection_cvpr_2019"
SCENES = {"scene-0103": 3, "scene-0916": 2, "scene-0061": 1}  # samples of each; the last is in mini_train
RACK, IGNORED = "static_object.bicycle_rack", "animal"
ATTRIBUTES = {
    **dict.fromkeys(("car", "truck", "bus", "trailer", "construction_vehicle"), "vehicle"),
    **dict.fromkeys(("bicycle", "motorcycle"), "cycle"),
    "pedestrian": "pedestrian",
}
STATES = {
    "vehicle": ("vehicle.moving", "vehicle.parked", "vehicle.stopped"),
    "cycle": ("cycle.with_rider", "cycle.without_rider"),
    "pedestrian": ("pedestrian.moving", "pedestrian.sitting_lying_down", "pedestrian.standing"),
}


@dataclass(frozen=True)
class Hardness:
    """What makes a case hard. step: metres of the lattice on which centres lie (0: anywhere), so that distances are equal or
    exactly a threshold; digits: of the scores, few make ties; kinds: how many classes the truth has; offset: metres from the
    map's origin."""

    step: float = 0.0
    digits: int = 3
    kinds: int = 10
    things: int = 12
    alarms: int = 10
    unknown_velocity: bool = True
    racks: bool = True
    empty: bool = True
    shuffled: bool = True
    lowest: float = 0.0
    offset: float = 500.0


def write(folder: Path, seed: int, hard: Hardness) -> Path:
    """Tables under folder/set and predictions of the split in folder/predictions.json, whose path is returned."""
    rng = np.random.default_rng(seed)
    tables = _tables(rng, hard)
    root = folder / "set"
    (root / VERSION).mkdir(parents=True, exist_ok=True)
    (root / "maps").mkdir(exist_ok=True)
    Image.new("L", (4, 4)).save(root / "maps" / "one.png")
    for name, rows in tables.items():
        (root / VERSION / f"{name}.json").write_text(json.dumps(rows, indent=int(rng.integers(0, 2)) or None))
    path = folder / "predictions.json"
    path.write_text(json.dumps({"meta": {"use_lidar": True}, "results": _predictions(rng, hard, tables)}))
    return path


def _tables(rng: np.random.Generator, hard: Hardness) -> dict[str, list[dict[str, Any]]]:
    still = {"translation": [0.0, 0.0, 0.0], "rotation": [1.0, 0.0, 0.0, 0.0]}
    states = [state for some in STATES.values() for state in some]
    tables: dict[str, list[dict[str, Any]]] = {
        "category": [{"token": c, "name": c} for c in (*CLASS_OF_CATEGORY, RACK, IGNORED)],
        "attribute": [{"token": f"token of {a}", "name": a} for a in states],
        "visibility": [{"token": "4", "level": "v80-100"}],
        "sensor": [
            {"token": "lidar", "channel": "LIDAR_TOP", "modality": "lidar"},
            {"token": "radar", "channel": "RADAR_FRONT", "modality": "radar"},
        ],
        "calibrated_sensor": [
            {"token": f"cal-{name}", "sensor_token": name, "camera_intrinsic": [], **still}
            for name in ("lidar", "radar")
        ],
        "log": [{"token": "log", "location": "boston-seaport"}],
        "map": [{"token": "map", "log_tokens": ["log"], "filename": "maps/one.png", "category": "semantic_prior"}],
        **{name: [] for name in ("ego_pose", "scene", "sample", "sample_data", "instance", "sample_annotation")},
    }
    kinds = rng.permutation(list(CLASS_OF_CATEGORY))
    allowed = set(rng.permutation(list(CLASSES))[: hard.kinds])
    kinds = [str(kind) for kind in kinds if CLASS_OF_CATEGORY[kind] in allowed]
    for scene, count in SCENES.items():
        ego = rng.uniform(-1, 1, (count, 3)) * hard.offset
        ego[:] = ego[0] + np.arange(count)[:, None] * [2.0, 1.0, 0.0]
        _scene(tables, scene, ego.round(3).tolist(), int(rng.integers(0, 3)))
        choices = kinds + [RACK] * (3 if hard.racks else 0) + [IGNORED]
        for thing in range(hard.things):
            _thing(tables, rng, hard, f"{scene}-thing{thing}", str(rng.choice(choices)), ego)
    for name in ("sample", "sample_annotation", "sample_data", "ego_pose"):
        tables[name] = [tables[name][i] for i in rng.permutation(len(tables[name]))]
    return tables


def _scene(tables: dict[str, list[dict[str, Any]]], scene: str, ego: list[list[float]], gap: int) -> None:
    """A scene's keyframes; gap: whether 1, 2 or 4 seconds lie between them at one place."""
    tokens = [f"{scene}-{i}" for i in range(len(ego))]
    ends = {"first_sample_token": tokens[0], "last_sample_token": tokens[-1]}
    tables["scene"].append(
        {"token": f"token of {scene}", "name": scene, "log_token": "log", "description": "},{", **ends}
    )
    time = 1_532_402_927_647_951
    for i, token in enumerate(tokens):
        order = {"prev": tokens[i - 1] if i else "", "next": tokens[i + 1] if i + 1 < len(tokens) else ""}
        tables["sample"].append({"token": token, "timestamp": time, "scene_token": f"token of {scene}", **order})
        for sensor, lag in (("lidar", 0.0), ("radar", 30.0)):
            pose = [ego[i][0] + lag, *ego[i][1:]]
            tables["ego_pose"].append(
                {
                    "token": f"pose-{sensor}-{token}",
                    "timestamp": time,
                    "translation": pose,
                    "rotation": [1.0, 0.0, 0.0, 0.0],
                }
            )
            tables["sample_data"].append(
                {"token": f"{sensor}-{token}", "sample_token": token, "ego_pose_token": f"pose-{sensor}-{token}", "prev": "",
                 "next": "", "calibrated_sensor_token": f"cal-{sensor}", "is_key_frame": True, "timestamp": time,
                 "filename": f"samples/{sensor}/{token}.bin"}
            )  # fmt: skip
        time += (1_000_000, 2_000_000, 4_000_000)[gap] if i == 0 else 500_000


def _thing(
    tables: dict[str, list[dict[str, Any]]],
    rng: np.random.Generator,
    hard: Hardness,
    name: str,
    kind: str,
    ego: np.ndarray,
) -> None:
    """One thing's annotations in some of a scene's keyframes."""
    scene = name.split("-thing")[0]
    tables["instance"].append({"token": name, "category_token": kind})
    seen = [i for i in range(len(ego)) if rng.uniform() < 0.8]
    family = ATTRIBUTES.get(CLASS_OF_CATEGORY.get(kind, ""))
    place, speed = ego[0] + rng.uniform(-45, 45, 3) * [1, 1, 0.02], rng.normal(size=3) * [3, 3, 0]
    size = rng.uniform(0.4, 6.0, 3) if kind != RACK else rng.uniform(8.0, 30.0, 3)
    for number, i in enumerate(seen):
        state = [str(rng.choice(STATES[family]))] if family and rng.uniform() < 0.9 else []
        tables["sample_annotation"].append(
            {"token": f"{name}-{i}", "sample_token": f"{scene}-{i}", "instance_token": name,
             "attribute_tokens": [f"token of {a}" for a in state], "visibility_token": "4",
             "translation": _on_lattice(place + speed * i, hard), "size": size.round(3).tolist(),
             "rotation": _rotation(rng), "num_lidar_pts": int(rng.integers(0, 3) if hard.empty else 1),
             "num_radar_pts": int(rng.integers(0, 2)), "prev": f"{name}-{seen[number - 1]}" if number else "",
             "next": f"{name}-{seen[number + 1]}" if number + 1 < len(seen) else ""}
        )  # fmt: skip


def _on_lattice(place: np.ndarray, hard: Hardness) -> list[float]:
    return (np.round(place / hard.step) * hard.step if hard.step else place).tolist()


def _rotation(rng: np.random.Generator) -> list[float]:
    """A turn about the vertical, seldom one of another axis, or not of length 1."""
    yaw = rng.choice([rng.uniform(-np.pi, np.pi), np.pi / 2, np.pi, 0.0])
    found = np.array([np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])
    if rng.uniform() < 0.2:
        found = rng.normal(size=4) * 2
    return found.tolist()


def _predictions(rng: np.random.Generator, hard: Hardness, tables: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """By sample of the split: true boxes seen badly, and false alarms near the car."""
    category = {row["token"]: row["category_token"] for row in tables["instance"]}
    lidar = {row["token"].removeprefix("pose-lidar-"): row["translation"] for row in tables["ego_pose"]}
    tokens = [row["token"] for row in tables["sample"] if not row["token"].startswith("scene-0061")]
    results: dict[str, list[dict[str, Any]]] = {
        token: [] for token in (rng.permutation(tokens) if hard.shuffled else tokens)
    }
    for row in tables["sample_annotation"]:
        kind = CLASS_OF_CATEGORY.get(category[row["instance_token"]])
        for _ in range(int(rng.integers(0, 3))):
            if kind and row["sample_token"] in results:
                place = np.array(row["translation"]) + rng.normal(scale=1.2, size=3) * [1, 1, 0.1]
                kind = kind if rng.uniform() < 0.9 else str(rng.choice(CLASSES))
                results[row["sample_token"]].append(_box(rng, hard, row["sample_token"], kind, place))
    for token, boxes in results.items():
        for _ in range(hard.alarms if rng.uniform() < 0.8 else 0):
            place = np.array(lidar[token]) + rng.uniform(-55, 55, 3) * [1, 1, 0.02]
            boxes.append(_box(rng, hard, token, str(rng.choice(CLASSES)), place))
        results[token] = [boxes[i] for i in rng.permutation(len(boxes))]
    return {str(token): boxes for token, boxes in results.items()}


def _box(rng: np.random.Generator, hard: Hardness, token: str, kind: str, place: np.ndarray) -> dict[str, Any]:
    velocity = rng.normal(size=2).tolist()
    if hard.unknown_velocity and rng.uniform() < 0.2:
        velocity = [float("nan")] * 2
    states = ["", *STATES.get(ATTRIBUTES.get(kind, ""), ()), "vehicle.moving"]
    box = {
        "sample_token": token,
        "translation": _on_lattice(place, hard),
        "size": rng.uniform(0.3, 6.0, 3).round(2).tolist(),
        "rotation": _rotation(rng),
        "velocity": velocity,
        "detection_name": kind,
        "detection_score": round(hard.lowest + (1 - hard.lowest) * rng.uniform(), hard.digits),
        "attribute_name": str(rng.choice(states)),
    }
    if hard.empty and rng.uniform() < 0.1:
        box["num_pts"] = int(rng.integers(0, 2))
    return box
