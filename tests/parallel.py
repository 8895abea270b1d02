"""What `test_distributed.py` compares between one process and several: run alone in pytest, by torchrun in a pair.

torchrun --nproc_per_node 2 tests/parallel.py TOWN OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from conftest import tiny_settings
from safetensors.torch import save_file
from torch import nn

from vexkd.data.infos import load
from vexkd.models import bev_model
from vexkd.ops.sparse_conv import SparseBatchNorm
from vexkd.settings import Params, parse
from vexkd.train import checkpoint, processes, session, tasks
from vexkd.train.loop import NonFiniteError, RuntimeOptions, Trainer, write_curve
from vexkd.train.seeding import seed_everything

# name -> run, synchronised BatchNorm (else BatchNorm is kept in evaluation mode), micro-batches of one process
CASES = {
    "supervision": ("centerpoint-det", False, 1),
    "supervision in parts": ("centerpoint-det", False, 2),
    "fusion teacher": ("fusion-det", False, 1),
    "distillation": ("centerpoint-det-vexkd", False, 1),
    "synchronised supervision": ("centerpoint-det", True, 1),
    "synchronised teacher": ("fusion-det", True, 1),
}
RATE = 6.0e-5  # large steps from random weights amplify rounding by a hundred each


def settings(*, synchronised: bool = False, epochs: int = 2, dropout: float = 0.0, split: str = "mini_val") -> Params:
    """Nine samples in batches of four: two steps an epoch and a rest; masks learn in the first three of four steps."""
    values = tiny_settings()
    values["train"] |= {"batch": 4, "epochs": epochs, "sync_bn": synchronised}
    for row in [*values["pretrained"].values(), *values["teachers"].values(), *values["students"].values()]:
        row["train"] = {**row.get("train", {}), "epochs": epochs, "lr": RATE}
    values["data"]["val_split"] = split
    values["distill"] |= {"mask_dropout": dropout, "stop_mask_epoch": None, "stop_mask_iteration": 3}
    return parse(values)


def origins(town: Path) -> dict[str, dict[str, Path | None]]:
    """Weights to start from and to be taught by."""
    return {
        "centerpoint-det": {"start": None, "teacher": None},
        "fusion-det": {"start": town / "lidar-pretrain.safetensors", "teacher": None},
        "centerpoint-det-vexkd": {"start": None, "teacher": town / "fusion-det.safetensors"},
    }


def save_origins(town: Path) -> None:
    """Random weights for them and for predictions."""
    run = settings(split="mini_train").run("centerpoint-det")
    checkpoint.save_weights(town / "predicts.safetensors", bev_model.build(run), run=run, inputs={}, record={})
    for seed, name in enumerate(("lidar-pretrain", "fusion-det"), start=2):
        torch.manual_seed(seed)
        run = settings().run(name)
        checkpoint.save_weights(
            town / f"{name}.safetensors", bev_model.build(run), run=run, inputs={}, record={"seed": 0}
        )


def freeze_batch_norm(task: nn.Module) -> None:
    """Keep BatchNorm in evaluation mode, whatever mode is asked for."""
    for part in task.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()
            part.train = lambda mode=True, part=part: part


def make_trainer(case: str, town: Path, out: Path, *, whole: bool = False) -> Trainer:
    """A trainer of one case. whole: no micro-batches."""
    name, synchronised, accumulate = CASES[case]
    run = settings(synchronised=synchronised).run(name)
    AcceleratorState._reset_state()
    seed_everything(0)
    task, images = tasks.build_task(run, **origins(town)[name])
    if not synchronised:
        freeze_batch_norm(task)
    dataset = tasks.training_set(run, images, root=town / "data", infos=load(town / "infos"), paste=None, seed=0)
    return Trainer(
        task=task,
        dataset=dataset,
        run=run,
        seed=0,
        state=out / f"{case}.state",
        runtime=RuntimeOptions(accumulate=1 if whole else accumulate),
        accelerator=processes.start_accelerator(run.train.precision, "cpu"),
    ).prepare()


def train(case: str, town: Path, out: Path, *, whole: bool = False) -> None:
    """Train one case; writes the tensors before and after, and the curve."""
    trainer = make_trainer(case, town, out, whole=whole)
    first = tensors(trainer)
    position = trainer.run()
    if trainer.accelerator.is_main_process:
        save_file(first, out / f"{case}.first.safetensors")
        save_file(tensors(trainer), out / f"{case}.safetensors")
        write_curve(out / f"{case}.csv", position.curve)


def tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    """All that is trained, and BatchNorm's statistics."""
    return {k: v.clone().contiguous() for k, v in trainer.task.state_dict().items() if not k.startswith("teacher.")}


