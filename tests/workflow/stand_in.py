"""Stands in for `vexkd` in the workflow's tests: every verb makes its outputs at once, from its inputs' content.

Nothing is learnt: what is tested is which jobs run. Each call is appended to the file that STAND_IN_CALLS names. With
STAND_IN_STEPS a training takes that many steps of STAND_IN_STEP_SECONDS, appended to a file beside it, and can be stopped
and resumed as the real one.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import yaml

from vexkd import params, provenance, seal


def main(verb: str, *arguments: str) -> None:
    names, options = parse(arguments)
    if log := os.environ.get("STAND_IN_CALLS"):
        made = {"train": Path(options.get("out", "")), "predict": Path(options.get("out", "")).parent}
        with open(log, "a") as stream:
            print(verb, *names, *(made[verb].parts[-2:] if verb in made else []), file=stream)
    VERBS[verb](names, options)


def parse(arguments: tuple[str, ...]) -> tuple[list[str], dict]:
    names: list[str] = []
    options: dict = {"seeds": []}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--all":
            options["all"] = True
        elif word == "--seeds":
            options["seeds"].append(rest.pop(0))
        elif word.startswith("--"):
            options[word[2:]] = rest.pop(0)
        else:
            names.append(word)
    return names, options


def write(path: str | Path, *content: object) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(str(part) for part in content) + "\n")


def digest(*paths: str | Path) -> str:
    return hashlib.sha256(b"".join(Path(path).read_bytes() for path in paths)).hexdigest()


def synthesize(names: list[str], options: dict) -> None:
    root = Path(names[0])
    if root.is_dir() and any(root.iterdir()):
        sys.exit(f"{root} is not empty")
    write(root / "v1.0-mini" / "scene.json", sorted(options.items()))


def doctor(names: list[str], options: dict) -> None:
    tables = sorted(Path(options["root"]).glob("v1.0-*/*.json"))
    write(options["manifest"], options["version"], digest(*tables))


def infos(names: list[str], options: dict) -> None:
    manifest = digest("artifacts/manifest.parquet")
    for name in ("samples", "sweeps", "cameras", "boxes"):
        write(Path(options["out"]) / f"{name}.parquet", name, manifest)


def paste(names: list[str], options: dict) -> None:
    for name in ("points.npy", "index.parquet"):
        write(
            Path(options["out"]) / name,
            options["split"],
            options["min-points"],
            digest("artifacts/infos/boxes.parquet"),
        )


def maps(names: list[str], options: dict) -> None:
    for name in ("rasters.npy", "index.parquet"):
        write(Path(options["out"]) / name, options["reach"], options["cell"], digest("artifacts/infos/samples.parquet"))


def fetch_weights(names: list[str], options: dict) -> None:
    weights = params.load(options["params"]).run(names[0]).camera.backbone.weights
    write(weights.file, weights.name)


def train(names: list[str], options: dict) -> None:
    if os.environ.get("RANK", "0") != "0":  # the first of several processes writes
        return
    if sentence := os.environ.get("STAND_IN_REFUSAL"):
        print(f"vexkd: {sentence}", file=sys.stderr)
        sys.exit(2)
    if not Path(options["root"]).is_dir():
        sys.exit(f"{options['root']}: there is no such data set")
    if meanwhile := os.environ.get("STAND_IN_MEANWHILE"):
        subprocess.run(meanwhile, shell=True, check=True)
    out, settings = Path(options["out"]), yaml.safe_load(Path(options["config"]).read_text())
    run = SimpleNamespace(**{key: settings.get(key) for key in ("name", "paste", "map", "start", "teacher")})
    weights = ((settings.get("camera") or {}).get("backbone") or {}).get("weights")
    run.camera = SimpleNamespace(backbone=SimpleNamespace(weights=weights and SimpleNamespace(**weights)))
    sources = seal.inputs(run, int(options["seed"]))
    for name in ("paste", "maps", "start", "teacher"):
        if (name in sources) != (name in options):
            sys.exit(f"{run.name}: --{name} does not fit the settings")
    recorded = {name: seal.content_digest(path) for name, path in sources.items()}
    metadata = {
        "format": seal.FORMAT,
        "settings": json.dumps(settings),
        "inputs": json.dumps(recorded),
        "provenance": "{}",
    }
    state = Path(options["scratch"]) / run.name / f"seed{options['seed']}-{provenance.digest(recorded)}" / "state"
    learnt = learn(f"{run.name} {options['seed']}", state, float(options.get("max-seconds", "inf")))
    content = json.dumps({"__metadata__": metadata, "seed": options["seed"], "learnt": learnt}).encode()
    out.mkdir(parents=True, exist_ok=True)
    (out / "weights.safetensors").write_bytes(len(content).to_bytes(8, "little") + content + bytes(LARGE))
    write(out / "curve.csv", "epoch,loss", "0,1.0", "1,0.5")
    write(out / "provenance.json", "{}")


def learn(name: str, state: Path, seconds: float) -> str:
    """A chain of hashes, one link a step, saved every five steps and when asked to stop (status 75)."""
    started, asked = time.monotonic(), []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda received, _frame: asked.append(received))
    step, value = json.loads(state.read_text()) if state.exists() else (0, "")
    total = int(os.environ.get("STAND_IN_STEPS", "0"))
    while step < total:
        with open(f"{os.environ['STAND_IN_CALLS']}.steps", "a") as stream:
            print(name, step, file=stream)
        time.sleep(float(os.environ.get("STAND_IN_STEP_SECONDS", "0.1")))
        step, value = step + 1, hashlib.sha256(f"{name} {step} {value}".encode()).hexdigest()
        stop = step < total and (asked or time.monotonic() - started > seconds)
        if stop or step % 5 == 0:
            write(state.with_suffix(".new"), json.dumps([step, value]))
            state.with_suffix(".new").replace(state)
        if stop:
            print(f"{name}: stopped after step {step} of {total}, state saved.")
            sys.exit(75)
    return value


def predict(names: list[str], options: dict) -> None:
    inference = yaml.safe_load(Path(options["inference"]).read_text())
    results = digest(options["weights"], options["inference"])
    if options["out"].endswith(".safetensors"):
        header = json.dumps(
            {"__metadata__": {"vexkd": json.dumps({"inference": inference, "results": results})}}
        ).encode()
        Path(options["out"]).write_bytes(len(header).to_bytes(8, "little") + header)
        return
    write(options["out"], json.dumps({"meta": {"use_lidar": True, "inference": inference}, "results": results}))


def evaluate(names: list[str], options: dict) -> None:
    folder = Path("results/runs") / names[0]
    if sensor := options.get("without"):
        write(folder / f"metrics-without-{sensor}.json", "{}")
        return
    seeds = {seed: Path("models") / names[0] / f"seed{seed}" for seed in options["seeds"]}
    predictions = {name: next(seed.glob("predictions.*")) for name, seed in seeds.items()}
    score = int(digest(*predictions.values())[:6], 16) / 2**24
    made = {
        "predictions": {name: provenance.file_digest(path) for name, path in predictions.items()},
        "weights": {
            name: {"weights.safetensors": provenance.file_digest(seed / "weights.safetensors")}
            for name, seed in seeds.items()
        },
    }
    write(folder / "metrics.json", json.dumps({"NDS": score}))
    write(folder / "curve.csv", next(iter(seeds.values())).joinpath("curve.csv").read_text().strip())
    write(folder / "provenance.json", json.dumps({"evaluation": made}))
    write(folder / "resamples.json", "{}")


def table(names: list[str], options: dict) -> None:
    rows = params.load(options["params"]).table(names[0])
    scores = [Path(f"results/runs/{row}/metrics.json").read_text().strip() for row in rows]
    for end in ("csv", "md", "tex", "provenance.json"):
        write(f"results/tables/{names[0]}.{end}", *zip(rows, scores, strict=True))


def figure(names: list[str], options: dict) -> None:
    names = names[1:] if names[0] == "chart" else names
    for end in ("png", "svg", "csv"):
        write(f"results/figures/{'-'.join(names)}.{end}", names)


def page(names: list[str], options: dict) -> None:
    write("results/report.html", *sorted(Path("results").glob("tables/*.md")))


def inspect(names: list[str], options: dict) -> None:
    folder = Path(options["models"]) / names[0] / f"seed{options['seed']}"
    write(folder / "inspection.safetensors", digest(folder / "weights.safetensors"))


def latency(names: list[str], options: dict) -> None:
    write(f"results/runs/{names[0]}/latency.json", "{}")


def check(names: list[str], options: dict) -> None:
    problems = seal.check(params.load(options.get("params", "params.yaml")), names=names or None)
    if problems:
        sys.exit("\n".join(problems))


LARGE = 1_200_000  # above the size up to which Snakemake takes checksums unless told otherwise
VERBS = {
    f.__name__.replace("_", "-"): f
    for f in (
        synthesize,
        doctor,
        infos,
        paste,
        maps,
        fetch_weights,
        train,
        predict,
        evaluate,
        table,
        figure,
        page,
        inspect,
        latency,
        check,
    )
}

if __name__ == "__main__":
    main(*sys.argv[1:])
