"""Around it: readiness, cost, progress."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vexkd.cli.app import verb
from vexkd.cli.options import HERE, Device, Here, RunNames, Threads
from vexkd.errors import InputError

PANEL = "Operations"

if TYPE_CHECKING:
    from vexkd.measure.cost import Probe
    from vexkd.settings import Params


@verb(PANEL, example="vexkd forecast main --gpus 8")
def forecast(
    names: Annotated[list[str] | None, typer.Argument(metavar="TABLE", help="tables; default: all runs")] = None,
    runs: Annotated[list[str] | None, typer.Option(help="only this run; again for more")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs per training (processes on CPU)")] = 1,
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
    experiment: Here = HERE,
) -> None:
    """Measure a few steps of each distinct model and print hours, memory, disk and time limits of runs and tables."""
    from vexkd import provenance
    from vexkd.measure import cost
    from vexkd.report import table_markup

    settings = experiment.params
    chosen = names or list(settings.tables)
    wanted = cost.needed(settings, [row for name in names for row in settings.table(name)]) if names else settings.runs
    kept = [name for name in wanted if not runs or name in runs]
    for name in runs or []:
        if settings.run(name).name not in kept:
            raise InputError(
                f"{settings.path}: run {name} is not in {', '.join(chosen)}; name its table or leave it out."
            )
    if not kept:
        raise InputError(f"{settings.path}: there is no run to forecast; name a table with rows.")
    probe_used = (
        cost.load_probe(probe) if probe else _measure(settings, kept, root, infos, steps, micro, threads, device)
    )
    if save_probe:
        probe_used.save(save_probe)
    loaders = workers if workers is not None else 0 if probe_used.unit == "CPU" else 8
    result = cost.forecast(
        settings,
        probe_used,
        kept,
        chosen,
        counter=cost.Counter(settings, infos),
        devices=gpus,
        workers=loaders,
        budget=budget,
    )
    for head, rows in (cost.run_cells(result), cost.table_cells(result)):
        print(table_markup.markdown(head, rows), end="\n\n")
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


@verb(PANEL, example="vexkd preflight --gpus 8")
def preflight(
    gpus: Annotated[int, typer.Option(min=0, help="GPUs that a job on this machine will ask for")] = 0,
    limit: Annotated[float, typer.Option(min=1, help="seconds for processes to find one another")] = 60.0,
    experiment: Here = HERE,
) -> None:
    """Check before queueing jobs that none will fail: versions, GPUs, data, disk, clocks, processes, commit."""
    from vexkd.measure import preflight as checks

    results = checks.run(
        experiment.params,
        root=experiment.root,
        scratch=experiment.scratch,
        gpus=gpus,
        limit=limit,
        tell=lambda check: print(check, flush=True),
    )
    errors = sum(check.status == "error" for check in results)
    if errors:
        raise InputError(f"{errors} of {len(results)} checks failed; mend what their lines say before queueing jobs.")


@verb(PANEL, example="vexkd status --watch 30")
def status(
    watch: Annotated[float | None, typer.Option(min=0.5, help="look again every so many seconds")] = None,
    experiment: Here = HERE,
) -> None:
    """Show every run and seed: done, running (how far, where, how long still), waiting for what, failed and why."""
    from vexkd.measure import status as module

    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        module.show(experiment, watch=watch)


@verb(PANEL, example="vexkd tensorboard --watch 60")
def tensorboard(
    runs: RunNames = None,
    out: Annotated[Path, typer.Option(help="folder for `tensorboard --logdir`")] = Path("logs/tensorboard"),
    watch: Annotated[float | None, typer.Option(min=1, help="add what is new every so many seconds")] = None,
    experiment: Here = HERE,
) -> None:
    """Write training curves of some runs, by default of all, as TensorBoard's event files.

    Of a training that goes on, up to its last saved state.
    """
    from vexkd.report import tensorboard as events

    params = experiment.params
    pairs = [(params.run(name).name, seed) for name in runs or params.runs for seed in params.seeds]
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        events.write(pairs, experiment, out, watch=watch)
