"""What ties results to settings: freeze params.yaml before anything is made, compare the weights with it afterwards.

A run's weights carry, in the header of their file, the settings and the hashes of the files they were made from.
`check` holds them against what params.yaml asks for now, so that neither a stale model nor a stale metric is recorded
as current. Reads headers only: no torch.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vexkd import params as settings
from vexkd import provenance
from vexkd.errors import InputError
from vexkd.geometry import needed_reach
from vexkd.params import Params, Run

FORMAT = "vexkd-weights-1"
FROZEN = Path(".snakemake/params.yaml")
_LOCKS = Path(".snakemake/locks")
_HEAD = 65536  # bytes of a predictions file in which its first key, "meta", ends


def weights_path(models: Path | str, name: str, seed: int) -> Path:
    """Where the weights of a run with a seed stand."""
    return Path(models) / name / f"seed{seed}" / "weights.safetensors"


def predictions_path(models: Path | str, run: Run, seed: int) -> Path:
    """Where the predictions of a run with a seed stand: nuScenes' submission, or for maps packed arrays."""
    name = "predictions.safetensors" if run.task == "segmentation" else "predictions.json"
    return Path(models) / run.name / f"seed{seed}" / name


def inputs(run: Run, seed: int, models: Path | str = "models", artifacts: Path | str = "artifacts") -> dict[str, Path]:
    """What a training reads apart from the raw data, by the names under which the weights record its hash."""
    found = {"infos": Path(artifacts) / "infos"}
    if run.paste is not None:
        found["paste"] = Path(artifacts) / "paste"
    if run.map is not None:
        found["maps"] = Path(artifacts) / "maps"
    for name, other in (("start", run.start), ("teacher", run.teacher)):
        if other is not None:
            found[name] = weights_path(models, other, seed)
    if run.camera is not None and run.camera.backbone.weights is not None:
        found["backbone"] = Path(models).parent / run.camera.backbone.weights.file
    return found


def content_digest(path: Path) -> str:
    """SHA-256 of a file; for a folder the hash over its files' hashes in name order."""
    if path.is_dir():
        return provenance.digest({p.name: provenance.file_digest(p) for p in sorted(path.iterdir()) if p.is_file()})
    return provenance.file_digest(path)


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


def check(params: Params, models: Path | str = "models", names: Iterable[str] | None = None) -> list[str]:
    """One sentence for each file of a run that params.yaml, as it is now, would not make; none if all agree.

    `names` are runs, all by default; an unknown one raises InputError. `artifacts` and `results` are looked for beside
    `models`. Weights must be there; other files are compared where they are (DVC itself misses what is not).
    """
    models = Path(models)
    problems: list[str] = []
    known: dict[Path, str] = {}
    for name in params.runs if names is None else names:
        run = params.run(name)
        for seed in params.seeds:
            problems += _check_weights(run, seed, models, params.path, known)
            problems += _check_predictions(run, seed, models, params.path)
            problems += _check_metrics(run, seed, models, known)
    return [f"{problem.rstrip('.')}." for problem in problems]


def differences(made: Any, asked: Any) -> list[str]:
    """Paths at which two settings differ, as `train.lr (0.001, now 0.002)`."""
    found = settings.unequal(asked, made)
    return [f"{path} ({json.dumps(theirs)}, now {json.dumps(own)})" for path, own, theirs in found]


def freeze(path: Path | str = "params.yaml", results: Path | str = "results", models: Path | str = "models") -> Params:
    """Read params.yaml, keep a copy for the jobs, and write the settings files that rules depend on. Main process only.

    Jobs read the copy (`frozen`), so an edit of params.yaml reaches none that is queued. While another run holds the
    folder's lock nothing is written and its settings are returned.
    """
    path = Path(path)
    params = settings.load(path)
    if FROZEN.is_file() and any(_LOCKS.glob("*.lock")):
        if frozen().raw != params.raw:
            print(
                f"{path} has changed; the run that holds this folder's lock keeps what it started with.",
                file=sys.stderr,
            )
        return frozen()
    settings.write_configs(params, results)
    for name, values in _shared_settings(params).items():
        text = settings.dump(values)
        provenance.write_text(Path(results) / "settings" / f"{name}.yaml", text, only_if_changed=True)
    for run in params.runs.values():
        if any(_is_stale(run, weights_path(models, run.name, seed)) for seed in params.seeds):
            os.utime(Path(results) / "runs" / run.name / "config.yaml")
    provenance.write_text(FROZEN, settings.dump(params.raw), only_if_changed=True)
    return params


