"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Root = Annotated[Path, typer.Option(help="nuScenes' folder: samples/ sweeps/ maps/ and the tables' folder")]
Version = Annotated[str, typer.Option(help="folder of the tables, for instance v1.0-trainval")]
InfosDir = Annotated[Path, typer.Option(help="folder that `vexkd infos` wrote")]
Workers = Annotated[int, typer.Option(min=1, help="parallel processes")]
ParamsFile = Annotated[Path, typer.Option(help="settings file")]
Results = Annotated[Path, typer.Option(help="results folder")]
Models = Annotated[Path, typer.Option(help="folder of the trained models")]
RunName = Annotated[str, typer.Argument(help="name of the run")]
DistilledRun = Annotated[str, typer.Argument(help="name of the distilled run")]
Student = Annotated[str, typer.Option(help="name of the run to compare it with, its student alone")]
Seed = Annotated[int, typer.Option(min=0, help="of the random numbers; of trained weights, which of them")]
SampleToken = Annotated[str | None, typer.Option(help="sample token; default: the fullest of the split")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of torch; default: torch's own choice")]
Device = Annotated[Literal["cpu"] | None, typer.Option(help="cpu, or nothing for the GPU that is there")]
