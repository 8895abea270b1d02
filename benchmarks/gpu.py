"""Everything to be known of a GPU in one command, without network, Snakemake, DVC or the devkit: `python benchmarks/gpu.py`.

Parts: (a) operations against the CPU, (c) Triton's kernels, (b) trainings at the paper's scale, (d) latency, (e) the probe
for `vexkd forecast` and the matrix in GPU-hours, (f) the demo's LiDAR student. Each runs in a process of its own with its
share of --minutes; what fails says why and the next goes on; a process that dies is started again behind the row that
killed it. FOLDER/gpu.json and gpu.md are written after each row, so that a run that is cut leaves what it had; started
again with the same FOLDER it goes on.

It needs torch, numpy, pandas, pyarrow, pydantic, PyYAML, safetensors, accelerate, transformers, scipy, shapely, pyquaternion
and tqdm; LiDAR rows need spconv, (c) needs Triton. `--device cpu --tiny` tries all of it on any machine.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from gpu_day.day import Day, Journal, run_rows  # noqa: E402

from vexkd import provenance  # noqa: E402

PARTS = {  # in this order: module of gpu_day, share of the time, title
    "operations": (10, "(a) Operations against the CPU's plain routes in float64"),
    "kernels": (10, "(c) Triton's kernels against the routes they replace"),
    "trainings": (34, "(b) Trainings at the paper's scale"),
    "latency": (10, "(d) Latency from bytes to boxes"),
    "costs": (26, "(e) Probe and forecast"),
    "demo": (10, "(f) The demo's LiDAR student"),
}
GRACE = 15.0  # seconds a part may overrun before it is killed
RESTARTS = 6


def child(name: str, options: argparse.Namespace) -> None:
    """One part, in this process."""
    import torch

    day = Day(device=torch.device(options.device), tiny=options.tiny, out=options.out, until=options.until)
    journal = Journal(options.out / f"{name}.jsonl")
    journal.write({"environment": provenance.environment()})
    run_rows(day, journal, importlib.import_module(f"gpu_day.{name}").rows(day))


def run_part(name: str, options: argparse.Namespace, until: float) -> None:
    """A part's process, started again where it dies, until its rows or its time are at an end."""
    journal = Journal(options.out / f"{name}.jsonl")
    for _ in range(RESTARTS):
        command = [sys.executable, __file__, "--part", name, "--until", str(until), "--out", str(options.out)]
        command += ["--device", options.device, *(["--tiny"] if options.tiny else [])]
        with (options.out / f"{name}.log").open("a", encoding="utf-8") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        status = watched(process, options, until)
        rows = journal.rows()
        open_rows = [row for row, values in rows.items() if "begun" in values]
        for row in open_rows:
            why = "cut off: the part's time was up" if status is None else f"its process ended with status {status}"
            journal.write({"row": row, "failed": why})
        if status == 0 or status is None or time.time() >= until:
            break
        if not rows:
            journal.write({"row": "the part itself", "failed": last_line(options.out / f"{name}.log")})
            break
    write(options)


def watched(process: subprocess.Popen, options: argparse.Namespace, until: float) -> int | None:
    """Wait for a process and write down what it reports; its status, or None where it was killed for its time."""
    try:
        while process.poll() is None:
            if time.time() > until + GRACE:
                return None
            time.sleep(0.5)
            write(options)
        return process.returncode
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"


def write(options: argparse.Namespace) -> None:
    """gpu.json with all that was reported, gpu.md for people."""
    parts, environment = {}, None
    for name in PARTS:
        journal = Journal(options.out / f"{name}.jsonl")
        parts[name] = journal.rows()
        environment = next((line["environment"] for line in journal.lines() if "environment" in line), environment)
    values = {
        **provenance.record(),
        **(environment or {}),
        "device": options.device,
        "tiny": options.tiny,
        "parts": parts,
    }
    provenance.write_json(options.out / "gpu.json", values)
    provenance.write_text(options.out / "gpu.md", in_words(values))


def in_words(values: dict[str, Any]) -> str:
    """The report as Markdown."""
    hardware, versions = values["hardware"], values["versions"]
    machine = ", ".join(hardware["gpus"]) or hardware["cpu"]
    lines = [
        f"# {machine}",
        "",
        f"Commit {values['commit']}{' with changes' if values.get('dirty') else ''}, {values['time']}.",
    ]
    lines += ["", ", ".join(f"{name} {version}" for name, version in versions.items()) + "."]
    if values["tiny"]:
        lines += ["", "A trial on small sizes: its times mean nothing."]
    for name, (_, title) in PARTS.items():
        lines += ["", f"## {title}", "", *table(values["parts"][name])]
    return "\n".join(lines) + "\n"


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """One line a row that has values, then what failed or was not reached and why."""
    sound = {name: row for name, row in rows.items() if not {"failed", "skipped", "begun"} & set(row)}
    columns = list(dict.fromkeys(key for row in sound.values() for key in row if not key.startswith("_")))
    lines = []
    if sound:
        lines += [f"| row | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
        lines += [f"| {name} | {' | '.join(cell(row.get(c)) for c in columns)} |" for name, row in sound.items()]
    others = {
        name: row.get("failed") or row.get("skipped") or "running" for name, row in rows.items() if name not in sound
    }
    lines += [""] * bool(sound and others) + [f"- {name}: {why}" for name, why in others.items()]
    return lines or ["Not reached."]


def cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together")
    parser.add_argument("--out", type=Path, default=Path("gpu-day"), metavar="FOLDER")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="small sizes and few rows, to try the command itself")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="only these")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        child(options.part, options)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part's process ends too
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.time() + 60 * options.minutes
    left = [name for name in PARTS if name in options.parts]
    while left:
        name, shares = left[0], sum(PARTS[part][0] for part in left)
        until = time.time() + max(0.0, end - time.time()) * PARTS[name][0] / shares
        print(f"{PARTS[name][1]}: {max(0.0, until - time.time()):.0f} s", flush=True)
        run_part(name, options, until)
        left.pop(0)
        print("\n".join(table(Journal(options.out / f"{name}.jsonl").rows())) + "\n", flush=True)
    print(f"-> {options.out / 'gpu.json'}, {options.out / 'gpu.md'}")


if __name__ == "__main__":
    main()
