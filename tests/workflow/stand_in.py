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

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from vexkd import content, leftovers, provenance, seal, settings
from vexkd.errors import InputError
from vexkd.report import outputs, records, sources


def main(verb: str, *arguments: str) -> None:
    names, options = parse(arguments)
    if log := os.environ.get("STAND_IN_CALLS"):
        made = {"train": Path(options.get("out", "")), "predict": Path(options.get("out", "")).parent}
        with open(log, "a", encoding="utf-8") as stream:
            print(verb, *names, *(made[verb].parts[-2:] if verb in made else []), file=stream)
    VERBS[verb](names, options)


def parse(arguments: tuple[str, ...]) -> tuple[list[str], dict]:
    names: list[str] = []
    options: dict = {"seeds": []}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            names += rest
            break
        if word == "--all":
            options["all"] = True
        elif word == "--remove":
            options["remove"] = True
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
    path.write_text("\n".join(str(part) for part in content) + "\n", encoding="utf-8")


def digest(*paths: str | Path) -> str:
    return hashlib.sha256(b"".join(Path(path).read_bytes() for path in paths)).hexdigest()


def synthesize(names: list[str], options: dict) -> None:
    root = Path(names[0])
    if root.is_dir() and any(root.iterdir()):
        sys.exit(f"{root} is not empty")
    rows = [{"token": name, "name": name, "log_token": ""} for name in SCENES]
    write(root / "v1.0-mini" / "scene.json", json.dumps(rows))
    write(root / "v1.0-mini" / "log.json", sorted(options.items()))


def doctor(names: list[str], options: dict) -> None:
    tables = sorted(Path(options["root"]).glob("v1.0-*/*.json"))
    covers = {name: options[name].split(",") if name in options else None for name in ("splits", "sensors")}
    known = digest(*(table for table in tables if table.name != "splits.json"))
    files = {"path": [str(t.relative_to(options["root"])) for t in tables], "sha256": [digest(t) for t in tables]}
    write_table(
        Path(options["manifest"]),
        files,
        version=options["version"],
        covers=json.dumps(covers),
        tables=known,
        all=digest(*tables),
    )


