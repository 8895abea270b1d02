"""The one process pool: order, failures, and machines whose /dev/shm holds next to nothing."""

import math
import operator
import os
import subprocess
import sys
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

from vexkd import pool
from vexkd.errors import InputError

ROOT = Path(__file__).parents[1]
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]


def may_mount() -> bool:
    try:
        return not subprocess.run([*NAMESPACE, "mount -t tmpfs tmpfs /dev/shm"], capture_output=True).returncode
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_the_order_of_the_jobs(workers):
    assert list(pool.in_order(math.sqrt, (n * n for n in range(40)), workers)) == list(map(float, range(40)))


def test_jobs_are_taken_as_results_are():
    taken = []
    results = pool.in_order(abs, (taken.append(n) or n for n in range(1000)), 2)
    assert list(islice(results, 3)) == [0, 1, 2]
    assert len(taken) < 20
    results.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_job_raises_is_raised(workers):
    with pytest.raises(ZeroDivisionError):
        list(pool.in_order(partial(operator.truediv, 1), [1, 0, 2], workers))


def test_a_killed_worker_is_named():
    with pytest.raises(InputError, match=r"one of 2 worker processes was killed.*--workers"):
        list(pool.in_order(os._exit, [9] * 4, 2))


def test_no_semaphores_means_no_workers(monkeypatch, caplog):
    def refuse(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pool, "ProcessPoolExecutor", refuse)
    assert list(pool.in_order(abs, [-1, -2, 3], 2)) == [1, 2, 3]
    assert "No space left on device" in caplog.text


PREPARE = """
import sys
from pathlib import Path
from vexkd.data import doctor, infos_build, map_drawing, paste
from vexkd.synthetic.tables import synthesize

if __name__ == "__main__":  # spawned workers import this file
    out = Path(sys.argv[1])
    synthesize(out / "town", scenes=2, samples=1, sweeps_per_sample=1, image_size=(64, 36), workers=2)
    print(doctor.examine(out / "town", "v1.0-mini", workers=2))
    infos_build.build(out / "town", "v1.0-mini", out / "infos")
    paste.build(out / "town", out / "infos", out / "paste", split="mini_train", workers=2)
    map_drawing._CHUNK = 1
    print(map_drawing.build(out / "town", out / "infos", out / "maps", reach=20.0, workers=2))
"""


@pytest.mark.skipif(not may_mount(), reason="this machine lets nobody mount in a namespace")
@pytest.mark.parametrize("size", ["4k", "256k"])
def test_preparation_with_a_tiny_dev_shm(tmp_path, size):
    script = tmp_path / "prepare.py"
    script.write_text(PREPARE)
    steps = f"mount -t tmpfs -o size={size} tmpfs /dev/shm && exec timeout 240 {sys.executable} {script} {tmp_path}"
    done = subprocess.run([*NAMESPACE, steps], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["[]", "2"]
    assert done.stderr.count("this process works alone") == (3 if size == "4k" else 0)
