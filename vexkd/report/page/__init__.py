"""report.html: what was run, every table and figure, and a section for each run, in one file that needs no network.

Text is escaped (`vexkd.report.page.markup`), pictures are inlined, there is no script. A table's cells lead to the runs' sections,
these back to its rows. The same results make the same file, so that a page made again is no change to git.
"""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

from vexkd import provenance
from vexkd.errors import InputError
from vexkd.report import records, result_tables, runs, sources
from vexkd.report.page import alt_text, run_section
from vexkd.report.page.markup import Markup, element, join
from vexkd.report.page.style import STYLE
from vexkd.settings import Params

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
SUFFIXES = {".svg": "image/svg+xml", ".png": "image/png"}


def make(*, params: Params, results: Path) -> Path:
    """Write results/report.html from what is in the results folder; what is not there yet is said, not refused."""
    results = Path(results)
    path = results / "report.html"
    places = sources.Places(results)
    names, asked = sources.of_page(params, places), sources.page_settings(params)
    provenance.write_text(path, records.signed(document(params, results), names, asked, places))
    return path


def document(params: Params, results: Path) -> str:
    """The whole page."""
    title = "VeXKD: results"
    general, of_run = _pictures(params, results)
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup(STYLE)),
    )
    body = element(
        "body",
        element("a", "Skip to the results", class_="skip", href="#main"),
        element("header", element("h1", title), element("p", _lead(params, results), class_="lead")),
        _navigation(params, general),
        element(
            "main",
            _overview(params, results),
            _tables(params, results),
            _figures(general),
            element(
                "section",
                element("h2", "Runs", id="runs"),
                [
                    run_section.section(run, params, results, [figure(path, 4) for path in of_run[name]])
                    for name, run in params.runs.items()
                ],
                aria_labelledby="runs",
            ),
            id="main",
        ),
        element("footer", element("p", _origin(params))),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


# ------------------------------------------------------------------------------------------------------------- sections


def _lead(params: Params, results: Path) -> str:
    data = runs.dataset(params, list(params.runs))
    finished = sum(run_section.is_finished(name, results) for name in params.runs)
    return f"{data[0].upper()}{data[1:]}. {finished} of {len(params.runs)} runs have results."


def _origin(params: Params) -> str:
    """What the page was made from. No time and no commit of its own: it is what its inputs make it."""
    made = "the results beside this file, which name the commits, times and commands that made them"
    return f"Made by vexkd page from {Path(params.path).name} and {made}."


def _navigation(params: Params, general: dict[str, Path]) -> Markup:
    parts = {
        "Tables": ("tables", [(f"table-{name}", name) for name in params.tables]),
        "Figures": ("figures", [(f"figure-{name}", _names(name)[0]) for name in general]),
        "Runs": ("runs", [(f"run-{name}", name) for name in params.runs]),
    }
    items = [element("li", element("a", "What was run", href="#overview"))]
    for text, (anchor, inner) in parts.items():
        links = [element("li", element("a", words, href=f"#{target}")) for target, words in inner]
        items.append(element("li", element("a", text, href=f"#{anchor}"), element("ul", links) if links else None))
    return element("nav", element("ul", items), aria_label="Contents")


def _overview(params: Params, results: Path) -> Markup:
    """Every run in one line."""
    head = ["Run", "Kind", "Task", "Sensors", "Head", "Teacher", "Epochs", "State"]
    rows = []
    for name, run in params.runs.items():
        done = "done" if run_section.is_finished(name, results) else "no results"
        kind = run_section.KINDS.get(run.kind, run.kind)
        cells = [kind, run.task, " + ".join(run.sensors), run.head, run.teacher or "", str(run.train.epochs), done]
        rows.append([name, *cells])
    seeds = ", ".join(map(str, params.seeds))
    settings = f"Settings: {Path(params.path).name}, seeds {seeds}."
    return element(
        "section",
        element("h2", "What was run", id="overview"),
        table(head, rows, params, caption=settings, words=set(head) - {"Epochs"}),
        aria_labelledby="overview",
    )


def _tables(params: Params, results: Path) -> Markup:
    """Every table with its notes; why one cannot be shown yet."""
    parts = []
    for name in params.tables:
        heading = element("h3", f"Table {name}", id=f"table-{name}")
        try:
            cells = result_tables.read(name, params=params, results=results)
        except InputError as error:
            parts.append(join([heading, element("p", f"Not there yet: {error}")]))
            continue
        words = {head for head, left in zip(cells.head, result_tables.words(cells), strict=True) if left}
        notes = [element("p", note, class_="note") for note in cells.notes]
        shown = table(cells.head, cells.rows, params, caption=name, words=words, anchor=f"row-{name}")
        parts.append(join([heading, shown, *notes]))
    return element("section", element("h2", "Tables", id="tables"), parts, aria_labelledby="tables")


def _figures(general: dict[str, Path]) -> Markup:
    parts = [
        join([element("h3", _names(name)[0], id=f"figure-{name}"), figure(path)]) for name, path in general.items()
    ]
    return element("section", element("h2", "Figures", id="figures"), parts, aria_labelledby="figures")


# ---------------------------------------------------------------------------------------------------------------- parts


def table(
    head: list[str], rows: list[list[str]], params: Params, *, caption: str, words: set[str], anchor: str | None = None
) -> Markup:
    """A table that scrolls by itself; names of runs lead to their sections.

    words: headings of columns that hold text. anchor: what the rows' anchors begin with, a run's name being their end.
    """
    classes = ["word" if text in words else None for text in head]
    top = [element("th", text, scope="col", class_=kind) for text, kind in zip(head, classes, strict=True)]
    lines = []
    taken = set()
    for row in rows:
        first, *rest = [_linked(text, params) for text in row]
        name = row[0].partition(" ")[0]
        place = f"{anchor}-{name}" if anchor and name not in taken else None  # a run may stand in a table twice
        taken.add(name)
        cells = [element("td", text, class_=kind) for text, kind in zip(rest, classes[1:], strict=True)]
        lines.append(element("tr", element("th", first, scope="row", class_="word"), cells, id=place))
    hidden = "hidden" if caption in params.tables else None  # the heading above says it
    made = element(
        "table",
        element("caption", caption, class_=hidden),
        element("thead", element("tr", top)),
        element("tbody", lines),
    )
    return element("div", made, class_="scroll", tabindex="0", role="region", aria_label=f"Table {caption}")


def _linked(text: str, params: Params) -> str:
    """A link where the text is the name of a run, with or without a mark behind it."""
    name, _, mark = text.partition(" ")
    if name not in params.runs:
        return text
    link = element("a", name, href=f"#run-{name}")
    return join([link, " ", element("span", mark, class_="mark")]) if mark else link


def figure(path: Path, level: int | None = None) -> Markup:
    """A picture with its caption, the text that stands for it, and a heading where it has none of its own."""
    title, words = _names(path.stem)
    kind = _kind(path.stem)
    run = path.stem.removeprefix(f"{kind}-") if kind and kind != path.stem else ""
    label = f"{title}: {run}" if run else title
    source, width, height = _inlined(path)
    image = element(
        "img",
        src=source,
        alt=f"{label}. {alt_text.words(path, kind or '') or words}",
        width=width,
        height=height,
        class_="vector" if path.suffix == ".svg" else None,
        loading="lazy",
        decoding="async",
    )
    pan = element("div", image, class_="pan", tabindex="0", role="region", aria_label=label)
    heading = element(f"h{level}", title) if level else None
    return join([heading, element("figure", pan, element("figcaption", f"{words} File: figures/{path.name}"))])


def _kind(name: str) -> str | None:
    """The key of FIGURES that a figure's name is or begins with."""
    return max((key for key in FIGURES if name == key or name.startswith(f"{key}-")), key=len, default=None)


def _names(name: str) -> tuple[str, str]:
    """Heading and description of a figure."""
    kind = _kind(name)
    return FIGURES[kind] if kind else (name.replace("-", " "), f"The figure {name}.")


def _pictures(params: Params, results: Path) -> tuple[dict[str, Path], dict[str, list[Path]]]:
    """Figures by name in the order of FIGURES, and by run those whose name ends with the run's; vector where small.

    Only those that the settings ask for: others are left over from earlier ones.
    """
    folder = Path(results) / "figures"
    rank = {name: number for number, name in enumerate(FIGURES)}
    asked = [path for name in sources.figures(params) if (path := folder / f"{name}.png").is_file()]
    found = sorted(asked, key=lambda path: (rank.get(path.stem, len(rank)), path.name))
    general: dict[str, Path] = {}
    of_run: dict[str, list[Path]] = {name: [] for name in params.runs}
    for path in found:
        owners = [name for name in params.runs if path.stem.endswith(f"-{name}")]
        if owners:
            of_run[max(owners, key=len)].append(path)
        else:
            vector = path.with_suffix(".svg")
            general[path.stem] = vector if vector.is_file() else path
    return general, of_run


def _inlined(path: Path) -> tuple[str, int, int]:
    """A picture as a data URI, a bitmap no wider than WIDTH as WebP; width and height, which keep its place on the page."""
    if path.suffix == ".svg":
        content = path.read_bytes()
        found = re.search(rb'viewBox="[\d.]+ [\d.]+ ([\d.]+) ([\d.]+)"', content)
        width, height = (round(float(size) * 4 / 3) for size in found.groups()) if found else (960, 640)  # pt to px
        return f"data:image/svg+xml;base64,{base64.b64encode(content).decode()}", width, height
    from PIL import Image

    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=78, method=5)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}", *picture.size
