"""How fast detections are scored: `python benchmarks/scoring.py`, beside nuscenes-devkit in the same run.

Predictions for nuScenes' val split (6,027 samples of 200 boxes) are made from the truth of a tables-only synthetic set, or
of --root: true boxes seen badly, seen twice, and clutter. Each scorer then loads and scores them in a process of its own,
in turn, so that neither has the other's memory: nuscenes-devkit its load and evaluate, the array scorer the same and 1,000
draws of scenes on top. Times begin after the imports; CPU
seconds, which tell more on a machine that is shared, are those of the whole process.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

VERSION, CONFIG = "v1.0-trainval", "detection_cvpr_2019"


def devkit(root: Path, split: str, predictions: Path) -> dict[str, Any]:
    """Child process: nuscenes-devkit's own way."""
    from nuscenes import NuScenes
    from nuscenes.eval.detection.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval

    from vexkd.evaluate.array_scorer import TP_ERRORS

    settings = config_factory(CONFIG)
    begin = time.perf_counter()
    nusc = NuScenes(VERSION, str(root), verbose=False)
    opened = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        scorer = DetectionEval(nusc, settings, str(predictions), split, out, verbose=False)
    loaded = time.perf_counter()
    metrics, _ = scorer.evaluate()
    done = time.perf_counter()
    return {
        "parts": {"tables": opened - begin, "boxes": loaded - opened, "evaluate": done - loaded},
        "mAP": metrics.mean_ap,
        "NDS": metrics.nd_score,
        "classes": list(settings.class_names),
        "ap": [[metrics.get_label_ap(c, d) for d in settings.dist_ths] for c in settings.class_names],
        "errors": [[metrics.get_label_tp(c, error) for error in TP_ERRORS] for c in settings.class_names],
    }


def arrays(root: Path, split: str, predictions: Path) -> dict[str, Any]:
    """Child process: the array scorer, and the draws."""
    from vexkd.evaluate import detection, resamples

    begin = time.perf_counter()
    ((_, scored),) = detection.score_files({"": predictions}, root=root, version=VERSION, split=split, config=CONFIG)
    done = time.perf_counter()
    drawn = resamples.of_detection(scored.matches, scored.settings)
    end = time.perf_counter()
    return {
        "parts": {"load and evaluate": done - begin, f"{len(drawn['mAP']):,} draws": end - done},
        "mAP": scored.score.mean_ap,
        "NDS": scored.score.nds,
        "classes": list(scored.score.classes),
        "ap": scored.score.ap.tolist(),
        "errors": scored.score.errors.tolist(),
    }


def in_child(which: str, root: Path, split: str, predictions: Path) -> dict[str, Any]:
    """What a child process found, with its seconds and peak memory in GB."""
    arguments = [sys.executable, __file__, "--child", which, str(root), split, str(predictions)]
    found: dict[str, Any] = json.loads(subprocess.run(arguments, check=True, stdout=subprocess.PIPE).stdout)
    return found


def report(which: str, root: str, split: str, predictions: str) -> None:
    """The child's side of `in_child`."""
    found = {"devkit": devkit, "arrays": arrays}[which](Path(root), split, Path(predictions))
    used = resource.getrusage(resource.RUSAGE_SELF)
    found |= {"seconds": sum(found["parts"].values()), "CPU": used.ru_utime + used.ru_stime}
    print(json.dumps({**found, "GB": used.ru_maxrss * 1024 / 1e9}))


def difference(first: dict[str, Any], second: dict[str, Any]) -> float:
    """The greatest between mAP, NDS, each AP and each error; infinite where only one of two is defined."""
    greatest = max(abs(first[name] - second[name]) for name in ("mAP", "NDS"))
    for row, name in enumerate(first["classes"]):
        other = second["classes"].index(name)
        for key in ("ap", "errors"):
            for a, b in zip(first[key][row], second[key][other], strict=True):
                if math.isnan(a) or math.isnan(b):
                    greatest = greatest if math.isnan(a) and math.isnan(b) else math.inf
                else:
                    greatest = max(greatest, abs(a - b))
    return greatest


def predict(root: Path, split: str, out: Path, *, boxes: int, seed: int, unknown: float) -> int:
    """Write predictions for a split; returns how many samples it has. unknown: the share of velocities that are NaN."""
    import numpy as np

    from vexkd.evaluate import ground_truth

    rng = np.random.default_rng(seed)
    truth = ground_truth.read(root, VERSION, split)
    ends = np.searchsorted(truth.boxes.sample, np.arange(len(truth.tokens) + 1))
    with out.open("w", encoding="utf-8") as stream:
        stream.write('{"meta": {"use_camera": false, "use_lidar": true, "use_radar": false, "use_map": false, ')
        stream.write('"use_external": false}, "results": {')
        for number in rng.permutation(len(truth.tokens)).tolist():
            some = truth.boxes[np.arange(ends[number], ends[number + 1])]
            rows = sample_boxes(rng, truth.tokens[number], some, truth.ego[number], boxes, unknown)
            stream.write(f"{json.dumps(truth.tokens[number])}: {json.dumps(rows)}, ")
        stream.seek(stream.tell() - 2)
        stream.write("}}")
    return len(truth.tokens)


