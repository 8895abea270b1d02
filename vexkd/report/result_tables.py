"""Result tables: one CSV for machines, Markdown and LaTeX for people, and a record of where every row came from.

A table is a list of runs in params.yaml, of either task. The way of a number: metrics.json, `results.FinishedRun.metrics`,
`table_rows.row` (the CSV), `table_text.table_text` (cells and notes), `table_markup`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from vexkd import provenance
from vexkd.errors import InputError
from vexkd.report import records, row_provenance, sources, table_markup
from vexkd.report.results import FinishedRun, Results
from vexkd.report.table_rows import cost, row
from vexkd.report.table_text import WORDS, Cells, TableText, table_text

ALL_COLUMNS = "<details>"  # where a table's Markdown goes on with the columns that its short tables lack


@dataclass(frozen=True)
class Table:
    """The numbers of a table. marked: why a run was not made as the others, by its name."""

    runs: list[FinishedRun]
    frame: pd.DataFrame
    marked: dict[str, str]

    @property
    def text(self) -> TableText:
        return table_text(self.frame, self.runs, self.marked)


def read(name: str, results: Results) -> Table:
    """A table of params.yaml.

    Raises InputError for an unknown table, and for a run (or the student behind a distilled one) without results.
    """
    names = results.params.table(name)
    if not names:
        raise InputError(f"{results.params.path}: tables.{name} has no rows; add the name of a run.")
    runs = [results.run(each) for each in names]
    marked = row_provenance.unlike_most(runs)
    frame = pd.DataFrame([row(run, marked=run.name in marked) for run in runs])
    optional = ("flops_giga", "latency_ms", "fps", "latency_device")
    frame = frame.drop(columns=[column for column in optional if frame[column].isna().all()])
    return Table(runs, frame, marked)


def make(name: str, results: Results) -> None:
    """Write `results/tables/<name>.{csv,md,tex}` and `<name>.provenance.json`; raises InputError as `read`."""
    table, stem = read(name, results), results.experiment.tables / name
    text = table.text
    provenance.write_text(stem.with_name(f"{name}.csv"), table.frame.to_csv(index=False))
    provenance.write_text(stem.with_name(f"{name}.md"), markdown(text, csv=f"{name}.csv"))
    provenance.write_text(stem.with_name(f"{name}.tex"), latex(text))
    folder = results.experiment.folder
    names, settings = sources.of_table(name, results.params, folder), sources.table_settings(name, results.params)
    files = records.of_files(stem, records.TABLE_FILES, names, settings, folder)
    provenance.write_json(stem.with_name(f"{name}.provenance.json"), {**_record(name, table, results), **files})


def needed(name: str, results: Results) -> list[FinishedRun]:
    """The runs whose results a table reads: its rows, and the students behind its distilled rows."""
    params = results.params
    return [results.run(run) for run in sources.with_students(params, params.table(name))]


def markdown(text: TableText, *, csv: str) -> str:
    """A short table for each task, the notes, and folded away below them the tables with all columns."""
    short = _by_task(text, {part.task: part.short for part in text.parts})
    full = _by_task(text, {part.task: part.full for part in text.parts})
    summary = f"{ALL_COLUMNS}\n<summary>All columns</summary>"
    numbers = f"[All numbers as CSV]({csv})"
    notes, legend = "<br>\n".join(text.notes), "<br>\n".join(text.legend)
    return "\n\n".join([*short, notes, summary, *full, legend, numbers, "</details>"]) + "\n"


def _by_task(text: TableText, cells: dict[str, Cells]) -> list[str]:
    """The tables of the tasks, each under its title where there are several."""
    blocks = []
    for part in text.parts:
        blocks += [f"**{part.title}**"] if len(text.parts) > 1 else []
        blocks.append(table_markup.markdown(cells[part.task].head, cells[part.task].rows, WORDS))
    return blocks


def latex(text: TableText) -> str:
    r"""A booktabs `tabular` with all columns for each task, and notes; to be `\input` inside a table environment."""
    tables = [table_markup.latex(part.full.head, part.full.rows, WORDS) for part in text.parts]
    notes = r" \\ ".join(map(table_markup.tex, [*text.notes, *text.legend]))
    return "\n\n".join([r"% needs \usepackage{booktabs}", *tables, rf"{{\footnotesize {notes}}}"]) + "\n"


def _record(name: str, table: Table, results: Results) -> dict[str, Any]:
    """What stands beside a table: a hash of the settings asked for, and per row what it was made from."""
    params = results.params
    settings = {run.name: [run.settings.training(), run.settings.after_training()] for run in table.runs}
    shown = {run.name for run in needed(name, results)}
    known = {run: value for run, value in params.reported.items() if run in shown}
    known |= {f"floor of {run}": value for run, value in params.floors.items() if run in shown}
    reported = {run: value.model_dump() for run, value in known.items()}
    return provenance.record(
        table=name,
        settings=provenance.digest([settings, reported]),
        synthetic=params.synthetic is not None,
        rows={run.name: _record_of_row(run, table.marked.get(run.name)) for run in table.runs},
    )


def _record_of_row(run: FinishedRun, marked: str | None) -> dict[str, Any]:
    record, seeds = run.provenance, run.provenance["seeds"]
    evaluation = record["evaluation"]
    return {
        "metrics": provenance.file_digest(run.files.metrics),
        "commit": row_provenance.commits(record),
        "dirty": row_provenance.dirty(record),
        "marked": marked,
        "settings": {seed: training.get("settings_digest") for seed, training in seeds.items()},
        "inputs": {seed: training.get("inputs") for seed, training in seeds.items()},
        "dataset": evaluation.get("dataset"),
        "weights": evaluation.get("weights"),
        "environment": {seed: training.get("versions") for seed, training in seeds.items()},
        "hardware": row_provenance.hardware(record),
        "seeds": list(seeds),
        **cost(run.trainings),
        "commands": [part.get("command") for part in [*run.trainings, evaluation]],
    }
