"""(f) The demo's LiDAR student trained on the device and on the CPU, side by side, and both scored on the same scenes."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from gpu_day.day import ROOT, Day, Row
from vexkd import settings
from vexkd.settings import Run, from_values
from vexkd.settings.yaml_text import dump

RUN = "centerpoint-det"


def rows(day: Day) -> Iterator[Row]:
    yield "the town", lambda: town(day)
    places = ["cpu"] if day.device.type == "cpu" else ["cpu", "cuda"]
    started: dict[str, subprocess.Popen] = {}
    yield "start", lambda: start(day, places, started)
    for place in places:
        yield f"trained on {place}", lambda place=place: finish(day, place, started)


def folder(day: Day) -> Path:
    return day.out / "demo"


def run_of(day: Day) -> Run:
    """The demo's student; the tiny day trains it for one epoch."""
    run = settings.load(ROOT / "demo/params.yaml").run(RUN)
    return run.model_copy(update={"train": run.train.model_copy(update={"epochs": 1})}) if day.tiny else run


def town(day: Day) -> dict[str, Any]:
    """The embedded data set of demo/params.yaml and its infos."""
    from vexkd.data import infos_build
    from vexkd.synthetic.tables import synthesize

    plan = settings.load(ROOT / "demo/params.yaml").synthetic.model_dump()
    plan = plan | ({"scenes": 2, "samples": 2, "azimuths": 120, "image_size": [32, 18]} if day.tiny else {})
    plan["image_size"] = tuple(plan["image_size"])
    synthesize(folder(day) / "town", **plan, workers=os.cpu_count(), progress=False)
    counts = infos_build.build(folder(day) / "town", run_of(day).data.version, folder(day) / "infos", progress=False)
    return dict(counts._asdict())


def start(day: Day, places: list[str], started: dict[str, subprocess.Popen]) -> dict[str, Any]:
    """Both trainings at once, each in a process of its own."""
    config = folder(day) / "runs" / RUN
    config.mkdir(parents=True, exist_ok=True)
    (config / "config.yaml").write_text(dump(run_of(day).training()), encoding="utf-8")
    (config / "inference.yaml").write_text(dump(run_of(day).after_training()), encoding="utf-8")
    threads = max(1, (os.cpu_count() or 1) // 2)
    for place in places:
        log = (folder(day) / f"{place}.log").open("w", encoding="utf-8")
        values = {"folder": str(folder(day)), "place": place, "threads": 1 if day.tiny else threads}
        command = [sys.executable, __file__, json.dumps(values)]
        path = os.pathsep.join([str(ROOT), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": path}
        started[place] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    return {"processes": len(started)}


def finish(day: Day, place: str, started: dict[str, subprocess.Popen]) -> dict[str, Any]:
    """Wait for a training; its seconds, last loss and scores."""
    from vexkd.evaluate import detection

    run, out = run_of(day), folder(day) / place
    if place not in started:
        raise RuntimeError("its training was not started")
    try:
        status = started[place].wait(timeout=max(1.0, day.left))
    except subprocess.TimeoutExpired:
        started[place].kill()
        raise TimeoutError("the part's time was up while it trained") from None
    if status:
        lines = (folder(day) / f"{place}.log").read_text(encoding="utf-8").strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"status {status}")
    with (out / "curve.csv").open(encoding="utf-8") as stream:
        curve = list(csv.DictReader(stream))
    made = json.loads((out / "times.json").read_text(encoding="utf-8"))
    values = {"training s": made["training"], "prediction s": made["prediction"], "last loss": float(curve[-1]["loss"])}
    where = {"root": folder(day) / "town", "version": run.data.version, "split": run.data.val_split}
    try:
        scores = detection.evaluate(out / "predictions.json", **where, config=run.inference.evaluation)
    except ImportError as missing:
        return values | {"unscored": str(missing)}
    return values | {name: scores[name] for name in ("mAP", "NDS")}


def train(values: dict[str, Any]) -> None:
    """The child: train, then predict, on one device."""
    import time

    from vexkd.train import session
    from vexkd.train.loop import RuntimeOptions

    base, place = Path(values["folder"]), values["place"]
    given = {"root": base / "town", "infos": base / "infos", "threads": values["threads"]}
    given["device"] = "cpu" if place == "cpu" else None
    files = [base / "runs" / RUN / name for name in ("config.yaml", "inference.yaml")]
    run = from_values(*(yaml.safe_load(file.read_text(encoding="utf-8")) for file in files), RUN)
    began = time.perf_counter()
    session.train(
        run,
        **given,
        out=base / place,
        seed=0,
        paste=None,
        start=None,
        teacher=None,
        scratch=base / f"scratch-{place}",
        runtime=RuntimeOptions(),
    )
    trained = time.perf_counter()
    weights, predictions = base / place / "weights.safetensors", base / place / "predictions.json"
    session.predict(weights, **given, out=predictions, expected=run, batch=1, workers=0)
    times = {"training": trained - began, "prediction": time.perf_counter() - trained}
    (base / place / "times.json").write_text(json.dumps(times), encoding="utf-8")


if __name__ == "__main__":
    train(json.loads(sys.argv[1]))
