"""A cluster for the tests, and checkouts in which the stand-in for `vexkd` takes its time."""

import fcntl
import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from workflow.conftest import ROOT, Place, checkout, outside  # noqa: F401 - fixtures

from slurm.cluster import Cluster, missing
from vexkd import settings

CALL = ["snakemake", "--profile", "slurm", "--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "5"]
RUNS = ["fusion-det", "centerpoint-det", "centerpoint-det-vexkd"]
STEPS = 20


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A real Slurm; skips where there can be none. One at a time: other test processes wait until it is down."""
    if not importlib.util.find_spec("snakemake_executor_plugin_slurm"):
        pytest.skip("needs the extra [slurm]")
    with (Path(tempfile.gettempdir()) / "vexkd-slurm.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if reason := missing():
            pytest.skip(f"no Slurm here: {reason}")
        folder = Path(tempfile.mkdtemp(prefix="vexkd-slurm-", dir=os.environ.get("VEXKD_SLURM_FOLDER")))
        started = Cluster(folder)
        started.up()
        try:
            yield started
        finally:
            started.down()
            shutil.rmtree(folder)


def made(folder: Path) -> dict[str, bytes]:
    """All results and weights of a checkout, but for how long they took."""
    files = [file for part in ("models", "results") for file in folder.glob(f"{part}/**/*") if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files if file.name != "benchmark.tsv"}


def unlike(found: dict[str, bytes], expected: dict[str, bytes]) -> dict[str, str]:
    """Files that only one of two checkouts has, or that differ, with the end of both."""
    names = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    return {
        name: f"{found.get(name, b'absent')[-300:]!r} for {expected.get(name, b'absent')[-300:]!r}" for name in names
    }


@dataclass
class Session:
    """`snakemake --profile slurm` in a checkout, whose trainings can be watched."""

    place: Place
    cluster: Cluster
    processes: list[subprocess.Popen] = field(default_factory=list)

    def start(self, *arguments: str) -> subprocess.Popen:
        """Start the main process; its output goes to the file `main.out`."""
        with (self.place.folder.parent / "main.out").open("ab") as out:
            process = subprocess.Popen(
                [*CALL, *arguments], cwd=self.place.folder, env=self.place.environment, stdout=out, stderr=out
            )
        self.processes.append(process)
        return process

    def output(self) -> str:
        file = self.place.folder.parent / "main.out"
        return file.read_text() if file.exists() else ""

    def finish(self, process: subprocess.Popen, seconds: float = 500) -> None:
        """Wait for the main process to succeed."""
        assert process.wait(timeout=seconds) == 0, self.output()

    def fail(self, *arguments: str) -> str:
        """The output of a call that fails."""
        before = len(self.output())
        assert self.start(*arguments).wait(timeout=300) != 0, self.output()
        return self.output()[before:]

    def attempts(self, run: str) -> str:
        """What the failed attempts at a training wrote, each under a line with its status."""
        return (self.place.folder / f"scratch/attempts/train-{run}-seed0.log").read_text()

    def steps(self) -> list[str]:
        """Run, seed and number of each step that was trained."""
        log = Path(f"{self.place.environment['STAND_IN_CALLS']}.steps")
        return log.read_text().splitlines() if log.exists() else []

    def wait_for_step(self, run: str, step: int, seconds: float = 300) -> None:
        self.wait_until(lambda: f"{run} 0 {step}" in self.steps(), f"{run} never came to step {step}", seconds)

    def wait_until(self, ready: Callable[[], bool], problem: str, seconds: float = 300) -> None:
        end = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < end, f"{problem}:\n{self.output()}"
            time.sleep(0.2)

    def job(self, run: str) -> tuple[str, str]:
        """Number and node of the running training of a run."""
        rows = self.cluster.call("squeue", "-h", "-t", "R", "-o", "%A|%N|%k").splitlines()
        found = [row.split("|") for row in rows if row.endswith(f"|rule_train_wildcards_{run}_0")]
        assert len(found) == 1, rows
        return found[0][0], found[0][1]

    def profile(self, **changes) -> None:
        """Change the resources of a training in the checkout's profile."""
        file = self.place.folder / "workflow/profiles/slurm/config.yaml"
        profile = yaml.safe_load(file.read_text())
        profile["set-resources"]["train"].update(changes)
        file.write_text(yaml.safe_dump(profile))

    def hasten(self) -> None:
        """Say in the checkout's profile what CALL says on the command line."""
        file = self.place.folder / "workflow/profiles/slurm/config.yaml"
        options = {"slurm-init-seconds-before-status-checks": 1, "latency-wait": 5}
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | options))

    def assert_nothing_was_trained_twice(self, again: int = 0) -> None:
        """All steps of all runs, each once but for the few between the last saved state and a sudden end."""
        counts = Counter(self.steps())
        assert set(counts) == {f"{run} 0 {step}" for run in RUNS for step in range(STEPS)}
        assert {counts[f"{run} 0 0"] for run in RUNS} == {1}
        assert sum(counts.values()) - len(counts) <= again


@pytest.fixture(scope="session")
def prepared(checkout) -> Place:  # noqa: F811
    """A checkout of a teacher, a student and its distilled run in which the data are prepared."""
    place = checkout()
    raw = settings.read(place.folder / "demo" / "params.yaml")
    for kind in settings.KINDS:
        raw[kind] = {name: row for name, row in raw[kind].items() if name in RUNS}
    raw["teachers"]["fusion-det"].pop("start")
    raw |= {"tables": {"main": RUNS}, "figures": {}}
    (place.folder / "params.yaml").write_text(settings.dump(raw))
    place.environment |= {"STAND_IN_STEPS": str(STEPS), "STAND_IN_STEP_SECONDS": "0.15"}
    place.snakemake("--", "prepare")
    return place


@pytest.fixture(scope="session")
def undisturbed(prepared, tmp_path_factory) -> dict[str, bytes]:
    """What is made on one machine without Slurm, by one process after another."""
    folder = tmp_path_factory.mktemp("undisturbed") / "repository"
    shutil.copytree(prepared.folder, folder, symlinks=True)
    place = prepared.at(folder)
    place.environment["STAND_IN_STEP_SECONDS"] = "0"
    place.snakemake()
    return made(folder)


@pytest.fixture(scope="module")
def session(prepared, cluster, tmp_path_factory) -> Iterator[Callable[[], Session]]:
    """Makes a copy of the prepared checkout, times included; ends its main processes in the end."""
    sessions: list[Session] = []

    def make() -> Session:
        folder = tmp_path_factory.mktemp("session") / "repository"
        shutil.copytree(prepared.folder, folder, symlinks=True)
        place = prepared.at(folder)
        place.environment["SLURM_CONF"] = str(cluster.configuration)
        sessions.append(Session(place, cluster))
        return sessions[-1]

    yield make
    for each in sessions:
        for process in each.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
