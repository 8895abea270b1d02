"""Time of models' training steps, forward and backward, with channels outermost and innermost, as a markdown table.

`python benchmarks/models.py --params demo/params.yaml`; both layouts take turns on one made-up sample.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from vexkd import settings
from vexkd.batch import Batch, collate
from vexkd.measure import summary
from vexkd.models import bev_model
from vexkd.models.targets import Counts
from vexkd.train.seeding import seed_everything

RUNS = ("fusion-det", "centerpoint-det", "bevdet-seg")


def laid_out(run: settings.Run, memory_format: torch.memory_format, device: torch.device) -> bev_model.BEVModel:
    """The run's model in training mode, its 2D convolutions in this layout."""
    seed_everything(0)
    return bev_model.lay_out(bev_model.build(run).to(device).train(), memory_format)


def milliseconds(model: bev_model.BEVModel, batch: Batch, device: torch.device) -> float:
    """One pass to the loss and back."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    targets = model.targets(batch)
    sum(model.loss(model(batch), targets, Counts.of([targets])).values()).backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=Path("demo/params.yaml"))
    parser.add_argument("--runs", nargs="+", default=list(RUNS))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, params = torch.device(options.device), settings.load(options.params)
    print(f"{options.params}, {device.type}, {options.threads} threads, median of {options.repeats}\n")
    print("| run | outermost (ms) | innermost (ms) | ratio |")
    print("|---|---:|---:|---:|")
    for name in options.runs:
        run = params.run(name)
        batch = collate([summary.made_up_sample(params, run)]).to(device)
        models = [laid_out(run, layout, device) for layout in (torch.contiguous_format, torch.channels_last)]
        times = [[milliseconds(model, batch, device) for model in models] for _ in range(options.repeats + 2)][2:]
        plain, fast = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"| {name} | {plain:.1f} | {fast:.1f} | {plain / fast:.2f} |", flush=True)


if __name__ == "__main__":
    main()
