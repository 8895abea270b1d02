"""Environment errors found before the first job is queued: one small check a cause, each with its cure.

Every check returns one `Check`; none changes anything but a file of its own, which it removes. Run as a module, this file
is one process of the ring test.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Literal

from vexkd import code, content, provenance, seal
from vexkd.data import demands, splits, tables
from vexkd.data.infos import load as load_infos
from vexkd.data.maps import map_bytes
from vexkd.errors import InputError
from vexkd.experiment import HERE, Experiment
from vexkd.measure import cost
from vexkd.needs import needed_files
from vexkd.settings import Params

PYTHONS = ((3, 11), (3, 13))  # from, and below
IMPORTED = ("torch", "spconv.pytorch", "accelerate", "transformers", "nuscenes", "snakemake", "dvc")
_PINNED = re.compile(r"([A-Za-z0-9._-]+)==([^\s;]+)")
_INFOS_BYTES = 10_000  # of the infos, a sample: nuScenes' annotations, compressed
_PASTE_BYTES = 200_000  # of the database of objects, a sample: about 34 objects of 300 points with their sweeps
_TOWN_BYTES = {"pixel": 0.35, "point": 20}  # of the embedded town's files
_SLOW_SECONDS, _SKEWED_SECONDS, _WRONG_SECONDS = 1.0, 2.0, 60.0

Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Check:
    """What one check found: its name, how it went, and a sentence that names the cure where there is one."""

    name: str
    status: Status
    text: str

    def __str__(self) -> str:
        return f"{self.status:<8} {self.name:<12} {self.text}"


def run(
    params: Params, *, root: Path, scratch: Path, gpus: int = 0, limit: float = 60.0, tell: Callable[[Check], None]
) -> list[Check]:
    """All checks in turn; `tell` gets each as it is done. `limit`: seconds for the ring test."""
    here = Path.cwd()
    checks: Iterable[Callable[[], Check]] = [
        check_python,
        lambda: check_imports(IMPORTED),
        lambda: check_versions(constraints()),
        lambda: check_gpus(gpus),
        lambda: check_data(params, root),
        lambda: check_demands(params, root),
        lambda: check_disk(plan(params, root=root, scratch=scratch, here=here)),
        *[lambda folder=folder: check_files(folder) for folder in dict.fromkeys([here, existing(scratch)])],
        lambda: check_clock(here),
        lambda: check_times([*root.glob("*/*.json"), HERE.artifacts, HERE.models, HERE.results]),
        lambda: check_ring(**_ring_for(gpus), limit=limit),
        lambda: check_commit(code.version()),
    ]
    results = []
    for check in checks:
        results.append(check())
        tell(results[-1])
    return results


def before_queueing(params: Params) -> list[Check]:
    """The errors among what takes no time to look for, where Snakemake is called to queue jobs: data, folder, clock.

    An embedded data set is made by the workflow itself, and so not looked at. Neither are infos: the rule that makes
    them holds them to what the runs ask for, and those that lie here may be the ones it is about to replace.
    """
    here = Path.cwd()
    results = [check_files(here), check_clock(here)]
    results += [check_data(params, Path(params.root))] if params.synthetic is None else []
    results += [check_splits(params, Path(params.root))]
    return [check for check in results if check.status == "error"]


# ------------------------------------------------------------------------------------------------------------- software


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> Check:
    """Python is one of those that the dependencies have wheels for."""
    words = ".".join(map(str, version))
    if PYTHONS[0] <= version < PYTHONS[1]:
        return Check("python", "ok", words)
    return Check("python", "error", f"{words}; 3.11 or 3.12 is needed: make env PYTHON=/path/to/python3.11.")


def check_imports(names: Iterable[str]) -> Check:
    """The libraries load, not only stand there: a CUDA build without its driver, say, fails here."""
    failures = []
    for name in names:
        try:
            with warnings.catch_warnings(action="ignore"):
                importlib.import_module(name)
        except Exception as error:  # a broken library raises whatever it likes
            reason = (str(error).splitlines() or [""])[0]
            failures.append(f"{name} ({type(error).__name__}: {reason})")
    if failures:
        return Check(
            "imports", "error", f"cannot be imported: {', '.join(failures)}; make the environment again: make env."
        )
    return Check("imports", "ok", ", ".join(names))


def constraints() -> Path:
    """The versions that the results were tested with."""
    return Path(__file__).resolve().parents[2] / "constraints.txt"


def check_versions(path: Path, installed: Callable[[str], str] = metadata.version) -> Check:
    """Installed packages have the versions of constraints.txt; another build of the same (`+cpu`) will do."""
    if not path.is_file():
        return Check(
            "versions", "warning", f"{path} is not there, so versions are not compared; install from a checkout."
        )
    differing, same = [], 0
    for name, pinned in _PINNED.findall(path.read_text(encoding="utf-8")):
        try:
            version = installed(name)
        except metadata.PackageNotFoundError:
            continue
        if version.partition("+")[0] == pinned.partition("+")[0]:
            same += 1
        else:
            differing.append(f"{name} {version} for {pinned}")
    if differing:
        shown = ", ".join(differing[:4]) + (f" and {len(differing) - 4} more" if len(differing) > 4 else "")
        return Check("versions", "warning", f"{shown}; results may differ: pip install -c constraints.txt -e .")
    return Check("versions", "ok", f"{same} packages as in constraints.txt")


def check_gpus(asked: int) -> Check:
    """As many GPUs are seen as jobs will ask for."""
    import torch

    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if seen < asked:
        cure = f"run this where the jobs run: srun --gres=gpu:{asked} vexkd preflight --gpus {asked}"
        if Path("/dev/nvidia0").exists():
            cure = (
                "there is one that torch cannot use: install a torch for this driver, or look at CUDA_VISIBLE_DEVICES"
            )
        return Check("gpus", "error", f"{asked} asked, {seen} seen; {cure}.")
    names = sorted({torch.cuda.get_device_name(i) for i in range(seen)})
    if not asked:
        return Check("gpus", "ok", f"none asked, {seen or 'none'} seen; trainings run on {'GPU' if seen else 'CPU'}")
    return Check("gpus", "ok", f"{asked} asked, {seen} seen: {', '.join(names)}")


# ----------------------------------------------------------------------------------------------------------- data, disk


def check_data(params: Params, root: Path) -> Check:
    """The raw data are visible from here, with the version and tables that the settings name."""
    version = next(iter(params.runs.values())).data.version
    if params.synthetic is not None and not root.exists():
        return Check("data", "ok", f"{root} will be made: the embedded town")
    try:
        folder = tables.folder(root, version)
    except InputError as error:
        return Check("data", "error", str(error))
    absent = [name for name in ("samples", "sweeps") if not (root / name).is_dir()]
    if absent:
        return Check("data", "error", f"{root} lacks {' and '.join(absent)}/; extract nuScenes' file blobs there.")
    if not os.access(next(folder.glob("*.json")), os.R_OK):
        return Check("data", "error", f"{folder} cannot be read by this user; ask its owner for read permission.")
    return Check("data", "ok", f"{root}: {version} with its {len(tables.TABLES)} tables")


def check_demands(params: Params, root: Path) -> Check:
    """What the runs ask for is in the data: by the infos where they are made, by the names of the splits before."""
    name, infos = "demands", HERE.infos
    if not (infos / "samples.parquet").is_file():
        return check_splits(params, root)
    try:
        said = demands.check_all(params.runs, load_infos(infos), root=root)
    except InputError as error:
        return Check(name, "error", str(error))
    return Check(name, "warning" if said else "ok", " ".join(said) or "the data give what the runs ask for")


def check_splits(params: Params, root: Path) -> Check:
    """The splits that the runs name are in the data's tables."""
    name, version = "demands", next(iter(params.runs.values())).data.version
    try:
        if (root / version).is_dir():  # else another check says so
            scenes = [row["name"] for row in tables.rows(root, version, "scene")]
            known = splits.read(root, version, scenes)
            for split in needed_files(params.runs.values())[0]:
                splits.require(known, split, version)
    except InputError as error:
        return Check(name, "error", str(error))
    return Check(name, "ok", "the splits are there; the rest is compared once infos are made")


