"""Ctrl-C in the terminal in which Snakemake runs the real verbs: the training saves its state, the next call resumes."""

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT, tiny_settings

from vexkd import settings

RUN = "centerpoint-det"
COMMAND = [
    sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow/Snakefile"),
    "--profile", str(ROOT / "workflow/profiles/local"), f"models/{RUN}/seed0/weights.safetensors",
]  # fmt: skip


class Terminal:
    """Snakemake in the foreground of a terminal of its own, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.said = b""
        self.process, self.keyboard = pty.fork()
        if self.process == 0:
            os.chdir(folder)
            for number in (signal.SIGINT, signal.SIGHUP):  # whatever the one that runs the tests ignores
                signal.signal(number, signal.SIG_DFL)
            os.environ["OMP_NUM_THREADS"] = "1"
            os.execv(COMMAND[0], COMMAND)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        try:
            while heard := os.read(self.keyboard, 4096):
                self.said += heard
        except OSError:  # the terminal has gone with its last process
            pass

    def ends(self, seconds: float = 240.0) -> int:
        """The status, once it has ended; nothing of it is left running."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            process, status = os.waitpid(self.process, os.WNOHANG)
            if process:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.1)
        os.killpg(self.process, 9)
        raise AssertionError(f"it did not end: {self.said[-2000:].decode(errors='replace')}")


@pytest.mark.slow
@pytest.mark.sample
@pytest.mark.parametrize("key", [b"\x03", None], ids=["ctrl-c", "hang-up"])
def test_an_interrupted_training_is_resumed(town, tmp_path, key):
    params = tiny_settings() | {"root": str(town / "data")}
    params["train"] |= {"epochs": 40}
    params.pop("synthetic", None)  # the town is there
    (tmp_path / "params.yaml").write_text(settings.dump(params))
    log = tmp_path / f"logs/train/{RUN}-seed0.log"
    terminal = Terminal(tmp_path)
    end = time.monotonic() + 240
    while not (log.is_file() and "step " in log.read_text()):
        assert time.monotonic() < end, terminal.said[-2000:].decode(errors="replace")
        time.sleep(0.05)
    if key:
        os.write(terminal.keyboard, key)
    else:
        os.killpg(terminal.process, signal.SIGHUP)  # what a terminal that closes sends to those in its foreground
    assert terminal.ends() != 0
    end = time.monotonic() + 60  # a hang-up ends Snakemake at once, and the training saves after its present step
    while not list((tmp_path / f"scratch/{RUN}").glob("seed0-*/state.safetensors")):
        assert time.monotonic() < end, log.read_text()[-2000:]
        time.sleep(0.1)
    assert not (tmp_path / f"models/{RUN}/seed0/weights.safetensors").exists()
    if not key:  # which ends Snakemake before it can take its lock away
        subprocess.run([*COMMAND[:-1], "--unlock"], cwd=tmp_path, check=True, capture_output=True)
    again = Terminal(tmp_path)
    assert again.ends() == 0, again.said[-2000:].decode(errors="replace")
    assert "resumed at step" in log.read_text()
