"""What every part of a GPU day knows, and how its rows are run: one after the other, each written down at once."""

from __future__ import annotations

import gc
import json
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from vexkd import settings
from vexkd.settings import Params

ROOT = Path(__file__).parents[2]
Row = tuple[str, Callable[[], dict[str, Any]]]


@dataclass(frozen=True)
class Day:
    """device: where it is measured; tiny: whether everything is small; until: the time (time.time) to end at."""

    device: torch.device
    tiny: bool
    out: Path
    until: float

    @cached_property
    def params(self) -> Params:
        """The paper's scale, or the demo's with few points."""
        if not self.tiny:
            return settings.load(ROOT / "params.yaml")
        params = settings.load(ROOT / "demo/params.yaml")
        few = params.synthetic.model_copy(update={"azimuths": 60, "beams": 8})
        return params.model_copy(update={"synthetic": few})

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.time()

    def milliseconds(self, run: Callable[[], object], *, seconds: float = 0.5, most: int = 20) -> list[float]:
        """Times of up to `most` runs within about `seconds`, after one to warm up; of one without where it is tiny."""
        if not self.tiny:
            run()
        times: list[float] = []
        while not times or (not self.tiny and len(times) < most and sum(times) < 1e3 * seconds):
            self.wait()
            began = time.perf_counter()
            run()
            self.wait()
            times.append(1e3 * (time.perf_counter() - began))
        return times

    def wait(self) -> None:
        """Until the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak(self, run: Callable[[], object]) -> float | None:
        """MiB that a run allocates on the GPU beyond what is there; None on the CPU."""
        if self.device.type != "cuda":
            return None
        release()
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        self.wait()
        return (torch.cuda.max_memory_allocated(self.device) - before) / 2**20


def release() -> None:
    """Give unused memory back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is PyTorch's, or another library's, way of saying so."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in str(error).lower()


class Journal:
    """The lines of one part's file: a row is begun, then it has values, or failed, or was not reached."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def lines(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        whole = self.path.read_text(encoding="utf-8").split("\n")[:-1]  # a line that is cut short is no line
        return [json.loads(line) for line in whole if line]

    def rows(self) -> dict[str, dict[str, Any]]:
        """The last word on each row, in the order in which they began."""
        rows: dict[str, dict[str, Any]] = {}
        for line in self.lines():
            if "row" in line:
                rows[line["row"]] = {key: value for key, value in line.items() if key != "row"}
        return rows


def run_rows(day: Day, journal: Journal, rows: Iterable[Row]) -> None:
    """Run what has no result yet. A fault of the GPU ends the process: after it every call would fail."""
    done = journal.rows()
    for name, measure in rows:
        if name in done:
            continue
        if day.left <= 0:
            journal.write({"row": name, "skipped": "the part's time was up"})
            continue
        journal.write({"row": name, "begun": time.time()})
        began = time.perf_counter()
        try:
            values = measure()
        except Exception as error:  # whatever it is: it is said, and the next row has its turn
            traceback.print_exc()
            journal.write({"row": name, "failed": in_words(error)})
            if "CUDA error" in str(error) and not is_out_of_memory(error):
                raise SystemExit(f"{name}: the GPU's state is lost after {in_words(error)}") from None
            release()
        else:
            journal.write({"row": name, **values, "took_s": round(time.perf_counter() - began, 1)})


def in_words(error: BaseException) -> str:
    """An exception's kind and first line."""
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0][:300]}" if first else type(error).__name__