def existing(path: Path) -> Path:
    """The path, or its nearest parent that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def plan(params: Params, *, root: Path, scratch: Path, here: Path) -> dict[Path, int]:
    """Bytes still to be written, by folder: models and artifacts, resumable states, the embedded town."""
    from vexkd.measure import forecast

    counter, experiment = cost.Counter(params), Experiment(here)
    needs = dict.fromkeys((here, scratch, root), 0)
    sizes: dict[str, dict[str, int]] = {}
    states = []
    for name, row in params.runs.items():
        key = cost.cost_key(params, row)
        if key not in sizes:
            sizes[key] = forecast.sizes(forecast.build_task(params, row))
        samples = _samples(counter, row)
        lasting = sizes[key]["weights"] + cost.prediction_bytes(row, samples.validation)
        for seed in params.seeds:
            if not experiment.training(name, seed).weights.is_file():
                needs[here] += lasting
                states.append(2 * sizes[key]["state"])
    needs[scratch] += sum(states)
    most = max((_samples(counter, row) for row in params.runs.values()), key=lambda s: s.train + s.validation)
    if not experiment.infos_files[0].is_file():
        needs[here] += (most.train + most.validation) * _INFOS_BYTES
    if any(row.paste for row in params.runs.values()) and not experiment.paste_files[1].is_file():
        needs[here] += most.train * _PASTE_BYTES
    if any(row.map for row in params.runs.values()) and not experiment.maps_files[1].is_file():
        drawn = seal.map_settings(params)
        needs[here] += (most.train + most.validation) * map_bytes(drawn["reach"], drawn["cell"])
    town = params.synthetic
    if town is not None and not root.exists():
        pixels = 6 * town.image_size[0] * town.image_size[1] * _TOWN_BYTES["pixel"]
        points = town.beams * town.azimuths * town.sweeps_per_sample * _TOWN_BYTES["point"]
        needs[root] += int(town.scenes * town.samples * (pixels + points))
    return needs


def _samples(counter: cost.Counter, row) -> cost.Samples:
    """The samples of a run; none where its split's size is unknown before the infos are made."""
    try:
        return counter(row)
    except InputError:
        return cost.Samples(0, 0, 0, "unknown")


