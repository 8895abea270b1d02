"""The matrix while it runs, from files alone: what is done, running, waiting and failed, each with where to look.

Weights say what is done (and with which settings), the lock and the saved state in `scratch/` what lives, logs how far it
is and why it ended. Nothing is asked of Snakemake or Slurm, so it works from any machine that sees the folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO

from vexkd import calls, seal, settings
from vexkd.errors import InputError
from vexkd.experiment import Experiment
from vexkd.settings import Params, Run

QUIET = 900.0  # seconds without a sign of life after which a job counts as quiet; states are saved every five minutes
BEATING = 60.0  # the same where a lock says that its holder lives, every ten seconds
_TAIL = 65_536  # bytes of a log that are read from its end
_STEP = re.compile(r"step (\d+)/(\d+) loss (\S+) lr (\S+) left (\d+(?:\.\d+)?) s")
_SAVED = re.compile(r"stopped after step (\d+) of (\d+), state saved|goes on from the last saved state")
_REFUSED = re.compile(r"^(?:\[rank \d+\] )?vexkd: (.*)")
_RAISED = re.compile(r"^(?:\[rank \d+\] )?((?:\w+\.)*\w*(?:Error|Exception|Interrupt|Warning|Exit)\b.*)")
_KILLED = re.compile(
    r"(?:slurmstepd|srun): error: .*|.*oom[-_]kill.*|.*Out Of Memory.*|Killed|Terminated", re.IGNORECASE
)
_ATTEMPT = re.compile(r"^--- attempt (\d+), .*, status (\d+)$")
_TORCHRUN = ("torch.distributed.elastic", "ChildFailedError")

State = Literal["done", "stale", "running", "quiet", "failed", "waiting"]
_COLOURS: dict[State, int] = {"done": 32, "stale": 35, "running": 36, "quiet": 33, "failed": 31, "waiting": 90}


@dataclass(frozen=True)
class Row:
    """One run with one seed. `left`: seconds, where they are known; `age`: seconds since the last sign of life."""

    run: str
    seed: int
    state: State
    progress: str = ""
    loss: str = ""
    left: float | None = None
    age: float | None = None
    where: str = ""
    detail: str = ""


def matrix(params: Params, experiment: Experiment, now: float) -> list[Row]:
    """A row for every run and seed, in the order of params.yaml. `now`: seconds since the epoch."""
    return [look(params, run, seed, experiment, now) for run in params.runs.values() for seed in params.seeds]


def look(params: Params, run: Run, seed: int, experiment: Experiment, now: float) -> Row:
    """What the files say of one run with one seed: a living job first, then weights, then the end of its last log."""
    job = Job(run, seed, experiment, now)
    if job.lives():
        return job.row("running")
    state, difference = weights_state(run, seed, experiment)
    if state == "done":
        return _after_training(run, seed, experiment, now)
    if state == "stale":
        return Row(run.name, seed, "stale", detail=f"trained with other settings: {difference}")
    if job.log_is_current():
        if reason := failure(job.text):
            return job.row("failed", detail=f"{reason}  [{job.log}]")
        if _SAVED.search(job.text):
            return job.row("waiting", detail="for its next attempt, to resume from the saved state")
        if job.text and not _finished(job.text):
            return job.row("quiet", detail=f"no sign of life; ended, or killed?  [{job.log}]")
    return Row(run.name, seed, "waiting", detail=_waiting_for(params, run, seed, experiment))


def weights_state(run: Run, seed: int, experiment: Experiment) -> tuple[Literal["none", "done", "stale"], str]:
    """Whether weights are there and made with the settings of now; if not, the first difference."""
    path = experiment.training(run.name, seed).weights
    if not path.is_file():
        return "none", ""
    try:
        recorded = seal.recorded_training(run, seal.header(path))
    except InputError:
        return "stale", "its file does not say which"
    differing = seal.differences(recorded, run.training())
    return ("stale", differing[0]) if differing else ("done", "")


def _after_training(run: Run, seed: int, experiment: Experiment, now: float) -> Row:
    """A run with sound weights: predicted and scored too, or where that stands."""
    predictions = experiment.training(run.name, seed).predictions(run.task)
    metrics = experiment.run(run.name).metrics
    if predictions.is_file() and metrics.is_file():
        return Row(run.name, seed, "done", detail=_scores(metrics))
    missing = "scored" if predictions.is_file() else "predicted"
    name = (
        f"evaluate/{run.name}.log"
        if predictions.is_file()
        else f"predict/{run.name}-seed{seed}{predictions.suffix}.log"
    )
    log = experiment.logs / name
    if log.is_file() and log.stat().st_mtime >= experiment.training(run.name, seed).weights.stat().st_mtime:
        age = now - log.stat().st_mtime
        if reason := failure(tail(log)):
            return Row(run.name, seed, "failed", "trained", age=age, detail=f"{reason}  [{log}]")
        if age < QUIET and not _finished(tail(log)):
            return Row(run.name, seed, "running", "trained", age=age, detail=f"being {missing}")
    return Row(run.name, seed, "waiting", "trained", detail=f"to be {missing}")


def preparation(experiment: Experiment) -> list[str]:
    """A sentence for each step of the preparation that failed."""
    sentences = []
    for step in ("synthesize", "doctor", "infos", "paste", "maps"):
        log = experiment.logs / f"{step}.log"
        if reason := failure(tail(log)):
            sentences.append(f"{step} failed: {reason}  [{log}]")
    return sentences


def _scores(metrics: Path) -> str:
    """mAP and NDS, or mIoU, of metrics.json, means over the seeds; nothing where they are not to be found."""
    try:
        values = json.loads(metrics.read_text(encoding="utf-8"))
        return ", ".join(f"{name} {100 * values[name]:.1f}" for name in ("mAP", "NDS", "mIoU") if name in values)
    except (ValueError, KeyError, TypeError):
        return ""


def _waiting_for(params: Params, run: Run, seed: int, experiment: Experiment) -> str:
    """What a run without weights lacks to be started, and how its last attempt ended."""
    needs = [f"{name} (seed {seed})" for name in (run.start, run.teacher) if name is not None
             and weights_state(params.run(name), seed, experiment)[0] != "done"]  # fmt: skip
    if not experiment.infos_files[0].is_file():
        needs.append("infos")
    if run.paste is not None and not experiment.paste_files[-1].is_file():
        needs.append("the database of objects")
    if run.map is not None and not experiment.maps_files[-1].is_file():
        needs.append("the map rasters")
    words = f"for {', '.join(needs)}" if needs else "to be started"
    if experiment.run(run.name).metrics.is_file():
        words += "; its results are here, its weights are not"
    last = last_attempt(experiment, run, seed)
    return f"{words}; {last}" if last else words


def last_attempt(experiment: Experiment, run: Run, seed: int) -> str:
    """How the last failed attempt at a training ended, from what was kept of its log."""
    kept = experiment.scratch / "attempts" / f"train-{run.name}-seed{seed}.log"
    lines = tail(kept).splitlines()
    marks = [i for i, line in enumerate(lines) if _ATTEMPT.match(line)]
    if not marks or kept.stat().st_mtime < _asked(experiment, run):
        return ""
    number, status = _ATTEMPT.match(lines[marks[-1]]).groups()
    text = "\n".join(lines[marks[-1] + 1 :])
    reason = "saved its state" if _SAVED.search(text) else failure(text)
    return f"attempt {number} ended with status {status}{f' ({reason})' if reason else ''}"


def _asked(experiment: Experiment, run: Run) -> float:
    """When a run's settings were last written: what is older belongs to other settings."""
    config = experiment.run(run.name).config
    return config.stat().st_mtime if config.is_file() else 0.0


