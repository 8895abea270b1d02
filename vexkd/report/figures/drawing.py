"""One look for all figures: colour-blind-safe colours (Okabe and Ito), small type, no chart junk; PNG and SVG alike.

Matplotlib is imported on use and only by its objects (no pyplot, no backend, no global state).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vexkd import provenance

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, SKY, GREEN, ORANGE, VERMILLION, PURPLE = "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7"
GREY, INK = "#8C8C8C", "#262626"
# Okabe and Ito's colours, and four of Tol's for the classes beyond them.
CLASS_COLOURS = {
    "car": BLUE,
    "truck": SKY,
    "construction_vehicle": ORANGE,
    "bus": GREEN,
    "trailer": "#332288",
    "barrier": "#999933",
    "motorcycle": "#882255",
    "bicycle": PURPLE,
    "pedestrian": VERMILLION,
    "traffic_cone": "#000000",
}
_STYLE: dict[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.edgecolor": "#BBBBBB",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.hashsalt": "vexkd",
}


@contextlib.contextmanager
def figure(stem: Path, size: tuple[float, float], dpi: int = 200) -> Iterator[Figure]:
    """A figure of `size` inches to draw on; when the block ends it is saved as `<stem>.png` and `<stem>.svg`.

    dpi: of the PNG; of the SVG's bitmaps at most 150.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # nuscenes-devkit and a user's matplotlibrc change the style
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        kinds = (("png", dpi, {"Software": None}), ("svg", min(dpi, 150), {"Date": None, "Creator": None}))
        for suffix, density, metadata in kinds:
            with provenance.atomic(stem.with_name(f"{stem.name}.{suffix}")) as temporary:
                figure.savefig(
                    temporary, format=suffix, dpi=density, bbox_inches="tight", pad_inches=0.06, metadata=metadata
                )


def panels(figure: Figure, count: int, columns: int, **options: Any) -> list[Axes]:
    """`count` axes in a grid of at most `columns` columns, row by row; places left over stay blank."""
    columns = min(count, columns)
    grid = figure.subplots(math.ceil(count / columns), columns, squeeze=False, **options).ravel()
    for left_over in grid[count:]:
        left_over.set_visible(False)
    return list(grid[:count])


def heading(figure: Figure, text: str, note: str) -> None:
    """A bold title and lines of notes below it, at the left."""
    room = "\n" * (2 + note.count("\n"))  # empty lines of the title keep the notes' place in the layout
    figure.suptitle(text + room, x=0.01, ha="left", fontsize=9, fontweight="bold")
    top = 1 - 0.05 / figure.get_figheight()  # as many inches below the edge in a tall figure as in a low one
    figure.text(0.01, top, f"\n{note}", fontsize=7.5, va="top", ha="left", color="#555555", linespacing=1.6)


def title_style(name: str) -> dict[str, Any]:
    """Bold, and smaller for a name too long for its panel."""
    return {"fontweight": "bold", "fontsize": min(8.0, 8.0 * 26 / len(name))}
