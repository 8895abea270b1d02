#!/usr/bin/env python3
"""The real `vexkd` on a real Slurm, disturbed at random moments: is what it makes the same as undisturbed?

    python tests/slurm/trial.py [--minutes 15] [--seed 0] [--install] [--folder FOLDER] [--params FILE [--undisturbed FOLDER]]

A small town and six runs of both tasks, one of them on two GPUs (null devices: two processes on the CPU). They are made
once without Slurm and undisturbed; then `snakemake --profile slurm --directory ...` makes them again and again while jobs,
processes, nodes and Snakemake itself are ended, and each time the same command is given again as a user would. Prints what
was done to it, and fails if weights, curves, predictions, metrics, tables or figures differ. Root; see cluster.py.

With --params it is the experiment of that file, all of it on one GPU each, and --undisturbed names a folder in which it was
made already: `--params demo/params.yaml --undisturbed demo` after `make demo`.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the other tests' modules, where this is run by itself

from conftest import ROOT, tiny_settings

from slurm.cluster import Cluster, ClusterError, commands, install
from vexkd import seal
from vexkd.settings import KINDS, dump, load

RUNS = ["lidar-pretrain", "fusion-det", "centerpoint-det", "centerpoint-det-vexkd", "fusion-seg", "centerpoint-seg"]
PAIRED = "centerpoint-det-vexkd"  # the run on two GPUs
ON_TWO = f"2 if wildcards.run == '{PAIRED}' else 1"
EPOCHS = 12
TOWN = {"scenes": 4, "samples": 3, "image_size": [160, 90], "beams": 16, "azimuths": 240, "sweeps_per_sample": 2}
# What says how, where and when something was made, not what: it differs between any two runs.
RECORDS = {"provenance.json", "benchmark.tsv", "latency.json", "report.html"}  # the last shows costs
PARTS = ("models/**/*", "results/runs/**/*", "results/tables/*", "results/figures/*")
COSTS = re.compile(r"hours|seconds|memory|GB", re.IGNORECASE)  # such columns of tables
CALL = ["snakemake", "--profile", "slurm", "--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "10"]
SLOW = 1800.0  # seconds after the last disturbance within which all must be made


def settings() -> dict:
    """Runs at test size, with dropout, that take long enough to be disturbed."""
    raw = copy.deepcopy(tiny_settings())
    for kind in KINDS:
        raw[kind] = {name: row for name, row in raw[kind].items() if name in RUNS}
    raw["tables"], raw["reported"], raw["figures"] = {"main": RUNS}, {}, {}
    raw["synthetic"] |= TOWN
    raw["train"] |= {"epochs": EPOCHS, "batch": 2}
    for row in [*raw["teachers"].values(), *raw["students"].values()]:
        row["train"] = {**row.get("train", {}), "epochs": EPOCHS}
    raw["mgfm"]["dropout"] = raw["transfusion"]["dropout"] = raw["distill"]["mask_dropout"] = 0.1
    raw["distill"] |= {"stop_mask_epoch": EPOCHS // 2}
    return raw


def resources(**training: object) -> dict:
    """Those of trainings and predictions, for both profiles; the result depends on the number of processes alone."""
    each = {"gpu": 1, "tasks_per_gpu": 0, "nodes": 1, "workers": 0}
    each |= {"mem_mb": 1000, "runtime": 60}
    return {
        "train": {**each, "checkpoint_minutes": "0.05", **training},
        "predict": each | {"gpu": training.get("gpu", 1)},
    }


def make_checkout(folder: Path, **training: object) -> None:
    """The workflow's files, with small resources in both profiles, changed for trainings as asked."""
    shutil.copytree(ROOT / "workflow", folder / "workflow", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("local", "slurm"):
        (folder / name).symlink_to(f"workflow/profiles/{name}")
        file = folder / name / "config.yaml"
        profile = yaml.safe_load(file.read_text()) | {"set-resources": resources(**training)}
        profile["set-threads"] = {"train": 1, "predict": 1}
        file.write_text(yaml.safe_dump(profile))


class Trial:
    """One folder: the checkout, the prepared experiment, what was made of it undisturbed, and disturbed copies."""

    def __init__(self, folder: Path, cluster: Cluster, file: Path | None = None, made: Path | None = None) -> None:
        """The runs of `settings`, or those of a file, which may stand undisturbed in the folder `made`."""
        self.folder, self.cluster, self.file, self.made = folder, cluster, file, made
        self.checkout, self.prepared, self.undisturbed = (folder / name for name in ("checkout", "prepared", "alone"))
        self.undisturbed = made or self.undisturbed
        own = {name: value for name, value in os.environ.items() if not name.startswith(("SNAKEMAKE", "XDG", "SLURM"))}
        path = os.pathsep.join([str(Path(sys.executable).parent), own["PATH"]])
        private = {"XDG_CONFIG_HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}
        here = {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SLURM_CONF": str(cluster.configuration)}
        self.environment = {**own, **private, **here}

    def prepare(self) -> None:
        """Prepare the data, and make everything once: without Slurm, undisturbed. What stands there already is kept."""
        if not self.checkout.exists():
            make_checkout(self.checkout, **({} if self.file else {"gpu": ON_TWO}))
        self.prepared.mkdir(exist_ok=True)
        asked = load(self.file).raw if self.file else settings()
        (self.prepared / "params.yaml").write_text(dump(asked))
        self._local(self.prepared, "prepare")
        if self.made is not None:
            return
        if not self.undisturbed.exists():
            shutil.copytree(self.prepared, self.undisturbed, symlinks=True)
        self._local(self.undisturbed)

    def copy(self, name: str) -> Path:
        """The prepared experiment again, times included."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return Path(shutil.copytree(self.prepared, self.folder / name, symlinks=True))

    def start(self, experiment: Path, *arguments: str) -> subprocess.Popen:
        """The literal command on an experiment; its output goes to a file beside it."""
        command = [*CALL, "--directory", str(experiment), *arguments]
        with self.log(experiment).open("ab") as out:
            return subprocess.Popen(command, cwd=self.checkout, env=self.environment, stdout=out, stderr=out)

    def log(self, experiment: Path) -> Path:
        return experiment.with_suffix(".log")

    def processes(self, experiment: Path) -> list[tuple[int, str]]:
        """Number and words of each process of a training or prediction of an experiment."""
        found = []
        for pid, command in commands():
            words = re.search(
                r"(attempt\.py|vexkd-launch|vexkd) .*?\b(train|predict) .*?--out models/([a-z-]+)", command
            )
            if not words or "snakemake" in command or "bash -c" in command:
                continue
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/cwd") == str(experiment):
                    found.append((pid, " ".join(words.groups())))
        return found

    def release_held(self) -> None:
        """Let jobs start that Slurm holds back for two minutes after their node was lost or they were preempted."""
        for number, _, reason in (
            line.partition("|") for line in self.cluster.call("squeue", "-h", "-o", "%A|%r").split()
        ):
            if reason == "BeginTime":
                with contextlib.suppress(ClusterError):
                    self.cluster.call("scontrol", "update", f"JobId={number}", "StartTime=now")

    def hurry(self, main: subprocess.Popen, seconds: float = 600) -> None:
        """Wait for the main process, without Slurm's pauses."""
        wait_for(lambda: (self.release_held(), main.poll() is not None)[1], "Snakemake does not end", seconds)

    def _local(self, experiment: Path, *targets: str) -> None:
        command = ["snakemake", "--profile", "local", "--directory", str(experiment), "--cores", "2", "--", *targets]
        done = subprocess.run(command, cwd=self.checkout, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


class Disturber:
    """Does one thing at a time to a running experiment, chosen at random; says what."""

    def __init__(self, trial: Trial, experiment: Path, rng: random.Random) -> None:
        self.trial, self.cluster, self.experiment, self.rng = trial, trial.cluster, experiment, rng
        self.done: Counter[str] = Counter()
        self.returning: dict[str, float] = {}  # nodes that come back at a time
        self.ways: dict[Callable[[], str], int] = {
            self.cancel: 3, self.kill_process: 4, self.ask_process: 2, self.lose_node: 2, self.restart_daemon: 1,
            self.kill_main: 1, self.ask_main: 1,
        }  # fmt: skip

    def disturb(self, main: subprocess.Popen) -> str:
        """Something happens; empty where what was chosen had nothing to happen to."""
        self.main = main
        way = self.rng.choices(list(self.ways), weights=list(self.ways.values()))[0]
        said = way()
        if said:
            self.done[way.__name__] += 1
        return said

    def mend(self, *, all_nodes: bool = False) -> None:
        """Lost nodes come back, and a job that Slurm holds back for two minutes after that need not wait."""
        for node, at in list(self.returning.items()):
            if all_nodes or time.monotonic() > at:
                self.cluster.start_node(node)
                del self.returning[node]
        self.trial.release_held()

    def cancel(self) -> str:
        jobs = self.cluster.call("squeue", "-h", "-o", "%A|%k|%T").split()
        if not jobs:
            return ""
        number, rule, state = self.rng.choice(sorted(jobs)).split("|")
        with contextlib.suppress(ClusterError):
            self.cluster.call("scancel", number)
        return f"scancel {number} ({rule}, {state})"

    def kill_process(self) -> str:
        return self._signal(signal.SIGKILL)

    def ask_process(self) -> str:
        return self._signal(self.rng.choice([signal.SIGTERM, signal.SIGUSR1]))

    def _signal(self, number: signal.Signals) -> str:
        """To one process of a training or prediction: a worker, torchrun, or the script around them."""
        found = sorted(self.trial.processes(self.experiment))
        if not found:
            return ""
        pid, words = self.rng.choice(found)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        return f"{number.name} to {words}"

    def lose_node(self) -> str:
        """Daemon and jobs are killed; it comes back after some seconds, seen as lost by then or not."""
        return self._lose(with_jobs=True)

    def restart_daemon(self) -> str:
        """The daemon alone is killed, its jobs go on."""
        return self._lose(with_jobs=False)

    def _lose(self, *, with_jobs: bool) -> str:
        if self.returning:
            return ""
        node, away = self.rng.choice(["n1", "n2"]), self.rng.uniform(1, 25)
        if with_jobs:
            self.cluster.kill_node(node)
        else:
            self.cluster.stop(node, signal.SIGKILL)
        self.returning[node] = time.monotonic() + away
        return f"slurmd of {node} killed{' with its jobs' if with_jobs else ''}, back in {away:.0f} s"

    def kill_main(self) -> str:
        self.main.kill()
        return "SIGKILL to Snakemake's main process"

    def ask_main(self) -> str:
        number = self.rng.choice([signal.SIGTERM, signal.SIGINT])
        self.main.send_signal(number)
        return f"{number.name} to Snakemake's main process"


def disturbed(trial: Trial, name: str, rng: random.Random, seconds: float, tell: Callable[[str], None]) -> Counter[str]:
    """Make the experiment while it is disturbed for so many seconds; returns how often each thing happened."""
    experiment = trial.copy(name)
    disturber = Disturber(trial, experiment, rng)
    began = time.monotonic()
    main, seen, failures = trial.start(experiment), 0, 0
    pause = began + rng.uniform(5, 15)
    try:
        while True:
            time.sleep(0.3)
            now = time.monotonic()
            over = now - began > seconds
            with contextlib.suppress(ClusterError):
                disturber.mend(all_nodes=over)
            if now - began > seconds + SLOW:
                raise SystemExit(f"not finished {SLOW:.0f} s after the last disturbance; see {trial.log(experiment)}")
            if main.poll() is None:
                if not over and now > pause:
                    pause = now + rng.uniform(4, 14)
                    if said := disturber.disturb(main):
                        tell(f"{now - began:5.0f} s  {said}")
                continue
            if main.returncode == 0:
                break
            output = trial.log(experiment).read_text()
            output, seen = output[seen:], len(output)
            failures += over and "cannot be locked" not in output and "Slurm still runs jobs" not in output
            if failures > 3:
                raise SystemExit(f"fails undisturbed; see {trial.log(experiment)}")
            tell(f"{now - began:5.0f} s  {answer(trial, disturber, output, rng)}")
            main = trial.start(experiment)
    finally:
        if main.poll() is None:
            main.kill()
        main.wait()
        disturber.mend(all_nodes=True)
    tell(f"{time.monotonic() - began:5.0f} s  all is made")
    return disturber.done


def answer(trial: Trial, disturber: Disturber, output: str, rng: random.Random) -> str:
    """What a user does when Snakemake has ended, by what it said last; then the same command is given again."""
    if "cannot be locked" in output:
        trial.start(disturber.experiment, "--unlock").wait()
        return "--unlock, and again"
    if "Slurm still runs jobs" in output:
        numbers = re.search(r"scancel ([\d ]+)`", output)
        if numbers and rng.random() < 0.5:
            trial.cluster.call("scancel", *numbers[1].split())
            wait_for_queue(trial, disturber)
            return f"scancel {numbers[1]}, and again"
        wait_for_queue(trial, disturber)
        return "waited for the jobs left in the queue, and again"
    return "ended; the same command again"


def wait_for(ready: Callable[[], object], problem: str, seconds: float = 300) -> None:
    """Until it is so."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise AssertionError(f"{problem} after {seconds:.0f} s")
        time.sleep(0.3)


def wait_for_queue(trial: Trial, disturber: Disturber) -> None:
    """Until no job is queued."""

    def empty() -> bool:
        with contextlib.suppress(ClusterError, subprocess.SubprocessError):
            disturber.mend()
            return not trial.cluster.call("squeue", "-h")
        return False

    wait_for(empty, "the jobs left in the queue do not end")


def differences(made: Path, expected: Path) -> list[str]:
    """Files of two experiments that are not the same, costs and provenance apart."""
    files = [
        {str(file.relative_to(folder)) for part in PARTS for file in folder.glob(part) if file.is_file()}
        for folder in (made, expected)
    ]  # fmt: skip
    odd = [f"{name} is made by one of them alone" for name in sorted(files[0] ^ files[1])]
    return odd + [
        f"{name} differs" for name in sorted(files[0] & files[1]) if content(made / name) != content(expected / name)
    ]


def content(file: Path) -> object:
    """What must be the same in a file."""
    if file.name in RECORDS or file.name.endswith(".provenance.json"):
        return None
    if file.suffix == ".safetensors":
        tensors, start = seal.safetensors_header(file)
        header = {name: value for name, value in tensors.pop("__metadata__").items() if name != "provenance"}
        inputs = json.loads(
            header.get("inputs", "{}")
        )  # hashes of whole files; those of weights cover their provenance
        header["inputs"] = {name: value for name, value in inputs.items() if name not in ("start", "teacher")}
        return header, tensors, file.read_bytes()[start:]
    if file.parent.name == "tables":
        separator = {".csv": ",", ".md": "|", ".tex": "&"}[file.suffix]
        return without_costs(file.read_text(), separator)
    return file.read_bytes()


def without_costs(text: str, separator: str) -> list[list[str]]:
    """Cells of a table without the columns whose head names a cost."""
    rows = [[cell.strip() for cell in line.split(separator)] for line in text.splitlines()]
    head = max(rows[:12], key=len)
    costs = {number for number, cell in enumerate(head) if COSTS.search(cell)}
    kept = [[c for n, c in enumerate(row) if len(row) != len(head) or n not in costs] for row in rows]
    return [[re.sub("-{3,}:?", "---", cell) for cell in row] for row in kept]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--install", action="store_true", help="install Debian's packages where they are missing")
    parser.add_argument(
        "--folder", type=Path, help="kept, and what is undisturbed in it used again; default: temporary"
    )
    parser.add_argument("--params", type=Path, help="settings of the experiment; default: small runs of its own")
    parser.add_argument("--undisturbed", type=Path, help="where that experiment was made; default: it is made first")
    options = parser.parse_args()
    if options.undisturbed and not options.params:
        parser.error("--undisturbed needs --params, the settings it was made with")
    if options.install:
        install()
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="vexkd-trial-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(folder / "cluster")
    cluster.up()
    try:
        trial = Trial(folder, cluster, options.params, options.undisturbed)
        began = time.monotonic()
        trial.prepare()
        print(f"{folder}: made undisturbed, without Slurm, in {time.monotonic() - began:.0f} s", flush=True)
        rng, counts, number, problems = random.Random(options.seed), Counter(), 0, []
        began = time.monotonic()
        while (left := 60 * options.minutes - (time.monotonic() - began)) > 0:
            number += 1
            print(f"round {number}", flush=True)
            counts += disturbed(trial, f"round-{number}", rng, left, lambda line: print(f"  {line}", flush=True))
            problems += [
                f"round {number}: {line}" for line in differences(folder / f"round-{number}", trial.undisturbed)
            ]
    finally:
        cluster.down()
    words = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    print(f"{number} rounds in {(time.monotonic() - began) / 60:.1f} minutes, {counts.total()} disturbances: {words}")
    if problems:
        sys.exit("\n".join(["NOT THE SAME:", *problems, f"see {folder}"]))
    print("weights, curves, predictions, metrics, tables and figures: the same as undisturbed")
    if not options.folder:
        shutil.rmtree(folder)


if __name__ == "__main__":
    try:
        main()
    except ClusterError as error:
        sys.exit(str(error))
