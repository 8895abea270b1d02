"""Which code is recorded: the commit of the package's own checkout, and the hash of its files."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vexkd import code
from vexkd.train import attempts

ROOT = Path(__file__).parents[1]


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(
        ["git", *identity, "-C", str(folder), *arguments], check=True, capture_output=True, encoding="utf-8"
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    (folder / "vexkd").mkdir(parents=True)
    (folder / "vexkd" / "__init__.py").write_text("ONE = 1\n", encoding="utf-8")
    (folder / "workflow").mkdir()
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "code")
    return folder


def test_a_checkout_of_its_own_is_recorded(checkout, monkeypatch, tmp_path):
    head = git(checkout, "rev-parse", "HEAD")
    assert code.commit(checkout / "vexkd") == {"commit": head, "dirty": False}
    monkeypatch.setenv("GIT_DIR", str(tmp_path))  # as in a hook
    (checkout / "vexkd" / "__init__.py").write_text("ONE = 2\n", encoding="utf-8")
    assert code.commit(checkout / "vexkd") == {"commit": head, "dirty": True}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_checkout_of_another_user_is_read(checkout):
    subprocess.run(["chown", "-R", "1234:1234", str(checkout)], check=True)
    assert code.commit(checkout / "vexkd")["commit"] is not None


@pytest.mark.parametrize("state", ["untracked", "ignored", "tracked"])
def test_the_repository_around_a_copy_is_not_its_own(checkout, tmp_path, state):
    thesis = tmp_path / "thesis"
    copy = thesis / "vexkd-main"
    copy.mkdir(parents=True)
    shutil.copytree(checkout / "vexkd", copy / "vexkd")
    git(thesis, "init", "-q")
    if state == "ignored":
        (thesis / ".gitignore").write_text("vexkd-main\n", encoding="utf-8")
    if state != "untracked":
        git(thesis, "add", "-A")
    git(thesis, "commit", "-q", "--allow-empty", "-m", "chapter one")
    assert code.commit(copy / "vexkd") == {"commit": None, "dirty": None}


def test_an_installed_copy_does_not_take_the_commit_of_the_folder_around_it(checkout):
    site = checkout / ".venv" / "lib" / "site-packages"
    shutil.copytree(checkout / "vexkd", site / "vexkd")
    assert code.commit(site / "vexkd")["commit"] is None


def test_the_hash_is_of_the_content_alone(checkout):
    before = code.digest(checkout / "vexkd")
    (checkout / "vexkd" / "__pycache__").mkdir()
    (checkout / "vexkd" / "__pycache__" / "one.pyc").write_bytes(b"1")
    (checkout / "vexkd" / "__init__.py").write_bytes(b"ONE = 1\r\n")
    assert code.digest(checkout / "vexkd") == before
    (checkout / "vexkd" / "two.py").write_text("", encoding="utf-8")
    assert code.digest(checkout / "vexkd") != before


def test_every_attempt_that_led_to_a_state_is_kept(tmp_path):
    attempts.begin(tmp_path)
    attempts.begin(tmp_path)  # nothing was saved: the first led nowhere
    assert len(attempts.of(tmp_path)) == 1
    (tmp_path / "state.safetensors").touch()
    attempts.begin(tmp_path)
    assert [attempt["package"] for attempt in attempts.of(tmp_path)] == 2 * [code.version()["package"]]


def test_the_workflow_runs_the_code_beside_it(tmp_path):
    """Though another checkout's is installed; also in the processes of its jobs."""
    package = tmp_path / "a worktree" / "vexkd"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("", encoding="utf-8")
    script = (
        "import os, subprocess, sys; from scripts import machine; machine.run_own_code(sys.argv[1]); import vexkd;"
        "print(vexkd.__file__);"
        "subprocess.run([sys.executable, '-c', 'import vexkd; print(vexkd.__file__)'], check=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(package.parent / "workflow")],
        env={**os.environ, "PYTHONPATH": str(ROOT / "workflow")},
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert set(done.stdout.split("\n")[:-1]) == {str(package / "__init__.py")}