def check_disk(needs: dict[Path, int], free: Callable[[Path], int] | None = None) -> Check:
    """Each file system has room for what the plan still writes to it, and a fifth more."""
    by_system: dict[int, list[Path]] = {}
    for folder in needs:
        by_system.setdefault(existing(folder).stat().st_dev, []).append(folder)
    status, words = "ok", []
    for folders in by_system.values():
        need = sum(needs[folder] for folder in folders)
        place = existing(folders[0])
        left = free(place) if free else shutil.disk_usage(place).free
        words.append(f"{need / 1e9:.1f} GB to write, {left / 1e9:.1f} GB free at {place}")
        if left < need:
            status = "error"
        elif left < 1.2 * need and status == "ok":
            status = "warning"
    cure = "" if status == "ok" else "; free some, or put models/ and --scratch on a larger file system."
    return Check("disk", status, "; ".join(words) + cure)


def check_files(folder: Path, slow: float = _SLOW_SECONDS) -> Check:
    """Writing, syncing, renaming and reading back work in a folder, and how long they take."""
    name = "files"
    began = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix=".vexkd-preflight-", dir=folder) as scratch:
            probe = os.urandom(1 << 20)
            with provenance.atomic(Path(scratch) / "probe") as temporary:
                temporary.write_bytes(probe)
            if (Path(scratch) / "probe").read_bytes() != probe:
                return Check(
                    name, "error", f"{folder} gives back other bytes than were written; use another file system."
                )
    except OSError as error:
        return Check(name, "error", f"{folder} cannot be written to ({error.strerror}); mend its permissions or quota.")
    taken = time.perf_counter() - began
    words = f"{folder}: 1 MB written, synced, renamed and read in {1000 * taken:.0f} ms"
    if taken > slow:
        return Check(name, "warning", f"{words}; raise latency-wait in the profile, put --scratch on a faster disk.")
    return Check(name, "ok", words)


def check_clock(folder: Path, now: Callable[[], float] = time.time) -> Check:
    """This machine and its file system agree on the time, by which Snakemake decides what is outdated."""
    try:
        with tempfile.NamedTemporaryFile(prefix=".vexkd-preflight-", dir=folder) as stream:
            before = now()
            stream.write(b"time")
            stream.flush()
            os.fsync(stream.fileno())
            written, after = os.stat(stream.name).st_mtime, now()
    except OSError as error:
        return Check(
            "clock", "error", f"{folder} cannot be written to ({error.strerror}); mend its permissions or quota."
        )
    skew = written - after if written > after else min(0.0, written - before)
    words = f"files in {folder} are dated {abs(skew):.1f} s {'after' if skew > 0 else 'before'} this machine's time"
    cure = "; have the clocks set (NTP), or finished work looks outdated."
    if abs(skew) > _WRONG_SECONDS:
        return Check("clock", "error", words + cure)
    if abs(skew) > _SKEWED_SECONDS:
        return Check("clock", "warning", words + cure)
    return Check("clock", "ok", f"within {max(abs(skew), 0.1):.1f} s of the file system's")


