"""Weights that others load, and the training state that only a resumed run reads. Both are safetensors, no pickle.

A weights file holds one model and, in its header, the settings it was trained with, what it was made from, and the
provenance. A state file holds the whole training task, the optimiser's moments, the random state and the position.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vexkd import provenance, seal, settings
from vexkd.errors import InputError
from vexkd.models import bev_model
from vexkd.models.bev_model import BEVModel
from vexkd.settings import Run

# What a training learned beside the student, for figures of it; a student's weights hold the student alone.
MASKS = "masks.safetensors"


def save_weights(path: Path, model: nn.Module, *, run: Run, inputs: dict[str, str], record: dict[str, Any]) -> None:
    """Write a model's weights with the run's settings, hashes of its inputs {name: sha256} and its provenance."""
    header = {
        "format": seal.FORMAT,
        "settings": json.dumps(run.training()),
        "inference": json.dumps(run.after_training()),
        "inputs": json.dumps(inputs),
        "provenance": json.dumps(record),
    }
    _save(path, dict(model.state_dict()), header)


def read_header(path: Path) -> dict[str, Any]:
    """The header of a weights file, parsed. Raises InputError for a file that is missing, cut short or something else."""
    return {key: json.loads(value) if key != "format" else value for key, value in seal.header(path).items()}


def is_finished(out: Path, *, run: Run, inputs: dict[str, str], seed: int) -> bool:
    """Whether a folder holds the whole result of this very training: settings, inputs and seed."""
    path = out / "weights.safetensors"  # written last
    if not all(file.is_file() for file in (path, out / "curve.csv", out / "provenance.json")):
        return False
    try:
        header = read_header(path)
        with safe_open(path, framework="pt"):  # refuses a file that was cut
            trained = seal.recorded_training(run, seal.header(path))
            recorded = (
                trained,
                {k: v for k, v in header["inputs"].items() if k in inputs},
                header["provenance"].get("seed"),
            )
    except (InputError, SafetensorError, KeyError, ValueError, AttributeError):
        return False
    expected_inputs = {name: digest for name, digest in inputs.items() if name != "samples" or name in header["inputs"]}
    return recorded == (run.training(), expected_inputs, seed)


def load_model(path: Path, *, expected: Run | None = None) -> tuple[BEVModel, Run]:
    """A trained model in evaluation mode, built from the settings in its own file, and those settings as a run.

    expected: refuse weights of another run or of other settings than these.
    """
    header = read_header(path)
    run = settings.from_values(header["settings"], header["inference"], str(path))
    trained_with = run.training()
    if expected is not None and header["provenance"].get("imported"):
        trained_with = seal.without_own_border(trained_with, expected)
    if expected is not None and trained_with != expected.training():
        raise InputError(f"{path}: {difference(run, expected)}; train {expected.name} again.")
    model = bev_model.build(run)
    load_strictly(model, read_tensors(path), str(path))
    return model.eval(), run


def difference(weights_run: Run, expected: Run) -> str:
    """Where two runs' training settings differ first, in words."""
    if weights_run.name != expected.name:
        return f"the weights are those of run {weights_run.name}, not of {expected.name}"
    return f"the weights were trained with other settings: {seal.differences(weights_run.training(), expected.training())[0]}"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU."""
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own type, or OSError
        raise InputError(
            f"{path}: the weights cannot be read ({error}); remove the file and train the run again."
        ) from None


def load_strictly(model: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Load exactly these tensors; anything missing, superfluous or of another shape is refused by name."""
    expected = model.state_dict()
    wrong = [f"{k} is missing" for k in expected if k not in tensors]
    wrong += [f"{k} is not part of the model" for k in tensors if k not in expected]
    wrong += [
        f"{k} has shape {tuple(tensors[k].shape)}, not {tuple(expected[k].shape)}"
        for k in expected
        if k in tensors and tensors[k].shape != expected[k].shape
    ]
    if wrong:
        raise InputError(
            f"{where}: the weights do not fit the model: {wrong[0]} ({len(wrong)} in all); use weights of this model."
        )
    model.load_state_dict(tensors)


