"""The figures on the page: headings, captions, the text for who cannot see them, and the pictures themselves, inlined."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path

from vexkd.report import sources
from vexkd.report.page import alt_text
from vexkd.report.results import Results

WIDTH = 1200  # pixels, to which wider bitmaps are scaled down: what a wide window shows
# A figure's name, or its beginning where it is drawn of each run -> its heading, and what it shows to who cannot see it.
FIGURES = {
    "distillation": (
        "What distillation gains",
        "Each distilled student against the same student trained alone: a line for NDS, mAP and the AP of every class in "
        "percent, from the student alone (hollow) to the distilled one (filled), the gain at the right.",
    ),
    "blocks": (
        "Mask blocks",
        "Number of mask blocks against the score in percent, and against the epochs until the distillation loss has settled.",
    ),
    "missing-sensor": (
        "A sensor missing",
        "Bars of the scores in percent with all sensors and with one of them dropped at test time, for each run.",
    ),
    "latency": ("Accuracy against latency", "Every model's score in percent against the time of one sample."),
    "maps": ("Predicted maps", "Map classes from above: ground truth beside the predictions of the runs."),
    "curves": (
        "Training curves",
        "The training loss of every run over optimiser steps, one panel a run and one colour a seed. A loss that includes "
        "masks being learned falls where their learning stops.",
    ),
    "birdseye": (
        "From above",
        "LiDAR points of one validation sample from above with annotated boxes filled and predicted boxes outlined.",
    ),
    "camera": (
        "In the six images",
        "Detections in the six camera images of one sample, of the student alone above and distilled below: hits, false "
        "alarms and missed boxes in lines of their own.",
    ),
    "errors": (
        "Errors from above",
        "The same sample from above, of the student alone and of the distilled one: hits in solid, false alarms in dashed "
        "and missed boxes in dotted lines.",
    ),
    "energy": (
        "Energy of the BEV maps",
        "The sum of absolute features over channels before and after the BEV encoder, of the student alone, of the "
        "distilled one and of the teacher, from above with the annotated boxes.",
    ),
    "masks": (
        "Masks",
        "Where the run distils, before and after the BEV encoder, from above with the annotated boxes.",
    ),
}


@dataclass(frozen=True)
class Picture:
    """A picture with its caption. label: what it is and of which run. source: a data URI; sizes keep its place on the page."""

    name: str
    file: str
    title: str
    label: str
    description: str
    alt: str
    source: str
    width: int
    height: int

    @property
    def is_vector(self) -> bool:
        return self.file.endswith(".svg")


def of_page(results: Results) -> tuple[list[Picture], dict[str, list[Picture]]]:
    """Figures of several runs in the order of FIGURES, and by run those whose name ends with the run's; vector where small.

    Only those that the settings ask for: others are left over from earlier ones.
    """
    folder, runs = results.experiment.figures, list(results.params.runs)
    rank = {name: number for number, name in enumerate(FIGURES)}
    present = [path for name in sources.figures(results.params) if (path := folder / f"{name}.png").is_file()]
    general: list[Picture] = []
    of_run: dict[str, list[Picture]] = {name: [] for name in runs}
    for path in sorted(present, key=lambda path: (rank.get(path.stem, len(rank)), path.name)):
        owners = [name for name in runs if path.stem.endswith(f"-{name}")]
        if owners:
            of_run[max(owners, key=len)].append(picture(path))
        else:
            vector = path.with_suffix(".svg")
            general.append(picture(vector if vector.is_file() else path))
    return general, of_run


def picture(path: Path) -> Picture:
    """A figure's file with its words."""
    kind = _kind(path.stem)
    title, description = FIGURES[kind] if kind else (path.stem.replace("-", " "), f"The figure {path.stem}.")
    run = path.stem.removeprefix(f"{kind}-") if kind and kind != path.stem else ""
    label = f"{title}: {run}" if run else title
    alt = alt_text.words(path, kind or "") or description
    return Picture(path.stem, path.name, title, label, description, alt, *inlined(path))


def _kind(name: str) -> str | None:
    """The key of FIGURES that a figure's name is or begins with."""
    return max((key for key in FIGURES if name == key or name.startswith(f"{key}-")), key=len, default=None)


def inlined(path: Path) -> tuple[str, int, int]:
    """A picture as a data URI, a bitmap no wider than WIDTH as WebP; width and height in pixels."""
    if path.suffix == ".svg":
        content = path.read_bytes()
        box = re.search(rb'viewBox="[\d.]+ [\d.]+ ([\d.]+) ([\d.]+)"', content)
        width, height = (round(float(size) * 4 / 3) for size in box.groups()) if box else (960, 640)  # pt to px
        return f"data:image/svg+xml;base64,{base64.b64encode(content).decode()}", width, height
    from PIL import Image

    with Image.open(path) as opened:
        bitmap = opened.convert("RGB")
    if bitmap.width > WIDTH:
        bitmap = bitmap.resize((WIDTH, round(bitmap.height * WIDTH / bitmap.width)), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    bitmap.save(stream, "WEBP", quality=78, method=5)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}", *bitmap.size