def check_times(folders: Iterable[Path]) -> Check:
    """Nothing in the tables' folder or among what was made is dated in the future: what is made from it would look outdated."""
    late = content.from_the_future(folders)
    if not late:
        return Check("times", "ok", "no file is dated in the future")
    more = f" and {len(late) - 1} more" if len(late) > 1 else ""
    words = f"{late[0]}{more} dated in the future; set the clocks right, or `touch` what was copied from elsewhere"
    return Check("times", "warning", f"{words}. Snakemake brings what it has made itself to the present.")


# ----------------------------------------------------------------------------------------------- processes and the code


def _ring_for(gpus: int) -> dict:
    """The GPUs' own ring where there are several to test, else two processes on CPU."""
    import torch

    if 1 < gpus <= torch.cuda.device_count():
        return {"processes": gpus, "backend": "nccl"}
    return {"processes": 2, "backend": "gloo"}


def check_ring(
    *, processes: int = 2, backend: str = "gloo", limit: float = 60.0, environment: dict[str, str] | None = None
) -> Check:
    """Processes on this machine find one another and add their numbers up, within `limit` seconds."""
    name = f"ring {backend}"
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    with tempfile.TemporaryDirectory(prefix="vexkd-ring-") as scratch:
        command = [
            sys.executable,
            "-m",
            "vexkd.measure.preflight",
            backend,
            str(processes),
            str(limit),
            f"{scratch}/store",
        ]
        logs = [Path(scratch) / f"{rank}.log" for rank in range(processes)]
        members = []
        for rank, log in enumerate(logs):
            with log.open("w", encoding="utf-8") as stream:
                members.append(subprocess.Popen([*command, str(rank)], stdout=stream, stderr=stream, env=variables))
        late = _wait(members, limit)
        said = [log.read_text(errors="replace", encoding="utf-8").strip().splitlines() or [""] for log in logs]
    cure = {
        "gloo": "name the network interface, for instance GLOO_SOCKET_IFNAME=lo, and see that the host's name resolves",
        "nccl": "look at it with NCCL_DEBUG=INFO; NCCL_SOCKET_IFNAME names the interface",
    }[backend]
    if late:
        return Check(name, "error", f"{processes} processes did not meet within {limit:.0f} s; {cure}.")
    failed = [rank for rank, member in enumerate(members) if member.returncode]
    if failed:
        return Check(name, "error", f"process {failed[0]} of {processes} failed ({said[failed[0]][-1]}); {cure}.")
    return Check(name, "ok", f"{processes} processes, all-reduce of 4 MB in {said[0][-1]}")


def _wait(members: list[subprocess.Popen], limit: float) -> bool:
    """Wait for all of them until one fails or the time is over, then end those still there. Whether it was over."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline and all(member.returncode in (None, 0) for member in members):
        if all([member.poll() is not None for member in members]):
            return False
        time.sleep(0.05)
    late = all(member.poll() in (None, 0) for member in members)
    for member in members:
        if member.poll() is None:
            member.kill()
        member.wait()
    return late


def _ring(backend: str, processes: int, limit: float, store: str, rank: int) -> None:
    """One process of the ring test; prints how long one all-reduce took, once warm."""
    import torch
    from torch import distributed

    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    distributed.init_process_group(
        backend, init_method=f"file://{store}", world_size=processes, rank=rank, timeout=timedelta(seconds=limit)
    )
    expected = processes * (processes + 1) / 2
    for _ in range(2):
        values = torch.full((1 << 20,), rank + 1.0, device=device)
        began = time.perf_counter()
        distributed.all_reduce(values)
        wrong = int((values != expected).sum())
        taken = time.perf_counter() - began
        if wrong:
            raise SystemExit(f"{wrong} of the sums are wrong")
    distributed.barrier()
    distributed.destroy_process_group()
    print(f"{1000 * taken:.1f} ms")


def check_commit(found: dict) -> Check:
    """Results can name the code they were made with."""
    if found["commit"] is None:
        return Check("commit", "warning", "unknown, so results can't name their code; work in a git checkout.")
    if found["dirty"]:
        return Check(
            "commit", "warning", f"{found['commit'][:7]} with changes, which marks every row; commit them first."
        )
    return Check("commit", "ok", found["commit"][:7])


if __name__ == "__main__":
    _ring(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
