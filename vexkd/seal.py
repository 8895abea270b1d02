"""What ties results to settings: a run's files are compared with what params.yaml asks for.

A run's weights carry, in the header of their file, the settings and the hashes of the files they were made from.
`check` holds them against what params.yaml asks for now, so that neither a stale model nor a stale metric is recorded
as current. Reads headers only: no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vexkd import content, provenance, settings
from vexkd.content import Digests
from vexkd.errors import InputError
from vexkd.experiment import HERE, Experiment
from vexkd.geometry import needed_reach
from vexkd.settings import Decides, Params, Run

FORMAT = "vexkd-weights-1"
_HEAD = 65536  # bytes of a predictions file in which its first key, "meta", ends


def inputs(run: Run, seed: int, experiment: Experiment = HERE) -> dict[str, Path]:
    """What a training reads apart from the raw data, by the names under which the weights record its hash."""
    files = {"infos": experiment.infos}
    if run.paste is not None:
        files["paste"] = experiment.paste
    if run.map is not None:
        files["maps"] = experiment.maps
    for name, other in (("start", run.start), ("teacher", run.teacher)):
        if other is not None:
            files[name] = experiment.training(other, seed).weights
    if backbone := experiment.backbone(run):
        files["backbone"] = backbone
    return files


def content_digest(path: Path) -> str:
    """SHA-256 of a file; for a folder the hash over its files' hashes (`content.folder_digest`)."""
    return content.Digests().of(path)


def header(path: Path | str) -> dict[str, str]:
    """The metadata in a safetensors file's header; InputError where the file is none or was made by something else."""
    path = Path(path)
    try:
        metadata = safetensors_header(path)[0].get("__metadata__", {})
    except FileNotFoundError:
        raise InputError(f"{path}: there are no such weights; train the run or run `dvc pull`.") from None
    except (ValueError, AttributeError):
        raise InputError(f"{path}: this is not a whole safetensors file; remove it and train the run again.") from None
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"{path}: the header does not say {FORMAT}, so these weights can't be held against params.yaml."
        )
    return metadata


def safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """The parsed header of a safetensors file and where its data begin; ValueError where the file is none."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(100_000_000, path.stat().st_size - 8):
            raise ValueError(f"{path} has no header")
        return json.loads(stream.read(length)), 8 + length


def check(params: Params, experiment: Experiment = HERE, names: Iterable[str] | None = None) -> list[str]:
    """One sentence for each file of a run that params.yaml, as it is now, would not make; none if all agree.

    `names` are runs, all by default; an unknown one raises InputError. Weights must be there; other files are compared where
    they are (DVC itself misses what is not).
    """
    digests = Digests(experiment.folder / content.MEMORY)
    problems = infos_problems(params, experiment, digests) or []
    for name in params.runs if names is None else names:
        run = params.run(name)
        for seed in params.seeds:
            problems += weights_problems(run, seed, experiment, params.path, digests)
            problems += predictions_problems(run, seed, experiment, params.path, digests)
        problems += metrics_problems(params, run, experiment, digests)
    digests.save()
    return [f"{problem.rstrip('.')}." for problem in problems]


def differences(made: Any, asked: Any) -> list[str]:
    """Paths at which two settings differ, as `train.lr (0.001, now 0.002)`."""
    unequal = settings.unequal(asked, made)
    return [f"{path} ({json.dumps(recorded)}, now {json.dumps(wanted)})" for path, wanted, recorded in unequal]


def shared_settings(params: Params) -> dict[str, dict[str, Any]]:
    """Settings that belong to no single run, by the file they are written to: raw data, pasted objects, tables."""
    town = params.synthetic.model_dump(mode="json") if params.synthetic else None
    versions = sorted({run.data.version for run in params.runs.values()})
    pasting = [run for run in params.runs.values() if run.paste is not None]
    pastes = {(run.data.train_split, run.paste.min_points, run.data.sweeps) for run in pasting if run.paste is not None}
    if len(versions) > 1:
        raise InputError(
            f"{params.path}: data.version: the runs share one preparation, but ask for {', '.join(versions)}."
        )
    if len(pastes) > 1:
        raise InputError(
            f"{params.path}: paste.min_points: all runs share one database of objects; give them one split, number and data.sweeps."
        )
    shared: dict[str, dict[str, Any]] = {"data": {"root": params.root, "version": versions[0], "synthetic": town}}
    if town is not None:
        shared["town"] = town
    for split, points, sweeps in pastes:
        shared["paste"] = {"split": split, "min_points": points, "sweeps": sweeps}
    if any(run.map is not None for run in params.runs.values()):
        shared["maps"] = map_settings(params)
    for table, rows in params.tables.items():
        reported = {row: params.reported[row].model_dump(mode="json") for row in rows if row in params.reported}
        students = dict.fromkeys(params.run(row).student for row in rows)
        floors = {name: params.floors[name].model_dump(mode="json") for name in students if name in params.floors}
        published = {"reported": reported, "floors": floors}
        shared[f"table-{table}"] = {"rows": rows, **published, "synthetic": town is not None}
    for figure, rows in params.figures.items():
        shared[f"figure-{figure}"] = {"rows": rows, "synthetic": town is not None}
    return shared


def map_settings(params: Params) -> dict[str, Any]:
    """How the map rasters are drawn: as wide as the widest augmentation of a run that reads them asks for, in whole cells."""
    runs = [run for run in params.runs.values() if run.map is not None]
    cell, edges = runs[0].map.cell, runs[0].map.edges  # the same in all of them
    reach = 0.0
    for run in runs:
        augment = run.bev_augment.model_dump(include={"rotation", "translation"}) | {
            "scale": tuple(run.bev_augment.scale)
        }
        reach = max(reach, needed_reach(run.map.grid.bounds, **augment))
    return {"reach": round(math.ceil(reach / cell - 1e-9) * cell, 6), "cell": cell, "edges": edges}


def _recorded(metadata: dict[str, str], key: str) -> Any:
    """A JSON value of the header; None where it is absent or no JSON, which equals no settings."""
    try:
        return json.loads(metadata.get(key, "null"))
    except ValueError:
        return None


def recorded_training(run: Run, metadata: dict[str, str]) -> dict[str, Any]:
    """The training settings in a weights header as they would be written now; {} where there are none.

    Settings that came since are at their defaults; the split to score on no longer stands among them. Imported weights
    keep their own reading of the border of the lifted space where the run's settings name none.
    """
    recorded = _recorded(metadata, "settings")
    if not isinstance(recorded, dict):
        return {}
    if (_recorded(metadata, "provenance") or {}).get("imported"):
        recorded = without_own_border(recorded, run)
    try:
        return settings.from_values(recorded, run.after_training(), "header").training()
    except InputError:  # of another version, or by another program: as it stands
        return settings.training_part(recorded)


def without_own_border(made: dict[str, Any], run: Run) -> dict[str, Any]:
    """Settings of imported weights without `camera.view.border`, unless the run asks for one."""
    if getattr(getattr(run.camera, "view", None), "border", None) is not None or not made.get("camera"):
        return made
    view = {key: value for key, value in made["camera"].get("view", {}).items() if key != "border"}
    return {**made, "camera": {**made["camera"], "view": view}}


def made_otherwise(run: Run, metadata: dict[str, str], seed: int) -> str:
    """In what weights differ from those that a run with a seed would make now, by their header; "" if in nothing."""
    if (name := (_recorded(metadata, "settings") or {}).get("name", run.name)) != run.name:
        return f"these are the weights of {name}; pass those of {run.name}"
    if differing := differences(recorded_training(run, metadata), run.training()):
        return f"made with other settings than those of now: {_few(differing)}"
    recorded_seed = (_recorded(metadata, "provenance") or {}).get("seed", seed)
    return f"made with seed {recorded_seed}, not {seed}" if recorded_seed not in (seed, None) else ""


def refuse_other_settings(
    run: Run, runs: Mapping[str, Run], seed: int, *, start: Path | None, teacher: Path | None
) -> None:
    """Raises InputError where the weights to start from, or the teacher's, are not of the settings and seed asked for.

    runs: those of the experiment; a start or teacher that is none of them is not compared.
    """
    for role, name, weights in (("start", run.start, start), ("teacher", run.teacher, teacher)):
        if name is None or weights is None or not weights.is_file():
            continue  # said where the weights are read
        if name not in runs:
            print(f"{weights}: not compared with settings: there is no run {name} to compare it with.", flush=True)
            continue
        if problem := made_otherwise(runs[name], header(weights), seed):
            cure = "" if "pass those" in problem else f"; train {name} again"
            raise InputError(f"{weights}: {run.name}: {role} {name}: {problem}{cure}.")


def deployed_settings(run: Run) -> dict[str, Any]:
    """The settings that decide the model which a run deploys and what a sample costs it."""
    values = run.values(Decides.DEPLOYED)
    return {**values, "data": values["data"]["sweeps"]}


def model_digest(params: Params, run: Run) -> str:
    """A hash of the settings that decide the model which a run deploys and the sample on which its work is counted."""
    town = params.synthetic.model_dump(mode="json") if params.synthetic else None
    return provenance.digest([deployed_settings(run), town])


def settings_digests(run: Run) -> set[str]:
    """The hashes by which records name a run's training settings: as they are, and with the split to score on, as before."""
    training = run.training()
    before = {**training, "data": {**training["data"], "val_split": run.data.val_split}}
    return {provenance.digest(training), provenance.digest(before)}


