"""report.html: what was run, every table and figure, and a section for each run, in one file that needs no network.

`templates/` holds the page's HTML; the modules here gather what it shows. Text is escaped, pictures are inlined, there is no
script. A table's cells lead to the runs' sections, these back to its rows. The same results make the same file, so that a
page made again is no change to git.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jinja2

from vexkd import provenance
from vexkd.errors import InputError
from vexkd.report import records, result_tables, sources
from vexkd.report.page import pictures, run_section
from vexkd.report.page.html_table import HtmlTable
from vexkd.report.results import Results, dataset
from vexkd.report.table_text import WORDS, Part

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class _Part:
    """The rows of one task of a table. title: None where the table has one task alone."""

    title: str | None
    short: HtmlTable
    full: HtmlTable


@dataclass(frozen=True)
class _Table:
    """A table with its notes. missing: why it cannot be shown yet."""

    name: str
    parts: list[_Part]
    notes: list[str]
    missing: str | None = None


def make(results: Results) -> Path:
    """Write results/report.html from what is in the results folder; what is not there yet is said, not refused."""
    path, folder = results.experiment.page, results.experiment.folder
    names, settings = sources.of_page(results.params, folder), sources.page_settings(results.params)
    provenance.write_text(path, records.signed(document(results), names, settings, folder))
    return path


def document(results: Results) -> str:
    """The whole page."""
    params = results.params
    general, of_run = pictures.of_page(results)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2").render(
        title="VeXKD: results",
        lead=_lead(results),
        origin=_origin(results),
        runs=list(params.runs),
        overview=_overview(results),
        tables=[_table(name, results) for name in params.tables],
        figures=general,
        sections=[run_section.section(results.run(name), of_run[name]) for name in params.runs],
    )


def _lead(results: Results) -> str:
    names = list(results.params.runs)
    data = dataset(results.params, names)
    finished = sum(results.run(name).is_finished for name in names)
    return f"{data[0].upper()}{data[1:]}. {finished} of {len(names)} runs have results."


def _origin(results: Results) -> str:
    """What the page was made from. No time and no commit of its own: it is what its inputs make it."""
    settings = Path(results.params.path).name
    beside = "the results beside this file, which name the commits, times and commands that made them"
    return f"Made by vexkd page from {settings} and {beside}."


def _overview(results: Results) -> HtmlTable:
    """Every run in one line."""
    head = ["Run", "Kind", "Task", "Sensors", "Head", "Teacher", "Epochs", "State"]
    rows = []
    for name, run in results.params.runs.items():
        state = "done" if results.run(name).is_finished else "no results"
        kind = run_section.KINDS.get(run.kind, run.kind)
        cells = [kind, run.task, " + ".join(run.sensors), run.head, run.teacher or "", str(run.train.epochs), state]
        rows.append([name, *cells])
    seeds = ", ".join(map(str, results.params.seeds))
    caption = f"Settings: {Path(results.params.path).name}, seeds {seeds}."
    return HtmlTable(head, rows, caption=caption, label="Runs", words=set(head) - {"Epochs"})


def _table(name: str, results: Results) -> _Table:
    """A table with its notes, or why it cannot be shown yet."""
    try:
        text = result_tables.read(name, results).text
    except InputError as error:
        return _Table(name, [], [], missing=str(error))
    parts = [_part(name, part, several=len(text.parts) > 1) for part in text.parts]
    return _Table(name, parts, [*text.notes, *text.legend])


def _part(name: str, part: Part, *, several: bool) -> _Part:
    label = f"Table {name}, {part.title.lower()}" if several else f"Table {name}"
    short = HtmlTable(part.short.head, part.short.rows, label, set(WORDS), caption_hidden=True, anchor=f"row-{name}")
    full = HtmlTable(part.full.head, part.full.rows, f"{label}, all columns", set(WORDS), caption_hidden=True)
    return _Part(part.title if several else None, short, full)
