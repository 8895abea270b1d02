"""Every file that the workflow makes of data and runs, inputs first, and whether its record is of what is asked for now.

The order is that of the rules in workflow/rules; tables, figures and page are `vexkd.report`'s. See `vexkd.content`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from vexkd import content, needs, seal
from vexkd.content import Digests, Product
from vexkd.experiment import HERE
from vexkd.settings import DECIDES_NOTHING, Params, Run

MANIFEST, INFOS, PASTE, MAPS = HERE.manifest, HERE.infos_files, HERE.paste_files, HERE.maps_files
BENCHMARKS = HERE.logs / "benchmarks"
# By which Snakemake dates a folder that is an output.
_FOLDER_TIME = ".snakemake_timestamp"


def of_experiment(params: Params, digests: Digests) -> Iterator[Product]:
    """The products of an experiment's folder, which is the working directory, without tables, figures and page."""
    yield from _of_data(params, digests)
    for run in _in_order(params):
        for seed in params.seeds:
            yield _weights(params, run, seed, digests)
        yield from _of_run(params, run, digests)


def _in_order(params: Params) -> list[Run]:
    """Runs after those that they start from or are taught by."""
    return sorted(params.runs.values(), key=lambda run: 2 if run.teacher else 1 if run.start else 0)


# ---- data


def _of_data(params: Params, digests: Digests) -> Iterator[Product]:
    shared = seal.shared_settings(params)
    if params.synthetic is not None:
        judge = partial(_same_settings, Path(params.root) / "town.yaml", shared["town"])
        yield Product("town", (Path(params.root),), (), judge)
    if "town" in shared:
        town = Path(params.root)
        judge = partial(_same_settings, town / "town.yaml", shared["town"])
        yield Product("town", (town,), (HERE.shared_settings("town"),), judge, (town / _FOLDER_TIME,))
    judge = partial(_judge_manifest, params, shared["data"], digests)
    yield Product("manifest", (MANIFEST,), (HERE.shared_settings("data"),), judge, (BENCHMARKS / "doctor.tsv",))
    judge = partial(_judge_infos, params, digests)
    yield Product("infos", INFOS, (MANIFEST,), judge, (BENCHMARKS / "infos.tsv",))
    if "paste" in shared:
        judge = partial(_judge_paste, shared["paste"], digests)
        yield Product("paste", PASTE, (*INFOS, HERE.shared_settings("paste")), judge, (BENCHMARKS / "paste.tsv",))
    if "maps" in shared:
        judge = partial(_judge_maps, Path(params.root), shared["maps"], digests)
        yield Product("maps", MAPS, (*INFOS, HERE.shared_settings("maps")), judge, (BENCHMARKS / "maps.tsv",))


