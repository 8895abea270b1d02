"""Each check of the environment, with a case that fails and names its cure; and the verb, whose status says it."""

from __future__ import annotations

import os
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from conftest import tiny_settings

from vexkd import cli
from vexkd.measure import preflight
from vexkd.measure.preflight import Check
from vexkd.settings import parse


def test_python_must_be_one_with_wheels():
    assert preflight.check_python((3, 11)).status == "ok"
    assert preflight.check_python((3, 12)).status == "ok"
    assert preflight.check_python((3, 13)).status == preflight.check_python((3, 10)).status == "error"
    assert "make env" in preflight.check_python((3, 13)).text


def test_a_library_that_does_not_load_is_named_with_its_reason(tmp_path, monkeypatch):
    (tmp_path / "broken_library.py").write_text("raise OSError('libcuda.so.1: cannot open')\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = preflight.check_imports(["json", "broken_library", "absent_library"])
    assert found.status == "error"
    assert "broken_library (OSError: libcuda.so.1: cannot open)" in found.text
    assert "absent_library (ModuleNotFoundError" in found.text
    assert "json" not in found.text
    assert preflight.check_imports(["json", "torch"]).status == "ok"


def test_other_versions_than_the_constraints_are_a_warning(tmp_path):
    path = tmp_path / "constraints.txt"
    path.write_text("# pinned\nfirst==1.0\nsecond==2.0\nabsent==3.0\n")
    versions = {"first": "1.0+cpu", "second": "2.1"}

    def installed(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    found = preflight.check_versions(path, installed)
    assert (found.status, found.text.split(";")[0]) == ("warning", "second 2.1 for 2.0")
    versions["second"] = "2.0"
    assert preflight.check_versions(path, installed) == Check("versions", "ok", "2 packages as in constraints.txt")
    assert preflight.check_versions(tmp_path / "none.txt").status == "warning"


def test_more_gpus_than_there_are():
    found = preflight.check_gpus(99)
    assert found.status == "error"
    assert found.text.startswith("99 asked, ")
    assert preflight.check_gpus(0).status == "ok"


def test_the_data_root_must_be_visible_and_whole(settings, town, tmp_path):
    assert preflight.check_data(settings, town / "data").status == "ok"
    assert "will be made" in preflight.check_data(settings, tmp_path / "absent").text
    real = settings.model_copy(update={"synthetic": None})
    absent = preflight.check_data(real, tmp_path / "absent")
    assert (absent.status, "set root" in absent.text) == ("error", True)
    (tmp_path / "part").mkdir()
    (tmp_path / "part/v1.0-mini").symlink_to(town / "data/v1.0-mini")
    partly = preflight.check_data(real, tmp_path / "part")
    assert partly.status == "error"
    assert "samples and sweeps" in partly.text


def test_the_disk_must_hold_the_plan(tmp_path):
    needs = {tmp_path: 6 * 10**9, tmp_path / "not/there/yet": 4 * 10**9}  # one file system
    for free, status in ((100, "ok"), (11, "warning"), (9, "error")):
        found = preflight.check_disk(needs, lambda place, free=free: free * 10**9)
        assert (found.status, "10.0 GB to write" in found.text) == (status, True)
    assert "free some" in found.text


def test_the_plan_counts_what_is_still_to_be_made(settings, tmp_path):
    places = {"root": tmp_path / "data", "scratch": tmp_path / "scratch", "here": tmp_path}
    few = {name: settings.run(name) for name in ("lidar-pretrain", "fusion-det")}
    settings = settings.model_copy(update={"runs": few})
    before = preflight.plan(settings, **places)
    assert set(before) == set(places.values())
    assert all(before.values())
    weights = tmp_path / "models/fusion-det/seed0/weights.safetensors"
    weights.parent.mkdir(parents=True)
    weights.touch()
    places["root"].mkdir()
    after = preflight.plan(settings, **places)
    assert after[tmp_path] < before[tmp_path]
    assert after[tmp_path / "scratch"] < before[tmp_path / "scratch"]
    assert after[tmp_path / "data"] == 0


def test_a_folder_must_take_files(tmp_path):
    found = preflight.check_files(tmp_path)
    assert found.status == "ok"
    assert "renamed" in found.text
    assert preflight.check_files(tmp_path, slow=0.0).status == "warning"
    assert preflight.check_files(tmp_path / "absent").status == "error"
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_cannot_sync_is_an_error(tmp_path, monkeypatch):
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    found = preflight.check_files(tmp_path)
    assert (found.status, "No space left on device" in found.text) == ("error", True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("off", "status"), [(0.0, "ok"), (10.0, "warning"), (-10.0, "warning"), (3600.0, "error")])
def test_clocks_must_agree(tmp_path, off, status):
    found = preflight.check_clock(tmp_path, lambda: time.time() + off)
    assert found.status == status
    if off:
        assert ("before" if off > 0 else "after") in found.text
        assert "NTP" in found.text


def test_processes_meet_in_a_ring():
    found = preflight.check_ring(limit=60)
    assert found.status == "ok", found
    assert "2 processes" in found.text
    assert found.text.endswith(" ms")


def test_processes_that_cannot_meet_are_an_error():
    found = preflight.check_ring(limit=60, environment={"GLOO_SOCKET_IFNAME": "no-such-interface"})
    assert found.status == "error"
    assert "GLOO_SOCKET_IFNAME=lo" in found.text


def test_processes_that_hang_are_ended(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/sh")
    command = ["-c", "sleep 60"]
    monkeypatch.setattr(preflight.subprocess, "Popen", _replacing(preflight.subprocess.Popen, command))
    began = time.monotonic()
    found = preflight.check_ring(limit=0.3)
    assert found.status == "error"
    assert "did not meet" in found.text
    assert time.monotonic() - began < 10


def _replacing(start, arguments):
    """Popen with other arguments to the same program."""
    return lambda command, **options: start([command[0], *arguments], **options)


def test_unknown_or_changed_code_is_a_warning():
    assert preflight.check_commit({"commit": None, "dirty": None}).status == "warning"
    assert preflight.check_commit({"commit": "0123456789", "dirty": True}).status == "warning"
    assert preflight.check_commit({"commit": "0123456789", "dirty": False}).text == "0123456"


def test_the_verb_prints_a_line_a_check_and_fails_with_status_2(tmp_path, monkeypatch, capsys):
    raw = tiny_settings() | {"synthetic": None}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preflight, "check_ring", lambda **_: Check("ring", "ok", "skipped here"))
    monkeypatch.setattr(sys, "argv", ["vexkd", "preflight", "--gpus", "99"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    words = {line.split()[1]: line.split()[0] for line in out.splitlines()}
    assert words["gpus"] == words["data"] == "error"
    assert words["python"] == words["imports"] == words["clock"] == words["disk"] == "ok"
    assert err.splitlines()[-1].startswith("vexkd: 2 of ")
    assert sorted(path.name for path in Path().iterdir()) == ["params.yaml"]


def test_what_would_fail_every_job_is_found_before_one_is_queued(tmp_path, monkeypatch):
    """As the Snakefile asks when jobs are to be queued: an error of data, folder or clock ends the call; elsewhere nothing."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "workflow")
    from scripts import slurm_queue

    monkeypatch.chdir(tmp_path)
    raw = tiny_settings()
    own = parse(raw)
    assert not preflight.before_queueing(own)  # the town will be made
    raw |= {"synthetic": None, "root": "data/nuscenes"}
    theirs = parse(raw)
    with pytest.raises(SystemExit, match=r"data/nuscenes[\s\S]*No job was queued"):
        slurm_queue.refuse_what_would_fail("slurm", theirs)
    slurm_queue.refuse_what_would_fail("slurm", own)
    slurm_queue.refuse_what_would_fail("local", theirs)


def test_a_file_of_tomorrow_is_named(tmp_path):
    late = tmp_path / "artifacts/manifest.parquet"
    late.parent.mkdir()
    late.write_text("")
    assert preflight.check_times([late.parent]).status == "ok"
    os.utime(late, (time.time() + 86_400,) * 2)
    found = preflight.check_times([late.parent])
    assert found.status == "warning"
    assert str(late) in found.text
    assert "touch" in found.text
