"""Numbers in text are made by rules: tables are copied between markers in a Markdown file, never typed."""

from __future__ import annotations

import os
import re
from pathlib import Path

from vexkd import provenance
from vexkd.errors import InputError
from vexkd.report.result_tables import ALL_COLUMNS

_BEGIN = re.compile(r"<!-- table:([A-Za-z0-9_-]+):begin -->")


def update(readme: Path, *, results: Path, check: bool = False) -> bool:
    """Put the short tables and notes of `results/tables/<name>.md` between each `<!-- table:<name>:begin -->` and
    `<!-- table:<name>:end -->`, with links to all columns.

    Returns whether the file changes; with `check` it is left alone. Raises InputError for a marker without its end and
    for a table that is not there.
    """
    readme = Path(readme)
    if not readme.is_file():
        raise InputError(f"{readme}: there is no such file; name the Markdown file that holds the table markers.")
    old = readme.read_text(encoding="utf-8")
    new, position = "", 0
    while begin := _BEGIN.search(old, position):
        name = begin[1]
        end = old.find(f"<!-- table:{name}:end -->", begin.end())
        if end < 0 or _BEGIN.search(old, begin.end(), end):
            raise InputError(f"{readme}: the marker 'table:{name}:begin' has no 'table:{name}:end' after it; add it.")
        table = Path(results) / "tables" / f"{name}.md"
        if not table.is_file():
            raise InputError(f"{table}: there is no such table; make it with 'snakemake --cores all table_{name}'.")
        new += old[position : begin.end()] + f"\n\n{_short(table, readme.parent)}\n\n"
        position = end
    new += old[position:]
    if new != old and not check:
        provenance.write_text(readme, new)
    return new != old


def _short(table: Path, folder: Path) -> str:
    """What a table shows at first, and links from a folder to the rest."""
    short, details, _ = table.read_text(encoding="utf-8").partition(ALL_COLUMNS)
    if not details:  # of an earlier version
        return short.strip()
    page, numbers = (Path(os.path.relpath(path, folder)).as_posix() for path in (table, table.with_suffix(".csv")))
    return f"{short.strip()}\n\nAll columns: [{table.name}]({page}), [{table.stem}.csv]({numbers})."
