"""Parameters and multiply-adds of parts against counts by hand, and docs/MODELS.md against params.yaml."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import ROOT
from torch import nn

from vexkd import settings
from vexkd.batch import collate
from vexkd.measure import forecast, summary
from vexkd.models import bev_model
from vexkd.models.fusion import FusionBlock
from vexkd.models.image_encoder import build_backbone
from vexkd.ops import sparse_conv as sparse
from vexkd.ops.bev_pool import lift_pool
from vexkd.ops.deformable_attention import DeformableAttention, reference_points
from vexkd.report import models_page


def macs(module: nn.Module, *inputs) -> int:
    return summary.trace(module.eval(), *inputs).part("").macs


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


# ------------------------------------------------------------------------------------------------------ counts by hand


def test_convolutions_and_linear():
    assert macs(nn.Conv2d(3, 5, 3, stride=2, padding=1), torch.rand(2, 3, 8, 10)) == 2 * 4 * 5 * 5 * 3 * 9
    assert macs(nn.Conv2d(6, 6, 3, padding=1, groups=3), torch.rand(1, 6, 4, 4)) == 16 * 6 * 2 * 9
    assert macs(nn.ConvTranspose2d(4, 3, 2, stride=2), torch.rand(1, 4, 5, 5)) == 25 * 4 * 3 * 4
    assert macs(nn.Linear(7, 11), torch.rand(3, 5, 7)) == 15 * 7 * 11


@pytest.mark.parametrize("cross", [False, True])
def test_multi_head_attention(cross):
    channels, queries, cells = 16, 6, 20
    attention = nn.MultiheadAttention(channels, 4, batch_first=True)
    query = torch.rand(1, queries, channels)
    memory = torch.rand(1, cells, channels) if cross else query
    cells = cells if cross else queries
    projections = 2 * queries * channels**2 + 2 * cells * channels**2  # query, output; key, value
    assert macs(attention, query, memory, memory) == projections + 2 * queries * cells * channels


@pytest.mark.parametrize("heads", [1, 8])  # 32 channels a head go by bags, 4 by grid_sample
def test_deformable_attention(heads):
    channels, points, (rows, columns) = 32, 4, (5, 7)
    queries = rows * columns
    attention = DeformableAttention(channels=channels, heads=heads, points=points)
    value = torch.rand(1, queries, channels)
    linear = queries * channels * (2 * channels + 3 * heads * points)
    sampled = 4 * points * queries * channels
    found = macs(attention, value, reference_points(rows, columns), value, [(rows, columns)])
    assert found == linear + sampled


def test_pooling_of_camera_features_counts_what_falls_into_the_grid():
    depth, context = torch.rand(1, 2, 3, 4, 5), torch.rand(1, 2, 8, 4, 5)
    cells = torch.randint(-1, 6, (1, 2, 3, 4, 5))
    found = macs(Call(lambda d, c: lift_pool(d, c, cells, (2, 3))), depth, context)
    assert found == int((cells >= 0).sum()) * 8


def test_swin_by_hand():
    """Projections and windows of 7 on padded maps, the perceptron on the maps as they are, merging by four."""
    backbone = build_backbone(
        kind="swin", widths=[8, 16], depths=[2, 1], heads=[1, 2], window=7, drop_path=0.0, outputs=[0, 1],
        layer="basic", stem=4,
    )  # fmt: skip
    expected = 2 * 3 * 16 * 8 * 16 * 20  # two images of 64x80 in patches of 4
    for channels, rows, columns, padded, blocks in ((8, 16, 20, 21 * 21, 2), (16, 8, 10, 14 * 14, 1)):
        cells = rows * columns
        block = 4 * channels**2 * padded + 2 * 49 * channels * padded + 8 * channels**2 * cells
        expected += 2 * blocks * block
    expected += 2 * (16 * 20 // 4) * (4 * 8) * 16
    assert macs(backbone, torch.rand(2, 3, 64, 80)) == expected


def voxels(count: int, shape: tuple[int, int, int]) -> torch.Tensor:
    flat = torch.randperm(shape[0] * shape[1] * shape[2])[:count]
    z, y, x = flat // (shape[1] * shape[2]), flat // shape[2] % shape[1], flat % shape[2]
    return torch.stack([torch.zeros_like(z), z, y, x], 1).int()


def test_a_sparse_convolution_on_a_rulebook_by_hand():
    """Three voxels in a row: the middle one has two neighbours, the others one; and one far away."""
    places = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 2], [0, 1, 1, 3], [0, 4, 8, 8]], dtype=torch.int32)
    conv = sparse.submanifold_conv(3, 5, key="a")
    x = sparse.sparse_tensor(torch.rand(4, 3), places, spatial_shape=(6, 10, 10), batch_size=1)
    assert macs(conv, x) == (2 + 3 + 2 + 1) * 3 * 5
    # Stride 2 without padding along x: output i reads 2i .. 2i + 2, so 1 and 3 reach one output, 2 reaches two.
    down = sparse.strided_conv(3, 5, kernel=(1, 1, 3), stride=(1, 1, 2), padding=0, key="b")
    row = sparse.sparse_tensor(torch.rand(3, 3), places[:3], spatial_shape=(6, 10, 10), batch_size=1)
    assert macs(down, row) == (1 + 2 + 1) * 3 * 5


@pytest.mark.parametrize("submanifold", [True, False])
def test_pairs_are_those_of_spconv(submanifold):
    """spconv's own rulebook; of a submanifold one it keeps half: the rest mirrors it, and at the centre each meets itself."""
    torch.manual_seed(0)
    places, shape = voxels(200, (6, 9, 12)), (6, 9, 12)
    x = sparse.sparse_tensor(torch.rand(200, 2), places, spatial_shape=shape, batch_size=1)
    if submanifold:
        conv = sparse.submanifold_conv(2, 3, key="k")
    else:
        conv = sparse.strided_conv(2, 3, kernel=3, stride=2, padding=(0, 1, 1), key="k")
    out = conv(x)
    theirs = int(out.find_indice_pair("k").indice_pair_num.sum())
    padding = (1, 1, 1) if submanifold else (0, 1, 1)
    found = summary.rulebook_pairs(places, out.indices, shape, (3, 3, 3), conv.stride, padding)
    assert found == (2 * theirs + 200 if submanifold else theirs) > 0