def write_table(path: Path, columns: dict[str, list[str]] | None = None, **metadata: str) -> None:
    """A Parquet file, of a sample a scene if nothing else is given, that says this of itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = {f"vexkd.{name}": value for name, value in metadata.items()}
    columns = columns or {"token": SCENES, "scene": SCENES, "split": [""] * len(SCENES)}
    pq.write_table(pa.table(columns).replace_schema_metadata(names), path)


def infos(names: list[str], options: dict) -> None:
    """Each scene holds one sample, named as it is."""
    manifest, out = content.manifest_digest(Path("artifacts/manifest.parquet")), Path(options["out"])
    for name in ("sweeps", "cameras", "boxes"):
        write(out / f"{name}.parquet", name, manifest)
    custom = Path(options["root"]) / options["version"] / "splits.json"
    known = {"mini_train": SCENES[:2], "mini_val": SCENES[2:]}
    known |= json.loads(custom.read_text(encoding="utf-8")) if custom.is_file() else {}
    write_table(
        out / "samples.parquet",
        version=options["version"],
        content=provenance.digest(manifest),
        manifest=manifest,
        splits_file=provenance.file_digest(custom) if custom.is_file() else "",
        split_digests=json.dumps(
            {name: provenance.digest([s for s in SCENES if s in scenes]) for name, scenes in known.items()}
        ),
    )


def paste(names: list[str], options: dict) -> None:
    folder, out = Path("artifacts/infos"), Path(options["out"])
    recipe = {"split": options["split"], "samples": content.split_digests(folder).get(options["split"])}
    recipe |= {"min_points": int(options["min-points"]), "sweeps": int(options["sweeps"])}
    recipe["infos"] = seal.content_digest(folder)
    write(out / "points.npy", *recipe.items())
    write_table(out / "index.parquet", points=json.dumps(recipe))


def maps(names: list[str], options: dict) -> None:
    out = Path(options["out"])
    recipe = {"reach": float(options["reach"]), "cell": float(options["cell"]), "edges": options["edges"]}
    recipe["infos"] = seal.content_digest(Path("artifacts/infos"))
    write(out / "rasters.npy", *recipe.items())
    write_table(out / "index.parquet", maps=json.dumps(recipe))


def fetch_weights(names: list[str], options: dict) -> None:
    weights = settings.load(options["params"]).run(names[0]).camera.backbone.weights
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
    out, config, seed = Path(options["out"]), Path(options["config"]), int(options["seed"])
    run = settings.read_run(config, config.with_name("inference.yaml"))
    given = {name: Path(options[name]) if name in options else None for name in ("start", "teacher")}
    try:
        seal.refuse_other_settings(run, config.parent.parent, seed, **given)
    except InputError as error:
        print(f"vexkd: {error}", file=sys.stderr)
        sys.exit(2)
    sources = seal.inputs(run, seed)
    for name in ("paste", "maps", "start", "teacher"):
        if (name in sources) != (name in options):
            sys.exit(f"{run.name}: --{name} does not fit the settings")
    recorded = {name: seal.content_digest(path) for name, path in sources.items()}
    recorded["samples"] = content.split_digests(Path(options["infos"])).get(run.data.train_split)
    metadata = {
        "format": seal.FORMAT,
        "settings": json.dumps(run.training()),
        "inference": json.dumps(run.after_training()),
        "inputs": json.dumps(recorded),
        "provenance": json.dumps({"seed": seed}),
    }
    state = Path(options["scratch"]) / run.name / f"seed{options['seed']}-{provenance.digest(recorded)}" / "state"
    learnt = learn(f"{run.name} {options['seed']}", state, float(options.get("max-seconds", "inf")))
    head = json.dumps({"__metadata__": metadata, "seed": options["seed"], "learnt": learnt}).encode()
    out.mkdir(parents=True, exist_ok=True)
    learnt_of = provenance.digest([run.training(), recorded, seed, learnt]).encode()
    (out / "weights.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + learnt_of + bytes(LARGE))
    write(out / "curve.csv", "epoch,loss", "0,1.0", "1,0.5")
    write(out / "provenance.json", "{}")


def learn(name: str, state: Path, seconds: float) -> str:
    """A chain of hashes, one link a step, saved every five steps and when asked to stop (status 75)."""
    started, asked = time.monotonic(), []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda received, _frame: asked.append(received))
    step, value = json.loads(state.read_text(encoding="utf-8")) if state.exists() else (0, "")
    total = int(os.environ.get("STAND_IN_STEPS", "0"))
    while step < total:
        with open(f"{os.environ['STAND_IN_CALLS']}.steps", "a", encoding="utf-8") as stream:
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
    inference = yaml.safe_load(Path(options["inference"]).read_text(encoding="utf-8"))
    results = digest(options["weights"], options["inference"])
    folder, digests = Path(options["infos"]), content.Digests()
    origin = {"weights": digests.tensors(Path(options["weights"])), "infos": digests.of(folder)}
    meta = {"inference": inference, "made_from": origin}
    origin["samples"] = content.split_digests(folder)[inference["val_split"]]
    if options["out"].endswith(".safetensors"):
        header = json.dumps({"__metadata__": {"vexkd": json.dumps({**meta, "results": results})}}).encode()
        Path(options["out"]).write_bytes(len(header).to_bytes(8, "little") + header)
        return
    write(options["out"], json.dumps({"meta": {"use_lidar": True, **meta}, "results": results}))


def evaluate(names: list[str], options: dict) -> None:
    folder, params = Path("results/runs") / names[0], Path(options["settings"]) / names[0]
    run = settings.read_run(params / "config.yaml", params / "inference.yaml")
    seeds = {seed: Path("models") / names[0] / f"seed{seed}" for seed in options["seeds"]}
    predictions = {name: seal.predictions_path("models", run, int(name)) for name in seeds}
    if sensor := options.get("without"):
        files = {name: path.with_stem(f"{path.stem}-without-{sensor}") for name, path in predictions.items()}
        made = {name: provenance.file_digest(path) for name, path in files.items()}
        record = {"predictions": made, "split": run.data.val_split, "config": run.inference.evaluation}
        write(folder / f"metrics-without-{sensor}.json", json.dumps({"evaluation": record}))
        return
    score = int(digest(*predictions.values())[:6], 16) / 2**24
    made = {
        "predictions": {name: provenance.file_digest(path) for name, path in predictions.items()},
        "weights": {
            name: {"weights.safetensors": provenance.file_digest(seed / "weights.safetensors")}
            for name, seed in seeds.items()
        },
    }
    write(folder / "metrics.json", json.dumps({"NDS": score}))
    write(folder / "curve.csv", next(iter(seeds.values())).joinpath("curve.csv").read_text(encoding="utf-8").strip())
    write(folder / "resamples.json", "{}")
    files = {name: provenance.file_digest(folder / name) for name in ("metrics.json", "curve.csv", "resamples.json")}
    made |= {"files": files, "dataset": {"split": run.data.val_split}, "config": run.inference.evaluation}
    write(folder / "provenance.json", json.dumps({"evaluation": made}))


def table(names: list[str], options: dict) -> None:
    rows = settings.load(options["params"]).table(names[0])
    scores = [Path(f"results/runs/{row}/metrics.json").read_text(encoding="utf-8").strip() for row in rows]
    stem, params, places = Path("results/tables") / names[0], settings.load(options["params"]), sources.Places()
    for end in records.TABLE_FILES:
        write(f"{stem}.{end}", *zip(rows, scores, strict=True))
    made_from, asked = sources.of_table(names[0], params), sources.table_settings(names[0], params)
    record = records.of_files(stem, records.TABLE_FILES, made_from, asked, places)
    provenance.write_json(f"{stem}.provenance.json", {"table": names[0], **record})


def figure(names: list[str], options: dict) -> None:
    names = names[1:] if names[0] == "chart" else names
    for end in records.FIGURE_FILES:
        write(f"results/figures/{'-'.join(names)}.{end}", names)
    if "params" in options:
        records.of_chart(names[0], settings.load(options["params"]), Path("results"))
        return
    kind, run = names
    segments = {"maps": True} if kind == "masks" and "maps" in options else {}
    student = options.get("student")
    records.of_sample(kind, run, places=sources.Places(), seed=int(options["seed"]), student=student, **segments)


def page(names: list[str], options: dict) -> None:
    params, places = settings.load(options["params"]), sources.Places()
    text = "".join(f"{file}\n" for file in sorted(Path("results").glob("tables/*.md")))
    signed = records.signed(text, sources.of_page(params), sources.page_settings(params), places)
    Path("results/report.html").write_text(signed, encoding="utf-8")


def inspect(names: list[str], options: dict) -> None:
    folder = Path(options["models"]) / names[0] / f"seed{options['seed']}"
    settings = json.loads(seal.header(folder / "weights.safetensors")["settings"])
    runs = [names[0], settings["student"], settings["teacher"]]
    paths = {name: seal.weights_path(options["models"], name, int(options["seed"])) for name in runs}
    made = {"made_from": {name: provenance.file_digest(path) for name, path in paths.items()}}
    head = json.dumps({"__metadata__": {"vexkd": json.dumps(made)}}).encode()
    (folder / "inspection.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)


def latency(names: list[str], options: dict) -> None:
    weights = seal.weights_path(options["models"], names[0], int(options["seed"]))
    write(f"results/runs/{names[0]}/latency.json", json.dumps({"weights": provenance.file_digest(weights)}))


def summary(names: list[str], options: dict) -> None:
    params = settings.load(options["params"])
    made = {"parameters": 1, "settings_digest": seal.model_digest(params, params.run(names[0]))}
    write(options["json"], json.dumps(made))


def check(names: list[str], options: dict) -> None:
    params = settings.load(options.get("params", "params.yaml"))
    problems = seal.check(params, names=names or None)
    if "all" in options:
        problems += outputs.problems(params) + leftovers.sentences(params)
    if problems:
        sys.exit("\n".join(problems))


def clean(names: list[str], options: dict) -> None:
    found = leftovers.find(settings.load("params.yaml"))
    print(*found, sep="\n")
    if "remove" in options:
        leftovers.remove(found)


SCENES = ["scene-0061", "scene-0553", "scene-0103", "scene-0916"]
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
        summary,
        check,
        clean,
    )
}

if __name__ == "__main__":
    main(*sys.argv[1:])