def start_from(model: BEVModel, path: Path, *, head: bool = True) -> list[str]:
    """Start a model with both sensors from LiDAR-only weights; returns the names of the parts that stay new.

    Every tensor of the file must find its place with its shape; only whole parts (camera, fusion) may be new. head: take
    the file's head too; False where it was trained for another task, and the model's stays new.
    """
    tensors, new_state = read_tensors(path), model.state_dict()
    read_header(path)
    tensors = {k: t for k, t in tensors.items() if head or not k.startswith("head.")}
    wrong = [f"{k} is not part of the model" for k in tensors if k not in new_state]
    wrong += [
        f"{k} has shape {tuple(t.shape)}, the model wants {tuple(new_state[k].shape)}"
        for k, t in tensors.items()
        if k in new_state and t.shape != new_state[k].shape
    ]
    new = sorted({k.split(".")[0] for k in new_state if k not in tensors})
    started = {k.split(".")[0] for k in tensors}
    wrong += [f"{part} would be only partly loaded" for part in new if part in started]
    if wrong:
        raise InputError(
            f"{path}: cannot start from these weights: {wrong[0]} ({len(wrong)} in all); match the settings of both runs."
        )
    model.load_state_dict({**new_state, **tensors})
    return new


def save_state(
    path: Path,
    *,
    task: nn.Module,
    optimiser: torch.optim.Optimizer,
    scaler: dict[str, Any] | None,
    position: dict[str, Any],
    random: dict[str, Tensor],
    average: dict[str, Tensor],
) -> None:
    """Write everything a resumed run needs to go on as if nothing had happened.

    random: the states of the random generators by name, (processes, bytes); see `seeding.random_state`. average: the
    state of the moving average of the weights, empty where there is none.
    """
    tensors = {f"task.{k}": v for k, v in task.state_dict().items() if not k.startswith("teacher.")}
    names = _parameter_names(task, optimiser)
    for parameter, moments in optimiser.state.items():
        tensors |= {f"optimiser.{names[parameter]}.{k}": torch.as_tensor(v) for k, v in moments.items()}
    tensors |= {f"random.{k}": v for k, v in random.items()}
    tensors |= {f"average.{k}": v for k, v in average.items()}
    _save(path, tensors, {"position": json.dumps(position), "scaler": json.dumps(scaler)})


def load_state(
    path: Path, *, task: nn.Module, optimiser: torch.optim.Optimizer
) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, Tensor], dict[str, Tensor]]:
    """Put a saved state back into task and optimiser; returns its position, gradient scaler, random states and average."""
    tensors = read_tensors(path)
    metadata = seal.safetensors_header(path)[0]["__metadata__"]
    frozen = {k: v for k, v in task.state_dict().items() if k.startswith("teacher.")}
    load_strictly(task, {**frozen, **_under(tensors, "task.")}, str(path))
    moments = _under(tensors, "optimiser.")
    for parameter, name in _parameter_names(task, optimiser).items():
        state = {
            key: moments[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}.{key}" in moments
        }
        if state:
            optimiser.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in state.items()
            }
    position, scaler = json.loads(metadata["position"]), json.loads(metadata["scaler"])
    return position, scaler, _under(tensors, "random."), _under(tensors, "average.")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What cannot be written ends in one sentence that names the file; what stood there before stands there still."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # the latter is what safetensors makes of a full disk
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(
            f"{path}: cannot be written ({reason}); make room or mend the folder and give the same command again, "
            "it goes on from the last saved state."
        ) from None


def require_writable(folder: Path) -> None:
    """Try that files can be written to a folder, which need not be there yet: before hours of training, not after them."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    with writing(folder):
        tempfile.TemporaryFile(dir=existing).close()


def _save(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Atomic safetensors file; tensors that share memory are copied apart."""
    separate = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    with writing(path), provenance.atomic(path) as temporary:
        save_file(separate, temporary, metadata=header)


def _parameter_names(task: nn.Module, optimiser: torch.optim.Optimizer) -> dict[nn.Parameter, str]:
    """Names of the optimiser's parameters in the task."""
    names = {parameter: name for name, parameter in task.named_parameters()}
    return {parameter: names[parameter] for group in optimiser.param_groups for parameter in group["params"]}


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
