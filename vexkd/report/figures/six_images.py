"""Detections in the six images of one keyframe: a baseline above, its distilled student below, errors marked.

A detection hits where an annotated box of its class that none surer has taken lies within 2 m, as true positives of the
nuScenes metric. The pinhole model is the data set's own; lines are cut where they pass behind a camera.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vexkd import boxes as box_tools
from vexkd import geometry, provenance
from vexkd.boxes import CLASSES
from vexkd.data import images
from vexkd.data.infos import Keyframe
from vexkd.report.figures import birdseye, drawing
from vexkd.report.figures.birdseye import Boxes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ORDER = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
REACH = 2.0  # metres between centres, nuScenes' threshold for true positives
NEAR = 0.3  # metres in front of a camera at which lines are cut
WIDTH = 480  # pixels of an image in the figure
DPI = 150  # of the figure, in which an image is as wide as that; more would store its noise enlarged
# Corners of `box_tools.corners` that an edge joins; the last is a mark from the middle of the top to its front edge.
EDGES = (
    [(i, (i + 1) % 4) for i in range(4)] + [(i + 4, (i + 1) % 4 + 4) for i in range(4)] + [(i, i + 4) for i in range(4)]
)
# Outcome -> colour, line and words.
OUTCOMES = {
    "hit": (drawing.SKY, "-", "hit: within 2 m of a true box of its class"),
    "false alarm": (drawing.VERMILLION, "--", "false alarm"),
    "missed": (drawing.ORANGE, ":", "missed true box"),
}


def camera(
    baseline: str,
    distilled: str,
    *,
    results: Path,
    models: Path,
    root: Path,
    infos: Path,
    seed: int,
    sample: int | str | None = None,
    threshold: float = 0.2,
) -> None:
    """Two runs in the images of one keyframe: results/figures/camera-<distilled>.{png,svg,csv}.

    `sample` and errors as of `birdseye.birdseye`; raises InputError for a missing image too.
    """
    keyframe, caption, judged = compared(baseline, distilled, models, root, infos, seed, sample, threshold)
    stem = Path(results) / "figures" / f"camera-{distilled}"
    table = pd.concat([_table(shown).assign(run=run) for run, shown in judged.items()], ignore_index=True)
    provenance.write_text(stem.with_suffix(".csv"), table.to_csv(index=False))

    views = _views(keyframe)
    pictures = {view: _picture(Path(root) / keyframe.camera_paths[number]) for view, number in views.items()}
    with drawing.figure(stem, (10.0, 8.8), dpi=DPI) as made:
        axes = made.subplots(4, 3).ravel()
        for place, (run, view) in enumerate((run, view) for run in judged for view in views):
            _draw(axes[place], pictures[view], judged[run], keyframe, views[view])
            axes[place].set_title(f"{run}, {view.removeprefix('CAM_').replace('_', ' ').lower()}", fontsize=7)
        for left_over in axes[len(judged) * len(views) :]:
            left_over.set_visible(False)
        drawing.heading(made, f"{baseline} and {distilled}, seed {seed}, score ≥ {threshold:g}", caption)
        made.legend(handles=_legend(), loc="outside lower left", ncols=3)


def outcomes(truth: Boxes, predicted: Boxes) -> tuple[np.ndarray, np.ndarray]:
    """Which predictions hit (M,), and which true boxes none hits (N,); the surest choose first."""
    hit = np.zeros(len(predicted.boxes), dtype=bool)
    missed = np.ones(len(truth.boxes), dtype=bool)
    for number in np.argsort(-predicted.scores, kind="stable"):
        distance = np.linalg.norm(truth.boxes[:, :2] - predicted.boxes[number, :2], axis=1)
        distance[(truth.labels != predicted.labels[number]) | ~missed] = np.inf
        if len(distance) and distance.min() < REACH:
            hit[number], missed[distance.argmin()] = True, False
    return hit, missed


def lines(box: np.ndarray, camera_from_lidar: np.ndarray, image_from_camera: np.ndarray) -> np.ndarray:
    """A box (9,) as line segments in pixels, (K, 2, 2): its edges in front of the camera, and a cross on its front face."""
    corners = geometry.move(camera_from_lidar, box_tools.corners(box[None])[0])  # 8 3
    found = []
    for start, end in [*EDGES, (0, 7), (3, 4)]:
        a, b = corners[start], corners[end]
        if a[2] < NEAR and b[2] < NEAR:
            continue
        if a[2] < NEAR:
            a = b + (a - b) * (b[2] - NEAR) / (b[2] - a[2])
        elif b[2] < NEAR:
            b = a + (b - a) * (a[2] - NEAR) / (a[2] - b[2])
        found.append(geometry.project(image_from_camera, np.stack([a, b]))[0])
    return np.array(found).reshape(-1, 2, 2)


def compared(
    baseline: str,
    distilled: str,
    models: Path,
    root: Path,
    infos: Path,
    seed: int,
    sample: int | str | None,
    threshold: float,
) -> tuple[Keyframe, str, dict[str, dict[str, Boxes]]]:
    """A keyframe, its caption, and by run the boxes of each outcome, of predictions with a score of the threshold or more."""
    found = {run: birdseye.read_predictions(run, Path(models), seed) for run in (baseline, distilled)}
    keyframe, caption = birdseye.choose(Path(root), Path(infos), found[distilled], sample)
    truth = birdseye.annotated(keyframe)
    judged = {
        run: by_outcome(truth, birdseye.detections(boxes.get(keyframe.token, []), keyframe, threshold))
        for run, boxes in found.items()
    }
    return keyframe, caption, judged


def by_outcome(truth: Boxes, predicted: Boxes) -> dict[str, Boxes]:
    """Boxes by outcome."""
    hit, missed = outcomes(truth, predicted)
    return {
        "hit": Boxes(predicted.boxes[hit], predicted.labels[hit], predicted.scores[hit]),
        "false alarm": Boxes(predicted.boxes[~hit], predicted.labels[~hit], predicted.scores[~hit]),
        "missed": Boxes(truth.boxes[missed], truth.labels[missed], truth.scores[missed]),
    }


def _table(judged: dict[str, Boxes]) -> pd.DataFrame:
    """What is drawn: metres and radians in the LiDAR frame."""
    parts = []
    for outcome, shown in judged.items():
        part = pd.DataFrame(shown.boxes[:, :7].round(3), columns=["x_m", "y_m", "z_m", "l_m", "w_m", "h_m", "yaw_rad"])
        part.insert(0, "class", [CLASSES[label] for label in shown.labels])
        part.insert(0, "outcome", outcome)
        parts.append(part.assign(score=shown.scores.round(4)))
    return pd.concat(parts, ignore_index=True)


def _views(keyframe: Keyframe) -> dict[str, int]:
    """Which of the keyframe's cameras is which, in the order drawn; the folder of an image names its camera."""
    names = [Path(path).parent.name for path in keyframe.camera_paths]
    return {name: names.index(name) for name in ORDER if name in names}