def poison(town: Path, out: Path) -> None:
    """One step in which the last process's model, and only that, gives a loss that is not finite; writes what each says."""
    trainer = make_trainer("supervision", town, out)
    if processes.rank() == 1:
        with torch.no_grad():
            trainer.task.model.head.shared[0].weight.fill_(float("nan"))
    try:
        trainer._step(next(trainer._epoch(0)))
    except NonFiniteError as error:
        (out / f"poison{processes.rank()}.txt").write_text(str(error))


def sum_of_norms(rank: int, world: int) -> dict[str, torch.Tensor]:
    """Output, gradients and statistics of a synchronised BatchNorm over this process's share of twelve voxels and maps.

    Shares of the voxels are unequal: of two processes the first holds all but three. The loss is a sum over processes.
    """
    torch.manual_seed(5)
    voxels, maps, weight = torch.randn(12, 3) * 3 + 7, torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    cuts = [0, 12] if world == 1 else [0, 9, 12]
    parts = nn.ModuleDict({"voxels": SparseBatchNorm(3), "maps": nn.BatchNorm2d(3)})
    processes.synchronise_batch_norm(parts)
    mine = voxels[cuts[rank] : cuts[rank + 1]].clone().requires_grad_()
    own = maps.chunk(world)[rank].clone().requires_grad_()
    outputs = {"voxels": parts["voxels"](mine), "maps": parts["maps"](own)}
    loss = (outputs["voxels"] ** 3).sum() + (outputs["maps"] ** 2 * weight.chunk(world)[rank]).sum()
    loss.backward()
    found = {"voxels": outputs["voxels"].detach(), "maps": outputs["maps"].detach()}
    found |= {"voxels.grad": mine.grad, "maps.grad": own.grad, **parts.state_dict()}
    found |= {f"{name}.grad": p.grad for name, p in parts.named_parameters()}
    return {name: tensor.contiguous() for name, tensor in found.items()}


def predict(town: Path, out: Path) -> None:
    """Predict the three training scenes with random weights."""
    session.predict(
        town / "predicts.safetensors", root=town / "data", infos=town / "infos", out=out / "predictions.json",
        batch=2, workers=0, threads=1, device="cpu",
    )  # fmt: skip


def undisturbed(town: Path, out: Path) -> None:
    """The training that another test stops and kills, in one go."""
    AcceleratorState._reset_state()
    session.train(
        settings(epochs=4, dropout=0.3).run("centerpoint-det-vexkd"),
        root=town / "data", infos=town / "infos", out=out / "undisturbed", seed=0, paste=None,
        start=None, teacher=town / "fusion-det.safetensors", scratch=out / "scratch", threads=1, runtime=RuntimeOptions(),
        device="cpu",
    )  # fmt: skip


def main(town: Path, out: Path) -> None:
    """Everything that needs a pair, in one pair."""
    torch.set_num_threads(1)
    for case in CASES:
        train(case, town, out)
    save_file(sum_of_norms(processes.rank(), 2), out / f"norms{processes.rank()}.safetensors")
    poison(town, out)
    predict(town, out)
    undisturbed(town, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