class Job:
    """The files of one training: its log, its lock, its saved state."""

    def __init__(self, run: Run, seed: int, experiment: Experiment, now: float) -> None:
        self.run, self.seed, self.experiment, self.now = run, seed, experiment, now
        self.log = experiment.logs / "train" / f"{run.name}-seed{seed}.log"
        self.text = tail(self.log)
        folders = [path for path in (experiment.scratch / run.name).glob(f"seed{seed}-*") if path.is_dir()]
        self.folder = max(folders, key=_changed_within, default=None)
        times = [_changed(self.log), _changed_within(self.folder)]
        self.alive = max(times)
        self.age = now - self.alive if self.alive else None

    def lives(self) -> bool:
        """Whether there was a sign of life lately and the log has not come to an end."""
        if self._holder():
            return self.now - _changed(self.folder / "lock") < BEATING
        if not self.log_is_current() or not self.text or self.age is None:
            return False
        return self.age < QUIET and not (failure(self.text) or _SAVED.search(self.text) or _finished(self.text))

    def log_is_current(self) -> bool:
        """Whether the log is of a training with the settings of now."""
        return self.log.is_file() and _changed(self.log) >= _asked(self.experiment, self.run)

    def row(self, state: State, detail: str = "") -> Row:
        step, total, loss, left = self._position()
        runs, epochs = state == "running", self.run.train.epochs
        progress = "starting" if runs else ""
        if total:
            progress = f"epoch {min(epochs, step * epochs // total + 1)}/{epochs}, step {step}/{total}"
        where = self._holder() if runs else ""
        return Row(self.run.name, self.seed, state, progress, loss, left if runs else None, self.age, where, detail)

    def _holder(self) -> str:
        """Host and process that train this run, as its lock names them; empty where there is no lock."""
        try:
            holder = json.loads((self.folder / "lock").read_text(encoding="utf-8")) if self.folder else {}
            return f"{holder['host']}:{holder['pid']}"
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def _position(self) -> tuple[int, int, str, float | None]:
        """Step, steps in all, loss and seconds left, by the last line of the log that says so."""
        saved = re.search(r"stopped after step (\d+) of (\d+)", self.text)
        if saved:
            return int(saved[1]), int(saved[2]), "", None
        steps = _STEP.findall(self.text)
        if steps:
            step, total, loss, _, left = steps[-1]
            return int(step), int(total), loss, max(0.0, float(left) - (self.now - _changed(self.log)))
        resumed = re.search(r": (\d+) steps on .*resumed at step (\d+)", self.text)
        return (int(resumed[2]), int(resumed[1]), "", None) if resumed else (0, 0, "", None)


