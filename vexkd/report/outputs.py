"""Tables, figures and the page of an experiment, each held to what it shows by its record; see `vexkd.content`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from vexkd import content, products
from vexkd.content import Digests, Product
from vexkd.experiment import HERE
from vexkd.report import records, sources
from vexkd.report.results import is_of_model
from vexkd.settings import Params

TABLES, FIGURES, PAGE = HERE.tables, HERE.figures, HERE.page


def of_report(params: Params, digests: Digests) -> Iterator[Product]:
    """What shows the results of an experiment's folder, which is the working directory: the page last."""
    for run in params.runs.values():
        yield _summary(params, run.name)
    for name in params.tables:
        if params.table(name):
            names, settings = sources.of_table(name, params), sources.table_settings(name, params)
            yield _files(TABLES / name, records.TABLE_FILES, names, settings, digests, f"table-{name}")
    for name, figure in sources.figures(params).items():
        names, settings = sources.of_figure(name, params), sources.figure_settings(name, params)
        shared = f"figure-{name}" if name in params.figures and not figure.is_picture else None
        yield _files(FIGURES / name, records.FIGURE_FILES, names, settings, digests, shared)
    names = sources.of_page(params)
    judge = partial(records.page_problem, PAGE, names, sources.page_settings(params), digests)
    tables = [TABLES / f"{name}.md" for name in params.tables]
    runs = [HERE.run(run) for run in params.runs]
    files = [file for run in runs for file in (run.config, run.inference)]
    yield Product(str(PAGE), (PAGE,), (*map(Path, names), *tables, *files), judge)


def problems(params: Params) -> list[str]:
    """One sentence for each table, figure and page that is there and is not what would be made now, or does not say so."""
    sentences, digests = [], Digests(content.MEMORY)
    for product in of_report(params, digests):
        present = [path for path in product.outputs if path.is_file()]
        if not present or product.name.endswith("summary.json"):
            continue
        verdict = product.judge()
        if verdict is None:
            verdict = (
                f"{present[0]} does not say what it was made from; remove it and run snakemake, which makes it again."
            )
        sentences += [verdict] if verdict else []
    digests.save()
    return sentences


def _files(
    stem: Path, endings: tuple[str, ...], names: list[str], settings: str, digests: Digests, shared: str | None
) -> Product:
    """The files under one name with their record. shared: the file of settings that the rule depends on."""
    outputs = tuple(stem.with_name(f"{stem.name}.{ending}") for ending in (*endings, "provenance.json"))
    judge = partial(records.problem, stem, endings, names, settings, digests)
    inputs = [path for name in names for path in _each(name)]
    return Product(str(stem), outputs, (*inputs, *([HERE.shared_settings(shared)] if shared else [])), judge)


def _each(name: str) -> tuple[Path, ...]:
    """The files behind a name of `vexkd.report.sources`."""
    return {sources.INFOS: products.INFOS, sources.MAPS: products.MAPS}.get(name, (Path(name),))


def _summary(params: Params, run: str) -> Product:
    """A run's counted parameters and FLOPs, held to the settings of its model."""
    file = HERE.run(run).summary
    return Product(str(file), (file,), (HERE.run(run).config,), partial(_judge_summary, params, run, file))


def _judge_summary(params: Params, run: str, file: Path) -> str:
    return "" if is_of_model(run, params, file) else f"{file} is not of the model that {run} has now."
