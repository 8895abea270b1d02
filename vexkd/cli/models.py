"""Models: size, speed, export, weights of others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vexkd.cli.app import app
from vexkd.cli.options import Device, Models, ParamsFile, Results, Threads
from vexkd.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vexkd.settings import Params


@app.command(rich_help_panel="Models")
def summary(
    run: Annotated[str | None, typer.Argument(help="name of the run")] = None,
    all_runs: Annotated[bool, typer.Option("--all", help="every distinct model of the settings")] = False,
    params: ParamsFile = Path("params.yaml"),
    depth: Annotated[int, typer.Option(min=0, help="how many levels each part is opened further")] = 0,
    only_parameters: Annotated[bool, typer.Option("--params-only", help="count parameters, compute nothing")] = False,
    root: Annotated[
        Path | None, typer.Option(help="nuScenes' folder, for a real sample in place of a made-up one")
    ] = None,
    infos: Annotated[Path | None, typer.Option(help="folder that `vexkd infos` wrote")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="where to write the numbers")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="page to write the models into, between its markers: docs/MODELS.md")
    ] = None,
    threads: Threads = None,
) -> None:
    """Print the parts of a model: parameters, multiply-adds and FLOPs, output shapes, activation memory."""
    from vexkd import provenance
    from vexkd import settings as module
    from vexkd.report import models_page

    settings = module.load(params)
    if bool(run) == all_runs:
        raise InputError("name one run, or pass --all for every distinct model.")
    names = None if run is None else [settings.run(run).name]
    found = []
    for values in _summaries(settings, names, depth, only_parameters, root, infos, threads):
        print(f"{values['run']}\n\n{models_page.table(values)}\n", flush=True)
        found.append(values)
    if json:
        provenance.write_json(json, found if all_runs else found[0])
    if markdown:
        models_page.update(markdown, found)


def _summaries(
    settings: Params,
    names: list[str] | None,
    depth: int,
    only_parameters: bool,
    root: Path | None,
    infos: Path | None,
    threads: int | None,
) -> Iterator[dict[str, Any]]:
    """Summaries of these runs, or of every distinct model."""
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning, module="spconv")
    import torch

    from vexkd.measure import summary as module

    if threads:
        torch.set_num_threads(threads)
    yield from module.summaries(settings, names, depth=depth, only_parameters=only_parameters, root=root, infos=infos)


@app.command(rich_help_panel="Models")
def latency(
    run: Annotated[str | None, typer.Argument(help="name of the run; default: that of --weights")] = None,
    params: ParamsFile = Path("params.yaml"),
    results: Results = Path("results"),
    models: Models = Path("models"),
    seed: Annotated[int, typer.Option(min=0, help="which of the trained weights")] = 0,
    weights: Annotated[Path | None, typer.Option(help="weights that stand elsewhere")] = None,
    random: Annotated[bool, typer.Option("--random", help="random weights: no training is needed")] = False,
    root: Annotated[Path | None, typer.Option(help="nuScenes' folder: real samples, and the time to read them")] = None,
    infos: Annotated[Path | None, typer.Option(help="folder that `vexkd infos` wrote")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="measured samples")] = 50,
    warmup: Annotated[int, typer.Option(min=0, help="unmeasured samples before them")] = 5,
    precision: Annotated[Literal["fp32", "bf16", "fp16"], typer.Option(help="of the computation")] = "fp32",
    threads: Threads = None,
    device: Device = None,
) -> None:
    """Time a model from bytes to boxes, one sample at a time, by stages; into results/runs/RUN/latency.json."""
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning, module="spconv")
    import torch

    from vexkd import settings as module
    from vexkd.measure import latency as measuring

    if threads:
        torch.set_num_threads(threads)
    found = measuring.write(
        run,
        params=None if run is None and root is not None else module.load(params),
        results=results,
        models=models,
        seed=seed,
        weights=weights,
        random=random,
        root=root,
        infos=infos,
        repeats=repeats,
        warmup=warmup,
        dtype=precision,
        device=device,
    )
    print(measuring.in_words(found))


@app.command(rich_help_panel="Models")
def export(
    out: Annotated[Path, typer.Option("--out", "-o", help="ONNX file to write")],
    run: Annotated[str | None, typer.Argument(help="name of the run; default: that of --weights")] = None,
    params: ParamsFile = Path("params.yaml"),
    models: Models = Path("models"),
    seed: Annotated[int, typer.Option(min=0, help="which of the trained weights")] = 0,
    weights: Annotated[Path | None, typer.Option(help="weights that stand elsewhere")] = None,
    random: Annotated[bool, typer.Option("--random", help="random weights: no training is needed")] = False,
    root: Annotated[
        Path | None, typer.Option(help="nuScenes' folder: the rig of a camera run, and a real check")
    ] = None,
    infos: Annotated[Path | None, typer.Option(help="folder that `vexkd infos` wrote")] = None,
    sample: Annotated[int, typer.Option(min=0, help="which sample of the validation split has the rig")] = 0,
) -> None:
    """Write the dense part of a single-sensor model as ONNX and check it against PyTorch (needs the extra `export`)."""
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)

    from vexkd import settings as module
    from vexkd.measure import export as exporting

    print(
        exporting.write(
            run,
            out,
            params=None if run is None and root is not None else module.load(params),
            models=models,
            seed=seed,
            weights=weights,
            random=random,
            root=root,
            infos=infos,
            sample=sample,
        )
    )


@app.command("import-weights", rich_help_panel="Models")
def import_weights(
    file: Annotated[Path, typer.Argument(help="published checkpoint: .pth of tensors alone, or .safetensors")],
    origin: Annotated[
        Literal[
            "mmdet3d-bevfusion", "mmdet3d-centerpoint", "mmdet3d-bevdet", "bevformer", "torchvision", "transformers"
        ],
        typer.Option("--from", help="whose layout it has"),
    ],
    run: Annotated[str, typer.Option(help="name of the run whose model it becomes")],
    out: Annotated[Path, typer.Option("--out", "-o", help="weights file to write")],
    params: ParamsFile = Path("params.yaml"),
    part: Annotated[
        Literal["backbone", "lidar", "camera", "all"] | None,
        typer.Option(help="what must be complete; default: all, of an image backbone's file the backbone"),
    ] = None,
    boxes: Annotated[
        Literal["current", "legacy"] | None,
        typer.Option(help="its boxes: legacy before mmdetection3d 1.0; default: legacy for bevformer, else current"),
    ] = None,
    weights: Annotated[
        Literal["raw", "averaged"] | None,
        typer.Option(help="which set, where the file holds raw weights and their moving average"),
    ] = None,
) -> None:
    """Turn a published checkpoint into weights of a run, with a report of what fitted (docs/WEIGHTS.md)."""
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning, module="spconv")

    from vexkd import settings as module
    from vexkd.published import convert

    row = module.load(params).run(run)
    print(convert.write(row, file, out, origin=origin, part=part, boxes=boxes, weights=weights))


@app.command("fetch-weights", rich_help_panel="Models")
def fetch_weights(
    runs: Annotated[list[str] | None, typer.Argument(metavar="RUN", help="runs to fetch for")] = None,
    all_runs: Annotated[bool, typer.Option("--all", help="every run of the settings")] = False,
    params: ParamsFile = Path("params.yaml"),
) -> None:
    """Fetch the published weights that image backbones start from; training itself never asks the network."""
    from vexkd import settings as module
    from vexkd.published import fetch

    settings = module.load(params)
    names = list(settings.runs) if all_runs else [settings.run(name).name for name in runs or []]
    if not names:
        raise InputError("no run was named to fetch weights for; name some or pass --all.")
    done = dict.fromkeys(fetch.fetch(settings.run(name)) for name in names)
    print("\n".join(line for line in done if line) or "random starts alone: there is nothing to fetch")
