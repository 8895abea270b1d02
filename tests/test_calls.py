"""The settings that a call of Snakemake starts with are its jobs' own; a call lives as long as its process."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vexkd import calls, settings
from vexkd.errors import InputError

RAW = settings.read(Path(__file__).parents[1] / "demo" / "params.yaml")
CONFIG = Path("results/runs/centerpoint-det/config.yaml")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """An experiment's folder with settings."""
    monkeypatch.chdir(tmp_path)
    save(RAW)
    return tmp_path


def save(raw: dict) -> None:
    Path("params.yaml").write_text(settings.dump(raw))


def changed(rate: float = 0.5) -> dict:
    """The settings with another learning rate for one student."""
    raw = copy.deepcopy(RAW)
    raw["students"]["centerpoint-det"]["train"] = {"lr": rate}
    return raw


def rate(call: calls.Call) -> float:
    """The learning rate that jobs of this call train with."""
    return settings.load(call.settings).run("centerpoint-det").train.lr


def end(locks: list) -> None:
    """What the end of a process does."""
    for lock in locks:
        lock.close()


def test_jobs_read_what_their_call_started_with():
    first = calls.begin()
    locks = calls.freeze(first)
    save(changed())
    settings.write_configs(settings.load())  # as `git switch` would: these files may be in git
    job = calls.of_job(first.folder.name)
    assert job.params.raw == RAW
    assert rate(job) == RAW["train"]["lr"]
    end(locks)


def test_a_job_without_the_copy_of_its_call_is_told():
    with pytest.raises(InputError, match="the settings that this job was queued with are not there"):
        calls.of_job("call-0")
    with pytest.raises(InputError, match="call snakemake again"):
        calls.of_job(None)


def test_a_second_call_is_refused_before_it_writes_anything():
    locks = calls.freeze(calls.begin())
    before = CONFIG.read_text()
    save(changed())
    with pytest.raises(InputError, match=f"another call of Snakemake works in this folder .process {os.getpid()}"):
        calls.freeze(calls.begin())
    assert CONFIG.read_text() == before
    end(locks)
    end(calls.freeze(calls.begin()))
    assert CONFIG.read_text() != before


def test_a_call_without_lock_has_its_own_settings_and_leaves_those_of_the_other():
    """And what it changes does not look newer than the results of the other call's jobs."""
    first = calls.begin()
    locks = calls.freeze(first)
    time = CONFIG.stat().st_mtime_ns
    save(changed())
    second = calls.begin()
    more = calls.freeze(second, alone=False)
    assert (rate(first), rate(second)) == (RAW["train"]["lr"], 0.5)
    assert yaml.safe_load(CONFIG.read_text())["train"]["lr"] == 0.5
    assert CONFIG.stat().st_mtime_ns == time
    end(locks + more)


def test_what_a_dead_call_left_behind_is_no_living_one():
    """Snakemake's lock files and our own stay when a process is killed; the system's locks do not."""
    code = "import os; from vexkd import calls; k = calls.freeze(calls.begin()); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code], check=False)
    lock = Path(".snakemake/locks/0.input.lock")
    lock.parent.mkdir()
    lock.write_text("params.yaml")
    assert Path(".snakemake/calls/running.lock").is_file()
    assert calls.living() is None
    save(changed())
    call = calls.begin()
    locks = calls.freeze(call)
    assert rate(call) == 0.5
    assert calls.living() == call.settings
    end(locks)
    assert calls.living() is None


def test_copies_that_no_living_call_holds_are_removed():
    old = calls.begin()
    end(calls.freeze(old))
    save(changed())
    held = calls.begin()
    locks = calls.freeze(held)
    save(changed(0.25))
    own = calls.begin()
    locks += calls.freeze(own, alone=False)
    calls.clean(own)
    assert {path.name for path in calls.FOLDER.glob("call-*")} == {held.folder.name, own.folder.name}
    end(locks)


def test_freezing_equal_settings_writes_nothing():
    end(calls.freeze(calls.begin()))
    files = [*calls.FOLDER.rglob("*.yaml"), *Path("results").rglob("*.yaml")]
    before = [file.stat().st_mtime_ns for file in files]
    end(calls.freeze(calls.begin()))
    assert [file.stat().st_mtime_ns for file in files] == before
    assert len(files) > 10