def infos_problems(params: Params, experiment: Experiment, digests: Digests) -> list[str] | None:
    """What the infos record, version, manifest and splits.json, against what is there now; None where they record nothing."""
    infos, manifest = experiment.infos, experiment.manifest
    metadata = content.parquet_metadata(infos / "samples.parquet")
    if "vexkd.manifest" not in metadata:
        return None
    version = next(iter(params.runs.values())).data.version
    if metadata["vexkd.version"] != version:
        return [f"{infos} are of {metadata['vexkd.version']}, not of {version}; make them again"]
    if (
        metadata["vexkd.manifest"]
        and manifest.is_file()
        and metadata["vexkd.manifest"] != content.manifest_digest(manifest)
    ):
        return [f"{infos} were made from another manifest than {manifest}; make them again"]
    custom = Path(params.root) / version / "splits.json"
    now = digests.file(custom) if custom.is_file() else ""
    if custom.parent.is_dir() and digests.splits is None and metadata.get("vexkd.splits_file", now) != now:
        return [f"{infos} were made with another {custom} than the present one; run snakemake, which takes it over"]
    return []


def weights_problems(run: Run, seed: int, experiment: Experiment, path: str, digests: Digests) -> list[str]:
    """Settings, seed and inputs in the header of one weights file against those of now, a sentence each."""
    file = experiment.training(run.name, seed).weights
    try:
        metadata = header(file)
    except InputError as error:
        return [f"{run.name}: {error}"]
    problems = []
    if differing := differences(recorded_training(run, metadata), run.training()):
        problems.append(
            f"{run.name}: {file} was made with other settings than {path} asks for: {_few(differing)}; train it again"
        )
    record = _recorded(metadata, "provenance") or {}
    if record.get("imported"):
        return problems  # published weights: they were made from none of these
    if record.get("seed") not in (None, seed):
        problems.append(f"{run.name}: {file} was made with seed {record['seed']}; train it again")
    recorded = _recorded(metadata, "inputs") or {}
    for name, source in inputs(run, seed, experiment).items():
        if name not in recorded:
            problems.append(f"{run.name}: {file} does not record the {name} it was made from; train it again")
        elif source.exists() and recorded[name] != digests.of(source):
            problems.append(f"{run.name}: {file} was made from another {name} than {source}; train it again")
    samples = digests.split(experiment.infos, run.data.train_split)
    if samples is not None and recorded.get("samples", samples) != samples:
        problems.append(f"{run.name}: {file} was made from other samples of {run.data.train_split}; train it again")
    return problems