def sample_boxes(rng: Any, token: str, truth: Any, ego: Any, count: int, unknown: float) -> list[dict[str, Any]]:
    """One sample's predictions: true boxes seen badly, some twice or as another class, and clutter around the car."""
    import numpy as np

    from vexkd.boxes import CLASSES
    from vexkd.evaluate.box_columns import ATTRIBUTES

    seen = np.flatnonzero(rng.uniform(size=len(truth)) < 0.85)
    seen = np.concatenate([seen, seen[rng.uniform(size=len(seen)) < 0.3]])[:count]
    clutter = count - len(seen)
    known = truth[seen]
    place = np.concatenate([known.translation, ego + rng.uniform(-60, 60, (clutter, 3)) * [1, 1, 0.02]])
    place += rng.normal(scale=0.6, size=place.shape)
    size = np.concatenate([known.size, rng.uniform(0.3, 8, (clutter, 3))]) * rng.uniform(0.8, 1.2, (count, 3))
    label = np.concatenate([known.label, rng.integers(0, len(CLASSES), clutter)])
    label = np.where(rng.uniform(size=count) < 0.05, rng.integers(0, len(CLASSES), count), label)
    half = rng.uniform(-math.pi, math.pi, count) / 2
    score = np.where(np.arange(count) < len(seen), rng.beta(4, 3, count), rng.beta(1, 6, count))
    score = np.where(rng.uniform(size=count) < 0.3, score.round(3), score)  # ties
    velocity = np.concatenate([known.velocity, np.zeros((clutter, 2))]) + rng.normal(scale=0.5, size=(count, 2))
    velocity = np.where(np.isnan(velocity), 0.0, velocity)
    velocity[rng.uniform(size=count) < unknown] = np.nan
    attribute = np.concatenate([known.attribute, rng.integers(0, len(ATTRIBUTES), clutter)])
    return [
        {
            "sample_token": token,
            "translation": place[i].tolist(),
            "size": size[i].tolist(),
            "rotation": [math.cos(half[i]), 0.0, 0.0, math.sin(half[i])],
            "velocity": velocity[i].tolist(),
            "detection_name": CLASSES[label[i]],
            "detection_score": float(score[i]),
            "attribute_name": ATTRIBUTES[attribute[i]],
        }
        for i in rng.permutation(count).tolist()
    ]


def some_samples(root: Path, count: int, folder: Path) -> Path:
    """The same tables under another root, with a split "some" of as many scenes of val as hold `count` samples."""
    from vexkd.evaluate import ground_truth

    (folder / VERSION).mkdir(parents=True)
    for path in (root / VERSION).glob("*.json"):
        (folder / VERSION / path.name).symlink_to(path.resolve())
    for path in ("maps", "samples", "sweeps"):
        (folder / path).symlink_to((root / path).resolve())
    members, _ = ground_truth.members(root, VERSION, "val")
    scenes = json.loads((root / VERSION / "scene.json").read_text(encoding="utf-8"))
    chosen: list[str] = []
    for scene in scenes:
        if scene["name"] in members and count > 0:
            chosen.append(scene["name"])
            count -= scene["nbr_samples"]
    (folder / VERSION / "splits.json").unlink(missing_ok=True)
    (folder / VERSION / "splits.json").write_text(json.dumps({"some": chosen}), encoding="utf-8")
    return folder


def measure(root: Path, split: str, folder: Path, arguments: argparse.Namespace) -> None:
    """Both scorers on one file, as Markdown."""
    predictions = folder / "predictions.json"
    samples = predict(root, split, predictions, boxes=arguments.boxes, seed=arguments.seed, unknown=arguments.unknown)
    size = predictions.stat().st_size / 1e6
    load = os.getloadavg()[0]
    ours = in_child("arrays", root, split, predictions)
    theirs = in_child("devkit", root, split, predictions)
    again = in_child("arrays", root, split, predictions)
    print(f"{samples:,} samples, {arguments.boxes} boxes each, {size:.0f} MB, seed {arguments.seed}, NumPy generator.")
    print(f"{platform.node()}: {os.cpu_count()} cores, load {load:.1f} before, {os.getloadavg()[0]:.1f} after.\n")
    print("| scorer | parts, s | all, s | CPU, s | peak GB |\n|---|---|---|---|---|")
    for name, found in (("nuscenes-devkit 1.2.0", theirs), ("array scorer", ours), ("array scorer again", again)):
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in found["parts"].items())
        print(f"| {name} | {parts} | {found['seconds']:.1f} | {found['CPU']:.1f} | {found['GB']:.2f} |")
    ratios = sorted(theirs["seconds"] / found["seconds"] for found in (ours, again))
    print(f"\nTimes as fast: {ratios[0]:.1f} to {ratios[1]:.1f}; mAP {ours['mAP']:.4f}, NDS {ours['NDS']:.4f}.")
    print(
        f"Greatest difference of mAP, NDS, AP by class and threshold, errors by class: {difference(theirs, ours):.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--root", type=Path, help="a trainval set to score on; default: tables are made, which takes minutes"
    )
    parser.add_argument("--samples", type=int, help="about so many samples of val, whole scenes; default: all")
    parser.add_argument("--boxes", type=int, default=200, help="predicted in each sample")
    parser.add_argument("--seed", type=int, default=0, help="of the predictions")
    parser.add_argument("--unknown", type=float, default=0.0, help="share of velocities that are NaN")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        report(*arguments.child)
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.root
        if root is None:
            from vexkd.synthetic.tables import synthesize

            root = Path(scratch) / "set"
            synthesize(root, scenes=850, workers=os.cpu_count() or 1, sensors=False, progress=False)
        split = "val"
        if arguments.samples:
            root, split = some_samples(root, arguments.samples, Path(scratch) / "some"), "some"
        measure(root, split, Path(scratch), arguments)


if __name__ == "__main__":
    main()