def failure(text: str) -> str:
    """The first line of the reason why a job ended, in its log's last lines; empty where it did not fail."""
    lines = [line.rstrip() for line in text.splitlines()]
    for line in lines:
        refused = _REFUSED.match(line)
        if refused and not _SAVED.search(line) and "another process of this job" not in line:
            return refused[1]
    relevant = [line for line in lines if not any(word in line for word in _TORCHRUN)]
    raised = [match[1] for line in relevant if (match := _RAISED.match(line)) and not line.startswith(" ")]
    if raised and any("Traceback" in line for line in lines):
        return raised[-1]
    killed = [line for line in lines if _KILLED.fullmatch(line)]
    return killed[0] if killed else ""


def _finished(text: str) -> bool:
    """Whether a log ends with what a verb says when all is written."""
    return bool(re.search(r" -> \S+\s*$", text)) or "holds the result of this training already" in text


def tail(path: Path) -> str:
    """The end of a text file, in whole lines; empty where there is none. Progress bars count as their last state."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - _TAIL))
            return "\n".join(line.rsplit("\r", 1)[-1] for line in stream.read().decode(errors="replace").split("\n"))
    except FileNotFoundError:
        return ""


def _changed(path: Path) -> float:
    """When a file was changed; 0 where it is not there (any more)."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _changed_within(folder: Path | None) -> float:
    """The latest change of the files in a folder."""
    try:
        return max((_changed(path) for path in folder.iterdir()), default=0.0) if folder else 0.0
    except FileNotFoundError:
        return 0.0


