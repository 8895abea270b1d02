"""Models: size, speed, export, weights of others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vexkd.cli.app import verb
from vexkd.cli.options import (
    HERE,
    AllRuns,
    Device,
    Here,
    OptionalRun,
    RandomWeights,
    RealInfos,
    RealRoot,
    RunName,
    RunNames,
    Seed,
    Threads,
    Weights,
)
from vexkd.errors import InputError

PANEL = "Models"

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vexkd.settings import Params


@verb(PANEL, example="vexkd summary centerpoint-det --depth 1")
def summary(
    run: OptionalRun = None,
    all_runs: Annotated[bool, typer.Option("--all", help="every distinct model of the settings")] = False,
    depth: Annotated[int, typer.Option(min=0, help="how many levels each part is opened further")] = 0,
    only_parameters: Annotated[bool, typer.Option("--params-only", help="count parameters, compute nothing")] = False,
    root: RealRoot = None,
    infos: RealInfos = None,
    json: Annotated[Path | None, typer.Option("--json", help="where to write the numbers")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="page to write the models into, between its markers: docs/MODELS.md")
    ] = None,
    threads: Threads = None,
    experiment: Here = HERE,
) -> None:
    """Print the parts of a model: parameters, multiply-adds and FLOPs, output shapes, activation memory."""
    from vexkd import provenance
    from vexkd.report import models_page

    params = experiment.params
    if bool(run) == all_runs:
        raise InputError("name one run, or pass --all for every distinct model.")
    names = None if run is None else [params.run(run).name]
    summaries = []
    for values in _summaries(params, names, depth, only_parameters, root, infos, threads):
        print(f"{values['run']}\n\n{models_page.table(values)}\n", flush=True)
        summaries.append(values)
    if json:
        provenance.write_json(json, summaries if all_runs else summaries[0])
    if markdown:
        models_page.update(markdown, summaries)


def _summaries(
    params: Params,
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
    yield from module.summaries(params, names, depth=depth, only_parameters=only_parameters, root=root, infos=infos)


@verb(PANEL, example="vexkd latency centerpoint-det --random")
def latency(
    run: OptionalRun = None,
    seed: Seed = 0,
    weights: Weights = None,
    random: RandomWeights = False,
    root: RealRoot = None,
    infos: RealInfos = None,
    repeats: Annotated[int, typer.Option(min=1, help="measured samples")] = 50,
    warmup: Annotated[int, typer.Option(min=0, help="unmeasured samples before them")] = 5,
    precision: Annotated[Literal["fp32", "bf16", "fp16"], typer.Option(help="of the computation")] = "fp32",
    threads: Threads = None,
    device: Device = None,
    experiment: Here = HERE,
) -> None:
    """Time a model from bytes to boxes, one sample at a time, by stages; into results/runs/RUN/latency.json."""
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning, module="spconv")
    import torch

    from vexkd.measure import latency as measuring

    if threads:
        torch.set_num_threads(threads)
    measured = measuring.write(
        run,
        params=None if run is None and root is not None else experiment.params,
        experiment=experiment,
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
    print(measuring.in_words(measured))


@verb(PANEL, example="vexkd export centerpoint-det -o student.onnx")
def export(
    out: Annotated[Path, typer.Option("--out", "-o", help="ONNX file to write")],
    run: OptionalRun = None,
    seed: Seed = 0,
    weights: Weights = None,
    random: RandomWeights = False,
    root: RealRoot = None,
    infos: RealInfos = None,
    sample: Annotated[int, typer.Option(min=0, help="which sample of the validation split has the rig")] = 0,
    experiment: Here = HERE,
) -> None:
    """Write the dense part of a single-sensor model as ONNX and check it against PyTorch (needs the extra `export`)."""
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)

    from vexkd.measure import export as exporting

    print(
        exporting.write(
            run,
            out,
            params=None if run is None and root is not None else experiment.params,
            experiment=experiment,
            seed=seed,
            weights=weights,
            random=random,
            root=root,
            infos=infos,
            sample=sample,
        )
    )


@verb(
    PANEL,
    name="import-weights",
    example="vexkd import-weights lidar-pretrain bevfusion_lidar.pth --from mmdet3d-bevfusion",
)
def import_weights(
    run: RunName,
    file: Annotated[Path, typer.Argument(help="published checkpoint: .pth of tensors alone, or .safetensors")],
    origin: Annotated[
        Literal[
            "mmdet3d-bevfusion", "mmdet3d-centerpoint", "mmdet3d-bevdet", "bevformer", "torchvision", "transformers"
        ],
        typer.Option("--from", help="whose layout it has"),
    ],
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="weights file to write; default: that of the run with --seed")
    ] = None,
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
    experiment: Here = HERE,
) -> None:
    """Turn a published checkpoint into weights of a run, with a report of what fitted (docs/WEIGHTS.md)."""
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning, module="spconv")

    from vexkd.published import convert

    row = experiment.params.run(run)
    out = out or experiment.training(run, seed).weights
    print(convert.write(row, file, out, origin=origin, part=part, boxes=boxes, weights=weights))


@verb(PANEL, name="fetch-weights", example="vexkd fetch-weights --all")
def fetch_weights(
    runs: RunNames = None,
    all_runs: AllRuns = False,
    experiment: Here = HERE,
) -> None:
    """Fetch the published weights that image backbones start from; training itself never asks the network."""
    from vexkd.published import fetch

    params = experiment.params
    names = list(params.runs) if all_runs else [params.run(name).name for name in runs or []]
    if not names:
        raise InputError("no run was named to fetch weights for; name some or pass --all.")
    done = dict.fromkeys(fetch.fetch(params.run(name)) for name in names)
    print("\n".join(line for line in done if line) or "random starts alone: there is nothing to fetch")
