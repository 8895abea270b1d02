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

from vexkd import content, leftovers, needs, provenance, seal, settings
from vexkd.errors import InputError
from vexkd.experiment import Experiment
from vexkd.report import outputs, records, sources


def main(verb: str, *arguments: str) -> None:
    names, options = parse(arguments)
    if log := os.environ.get("STAND_IN_CALLS"):
        seed = f"seed{options['seed']}" if verb in ("train", "predict") else ""
        with open(log, "a", encoding="utf-8") as stream:
            print(*[word for word in (verb, *names, seed) if word], file=stream)
    VERBS[verb](names, options)


def parse(arguments: tuple[str, ...]) -> tuple[list[str], dict]:
    """Names and options; those in FLAGS have no value."""
    names: list[str] = []
    options: dict = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word in FLAGS:
            options[word[2:]] = True
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
    root = EXPERIMENT.root
    if root.is_dir() and any(root.iterdir()):
        sys.exit(f"{root} is not empty")
    rows = [{"token": name, "name": name, "log_token": ""} for name in SCENES]
    town = seal.shared_settings(EXPERIMENT.params)["town"]
    write(root / "v1.0-mini" / "scene.json", json.dumps(rows))
    write(root / "v1.0-mini" / "log.json", sorted(town.items()))
    write(root / "town.yaml", settings.dump(town).rstrip("\n"))


def doctor(names: list[str], options: dict) -> None:
    root = EXPERIMENT.root
    tables = sorted(root.glob("v1.0-*/*.json"))
    covers = dict(zip(("splits", "sensors"), needs.needed_files(EXPERIMENT.params.runs.values()), strict=True))
    known = digest(*(table for table in tables if table.name != "splits.json"))
    files = {"path": [str(t.relative_to(root)) for t in tables], "sha256": [digest(t) for t in tables]}
    told = {"version": EXPERIMENT.version, "covers": json.dumps(covers), "tables": known, "all": digest(*tables)}
    write_table(EXPERIMENT.manifest, files, **told)
    write(
        EXPERIMENT.artifacts / "data.yaml", settings.dump(seal.shared_settings(EXPERIMENT.params)["data"]).rstrip("\n")
    )