# ----------------------------------------------------------------------------------------------------------------- text


def render(rows: list[Row], *, width: int | None = None, colour: bool = False) -> str:
    """The matrix as aligned text and a line of sums. `width`: a longer line has its detail below; `colour`: of the states."""
    head = ["run", "seed", "state", "progress", "loss", "left", "seen", "where", "detail"]
    cells = [_cells(row) for row in rows]
    kept = [i for i in range(len(head)) if i < 3 or any(row[i] for row in cells)]
    table = [[row[i] for i in kept] for row in [head, *cells]]
    widths = [max(len(row[i]) for row in table) for i in range(len(kept))]
    lines = []
    for number, texts in enumerate(table):
        padded = [text.ljust(w) for text, w in zip(texts, widths, strict=True)]
        line, short = "  ".join(padded).rstrip(), "  ".join(padded[:-1]).rstrip()
        detail = rows[number - 1].detail if number else ""
        if width is not None and len(line) > width and (detail or not number):
            line = f"{short}\n    {detail}" if detail else short
        if colour and number:
            line = _painted(line, rows[number - 1].state, widths[0] + widths[1] + 4)
        lines.append(line)
    return "\n".join([*lines, "", summary(rows)])


def _cells(row: Row) -> list[str]:
    left = "" if row.left is None else duration(row.left)
    seen = "" if row.age is None or row.state in ("done", "stale") else f"{duration(row.age)} ago"
    return [row.run, str(row.seed), row.state, row.progress, row.loss, left, seen, row.where, row.detail]


def _painted(line: str, state: State, place: int) -> str:
    end = place + len(state)
    return f"{line[:place]}\033[{_COLOURS[state]}m{line[place:end]}\033[0m{line[end:]}"


def summary(rows: list[Row]) -> str:
    """How many rows there are of each state, and how long the longest of those running still takes."""
    counts = Counter(row.state for row in rows)
    words = ", ".join(f"{counts[state]} {state}" for state in _COLOURS if counts[state])
    left = [row.left for row in rows if row.left is not None]
    return f"{len(rows)} trainings: {words}{f'; what runs takes {duration(max(left))} more' if left else ''}."


def duration(seconds: float) -> str:
    """Seconds in the two units that matter."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def show(
    experiment: Experiment,
    *,
    watch: float | None = None,
    stream: TextIO | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Print the matrix, again every `watch` seconds until nothing runs or waits. A terminal is cleared, a pipe is not."""
    stream = stream or sys.stdout
    terminal = stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    while True:
        params = Experiment(experiment.folder).params  # as it is now
        rows = matrix(params, experiment, time.time())
        width = shutil.get_terminal_size().columns if terminal else None
        text = render(rows, width=width, colour=terminal and "NO_COLOR" not in os.environ)
        text = "\n".join([text, *preparation(experiment)])
        if watch:
            text = f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n{text}"
        if changed := _changed_since(params):
            text += f"\n{changed}"
        print(f"\033[2J\033[H{text}" if terminal and watch else text, file=stream, flush=True)
        if not watch or all(row.state in ("done", "failed", "stale") for row in rows):
            return
        sleep(watch)
        if not terminal:
            print(file=stream)


def _changed_since(params: Params) -> str:
    """A word of warning where the jobs work with other settings than these: as merged, whichever files they stand in."""
    folder = Path(params.path).parent
    frozen = calls.living(folder)
    if frozen is not None and settings.load(frozen).raw != params.raw:
        return f"{params.path} has changed since Snakemake started; its jobs keep what it started with ({frozen})."
    return ""
