"""What several tests share: a tiny town on disk, the real keyframe, and runs small enough for a second."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from vexkd.experiment import Experiment
from vexkd.settings import Params, dump, parse, read

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def one_thread_per_test():
    """Two test processes on two cores: more threads each would only wait for one another."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def keyframe() -> Path:
    """The real nuScenes keyframe; tests that need it skip where it is absent (it may not be redistributed)."""
    path = Path(os.environ.get("VEXKD_KEYFRAME", ROOT.parent / "shared/data/nuscenes-frame"))
    if not (path / "v1.0-mini").is_dir():
        pytest.skip("the real keyframe is absent: set VEXKD_KEYFRAME to a folder with its nuScenes tables")
    return path


@pytest.fixture(scope="session")
def town(tmp_path_factory) -> Path:
    """A two-scene town of three keyframes each; its infos stand in `infos/` beside `data/`."""
    from vexkd.data import infos_build, paste
    from vexkd.synthetic.tables import synthesize

    base = tmp_path_factory.mktemp("town")
    synthesize(
        base / "data",
        scenes=2,
        samples=3,
        seed=3,
        image_size=(160, 90),
        beams=16,
        azimuths=240,
        sweeps_per_sample=2,
        workers=1,
        progress=False,
    )
    infos_build.build(base / "data", "v1.0-mini", base / "infos", progress=False)
    paste.build(
        base / "data",
        base / "infos",
        base / "paste",
        split="mini_train",
        min_points=5,
        sweeps=1,
        workers=1,
        progress=False,
    )
    return base


def experiment(folder: Path, raw: dict, **artifacts: Path) -> Path:
    """An experiment's folder with these settings and links to prepared data; for commands in it, `-C FOLDER`.

    artifacts: `infos`, `paste`, `maps`. The root of the raw data is one of the settings.
    """
    (folder / "artifacts").mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(dump(raw))
    for name, source in artifacts.items():
        link = folder / "artifacts" / name
        link.unlink(missing_ok=True)
        link.symlink_to(source)
    return folder


def experiment_on(folder: Path, town: Path, settings: Params | None = None) -> Experiment:
    """An experiment in a folder, with the data and infos of a town; without settings for those who ask for paths alone."""
    experiment = Experiment(folder)
    experiment.infos.parent.mkdir(parents=True, exist_ok=True)
    experiment.infos.symlink_to(town / "infos")
    experiment.__dict__["params"] = settings or SimpleNamespace(root=str(town / "data"))  # what cached_property keeps
    return experiment


def tiny_settings() -> dict:
    """demo/params.yaml, with what it extends, made smaller still, and its two teachers also without MGFM."""
    raw = read(ROOT / "demo/params.yaml")
    for task in ("det", "seg"):
        raw["teachers"][f"fusion-conv-{task}"] = {**copy.deepcopy(raw["teachers"][f"fusion-{task}"]), "fusion": "conv"}
    raw["bev"] = {"range": [-25.6, -25.6, -5.0, 25.6, 25.6, 3.0], "voxel": [0.4, 0.4, 0.4], "cell": 1.6}
    raw["lidar"] |= {"channels": [4, 8, 8], "blocks": 1, "out_channels": 8}
    raw["camera"] |= {"image_size": [64, 128], "neck": {"kind": "lss-fpn", "channels": 8}}
    raw["camera"]["view"] |= {"step": 1.6, "channels": 8, "depth": [1.0, 27.0, 2.0], "depth_channels": [4, 4, 8]}
    raw["camera"]["backbone"] |= {"widths": [4, 8, 8, 8], "stem": 4}
    raw["image_augment"] |= {"resize": [0.8, 1.0], "test_resize": 0.8}
    raw["mgfm"] |= {"channels": 16, "blocks": 1, "heads": 2, "ffn": 16}
    raw["conv_fuser"] = {"channels": 16}
    raw["bev_encoder"] = {
        "kind": "second",
        "channels": [8, 8],
        "layers": [1, 1],
        "strides": [1, 2],
        "neck_channels": [8, 8],
    }
    raw["centerpoint"] |= {"shared_channels": 8, "branch_channels": 8}
    raw["transfusion"] |= {"channels": 16, "proposals": 20, "heads": 2, "ffn": 16}
    raw["distill"] |= {"mask_blocks": 1, "mask_heads": 2, "mask_ffn": 16, "stop_mask_epoch": 1}
    raw["map"] |= {"reach": 24.0, "cell": 1.0}
    raw["train"] |= {"epochs": 2, "batch": 1}
    for row in [*raw["teachers"].values(), *raw["students"].values()]:
        row["train"] = {**row.get("train", {}), "epochs": 2}
    raw["students"]["centerpoint-det"].pop("lidar", None)
    raw["figures"] = {}
    raw["students"]["bevdet-seg"]["camera"]["view"]["step"] = 1.6
    raw["students"]["bevdet-seg"]["bev_encoder"] |= {
        "channels": [8, 8, 8],
        "neck_channels": [8, 8],
        "out_channels": 8,
    }
    return raw


@pytest.fixture
def settings() -> Params:
    """All runs of the demo at test size."""
    return parse(copy.deepcopy(tiny_settings()))
