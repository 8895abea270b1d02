"""Arguments and options that several verbs share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from vexkd.errors import InputError
from vexkd.experiment import Experiment


def enter(folder: str | Experiment) -> Experiment:
    """Go to an experiment's folder, as `git -C` and `make -C` do: other paths of the call are relative to it."""
    if isinstance(folder, Experiment):  # the default
        return Experiment()
    try:
        os.chdir(folder)
    except OSError as error:
        raise InputError(f"-C {folder}: {os.strerror(error.errno)}; name the folder of an experiment.") from None
    return Experiment()


def run_names(incomplete: str) -> list[str]:
    """The runs of the working directory's params.yaml, for shell completion."""
    try:
        return [name for name in Experiment().params.runs if name.startswith(incomplete)]
    except (InputError, OSError):
        return []


HERE = Experiment()  # the default of every verb; `enter` makes a new one of it for each call
Here = Annotated[
    Experiment,
    typer.Option(
        "-C", "--folder", metavar="FOLDER", parser=enter, show_default=False, help="run in this experiment's folder"
    ),
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="name of the run", autocompletion=run_names)]
RunNames = Annotated[
    list[str] | None, typer.Argument(metavar="RUN", help="names of runs", autocompletion=run_names, show_default=False)
]
AllRuns = Annotated[bool, typer.Option("--all", help="every run of the settings")]
OptionalRun = Annotated[
    str | None, typer.Argument(metavar="RUN", help="name of the run; default: that of --weights", show_default=False)
]
Seed = Annotated[int, typer.Option(min=0, help="seed of the random numbers, which names the training")]
FirstSeed = Annotated[int | None, typer.Option(min=0, help="which of the trained seeds; default: the first")]
SampleToken = Annotated[str | None, typer.Option(help="sample token; default: the sample with the most boxes")]
Root = Annotated[Path | None, typer.Option(help="nuScenes' folder; default: `root` of the settings")]
Version = Annotated[str | None, typer.Option(help="folder of the tables, such as v1.0-trainval")]
RealRoot = Annotated[Path | None, typer.Option(help="nuScenes' folder, to use real samples instead of made-up ones")]
RealInfos = Annotated[Path | None, typer.Option(help="folder that `vexkd infos` wrote, to use real samples")]
Weights = Annotated[Path | None, typer.Option(help="weights from elsewhere; default: the run's own")]
RandomWeights = Annotated[bool, typer.Option("--random", help="random weights: no training is needed")]
Workers = Annotated[int, typer.Option(min=1, help="parallel processes")]
Loaders = Annotated[int, typer.Option(min=0, help="loader processes; 0 loads in the process itself")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of torch; default: torch's own choice")]
Device = Annotated[Literal["cpu"] | None, typer.Option(help="`cpu` to leave a GPU unused")]