def _same_settings(record: Path, asked: dict[str, Any], apart: tuple[str, ...] = ()) -> str | None:
    """A copy of the settings beside a product against those of now; `apart` are keys that decide nothing of it."""
    try:
        recorded = yaml.safe_load(record.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if not isinstance(recorded, dict):
        return None
    kept = [{key: value for key, value in values.items() if key not in apart} for values in (recorded, asked)]
    differing = seal.differences(*kept)
    return f"{record.parent} was made with other settings: {', '.join(differing[:3])}." if differing else ""


def _judge_manifest(params: Params, asked: dict[str, Any], digests: Digests) -> str | None:
    """Made for these data, wherever they lie now, and of all the files that the runs read."""
    verdict = _same_settings(HERE.artifacts / "data.yaml", asked, DECIDES_NOTHING)
    if verdict != "":
        return verdict
    if lacking := _uncovered(params):
        return f"{MANIFEST} was made without a look at {lacking}."
    return next(
        (f"{MANIFEST} was made from another {table}." for table in _changed_tables(Path(params.root), digests)), ""
    )


def _changed_tables(root: Path, digests: Digests) -> Iterator[Path]:
    """Tables of nuScenes that are not those of the manifest; splits.json is compared by what its splits hold."""
    for name, sha256 in content.manifest_tables(MANIFEST).items():
        table = root / name
        if table.is_file() and table.name != "splits.json" and digests.file(table) != sha256:
            yield table


def _uncovered(params: Params) -> str:
    """What the runs read that doctor did not look at, in words."""
    covers = json.loads(content.parquet_metadata(MANIFEST).get("vexkd.covers", "{}"))
    return needs.uncovered(covers, params.runs.values())


def manifest_only_widens(params: Params) -> bool:
    """Whether doctor has to look at more files of the same data, which changes nothing of infos that stand."""
    data = seal.shared_settings(params)["data"]
    digests = Digests()
    digests.splits = {}  # a changed splits.json is taken over without making the infos again
    if not all(path.is_file() for path in (MANIFEST, *INFOS)) or _judge_infos(params, digests) != "":
        return False
    same = _same_settings(HERE.artifacts / "data.yaml", data, DECIDES_NOTHING) == ""
    return same and bool(_uncovered(params)) and not any(_changed_tables(Path(params.root), digests))


def _judge_infos(params: Params, digests: Digests) -> str | None:
    problems = seal.infos_problems(params, HERE, digests)
    return None if problems is None else next(iter(problems), "")


def _judge_paste(asked: dict[str, Any], digests: Digests) -> str | None:
    recipe = _recipe(PASTE[1], "vexkd.points")
    if "split" not in recipe:
        return None
    infos = INFOS[0].parent
    now = {**asked, "infos": digests.of(infos), "samples": digests.split(infos, asked["split"])}
    differing = [key for key, value in now.items() if value is not None and recipe.get(key) != value]
    return f"{PASTE[1].parent} was made with other {', '.join(differing)}." if differing else ""


def _judge_maps(root: Path, asked: dict[str, Any], digests: Digests) -> str | None:
    recipe = _recipe(MAPS[1], "vexkd.maps")
    infos = INFOS[0].parent
    if "infos" not in recipe or recipe["infos"] == digests.file(INFOS[0]):  # the latter: of version 0.1
        recipe = {**recipe, "infos": digests.of(infos)}
    now = {**asked, "infos": digests.of(infos)}
    differing = [key for key, value in now.items() if recipe.get(key) != value]
    for name, digest in (recipe.get("expansions") or {}).items():
        file = root / "maps" / "expansion" / f"{name}.json"
        differing += [str(file)] if file.is_file() and digests.file(file) != digest else []
    return f"{MAPS[1].parent} was made with other {', '.join(differing)}." if differing else ""


def _recipe(index: Path, key: str) -> dict[str, Any]:
    try:
        return json.loads(content.parquet_metadata(index).get(key, "{}"))
    except ValueError:
        return {}


# ---- runs


def _weights(params: Params, run: Run, seed: int, digests: Digests) -> Product:
    training = HERE.training(run.name, seed)
    outputs = (training.weights, training.curve, training.provenance)
    inputs = [*INFOS, HERE.run(run.name).config]
    for name, source in seal.inputs(run, seed).items():
        inputs += {"infos": (), "paste": PASTE, "maps": MAPS}.get(name, (source,))
    judge = _first(seal.weights_problems, run, seed, HERE, params.path, digests)
    return Product(f"weights of {run.name}, seed {seed}", outputs, tuple(inputs), judge, (training.benchmark,))


def _of_run(params: Params, run: Run, digests: Digests) -> Iterator[Product]:
    """What is made of finished weights: predictions, metrics and measurements, also without a sensor."""
    kept = HERE.run(run.name)
    settings = (kept.config, kept.inference)
    labels = (*INFOS, *MAPS) if run.task == "segmentation" else ()
    for sensor in (None, "lidar", "camera"):
        predictions = []
        for seed in params.seeds:
            training = HERE.training(run.name, seed)
            file = training.predictions(run.task, without=sensor)
            judge = _first(seal.predictions_problems, run, seed, HERE, params.path, digests, file)
            inputs = (*INFOS, training.weights, *settings)
            measured = BENCHMARKS / "predict" / f"{run.name}-seed{seed}{file.suffix}.tsv"
            yield Product(str(file), (file,), inputs, judge, () if sensor else (measured,))
            predictions.append(file)
        if sensor is not None:
            file = kept.metrics_without(sensor)
            judge = partial(_judge_without, run, file, predictions, digests)
            yield Product(str(file), (file,), (*labels, *predictions, *settings), judge)
    yield _metrics(params, run, labels, digests)
    first = params.seeds[0]
    latency, weights = kept.latency, HERE.training(run.name, first).weights
    yield Product(str(latency), (latency,), (*INFOS, weights), partial(_judge_latency, latency, weights, digests))
    if run.student is not None and run.teacher is not None:
        yield _inspection(run, first, digests)


def _metrics(params: Params, run: Run, labels: tuple[Path, ...], digests: Digests) -> Product:
    kept = HERE.run(run.name)
    outputs = (kept.metrics, kept.curve, kept.provenance, kept.resamples)
    inputs = [*labels, kept.config, kept.inference]
    for seed in params.seeds:
        training = HERE.training(run.name, seed)
        inputs += [training.predictions(run.task), training.weights, training.curve, training.provenance]
    judge = _first(seal.metrics_problems, params, run, HERE, digests)
    measured = BENCHMARKS / "evaluate" / f"{run.name}.tsv"
    return Product(f"metrics of {run.name}", outputs, tuple(inputs), judge, (measured,))


def _judge_without(run: Run, file: Path, predictions: list[Path], digests: Digests) -> str | None:
    record = (_json(file) or {}).get("evaluation")
    if not isinstance(record, dict):
        return None
    now = {str(seed_of(path)): digests.file(path) for path in predictions if path.is_file()}
    if {k: v for k, v in record.get("predictions", {}).items() if k in now or len(now) == len(predictions)} != now:
        return f"{file} was made from other predictions than those of now."
    if (record.get("split"), record.get("config")) != (run.data.val_split, run.inference.evaluation):
        return f"{file} was scored on {record.get('split')} with {record.get('config')}."
    return ""


def seed_of(path: Path) -> int:
    """The seed in whose folder a file lies."""
    return int(path.parent.name.removeprefix("seed"))


def _judge_latency(file: Path, weights: Path, digests: Digests) -> str | None:
    digest = (_json(file) or {}).get("weights")
    if digest is None or not weights.is_file():
        return None
    return "" if digest == digests.file(weights) else f"{file} was measured with other weights than {weights}."


def _inspection(run: Run, seed: int, digests: Digests) -> Product:
    names = [name for name in (run.name, run.student, run.teacher) if name]
    weights = {name: HERE.training(name, seed).weights for name in names}
    file = HERE.training(run.name, seed).inspection

    def judge() -> str | None:
        origin = seal.predictions_meta(file).get("made_from")
        if not isinstance(origin, dict):
            return None
        differing = [
            name for name, path in weights.items() if path.is_file() and origin.get(name) != digests.file(path)
        ]
        return f"{file} was made from other weights of {', '.join(differing)}." if differing else ""

    return Product(str(file), (file,), (*INFOS, *weights.values()), judge)


def _first(problems: Callable[..., list[str]], *arguments: Any) -> Callable[[], str]:
    """The first of some problems, "" if there are none."""
    return lambda: next(iter(problems(*arguments)), "")


def _json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