def frozen() -> Params:
    """The settings that the main process froze when it started."""
    return settings.load(FROZEN)


def _shared_settings(params: Params) -> dict[str, dict[str, Any]]:
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


def _is_stale(run: Run, weights: Path) -> bool:
    """Whether weights are there but were not made with the settings that the run has now."""
    if not weights.is_file():
        return False
    try:
        return _recorded(header(weights), "settings") != run.training()
    except InputError:
        return True


def _recorded(metadata: dict[str, str], key: str) -> Any:
    """A JSON value of the header; None where it is absent or no JSON, which equals no settings."""
    try:
        return json.loads(metadata.get(key, "null"))
    except ValueError:
        return None


def _check_weights(run: Run, seed: int, models: Path, path: str, known: dict[Path, str]) -> list[str]:
    """Settings and inputs in the header of one weights file against those of now."""
    file = weights_path(models, run.name, seed)
    try:
        metadata = header(file)
    except InputError as error:
        return [f"{run.name}: {error}"]
    problems = []
    if differing := differences(_recorded(metadata, "settings") or {}, run.training()):
        problems.append(
            f"{run.name}: {file} was made with other settings than {path} asks for: {_few(differing)}; train it again"
        )
    if (_recorded(metadata, "provenance") or {}).get("imported"):
        return problems  # published weights: they were made from none of these
    recorded = _recorded(metadata, "inputs") or {}
    for name, source in inputs(run, seed, models, models.parent / "artifacts").items():
        if name not in recorded:
            problems.append(f"{run.name}: {file} does not record the {name} it was made from; train it again")
        elif source.exists() and recorded[name] != _digest(source, known):
            problems.append(f"{run.name}: {file} was made from another {name} than {source}; train it again")
    return problems


def _check_predictions(run: Run, seed: int, models: Path, path: str) -> list[str]:
    """The inference settings that a predictions file records against those of now."""
    file = predictions_path(models, run, seed)
    if not file.is_file():
        return []
    made = _predictions_meta(file).get("inference")
    if made is None:
        return [f"{run.name}: {file} does not record the settings it was made with; predict it again"]
    differing = _few(differences(made, run.after_training()))
    problem = f"{run.name}: {file} was made with other settings than {path} asks for: {differing}; predict it again"
    return [problem] if differing else []


def _predictions_meta(file: Path) -> dict[str, Any]:
    """What a predictions file says of its making; the file may be large. Empty where it says nothing."""
    if file.suffix == ".safetensors":
        try:
            return json.loads(safetensors_header(file)[0]["__metadata__"]["vexkd"])
        except (ValueError, KeyError, TypeError):
            return {}
    with file.open(encoding="utf-8", errors="replace") as stream:
        _, found, rest = stream.read(_HEAD).partition('"meta":')
    try:
        return json.JSONDecoder().raw_decode(rest.lstrip())[0] if found else {}
    except ValueError:
        return {}


def _check_metrics(run: Run, seed: int, models: Path, known: dict[Path, str]) -> list[str]:
    """The predictions and weights that a run's metrics record against the files that stand there."""
    file = models.parent / "results" / "runs" / run.name / "provenance.json"
    if not file.is_file():
        return []
    try:
        record = json.loads(file.read_text())["evaluation"]
        made = {predictions_path(models, run, seed).name: record["predictions"].get(str(seed))}
        made["weights.safetensors"] = record["weights"].get(str(seed), {}).get("weights.safetensors")
    except (ValueError, KeyError, AttributeError, TypeError):
        return [f"{run.name}: {file} does not say which predictions the metrics were made from; evaluate the run again"]
    sources = {models / run.name / f"seed{seed}" / name: digest for name, digest in made.items()}
    stale = [source for source, digest in sources.items() if source.is_file() and digest != _digest(source, known)]
    return [f"{run.name}: {file.parent} was not made from {source}; evaluate the run again" for source in stale]


def _digest(path: Path, known: dict[Path, str]) -> str:
    """`content_digest`, computed once per check: infos and teachers are shared by many runs."""
    if path not in known:
        known[path] = content_digest(path)
    return known[path]


def _few(lines: list[str], most: int = 3) -> str:
    """The first few of a list, and how many more there are."""
    more = f" and {len(lines) - most} more" if len(lines) > most else ""
    return ", ".join(lines[:most]) + more
