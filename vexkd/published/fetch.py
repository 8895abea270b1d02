"""Image backbones that start from published weights: `vexkd fetch-weights` gets a file, training reads that file alone."""

from __future__ import annotations

import re
import shutil
import tempfile
import urllib.request
from pathlib import Path

from safetensors.torch import save_file

from vexkd import provenance
from vexkd.errors import InputError
from vexkd.models.bev_model import BEVModel
from vexkd.published import files
from vexkd.published.backbones import imagenet
from vexkd.published.mapping import apply
from vexkd.settings import BackboneWeights, Run

# Where torchvision's files stand; the end of a file's name is the beginning of its SHA-256.
TORCHVISION = "https://download.pytorch.org/models/"
# The names under which models on the hub keep their tensors, the safe one first.
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
TIMEOUT = 60.0  # seconds without a byte


def wanted(run: Run) -> BackboneWeights | None:
    """The weights that a run's image backbone starts from."""
    return run.camera.backbone.weights if run.camera is not None else None


def local(run: Run) -> Path | None:
    """The file that they are read from, None where the start is random. Raises InputError where it is not there."""
    weights = wanted(run)
    if weights is None:
        return None
    path = Path(weights.file)
    if not path.is_file():
        raise InputError(
            f"{path}: {run.name}'s image backbone starts from {weights.source}'s {weights.name}, and the file is not there; "
            f"run `vexkd fetch-weights {run.name}` where there is a network, or put it there yourself (docs/WEIGHTS.md)."
        )
    return path


def start(model: BEVModel, run: Run) -> None:
    """Put the weights that the run asks for into the image backbone of its model; nothing where it asks for none."""
    path, weights = local(run), wanted(run)
    if path is None or weights is None:
        return
    prefix = "camera.encoder.backbone."
    state = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(prefix)}
    layout, published = imagenet(run.camera.backbone, files.read(path), source=weights.source)
    result = apply(layout, state, published)
    wrong = [*(f"{name} is missing" for name in result.missing), *result.shapes]
    wrong += [f"{name} has no place" for name in result.foreign]
    if wrong:
        raise InputError(
            f"{path}: these are not the weights of {run.name}'s image backbone: {wrong[0]} ({len(wrong)} in all); "
            "mend camera.backbone or the file."
        )
    model.load_state_dict({**model.state_dict(), **result.tensors})
    new = [name.removeprefix(prefix) for name in result.optional if not name.endswith("num_batches_tracked")]
    print(f"{run.name}: its image backbone starts from {path}; new are {', '.join(new) or 'no tensors'}", flush=True)


def fetch(run: Run) -> str | None:
    """Get the file that a run's backbone starts from, if it is not there; returns what was done, None for a random start."""
    weights = wanted(run)
    if weights is None:
        return None
    path = Path(weights.file)
    if path.is_file():
        return f"{path}: it is there already"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        taken, address = _download(weights, Path(folder))
        tensors = {name: tensor.contiguous().clone() for name, tensor in files.read(taken).items()}
        note = {"source": weights.source, "name": weights.name, "address": address}
        note["sha256"] = provenance.file_digest(taken)
        with provenance.atomic(path) as temporary:
            save_file(tensors, temporary, metadata=note)
    return f"{path}: {len(tensors)} tensors of {address}"


def _download(weights: BackboneWeights, folder: Path) -> tuple[Path, str]:
    """What `weights` names, in a folder; its address too. Raises InputError where it cannot be had."""
    name = weights.name
    if weights.source == "transformers" and not name.startswith("https://"):
        return _from_hub(weights, folder)
    if weights.source == "mmdet" and not name.startswith("https://"):
        raise InputError(
            f"camera.backbone.weights.name: {name} is no https address, which a file of mmdet needs; give one."
        )
    address = name if name.startswith("https://") else TORCHVISION + name
    path = folder / address.rsplit("/", 1)[-1]
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as answer, path.open("wb") as stream:
            shutil.copyfileobj(answer, stream)
    except (OSError, ValueError) as error:  # urllib's errors are OSErrors
        raise _unreachable(weights, address, error) from None
    _check_digest(path, address)
    return path, address


def _from_hub(weights: BackboneWeights, folder: Path) -> tuple[Path, str]:
    """A model's tensors from the Hugging Face hub."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for name in HUB_FILES:
        try:
            path = hf_hub_download(weights.name, name, local_dir=folder)
        except (OSError, ValueError, RuntimeError, EntryNotFoundError) as error:
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                continue  # the hub was reached and has no such file
            raise _unreachable(weights, f"{constants.ENDPOINT}/{weights.name}", error) from None
        return Path(path), f"{constants.ENDPOINT}/{weights.name}/{name}"
    raise InputError(f"{weights.name}: on the hub it has neither {' nor '.join(HUB_FILES)}; name another model.")


def _unreachable(weights: BackboneWeights, address: str, error: Exception) -> InputError:
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return InputError(
        f"{address}: it cannot be fetched ({reason}); give the command where there is a network, or put the file at "
        f"{weights.file} yourself (docs/WEIGHTS.md)."
    )


def _check_digest(path: Path, address: str) -> None:
    """A file's name may end with the beginning of its SHA-256, as torchvision's do."""
    promised = re.search(r"-([0-9a-f]{8,})\.pth$", address)
    if promised and not provenance.file_digest(path).startswith(promised[1]):
        raise InputError(f"{address}: what came is not what its name promises by its hash; fetch it again.")
