"""Around it: readiness, cost, progress."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vexkd.cli.app import app
from vexkd.cli.options import Device, Models, ParamsFile, Results, Threads
from vexkd.errors import InputError

if TYPE_CHECKING:
    from vexkd.measure.cost import Probe
    from vexkd.settings import Params


@app.command(rich_help_panel="Operations")
def forecast(
    names: Annotated[list[str] | None, typer.Argument(metavar="TABLE", help="tables; default: all runs")] = None,
    params: ParamsFile = Path("params.yaml"),
    runs: Annotated[list[str] | None, typer.Option(help="only this run; again for more")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of a training (processes, on CPU)")] = 1,
    workers: Annotated[
        int | None, typer.Option(min=0, help="loader processes of each; default: 8 on GPUs, none on CPU")
    ] = None,
    budget: Annotated[float | None, typer.Option(min=0, help="GPU-hours (CPU-hours): which tables fit")] = None,
    root: Annotated[Path | None, typer.Option(help="nuScenes' folder, to measure on real samples")] = None,
    infos: Annotated[Path | None, typer.Option(help="folder that `vexkd infos` wrote; counts the samples too")] = None,
    probe: Annotated[Path | None, typer.Option(help="stored measurements to use instead of measuring")] = None,
    save_probe: Annotated[Path | None, typer.Option(help="where to store the measurements")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="where to write all numbers")] = None,
    steps: Annotated[int, typer.Option(min=1, help="measured steps after one to warm up")] = 1,
    micro: Annotated[int, typer.Option(min=1, help="samples a step is measured with")] = 1,
    threads: Threads = None,
    device: Device = None,
) -> None:
    """Measure a few steps of each distinct model and print hours, memory, disk and time limits of runs and tables."""
    from vexkd import provenance
    from vexkd import settings as module
    from vexkd.measure import cost
    from vexkd.report import result_tables

    settings = module.load(params)
    chosen = names or list(settings.tables)
    wanted = cost.needed(settings, [row for name in names for row in settings.table(name)]) if names else settings.runs
    kept = [name for name in wanted if not runs or name in runs]
    for name in runs or []:
        if settings.run(name).name not in kept:
            raise InputError(f"{params}: run {name} is not in {', '.join(chosen)}; name its table or leave it out.")
    if not kept:
        raise InputError(f"{params}: there is no run to forecast; name a table with rows.")
    found = cost.load_probe(probe) if probe else _measure(settings, kept, root, infos, steps, micro, threads, device)
    if save_probe:
        found.save(save_probe)
    loaders = workers if workers is not None else 0 if found.unit == "CPU" else 8
    result = cost.forecast(
        settings,
        found,
        kept,
        chosen,
        counter=cost.Counter(settings, infos),
        devices=gpus,
        workers=loaders,
        budget=budget,
    )
    for head, rows in (cost.run_cells(result), cost.table_cells(result)):
        print(result_tables.markdown(result_tables.Cells(head, rows, notes=[])).strip(), end="\n\n")
    print("\n".join(f"- {note}" for note in cost.notes(result)))
    if json:
        provenance.write_json(json, result.values())


def _measure(
    settings: Params,
    names: list[str],
    root: Path | None,
    infos: Path | None,
    steps: int,
    micro: int,
    threads: int | None,
    device: str | None,
) -> Probe:
    """The hardware at hand, measured; progress goes to stderr."""
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning, module="spconv")
    import torch

    from vexkd.measure import forecast as module

    if threads:
        torch.set_num_threads(threads)
    return module.measure(
        settings,
        names,
        root=root,
        infos=infos,
        steps=steps,
        micro=micro,
        device=device,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )


@app.command(rich_help_panel="Operations")
def preflight(
    params: ParamsFile = Path("params.yaml"),
    root: Annotated[Path | None, typer.Option(help="nuScenes' folder; default: `root` of the settings")] = None,
    scratch: Annotated[Path, typer.Option(help="folder of the resumable states")] = Path("scratch"),
    gpus: Annotated[int, typer.Option(min=0, help="GPUs that a job on this machine will ask for")] = 0,
    limit: Annotated[float, typer.Option(min=1, help="seconds for processes to find one another")] = 60.0,
) -> None:
    """Look for what would stop a job before one is queued: versions, GPUs, data, disk, clocks, processes, commit."""
    from vexkd import settings as module
    from vexkd.measure import preflight as checks

    settings = module.load(params)
    found = checks.run(
        settings,
        root=root or Path(settings.root),
        scratch=scratch,
        gpus=gpus,
        limit=limit,
        tell=lambda check: print(check, flush=True),
    )
    errors = sum(check.status == "error" for check in found)
    if errors:
        raise InputError(f"{errors} of {len(found)} checks failed; mend what their lines say before queueing jobs.")


@app.command(rich_help_panel="Operations")
def status(
    params: ParamsFile = Path("params.yaml"),
    results: Results = Path("results"),
    models: Models = Path("models"),
    scratch: Annotated[Path, typer.Option(help="folder of the resumable states")] = Path("scratch"),
    logs: Annotated[Path, typer.Option(help="folder of the jobs' logs")] = Path("logs"),
    watch: Annotated[float | None, typer.Option(min=0.5, help="look again every so many seconds")] = None,
) -> None:
    """Show every run and seed: done, running (how far, where, how long still), waiting for what, failed and why."""

    from vexkd.measure import status as module

    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        module.show(params, module.Places(results, models, scratch, logs), watch=watch)


@app.command(rich_help_panel="Operations")
def tensorboard(
    runs: Annotated[list[str] | None, typer.Argument(metavar="RUN", help="default: all runs")] = None,
    params: ParamsFile = Path("params.yaml"),
    models: Models = Path("models"),
    scratch: Annotated[Path, typer.Option(help="folder of the resumable states")] = Path("scratch"),
    out: Annotated[Path, typer.Option(help="folder for `tensorboard --logdir`")] = Path("logs/tensorboard"),
    watch: Annotated[float | None, typer.Option(min=1, help="add what is new every so many seconds")] = None,
) -> None:
    """Write training curves as TensorBoard's event files; of a training that goes on, up to its last saved state."""

    from vexkd import settings as module
    from vexkd.measure.status import Places
    from vexkd.report import tensorboard as events

    settings = module.load(params)
    pairs = [(settings.run(name).name, seed) for name in runs or settings.runs for seed in settings.seeds]
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        events.write(pairs, Places(models=models, scratch=scratch), out, watch=watch)
