"""The one pool of worker processes: results in the order of the jobs, whatever the number of workers.

Workers are spawned (a forked copy of a process with threads may hang) and need nothing of /dev/shm but a few pages for the
semaphores of their queues; jobs and results travel through pipes.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from vexkd.errors import InputError

Job = TypeVar("Job")
Result = TypeVar("Result")

_AHEAD = 4  # jobs of each worker that are begun before their results are taken: bounds the memory that waits


def in_order(function: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> Iterator[Result]:
    """`function` of each job, in the order of the jobs, computed in `workers` processes (up to 1: in this one).

    function and jobs must be importable from a spawned process. Where the machine has no room in /dev/shm for semaphores,
    a warning is logged and this process does the work alone. What a job raises is raised here; jobs that have not begun are then
    dropped. Raises InputError where a worker was killed.
    """
    pool = None if workers <= 1 else _open(workers)
    if pool is None:
        yield from map(function, jobs)
        return
    waiting: deque = deque()
    with pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(function, job))
                if len(waiting) >= _AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise InputError(
                f"one of {workers} worker processes was killed, probably for want of memory: take fewer with --workers."
            ) from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _open(workers: int) -> ProcessPoolExecutor | None:
    """The pool; None, with a warning, where its semaphores cannot be made."""
    try:
        return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    except (OSError, ImportError) as error:  # ImportError: multiprocessing's word for a platform without semaphores
        logging.getLogger(__name__).warning(
            "/dev/shm has no room for the semaphores of %d worker processes (%s): this process works alone. Give the machine or "
            "container more (docker's --shm-size).",
            workers,
            error,
        )
        return None