def write_table(path: Path, columns: dict[str, list[str]] | None = None, **metadata: str) -> None:
    """A Parquet file, of a sample a scene if nothing else is given, that says this of itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = {f"vexkd.{name}": value for name, value in metadata.items()}
    columns = columns or {"token": SCENES, "scene": SCENES, "split": [""] * len(SCENES)}
    pq.write_table(pa.table(columns).replace_schema_metadata(names), path)


def infos(names: list[str], options: dict) -> None:
    """Each scene holds one sample, named as it is."""
    version, manifest = EXPERIMENT.version, content.manifest_digest(EXPERIMENT.manifest)
    for name in ("sweeps", "cameras", "boxes"):
        write(EXPERIMENT.infos / f"{name}.parquet", name, manifest)
    custom = EXPERIMENT.root / version / "splits.json"
    known = {"mini_train": SCENES[:2], "mini_val": SCENES[2:]}
    known |= json.loads(custom.read_text(encoding="utf-8")) if custom.is_file() else {}
    write_table(
        EXPERIMENT.infos / "samples.parquet",
        version=version,
        content=provenance.digest(manifest),
        manifest=manifest,
        splits_file=provenance.file_digest(custom) if custom.is_file() else "",
        split_digests=json.dumps(
            {name: provenance.digest([s for s in SCENES if s in scenes]) for name, scenes in known.items()}
        ),
    )


def paste(names: list[str], options: dict) -> None:
    asked = seal.shared_settings(EXPERIMENT.params)["paste"]
    samples = content.split_digests(EXPERIMENT.infos).get(asked["split"])
    recipe = {**asked, "samples": samples, "infos": seal.content_digest(EXPERIMENT.infos)}
    write(EXPERIMENT.paste / "points.npy", *recipe.items())
    write_table(EXPERIMENT.paste / "index.parquet", points=json.dumps(recipe))


def maps(names: list[str], options: dict) -> None:
    recipe = {**seal.map_settings(EXPERIMENT.params), "infos": seal.content_digest(EXPERIMENT.infos)}
    write(EXPERIMENT.maps / "rasters.npy", *recipe.items())
    write_table(EXPERIMENT.maps / "index.parquet", maps=json.dumps(recipe))


def fetch_weights(names: list[str], options: dict) -> None:
    weights = EXPERIMENT.params.run(names[0]).camera.backbone.weights
    write(weights.file, weights.name)


def train(names: list[str], options: dict) -> None:
    if os.environ.get("RANK", "0") != "0":  # the first of several processes writes
        return
    if sentence := os.environ.get("STAND_IN_REFUSAL"):
        print(f"vexkd: {sentence}", file=sys.stderr)
        sys.exit(2)
    if not EXPERIMENT.root.is_dir():
        sys.exit(f"{EXPERIMENT.root}: there is no such data set")
    if meanwhile := os.environ.get("STAND_IN_MEANWHILE"):
        subprocess.run(meanwhile, shell=True, check=True)
    run, seed = EXPERIMENT.params.run(names[0]), int(options["seed"])
    training, sources_of_run = EXPERIMENT.training(run.name, seed), seal.inputs(run, seed)
    given = {name: sources_of_run.get(name) for name in ("start", "teacher")}
    try:
        seal.refuse_other_settings(run, EXPERIMENT.params.runs, seed, **given)
    except InputError as error:
        print(f"vexkd: {error}", file=sys.stderr)
        sys.exit(2)
    recorded = {name: seal.content_digest(path) for name, path in sources_of_run.items()}
    recorded["samples"] = content.split_digests(EXPERIMENT.infos).get(run.data.train_split)
    metadata = {
        "format": seal.FORMAT,
        "settings": json.dumps(run.training()),
        "inference": json.dumps(run.after_training()),
        "inputs": json.dumps(recorded),
        "provenance": json.dumps({"seed": seed}),
    }
    state = EXPERIMENT.scratch / run.name / f"seed{seed}-{provenance.digest(recorded)}" / "state"
    learnt = learn(f"{run.name} {seed}", state, float(options.get("max-seconds", "inf")))
    head = json.dumps({"__metadata__": metadata, "seed": options["seed"], "learnt": learnt}).encode()
    training.folder.mkdir(parents=True, exist_ok=True)
    learnt_of = provenance.digest([run.training(), recorded, seed, learnt]).encode()
    training.weights.write_bytes(len(head).to_bytes(8, "little") + head + learnt_of + bytes(LARGE))
    write(training.curve, "epoch,loss", "0,1.0", "1,0.5")
    write(training.provenance, "{}")


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
    run = EXPERIMENT.params.run(names[0])
    training = EXPERIMENT.training(run.name, options["seed"])
    out, inference = training.predictions(run.task, options.get("drop")), run.after_training()
    results = digest(training.weights) + provenance.digest(inference)
    digests = content.Digests()
    origin = {"weights": digests.tensors(training.weights), "infos": digests.of(EXPERIMENT.infos)}
    origin["samples"] = content.split_digests(EXPERIMENT.infos)[inference["val_split"]]
    meta = {"inference": inference, "made_from": origin}
    if out.suffix == ".safetensors":
        header = json.dumps({"__metadata__": {"vexkd": json.dumps({**meta, "results": results})}}).encode()
        out.write_bytes(len(header).to_bytes(8, "little") + header)
        return
    write(out, json.dumps({"meta": {"use_lidar": True, **meta}, "results": results}))


def evaluate(names: list[str], options: dict) -> None:
    run, kept = EXPERIMENT.params.run(names[0]), EXPERIMENT.run(names[0])
    sensor = options.get("without")
    trainings = {str(seed): EXPERIMENT.training(run.name, seed) for seed in EXPERIMENT.params.seeds}
    predictions = {seed: training.predictions(run.task, sensor) for seed, training in trainings.items()}
    hashes = {seed: provenance.file_digest(path) for seed, path in predictions.items()}
    if sensor:
        record = {"predictions": hashes, "split": run.data.val_split, "config": run.inference.evaluation}
        write(kept.metrics_without(sensor), json.dumps({"evaluation": record}))
        return
    score = int(digest(*predictions.values())[:6], 16) / 2**24
    weights = {s: {"weights.safetensors": provenance.file_digest(t.weights)} for s, t in trainings.items()}
    write(kept.metrics, json.dumps({"NDS": score}))
    write(kept.curve, next(iter(trainings.values())).curve.read_text(encoding="utf-8").strip())
    write(kept.resamples, "{}")
    files = {path.name: provenance.file_digest(path) for path in (kept.metrics, kept.curve, kept.resamples)}
    record = {"predictions": hashes, "weights": weights, "files": files, "config": run.inference.evaluation}
    write(kept.provenance, json.dumps({"evaluation": {**record, "dataset": {"split": run.data.val_split}}}))


def table(names: list[str], options: dict) -> None:
    params, stem = EXPERIMENT.params, EXPERIMENT.tables / names[0]
    rows = params.table(names[0])
    scores = [EXPERIMENT.run(row).metrics.read_text(encoding="utf-8").strip() for row in rows]
    for end in records.TABLE_FILES:
        write(f"{stem}.{end}", *zip(rows, scores, strict=True))
    made_from, asked = sources.of_table(names[0], params), sources.table_settings(names[0], params)
    record = records.of_files(stem, records.TABLE_FILES, made_from, asked, EXPERIMENT.folder)
    provenance.write_json(f"{stem}.provenance.json", {"table": names[0], **record})


def figure(names: list[str], options: dict) -> None:
    params, name = EXPERIMENT.params, names[0]
    for end in records.FIGURE_FILES:
        write(EXPERIMENT.figures / f"{name}.{end}", names)
    records.write_figure(name, params, EXPERIMENT)


def page(names: list[str], options: dict) -> None:
    params = EXPERIMENT.params
    text = "".join(f"{file}\n" for file in sorted(EXPERIMENT.tables.glob("*.md")))
    signed = records.signed(text, sources.of_page(params), sources.page_settings(params), EXPERIMENT.folder)
    EXPERIMENT.page.write_text(signed, encoding="utf-8")


def inspect(names: list[str], options: dict) -> None:
    run, seed = EXPERIMENT.params.run(names[0]), EXPERIMENT.params.seeds[0]
    weights = {name: EXPERIMENT.training(name, seed).weights for name in (run.name, run.student, run.teacher)}
    made = {"made_from": {name: provenance.file_digest(path) for name, path in weights.items()}}
    head = json.dumps({"__metadata__": {"vexkd": json.dumps(made)}}).encode()
    EXPERIMENT.training(run.name, seed).inspection.write_bytes(len(head).to_bytes(8, "little") + head)


def latency(names: list[str], options: dict) -> None:
    weights = EXPERIMENT.training(names[0], options["seed"]).weights
    write(EXPERIMENT.run(names[0]).latency, json.dumps({"weights": provenance.file_digest(weights)}))


def summary(names: list[str], options: dict) -> None:
    params = EXPERIMENT.params
    made = {"parameters": 1, "settings_digest": seal.model_digest(params, params.run(names[0]))}
    write(options["json"], json.dumps(made))


def check(names: list[str], options: dict) -> None:
    params = EXPERIMENT.params
    problems = seal.check(params, names=names or None)
    if "all" in options:
        problems += outputs.problems(params) + leftovers.sentences(params)
    if problems:
        sys.exit("\n".join(problems))


def clean(names: list[str], options: dict) -> None:
    left_over = leftovers.find(EXPERIMENT.params)
    print(*left_over, sep="\n")
    if "remove" in options:
        leftovers.remove(left_over)


EXPERIMENT = Experiment()
FLAGS = ("--all", "--remove", "--test")
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
