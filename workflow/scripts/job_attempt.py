"""One attempt at a training or a prediction: `python job_attempt.py NUMBER LOG COMMAND...`, the command's status as its own.

Retries are for lost nodes and exceeded limits. What ended with status 2 was refused as bad input: its sentence is kept,
and the later attempts of the same call end with it at once. Standard library only; signals go on to the command.

A lock keeps a second writer away, such as the same job started again beside one that an earlier call left running. A
training has one of its own besides (vexkd/train/lock.py), which needs no file locks and finds a dead holder on any machine,
but refuses at once; this one waits for a job that is just ending, and is the only one that predictions have.
"""

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

REFUSED = 2
FOLDER = Path("scratch/attempts")
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
PATIENCE = float(os.environ.get("VEXKD_LOCK_SECONDS", "60"))  # an ending job may still be saving


def main(number: int, log: Path, command: list[str]) -> int:
    place = FOLDER / "-".join(log.with_suffix("").parts[1:])
    place.parent.mkdir(parents=True, exist_ok=True)
    refusal = place.with_name(f"{place.name}.refused")
    if number == 1:
        refusal.unlink(missing_ok=True)
    elif refusal.exists():
        log.write_text(refusal.read_text(encoding="utf-8"), encoding="utf-8")
        return REFUSED
    with place.with_name(f"{place.name}.lock").open("a", encoding="utf-8") as lock:
        if not alone(lock):
            log.write_text(
                f"vexkd: {place.name}: another job still works on this; wait for it or end it.\n", encoding="utf-8"
            )
            return 1
        with log.open("w", encoding="utf-8") as stream:
            status = run(command, stream)
    if status:
        keep(log, place.with_name(f"{place.name}.log"), number, status)
    if status == REFUSED:
        shutil.copyfile(log, refusal)
    return status


def alone(lock) -> bool:
    """Take the lock, waiting a little; a file system that knows no locks lets everyone in."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.5)
        except OSError:
            return True
        else:
            return True


def run(command: list[str], stream) -> int:
    """The command's status, 128 + N where signal N ended it; it gets the signals that schedulers and terminals send.

    It hears of this script's sudden death as of a SIGTERM, so that it does not train on unnoticed.
    """
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else lambda *_: 0
    process = subprocess.Popen(
        command, stdout=stream, stderr=subprocess.STDOUT, preexec_fn=lambda: prctl(DIE_WITH_PARENT, signal.SIGTERM)
    )
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda received, _frame: process.send_signal(received))
    # Ctrl-C and the end of the terminal reach the command by themselves, mostly. It hears of them as of a SIGTERM, which may
    # come twice, while a second Ctrl-C ends it at once.
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: process.send_signal(signal.SIGTERM))
    status = process.wait()
    return status if status >= 0 else 128 - status


def keep(log: Path, history: Path, number: int, status: int) -> None:
    """Snakemake removes a job's log before each attempt: those of failed ones are gathered here."""
    with history.open("a", encoding="utf-8") as stream:
        print(f"--- attempt {number}, {time.strftime('%Y-%m-%d %H:%M:%S')}, status {status}", file=stream)
        stream.write(log.read_text(encoding="utf-8", errors="replace"))


if __name__ == "__main__":
    try:
        sys.exit(main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
    except OSError as error:  # another user's log, a full disk
        sys.exit(f"{error.filename or sys.argv[2]}: {os.strerror(error.errno or 0)}; mend the file or its folder.")
