"""Temporary copies of the workflow, with a stand-in for `vexkd` first on the PATH."""

import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from vexkd import settings

ROOT = Path(__file__).parents[2]
RUNS = ["lidar-pretrain", "fusion-det", "fusion-conv-det", "centerpoint-det", "centerpoint-det-vexkd"]
FILES = [
    "workflow",
    "local",
    "slurm",
    "dvc.yaml",
    ".dvcignore",
    ".gitignore",
    "Makefile",
    "params.yaml",
    "demo/params.yaml",
]
FILES += [".dvc/config", ".dvc/.gitignore"]


@dataclass
class Place:
    """A checkout in a temporary folder, and the environment in which commands run there."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str, fails: bool = False) -> str:
        """Run a command; its output. Asserts that it succeeds, or with `fails` that it does not."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert (done.returncode != 0) == fails, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def snakemake(self, *arguments: str, fails: bool = False) -> str:
        return self.run("snakemake", "--profile", "local", *arguments, fails=fails)

    def plan(self, *targets: str, folder: str = ".") -> Counter[str]:
        """The jobs that a dry run lists, counted by rule, without the target itself."""
        out = self.snakemake("-n", "--directory", folder, "--", *targets)
        table = out.partition("Job stats:")[2].partition("\ntotal")[0]
        jobs = {rule: int(count) for rule, count in (line.split() for line in table.splitlines()[3:])}
        return Counter({rule: count for rule, count in jobs.items() if rule not in {"all", *targets}})

    def calls(self) -> list[str]:
        """The calls of the stand-in since the last look, sorted."""
        log = Path(self.environment["STAND_IN_CALLS"])
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return sorted(line for line in lines if not line.startswith("check"))

    def commit(self) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", "a state")

    def set(self, path: str, value: Any, file: str = "params.yaml") -> None:
        """Set one value of params.yaml, named by its path; `file` gets the outcome."""
        raw = yaml.safe_load((self.folder / "params.yaml").read_text())
        *blocks, key = path.split(".")
        block = raw
        for name in blocks:
            block = block.setdefault(name, {})
        block[key] = value
        (self.folder / file).write_text(settings.dump(raw))

    def at(self, folder: Path) -> "Place":
        """The same environment elsewhere, with a log of calls of its own."""
        return Place(folder, {**self.environment, "STAND_IN_CALLS": f"{folder}.calls"})


@pytest.fixture(scope="session")
def outside(tmp_path_factory) -> Place:
    """An environment that knows nothing of the user's own settings."""
    home = tmp_path_factory.mktemp("home")
    stand_in = home / "bin" / "vexkd"
    stand_in.parent.mkdir()
    stand_in.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).parent}/stand_in.py" "$@"\n')
    stand_in.chmod(0o755)
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SNAKEMAKE", "DVC", "GIT", "XDG", "MAKE"))
    }
    path = os.pathsep.join([str(stand_in.parent), str(Path(sys.executable).parent), own["PATH"]])
    identity = {f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    private = {
        "XDG_CONFIG_HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "DVC_SITE_CACHE_DIR": str(home / "dvc"),
    }
    return Place(home, {**own, **identity, **private, "PATH": path, "PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"})


@pytest.fixture(scope="session")
def checkout(outside, tmp_path_factory):
    """Makes a new checkout of the workflow's files, with nothing made in it."""

    def make() -> Place:
        folder = tmp_path_factory.mktemp("checkout") / "repository"
        folder.mkdir()
        for name in FILES:
            source, target = ROOT / name, folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir() and not source.is_symlink():
                shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target, follow_symlinks=False)
        place = outside.at(folder)
        place.run("git", "init", "-q")
        place.commit()
        return place

    return make


@pytest.fixture(scope="session")
def small(checkout):
    """Makes a new checkout with some of the demo's runs and two tables, with nothing made in it."""

    def make() -> Place:
        place = checkout()
        raw = settings.read(place.folder / "demo" / "params.yaml")
        raw["teachers"]["fusion-conv-det"] = {**raw["teachers"]["fusion-det"], "fusion": "conv"}
        for kind in settings.KINDS:
            raw[kind] = {name: row for name, row in raw[kind].items() if name in RUNS}
        raw |= {name: {} for name in ("reported", "floors", "figures") if name in raw}
        raw["tables"] = {"main": RUNS, "teachers": ["fusion-det", "fusion-conv-det"]}
        (place.folder / "params.yaml").write_text(settings.dump(raw))
        return place

    return make


@pytest.fixture(scope="session")
def finished(small) -> Place:
    """A checkout with some of the demo's runs in which `dvc repro` has made, recorded and pushed everything."""
    place = small()
    place.run("dvc", "repro", "-q")
    remote = place.folder.parent / "remote"
    place.run("dvc", "remote", "add", "-q", "-d", "storage", str(remote))
    place.commit()
    place.run("dvc", "push", "-q")
    place.calls()
    return place


@pytest.fixture
def sealed(finished, tmp_path) -> Place:
    """A copy of the finished checkout, times included, to change."""
    folder = tmp_path / "repository"
    shutil.copytree(finished.folder, folder, symlinks=True)
    return finished.at(folder)
