"""Training curves as TensorBoard's event files, of finished runs and of those that are training.

A finished run has its curve beside its weights; of one that trains, it stands in the header of the saved state, which is
written every few minutes. Reads files only, no torch; needs the package tensorboard.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from vexkd import seal
from vexkd.errors import InputError
from vexkd.experiment import Experiment

STATE = "state.safetensors"


def curve(run: str, seed: int, experiment: Experiment) -> list[dict[str, float]]:
    """One mapping a logged step, `step` among its keys: the newer of the finished curve and the saved state's."""
    finished = experiment.training(run, seed).curve
    states = list((experiment.scratch / run).glob(f"seed{seed}-*/{STATE}"))
    newest = max([*([finished] if finished.is_file() else []), *states], key=_changed, default=None)
    if newest is None:
        return []
    if newest == finished:
        return pd.read_csv(finished).to_dict("records")
    try:
        header, _ = seal.safetensors_header(newest)
        return json.loads(header["__metadata__"]["position"])["curve"]
    except (OSError, ValueError, KeyError):  # finished or replaced this moment
        return []


def write(
    runs: Iterable[tuple[str, int]],
    experiment: Experiment,
    out: Path,
    *,
    watch: float | None = None,
    tell: Callable[[str], None] = print,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Write the curves of runs and seeds to out/<run>/seed<k>; with `watch` add what is new every so many seconds.

    Event files that stand there are replaced. Raises InputError where tensorboard is not installed, or there is no curve.
    """
    writer = _writer()
    known: dict[tuple[str, int], Any] = {}
    last: dict[tuple[str, int], float] = {}
    pairs = list(runs)
    try:
        while True:
            for run, seed in pairs:
                key, rows = (run, seed), curve(run, seed, experiment)
                rows = [row for row in rows if row["step"] > last.get(key, -1)]
                if not rows:
                    continue
                folder = out / run / f"seed{seed}"
                known[key] = known.get(key) or writer(_emptied(folder))
                _add(known[key], rows)
                last[key] = rows[-1]["step"]
                tell(f"{run} seed {seed}: step {last[key]:.0f} -> {folder}")
            if watch is None:
                break
            sleep(watch)
    finally:
        for file in known.values():
            file.close()
    if not known:
        names = ", ".join(dict.fromkeys(run for run, _ in pairs))
        raise InputError(
            f"{experiment.models}: there is no curve of {names} yet; one comes with the first saved state."
        )


def _writer() -> Callable[[str], Any]:
    """TensorBoard's own writer of event files."""
    try:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        raise InputError("tensorboard is not installed; install it with `pip install 'vexkd[tensorboard]'`.") from None
    return EventFileWriter


def _add(file: Any, rows: list[dict[str, float]]) -> None:
    """Append the values of these steps and let readers see them."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    for row in rows:
        values = [
            Summary.Value(tag=name.replace(".", "/", 1), simple_value=value)
            for name, value in row.items()
            if name not in ("step", "seed") and not math.isnan(value)
        ]
        file.add_event(Event(wall_time=time.time(), step=int(row["step"]), summary=Summary(value=values)))
    file.flush()


def _emptied(folder: Path) -> str:
    """A folder without the event files of an earlier call."""
    for file in folder.glob("events.out.tfevents.*"):
        file.unlink()
    return str(folder)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
