"""Settings that do not fit each other are refused by key where they are read; those that pass build the model they describe."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from vexkd import settings
from vexkd.errors import InputError

ROOT = Path(__file__).parent.parent
FILES = ["params.yaml", "demo/params.yaml", "demo/full/params.yaml"]


def changed(file: str, **values: Any) -> dict[str, Any]:
    """A settings file's content with other values, by path with `__` between keys."""
    raw = copy.deepcopy(settings.read(ROOT / file))
    for path, value in values.items():
        *blocks, key = path.split("__")
        block = raw
        for name in blocks:
            block = block.setdefault(name, {})
        block[key] = value
    return raw


@pytest.mark.parametrize("file", FILES)
def test_the_projects_own_settings_pass(file):
    assert settings.load(ROOT / file).runs


REFUSED = [
    ("bev.cell", {"bev__cell": 0.8}),
    ("bev.cell", {"bev__cell": 1.2}),
    ("bev.cell", {"bev__range": [-53.9, -54.0, -5.0, 54.0, 54.0, 3.0]}),
    ("bev.voxel", {"bev__range": [-54.0, -54.0, -5.05, 54.0, 54.0, 3.0]}),
    ("bev.range", {"bev__range": [54.0, -54.0, -5.0, -54.0, 54.0, 3.0]}),
    ("bev.range", {"bev__range": [-54.0, -54.0, 3.0, 54.0, 54.0, -5.0]}),
    ("bev.range", {"bev__range": [-54.0, -54.0, -5.0, float("nan"), 54.0, 3.0]}),
    ("bev.voxel", {"bev__voxel": [0.075, 0.0, 0.2]}),
    ("bev.voxel", {"bev__voxel": [0.075, 0.075, 2.0]}),
    ("bev.cell", {"bev__voxel": [0.1, 0.1, 0.2]}),
    ("bev_encoder.strides", {"bev__range": [-22.5, -22.5, -5.0, 22.5, 22.5, 3.0], "map__reach": 22.0}),
    ("bev_encoder.strides", {"bev_encoder__strides": [1, 7]}),
    ("bev_encoder.channels", {"bev_encoder__strides": [1]}),
    ("bev_encoder.channels", {"bev_encoder__layers": [5, 5, 5]}),
    ("camera.view.step", {"camera__view__step": 0.4}),
    ("camera.view.step", {"camera__view__step": 1.6}),
    ("camera.view.step", {"camera__view__step": 0.0}),
    ("camera.view.depth", {"camera__view__depth": [60.0, 1.0, 0.5]}),
    ("camera.view.depth", {"camera__view__depth": [1.0, 60.0, -0.5]}),
    ("camera.view.z", {"camera__view__z": [10.0, -10.0]}),
    ("camera.image_size", {"camera__image_size": [250, 704]}),
    ("camera.backbone.outputs", {"camera__backbone__outputs": [1, 2, 4]}),
    ("camera.backbone.outputs", {"camera__backbone__outputs": [3, 1]}),
    ("camera.backbone.widths", {"camera__backbone__depths": [2, 2, 6]}),
    ("camera.backbone.widths", {"camera__backbone__widths": [96, 192, 384, 700]}),
    ("mgfm.channels", {"mgfm__heads": 7}),
    ("transfusion.channels", {"transfusion__heads": 3}),
    ("transfusion.proposals", {"transfusion__proposals": 0}),
    ("centerpoint.tasks", {"centerpoint__tasks": [["car"], ["car", "truck"]]}),
    ("map.cell", {"map__cell": 0.3}),
    ("bev_augment.scale", {"bev_augment__scale": [1.1, 0.9]}),
    ("image_augment.resize", {"image_augment__resize": [0.55, 0.38]}),
    ("train.lr", {"train__lr": float("inf")}),
    ("train.schedule.beta1", {"train__schedule__beta1": [0.9, 1.0]}),
    ("inference.range", {"inference__range": [61.2, -61.2, -10.0, -61.2, 61.2, 10.0]}),
    ("inference.max_boxes", {"inference__max_boxes": 501}),
    ("inference.centerpoint.threshold", {"inference__centerpoint__threshold": [0.2, 0.2]}),
    ("seeds", {"seeds": [0, 0]}),
    ("seeds", {"seeds": [-1]}),
    ("bev.range and bev.cell", {"students__centerpoint-det__bev": {"range": [-51.0, -51.0, -5.0, 51.0, 51.0, 3.0]}}),
]


@pytest.mark.parametrize(("key", "values"), REFUSED, ids=[f"{key}-{n}" for n, (key, _) in enumerate(REFUSED)])
def test_what_does_not_fit_is_refused_by_key(key, values):
    with pytest.raises(InputError) as refused:
        settings.parse(changed("params.yaml", **values))
    message = str(refused.value)
    assert key in message or key.split(".")[-1] in message
    assert message.endswith(".")
    assert "\n" not in message


ODD = [
    {},
    {"bev__range": [-24.0, -19.2, -5.0, 24.0, 28.8, 3.0], "map__reach": 18.0},  # oblong, not around the origin
    {"camera__view__step": "cell"},
    {"camera__view__step": "third"},
]


@pytest.mark.parametrize("values", ODD, ids=range(len(ODD)))
@pytest.mark.parametrize("name", ["bevdet-seg", "centerpoint-det"])
def test_what_passes_builds_maps_of_the_cells_that_it_names(values, name):
    from conftest import tiny_settings

    raw = copy.deepcopy(yaml.safe_load(yaml.safe_dump(tiny_settings())))
    cell = raw["bev"]["cell"]
    parts = {"cell": cell, "third": cell / 3}
    params = settings.parse(raw)
    if name not in params.runs:
        pytest.skip(f"the tests' settings have no run {name}")
    for path, value in values.items():
        *blocks, key = path.split("__")
        block = raw
        for part in blocks:
            block = block.setdefault(part, {})
        block[key] = parts.get(value, value) if isinstance(value, str) else value
    run = settings.parse(raw).run(name)
    from vexkd.models import bev_model

    model = bev_model.build(run).eval()
    x0, y0, _, x1, y1, _ = run.bev.range
    expected = (round((y1 - y0) / run.bev.cell), round((x1 - x0) / run.bev.cell))
    assert model.grid.shape == expected
    with torch.no_grad():
        low = torch.zeros(1, next(model.bev_encoder.parameters()).shape[1], *expected)
        assert model.bev_encoder(low).shape[-2:] == expected
        if run.camera is not None:
            view = model.camera.view
            pooled = torch.zeros(1, view.channels, *view.size)
            assert view.down(pooled).shape[-2:] == expected