def test_paper_sizes_worked_out_before():
    """A block of the fusion module has 782,368 parameters; six of them at 180 x 180 cells, counted by hand."""
    with torch.device("meta"):
        block = FusionBlock(sensors=("lidar", "camera"), channels=256, heads=8, points=4, ffn=512, dropout=0.1)
    assert sum(p.numel() for p in block.parameters()) == 782_368
    by_name = {part.name: part for part in summary.parameters(settings.load(ROOT / "params.yaml").run("fusion-det"))}
    fusion = by_name["fusion"].parameters
    assert fusion == 6 * 782_368 + 180 * 180 * 256 + 2 * 180 * 128 + (256 + 1) * 256 + (80 + 1) * 256


# --------------------------------------------------------------------------------------------------------------- parts


def test_activations_count_layers_once_and_nothing_in_place():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True), nn.Sequential(nn.Conv2d(2, 4, 1)))
    traced = summary.trace(model, torch.rand(1, 1, 5, 5))
    assert traced.part("").activations == 4 * 25 * (2 + 4)
    assert traced.part("2").activations == 4 * 25 * 4
    assert traced.part("2").outputs == ((1, (1, 4, 5, 5)),)


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("name", ["fusion-det", "centerpoint-det"])
def test_parts_add_up_to_the_whole(settings, name, depth):
    found = summary.summarise(settings, settings.run(name), depth=depth)
    model = bev_model.build(settings.run(name))
    assert found.whole.parameters == sum(p.numel() for p in model.parameters())
    assert sum(part.parameters for part in found.parts) == found.whole.parameters
    assert sum(part.macs for part in found.parts) == found.whole.macs > 0
    names = [part.name for part in found.parts]
    assert len(names) == len(set(names))
    if depth == 0:
        assert {"lidar", "bev_encoder", "head"} <= set(names)
        assert ("camera.view" in names) == ("fusion" in names) == (name == "fusion-det")