def predictions_problems(
    run: Run, seed: int, experiment: Experiment, path: str, digests: Digests, file: Path | None = None
) -> list[str]:
    """What a predictions file records, its settings, weights, infos and samples, against what is there now.

    file: one made without a sensor; by default the run's own. Empty where the file is missing.
    """
    training = experiment.training(run.name, seed)
    file = file or training.predictions(run.task)
    if not file.is_file():
        return []
    meta, weights = predictions_meta(file), training.weights
    recorded = meta.get("inference")
    if not isinstance(recorded, dict):
        return [f"{run.name}: {file} does not record the settings it was made with; predict it again"]
    problems = []
    recorded = {
        "val_split": _scored_before(weights, run),
        **recorded,
    }  # up to version 0.1 it stood with the training settings
    if differing := _few(differences(recorded, run.after_training())):
        problems.append(
            f"{run.name}: {file} was made with other settings than {path} asks for: {differing}; predict it again"
        )
    origin, infos = meta.get("made_from") or {}, experiment.infos
    if weights.is_file() and origin.get("weights") not in (None, digests.tensors(weights)):
        problems.append(f"{run.name}: {file} was made from other weights than {weights}; predict it again")
    if infos.is_dir() and origin.get("infos") not in (None, digests.of(infos)):
        problems.append(f"{run.name}: {file} was made from other infos than {infos}; predict it again")
    samples = digests.split(infos, run.data.val_split)
    if samples is not None and origin.get("samples") not in (None, samples):
        problems.append(f"{run.name}: {file} was made from other samples of {run.data.val_split}; predict it again")
    return problems


def _scored_before(weights: Path, run: Run) -> str:
    """The split that predictions without a record of it were made of: that of the weights' settings."""
    try:
        recorded = _recorded(header(weights), "settings")
        return recorded["data"].get("val_split", run.data.val_split)
    except (InputError, KeyError, TypeError, AttributeError):
        return run.data.val_split


def predictions_meta(file: Path) -> dict[str, Any]:
    """What a predictions file says of its making; the file may be large. Empty where it says nothing."""
    if file.suffix == ".safetensors":
        try:
            return json.loads(safetensors_header(file)[0]["__metadata__"]["vexkd"])
        except (ValueError, KeyError, TypeError):
            return {}
    with file.open(encoding="utf-8", errors="replace") as stream:
        _, key, rest = stream.read(_HEAD).partition('"meta":')
    try:
        return json.JSONDecoder().raw_decode(rest.lstrip())[0] if key else {}
    except ValueError:
        return {}


def metrics_problems(params: Params, run: Run, experiment: Experiment, digests: Digests) -> list[str]:
    """What a run's metrics record, their seeds, predictions, weights and scoring, against what is there now."""
    file = experiment.run(run.name).provenance
    if not file.is_file():
        return []
    try:
        record = json.loads(file.read_text(encoding="utf-8"))["evaluation"]
        recorded: dict[Path, str | None] = {}
        for seed in params.seeds:
            training = experiment.training(run.name, seed)
            recorded[training.predictions(run.task)] = record["predictions"].get(str(seed))
            recorded[training.weights] = record["weights"].get(str(seed), {}).get("weights.safetensors")
        seeds = {int(seed) for seed in record["predictions"]}
        beside = {file.with_name(name): digest for name, digest in (record.get("files") or {}).items()}
        scoring = {"data.val_split": (record.get("dataset") or {}).get("split"), "evaluation": record.get("config")}
    except (ValueError, KeyError, AttributeError, TypeError):
        return [f"{run.name}: {file} does not say which predictions the metrics were made from; evaluate the run again"]
    stale = [source for source, digest in recorded.items() if source.is_file() and digest != digests.of(source)]
    problems = [f"{run.name}: {file.parent} was not made from {source}; evaluate the run again" for source in stale]
    if seeds != set(params.seeds):
        found, asked = (", ".join(map(str, sorted(numbers))) for numbers in (seeds, set(params.seeds)))
        problems.append(f"{run.name}: {file.parent} was made from seeds {found}, not {asked}; evaluate the run again")
    asked = {"data.val_split": run.data.val_split, "evaluation": run.inference.evaluation}
    problems += [
        f"{run.name}: {file.parent} was scored with {key} {value}, not {asked[key]}; evaluate the run again"
        for key, value in scoring.items()
        if value not in (None, asked[key])
    ]
    problems += [
        f"{run.name}: {path} is not the one that was made with {file.name} beside it; evaluate the run again"
        for path, digest in beside.items()
        if path.is_file() and digests.file(path) != digest
    ]
    return problems


def _few(lines: list[str], most: int = 3) -> str:
    """The first few of a list, and how many more there are."""
    more = f" and {len(lines) - most} more" if len(lines) > most else ""
    return ", ".join(lines[:most]) + more
