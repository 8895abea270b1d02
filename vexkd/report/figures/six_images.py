"""Detections in the six images of one keyframe: a student alone above, the same student distilled below, errors marked.

The pinhole model is the data set's own; lines are cut where they pass behind a camera.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vexkd import boxes as box_tools
from vexkd import geometry, provenance
from vexkd.data import images
from vexkd.data.infos import Keyframe
from vexkd.experiment import Experiment
from vexkd.report.figures import drawing, hits_and_misses
from vexkd.report.figures.hits_and_misses import OUTCOMES
from vexkd.report.figures.scene import Boxes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ORDER = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
NEAR = 0.3  # metres in front of a camera at which lines are cut
WIDTH = 480  # pixels of an image in the figure
DPI = 150  # of the figure, in which an image is as wide as that; more would store its noise enlarged
# Corners of `box_tools.corners` that an edge joins; the last is a mark from the middle of the top to its front edge.
EDGES = (
    [(i, (i + 1) % 4) for i in range(4)] + [(i + 4, (i + 1) % 4 + 4) for i in range(4)] + [(i, i + 4) for i in range(4)]
)


def camera(
    student: str,
    distilled: str,
    experiment: Experiment,
    *,
    seed: int,
    sample: int | str | None = None,
    threshold: float = 0.2,
) -> None:
    """Two runs in the images of one keyframe: results/figures/camera-<distilled>.{png,svg,csv}.

    `sample` and errors as of `birdseye.birdseye`; raises InputError for a missing image too.
    """
    compared = hits_and_misses.compare(
        student, distilled, experiment, seed=seed, sample=sample, threshold=threshold
    )  # fmt: skip
    keyframe = compared.keyframe
    stem = experiment.figures / f"camera-{distilled}"
    tables = [_table(boxes).assign(run=run) for run, boxes in compared.by_run.items()]
    provenance.write_text(stem.with_suffix(".csv"), pd.concat(tables, ignore_index=True).to_csv(index=False))

    views = _views(keyframe)
    pictures = {view: _picture(experiment.root / keyframe.camera_paths[number]) for view, number in views.items()}
    with drawing.figure(stem, (10.0, 8.8), dpi=DPI) as figure:
        axes = figure.subplots(4, 3).ravel()
        panels = [(run, view) for run in compared.by_run for view in views]
        for axis, (run, view) in zip(axes, panels, strict=False):
            _draw(axis, pictures[view], compared.by_run[run], keyframe, views[view])
            axis.set_title(f"{run}, {view.removeprefix('CAM_').replace('_', ' ').lower()}", fontsize=7)
        for left_over in axes[len(panels) :]:
            left_over.set_visible(False)
        title = f"{student} and {distilled}, seed {seed}, score ≥ {threshold:g}"
        drawing.heading(figure, title, compared.caption)
        figure.legend(handles=hits_and_misses.legend(), loc="outside lower left", ncols=3)


def lines(box: np.ndarray, camera_from_lidar: np.ndarray, image_from_camera: np.ndarray) -> np.ndarray:
    """A box (9,) as line segments in pixels, (K, 2, 2): its edges in front of the camera, and a cross on its front face."""
    corners = geometry.move(camera_from_lidar, box_tools.corners(box[None])[0])  # 8 3
    segments = []
    for start, end in [*EDGES, (0, 7), (3, 4)]:
        a, b = corners[start], corners[end]
        if a[2] < NEAR and b[2] < NEAR:
            continue
        if a[2] < NEAR:
            a = b + (a - b) * (b[2] - NEAR) / (b[2] - a[2])
        elif b[2] < NEAR:
            b = a + (b - a) * (a[2] - NEAR) / (a[2] - b[2])
        segments.append(geometry.project(image_from_camera, np.stack([a, b]))[0])
    return np.array(segments).reshape(-1, 2, 2)


def _table(by_outcome: dict[str, Boxes]) -> pd.DataFrame:
    """What is drawn."""
    parts = []
    for outcome, boxes in by_outcome.items():
        table = boxes.table()
        table.insert(0, "outcome", outcome)
        parts.append(table)
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
    axis: Axes, picture: tuple[np.ndarray, float], by_outcome: dict[str, Boxes], keyframe: Keyframe, number: int
) -> None:
    """One image with the boxes of one run."""
    from matplotlib.collections import LineCollection

    pixels, factor = picture
    axis.imshow(pixels, alpha=0.85)
    for outcome, boxes in by_outcome.items():
        colour, style, _ = OUTCOMES[outcome]
        segments = [lines(box, keyframe.camera_from_lidar[number], keyframe.intrinsics[number]) for box in boxes.boxes]
        joined = np.concatenate(segments) if segments else np.zeros((0, 2, 2))
        axis.add_collection(LineCollection(factor * joined, colors=colour, linewidths=0.9, linestyles=style))
    axis.set_xlim(-0.5, pixels.shape[1] - 0.5)
    axis.set_ylim(pixels.shape[0] - 0.5, -0.5)
    axis.set_xticks([])
    axis.set_yticks([])
