"""Every file that a job reads is among its declared inputs, found by watching the real commands on the tiny data set.

inotify tells of each file that is opened for reading, by whatever library.
"""

import copy
import ctypes
import os
import re
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import tiny_settings

from vexkd import settings

from .conftest import ROOT

RUNS = ["fusion-det", "centerpoint-det", "centerpoint-seg", "centerpoint-det-vexkd"]
TAUGHT = "centerpoint-det-vexkd"
FIGURES = {"blocks": [TAUGHT], "missing-sensor": ["fusion-det"], "latency": ["centerpoint-det"]}
FIGURES |= {kind: [TAUGHT] for kind in ("camera", "errors", "energy", "masks")}
TOWN = {"scenes": 4, "samples": 3, "image_size": [160, 90], "beams": 16, "azimuths": 240, "sweeps_per_sample": 2}
SUMMARY, LATENCY = (f"results/runs/centerpoint-det/{name}.json" for name in ("summary", "latency"))
# Beside declared weights, and never another with the same weights: what a training wrote with them where it learns masks, and
# what it cost.
BESIDE_WEIGHTS = {"masks.safetensors", "benchmark.tsv"}
# Raw data, which the infos and doctor's manifest stand for, and a training's own state.
APART = ("data/", "logs/", "scratch/")
CLOSED_AFTER_READING = 0x10  # inotify's IN_CLOSE_NOWRITE


@dataclass
class Job:
    """A job of a dry run: its rule, declared inputs and outputs, and its command."""

    rule: str
    inputs: set[str]
    outputs: set[str]
    command: str


class Watch:
    """The files below a folder that are opened for reading while it is entered, hidden folders left out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.read: set[str] = set()

    def __enter__(self) -> "Watch":
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._handle = self._libc.inotify_init1(os.O_NONBLOCK)
        self._names = {}
        for place, folders, _ in os.walk(self.folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            number = self._libc.inotify_add_watch(self._handle, os.fsencode(place), CLOSED_AFTER_READING)
            assert number > 0, f"{place}: inotify ends with {ctypes.get_errno()}"
            self._names[number] = Path(place).relative_to(self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        events = b""
        while True:
            try:
                events += os.read(self._handle, 1 << 20)
            except BlockingIOError:
                break
        os.close(self._handle)
        while events:
            number, _, _, length = struct.unpack_from("iIII", events)
            name = events[16 : 16 + length].rstrip(b"\0").decode()
            events = events[16 + length :]
            assert number > 0, "more events than inotify keeps"
            path = self._names[number] / name
            if name and (self.folder / path).is_file():
                self.read.add(path.as_posix())


def planned(folder: Path, *arguments: str) -> list[Job]:
    """The jobs of a dry run with their commands, in an order in which they can run."""
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(ROOT / "workflow/Snakefile"),
        "--directory",
        str(folder),
    ]
    done = subprocess.run(
        [*command, "--cores", "1", "-n", "-p", *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = []
    for block in re.split(r"^(?:local)?rule ", done.stdout + done.stderr, flags=re.MULTILINE)[1:]:
        fields = dict(re.findall(r"^    (input|output): (.*)$", block, flags=re.MULTILINE))
        shell = re.search(r"^Shell command: (.*)$", block, flags=re.MULTILINE)
        files = {name: {file.strip() for file in fields.get(name, "").split(",")} for name in ("input", "output")}
        if shell and shell[1] != "None":  # a target alone
            found.append(Job(block.split(":")[0], files["input"], files["output"], shell[1]))
    return found


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {name: value for name, value in os.environ.items() if not name.startswith("SNAKEMAKE")}
    return {**own, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def reads(job: Job, folder: Path) -> set[str]:
    """Run a job's command; the files that it reads, those that it makes itself left out."""
    for file in job.outputs:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
    log = re.search(r"(logs/\S+\.log)", job.command)
    if log:
        (folder / log[1]).parent.mkdir(parents=True, exist_ok=True)
    before = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    with Watch(folder) as watch:
        done = subprocess.run(["bash", "-c", job.command], cwd=folder, env=environment(), check=False)
    said = (folder / log[1]).read_text() if log and (folder / log[1]).is_file() else ""
    assert done.returncode == 0, f"{job.command}\n{said}"
    return (watch.read & before) - job.outputs


def undeclared(job: Job, read: set[str]) -> list[str]:
    """What a job reads without declaring it."""
    beside = {f"{Path(file).parent.as_posix()}/{name}" for file in job.inputs for name in BESIDE_WEIGHTS}
    return sorted(file for file in read - job.inputs - beside if not file.startswith(APART))


@pytest.fixture
def experiment(tmp_path) -> Path:
    raw = copy.deepcopy(tiny_settings())
    for kind in settings.KINDS:
        raw[kind] = {
            name: {k: v for k, v in row.items() if k != "start"} for name, row in raw[kind].items() if name in RUNS
        }
    raw |= {"root": "data/town", "synthetic": {"seed": 0, **TOWN}, "tables": {"main": RUNS}, "figures": FIGURES}
    raw |= {name: {} for name in ("reported", "floors")}
    raw["train"] |= {"epochs": 1}
    (tmp_path / "params.yaml").write_text(settings.dump(raw))
    return tmp_path


@pytest.mark.slow
def test_every_read_is_declared(experiment):
    for job in planned(experiment, SUMMARY):  # tables show it once it is there
        assert not undeclared(job, reads(job, experiment))
    jobs = planned(experiment, "all")
    of_data = {"train", "predict", "evaluate", "predict_without", "evaluate_without", "inspect", "latency"}
    shown = {
        "table",
        "curves",
        "distillation",
        "birdseye",
        "map_figure",
        "chart",
        "camera",
        "errors",
        "energy",
        "masks",
    }
    assert of_data | shown | {"report_page"} <= {job.rule for job in jobs}
    found, seen = {}, {}
    for job in jobs:
        seen[job.rule] = reads(job, experiment)
        found[f"{job.rule}: {' '.join(sorted(job.outputs))}"] = undeclared(job, seen[job.rule])
        if job.rule == "train":  # Snakemake writes it beside the weights
            weights = next(file for file in job.outputs if file.endswith("weights.safetensors"))
            (experiment / weights).with_name("benchmark.tsv").write_text("s\tmax_rss\n1.0\t1.0\n")
    assert "artifacts/infos/boxes.parquet" in seen["train"]  # read by Arrow
    assert f"models/{TAUGHT}/seed0/weights.safetensors" in seen["inspect"]  # read by safetensors
    for rule in ("table", "report_page"):
        assert {SUMMARY, LATENCY} <= seen[rule]
    assert not {job: files for job, files in found.items() if files}
