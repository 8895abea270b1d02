"""Tables, figures, the page and the README's tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vexkd.cli.app import verb
from vexkd.cli.options import HERE, FirstSeed, Here, SampleToken
from vexkd.errors import InputError

PANEL = "Results"


@verb(PANEL, example="vexkd table main -C demo")
def table(name: Annotated[str, typer.Argument(help="a table of params.yaml")], experiment: Here = HERE) -> None:
    """Write results/tables/NAME.{csv,md,tex} and its provenance from the runs' metrics."""
    from vexkd.report import result_tables
    from vexkd.report.results import Results

    result_tables.make(name, Results(experiment))


@verb(PANEL, example="vexkd figure birdseye-centerpoint-det -C demo")
def figure(
    name: Annotated[
        str | None, typer.Argument(help="name of the figure's files; default: list the figures", show_default=False)
    ] = None,
    seed: FirstSeed = None,
    sample: SampleToken = None,
    experiment: Here = HERE,
) -> None:
    """Draw one figure into results/figures: a chart of several runs, or a picture of one keyframe."""
    from vexkd.report import figures, sources
    from vexkd.report.results import Results

    if name is None:
        print("\n".join(sources.figures(experiment.params)))
    else:
        figures.draw(name, Results(experiment), seed=seed, sample=sample)


@verb(PANEL, example="vexkd page -C demo")
def page(experiment: Here = HERE) -> None:
    """Write results/report.html: every table, figure and run in one file to open in a browser."""
    from vexkd.report import page as module
    from vexkd.report.results import Results

    print(module.make(Results(experiment)))


@verb(PANEL, example="vexkd readme --check")
def readme(
    file: Annotated[Path, typer.Argument()] = Path("README.md"),
    results: Annotated[Path, typer.Option(help="results folder whose tables it shows")] = Path("demo/results"),
    check: Annotated[bool, typer.Option("--check", help="change nothing; fail if it would")] = False,
) -> None:
    """Put the tables of a results folder between their markers in the README."""
    from vexkd.report import readme as module

    changed = module.update(file, results=results, check=check)
    if check and changed:
        raise InputError(f"{file}: its tables differ from {results}/tables; run `make readme`.")


@verb(PANEL, example="vexkd clean --remove")
def clean(
    remove: Annotated[bool, typer.Option("--remove", help="remove what is listed; the default only lists it")] = False,
    experiment: Here = HERE,
) -> None:
    """List files of runs, seeds, tables and figures that params.yaml no longer has, in results, models and dvc.lock."""
    from vexkd import leftovers

    left_over = leftovers.find(experiment.params)
    for item in left_over:
        print(item)
    if remove:
        leftovers.remove(left_over)
        print(f"{len(left_over)} removed.")
    elif left_over:
        print("`vexkd clean --remove` removes these; DVC's cache and git's history keep what was recorded of them.")
    else:
        print(f"Nothing is left over from other settings than those of {experiment.params.path}.")