def _picture(path: Path) -> tuple[np.ndarray, float]:
    """A small copy of an image (H, W, 3), and its width over the original's."""
    picture = images.read_image(path)
    factor = min(1.0, WIDTH / picture.width)
    return np.asarray(picture.resize((round(picture.width * factor), round(picture.height * factor)))), factor


def _draw(
    axis: Axes, picture: tuple[np.ndarray, float], judged: dict[str, Boxes], keyframe: Keyframe, number: int
) -> None:
    """One image with the boxes of one run."""
    from matplotlib.collections import LineCollection

    pixels, factor = picture
    axis.imshow(pixels, alpha=0.85)
    for outcome, shown in judged.items():
        colour, style, _ = OUTCOMES[outcome]
        segments = [lines(b, keyframe.camera_from_lidar[number], keyframe.intrinsics[number]) for b in shown.boxes]
        joined = np.concatenate(segments) if segments else np.zeros((0, 2, 2))
        axis.add_collection(LineCollection(factor * joined, colors=colour, linewidths=0.9, linestyles=style))
    axis.set_xlim(-0.5, pixels.shape[1] - 0.5)
    axis.set_ylim(pixels.shape[0] - 0.5, -0.5)
    axis.set_xticks([])
    axis.set_yticks([])


def _legend() -> list:
    from matplotlib.lines import Line2D

    return [Line2D([], [], color=colour, linestyle=style, label=words) for colour, style, words in OUTCOMES.values()]