def test_parts_report_their_shapes(settings):
    run = settings.run("centerpoint-det")
    model = bev_model.build(run).eval()
    batch = collate([summary.made_up_sample(settings, run)])
    parts = {part.name: part for part in summary.of_model(model, batch, name=run.name).parts}
    with torch.no_grad():
        output = model(batch)
    assert parts["lidar"].outputs == ((1, tuple(output.features["low"].shape)),)
    assert parts["bev_encoder"].outputs == ((1, tuple(output.features["high"].shape)),)
    shapes = [tuple(tensor.shape) for task in output.predictions for tensor in task.values()]
    assert sorted(parts["head"].outputs) == sorted((shapes.count(shape), shape) for shape in set(shapes))


def test_a_distilled_student_is_its_baseline(settings):
    """The same modules, parameters and multiply-adds; what teaches it is not part of it."""
    baseline, distilled = (settings.run(name) for name in ("centerpoint-det", "centerpoint-det-vexkd"))
    groups = list(summary.distinct(settings).values())
    assert any({"centerpoint-det", "centerpoint-det-vexkd"} <= set(names) for names in groups)
    first, second = (summary.summarise(settings, run) for run in (baseline, distilled))
    assert first.graph == second.graph
    assert first.whole == second.whole
    assert first.parts == second.parts
    assert summary.teaching(settings, baseline) == 0
    masks = forecast.build_task(settings, distilled).masks
    assert summary.teaching(settings, distilled) == sum(p.numel() for p in masks.parameters()) > 0


def test_another_model_has_another_graph(settings):
    graphs = {summary.graph(bev_model.build(settings.run(name))) for name in settings.runs}
    assert len(graphs) == len(summary.distinct(settings)) < len(settings.runs)


def test_counting_leaves_no_hook_behind(settings):
    model = bev_model.build(settings.run("centerpoint-det")).eval()
    run = settings.run("centerpoint-det")
    batch = collate([summary.made_up_sample(settings, run)])
    before = summary.trace(model, batch).part("")
    assert summary.trace(model, batch).part("") == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# ------------------------------------------------------------------------------------------------------------ the page


def test_the_page_holds_the_models_of_params_yaml():
    """Parameters of every part of every distinct model; `vexkd summary --all --markdown docs/MODELS.md` writes them."""
    params = settings.load(ROOT / "params.yaml")
    kept = models_page.parameters((ROOT / "docs/MODELS.md").read_text())
    groups = list(summary.distinct(params).values())
    assert set(kept) == {names[0] for names in groups}, "make docs/MODELS.md again"
    for names in groups:
        found = summary.parameters(params.run(names[0]))
        named = {name: count for name, count in kept[names[0]].items() if count or not name.endswith("(itself)")}
        assert named == {part.name: part.parameters for part in found}, f"{names[0]}: make docs/MODELS.md again"


def test_only_what_is_between_the_markers_changes(tmp_path):
    page = tmp_path / "MODELS.md"
    page.write_text(f"# Models\n\nprose\n\n{models_page.BEGIN}\nold\n{models_page.END}\n\nmore prose\n")
    values = {
        "run": "a",
        "runs": ["a", "b"],
        "teaching": {"b": 7},
        "sample": "9 points",
        "parameters": 1_500_000,
        "macs": 2_500_000_000,
        "flops": 5_000_000_000,
        "activations": 3_000_000,
        "parts": [
            {
                "name": "head",
                "parameters": 1_500_000,
                "macs": 2_500_000_000,
                "activations": 3_000_000,
                "outputs": [[2, [1, 3, 4]]],
                "calls": 1,
            }
        ],
    }
    models_page.update(page, [values])
    text = page.read_text()
    assert text.startswith("# Models\n\nprose\n\n")
    assert text.endswith("\n\nmore prose\n")
    assert "old" not in text
    assert models_page.parameters(text) == {"a": {"": 1_500_000, "head": 1_500_000}}
    assert json.dumps(values)  # plain values alone
    models_page.update(page, [values])
    assert page.read_text() == text
