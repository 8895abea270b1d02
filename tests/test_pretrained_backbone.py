"""Image backbones that start from published weights: settings, the file, its record; the network is never asked in training."""

from __future__ import annotations

import copy
import io
import urllib.error

import pytest
import torch
from conftest import tiny_settings
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vexkd import provenance, seal
from vexkd.errors import InputError
from vexkd.experiment import HERE
from vexkd.models import bev_model
from vexkd.published import fetch
from vexkd.settings import Run, parse
from vexkd.train import checkpoint, session, tasks

SWIN = {"kind": "swin", "widths": [8, 16], "depths": [1, 2], "heads": [2, 4], "window": 4, "outputs": [0, 1]}
RESNET = {
    "kind": "resnet",
    "widths": [8, 16, 16, 16],
    "depths": [1, 2, 1, 1],
    "layer": "bottleneck",
    "stem": 4,
    "outputs": [1, 2, 3],
}


def settings(
    backbone: dict, *, source: str = "transformers", name: str = "somebody/model", file="backbone.safetensors"
):
    """Runs whose teachers' image backbone starts from this file."""
    raw = copy.deepcopy(tiny_settings())
    raw["camera"]["backbone"] = backbone | {"weights": {"source": source, "name": name, "file": str(file)}}
    raw["teachers"]["fusion-conv-det"].pop("start")
    return parse(raw)


def a_run(*arguments, **names) -> Run:
    return settings(*arguments, **names).run("fusion-conv-det")


def backbone(run: Run) -> torch.nn.Module:
    return tasks.build_task(run, start=None, teacher=None)[0].model.camera.encoder.backbone


def saved_by_transformers(kind: str, folder):
    """A classifier with random weights, saved as the hub's models are, and the library's own way to its feature maps."""
    import transformers

    torch.manual_seed(3)
    if kind == "swin":
        sizes = {"embed_dim": 8, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4}
        transformers.SwinForImageClassification(transformers.SwinConfig(**sizes)).save_pretrained(folder)
        return transformers.SwinBackbone.from_pretrained(folder, out_features=["stage1", "stage2"])
    sizes = {"embedding_size": 4, "hidden_sizes": [8, 16, 16, 16], "depths": [1, 2, 1, 1]}
    model = transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes)).train()
    model(torch.randn(4, 3, 64, 64))  # so that the norms have seen something
    model.save_pretrained(folder)
    return transformers.ResNetBackbone.from_pretrained(folder, out_features=["stage2", "stage3", "stage4"])


@pytest.mark.parametrize(("kind", "ours"), [("swin", SWIN), ("resnet", RESNET)])
def test_a_file_of_transformers_gives_its_feature_maps(tmp_path, kind, ours, capsys):
    reference = saved_by_transformers(kind, tmp_path).eval()
    found = backbone(a_run(ours, file=tmp_path / "model.safetensors")).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for mine, theirs in zip(found(image).feature_maps, reference(image).feature_maps, strict=True):
            torch.testing.assert_close(mine, theirs)
    said = capsys.readouterr().out
    assert "its image backbone starts from" in said
    assert ("hidden_states_norms.stage1.weight" in said) == (kind == "swin")


def test_names_from_before_transformers_five(tmp_path):
    """As the files on the hub have them; spelt out here."""
    saved_by_transformers("swin", tmp_path)
    old = {}
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        for new, then in (("q_proj", "self.query"), ("k_proj", "self.key"), ("v_proj", "self.value")):
            name = name.replace(f"attention.{new}", f"attention.{then}")
        name = name.replace("attention.o_proj", "attention.output.dense").replace("mlp.fc1", "intermediate.dense")
        name = name.replace("attention.relative_position_bias.", "attention.self.").replace("mlp.fc2", "output.dense")
        old[name] = tensor
    assert "swin.encoder.layers.1.blocks.0.attention.self.query.weight" in old
    assert "swin.encoder.layers.1.blocks.0.output.dense.weight" in old
    old["swin.encoder.layers.0.blocks.0.attention.self.relative_position_index"] = torch.zeros(16, 16)
    save_file(old, tmp_path / "old.safetensors")
    first = backbone(a_run(SWIN, file=tmp_path / "model.safetensors")).state_dict()
    second = backbone(a_run(SWIN, file=tmp_path / "old.safetensors")).state_dict()
    for name in first:
        if "hidden_states_norms" not in name:
            assert torch.equal(first[name], second[name]), name


def detector_file(path, *, prefix: str = "img_backbone.") -> dict[str, torch.Tensor]:
    """A ResNet in mmdetection's layout with deformable convolutions, beside a neck that is not wanted."""
    run = a_run(RESNET | {"deformable": [2, 3], "frozen_norm": True, "style": "caffe"})
    names = {}
    for name, tensor in bev_model.build(run).camera.encoder.backbone.state_dict().items():
        head, _, rest = name.partition(".")
        if head == "embedder":
            other = rest.replace("embedder.convolution", "conv1").replace("embedder.normalization", "bn1")
        else:
            _, stage, _, block, *inner = rest.split(".")
            other = f"layer{int(stage) + 1}.{block}." + ".".join(inner)
            for index in range(3):
                other = other.replace(f"layer.{index}.convolution", f"conv{index + 1}")
                other = other.replace(f"layer.{index}.normalization", f"bn{index + 1}")
            other = other.replace("shortcut.convolution", "downsample.0").replace(
                "shortcut.normalization", "downsample.1"
            )
        names[prefix + other] = torch.rand_like(tensor)
    torch.save({"state_dict": names | {"img_neck.lateral_convs.0.conv.weight": torch.zeros(1)}}, path)
    return names


def test_a_detectors_file_brings_its_deformable_convolutions(tmp_path):
    names = detector_file(tmp_path / "fcos3d.pth")
    ours = RESNET | {"deformable": [2, 3], "frozen_norm": True, "style": "caffe"}
    found = backbone(a_run(ours, source="mmdet", file=tmp_path / "fcos3d.pth"))
    conv = found.encoder.stages[2].layers[0].layer[1].convolution
    assert torch.equal(conv.conv_offset.weight, names["img_backbone.layer3.0.conv2.conv_offset.weight"])
    assert torch.equal(found.embedder.embedder.normalization.running_var, names["img_backbone.bn1.running_var"])


def test_another_network_is_refused(tmp_path):
    detector_file(tmp_path / "fcos3d.pth")
    deeper = RESNET | {"depths": [1, 3, 1, 1], "deformable": [2, 3], "frozen_norm": True, "style": "caffe"}
    with pytest.raises(InputError, match="not the weights of fusion-conv-det's image backbone: .* is missing"):
        backbone(a_run(deeper, source="mmdet", file=tmp_path / "fcos3d.pth"))
    shallower = RESNET | {"depths": [1, 1, 1, 1], "deformable": [2, 3], "frozen_norm": True, "style": "caffe"}
    with pytest.raises(InputError, match=r"img_backbone.layer2.1.* has no place"):
        backbone(a_run(shallower, source="mmdet", file=tmp_path / "fcos3d.pth"))


def test_imagenet_leaves_deformable_offsets_at_their_start(tmp_path):
    names = detector_file(tmp_path / "fcos3d.pth", prefix="")
    torch.save(
        {k: v for k, v in names.items() if "conv_offset" not in k} | {"fc.bias": torch.zeros(5)}, tmp_path / "r.pth"
    )
    ours = RESNET | {"deformable": [2, 3], "frozen_norm": True, "style": "caffe"}
    found = backbone(a_run(ours, source="torchvision", file=tmp_path / "r.pth"))
    assert not found.encoder.stages[2].layers[0].layer[1].convolution.conv_offset.weight.any()


def test_without_the_file_one_sentence_says_where_to_put_it(tmp_path):
    run = a_run(SWIN, file=tmp_path / "none.safetensors")
    with pytest.raises(
        InputError, match=r"none.safetensors: .*somebody/model.*vexkd fetch-weights fusion-conv-det.*put it"
    ) as error:
        tasks.build_task(run, start=None, teacher=None)
    assert "\n" not in str(error.value)


def test_random_starts_need_no_file():
    run = parse(copy.deepcopy(tiny_settings())).run("fusion-det")
    assert fetch.local(run) is None
    assert fetch.fetch(run) is None
    assert "weights" not in run.training()["camera"]["backbone"]


def test_models_are_built_and_loaded_without_the_file(tmp_path):
    """A trained model holds its own weights: predicting never asks for the file that its training began with."""
    run = a_run(SWIN, file=tmp_path / "none.safetensors")
    model = bev_model.build(run)
    checkpoint.save_weights(tmp_path / "w.safetensors", model, run=run, inputs={}, record={})
    assert checkpoint.load_model(tmp_path / "w.safetensors", expected=run)[1] == run


def test_the_check_knows_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = settings(SWIN, file="weights/swin.safetensors")
    run, file = known.run("fusion-conv-det"), tmp_path / "weights/swin.safetensors"
    provenance.write_text(tmp_path / "artifacts/infos/boxes.parquet", "boxes")
    provenance.write_text(file, "one")
    assert seal.inputs(run, 0)["backbone"].resolve() == file
    hashes = session.input_hashes(**seal.inputs(run, 0))
    assert hashes["backbone"] == provenance.file_digest(file)
    out = HERE.training(run.name, 0).weights
    checkpoint.save_weights(out, bev_model.build(run), run=run, inputs=hashes, record={})
    assert seal.check(known, names=[run.name]) == []
    file.write_text("another")
    assert "was made from another backbone than weights/swin.safetensors" in seal.check(known, names=[run.name])[0]


def test_a_training_records_the_file_and_asks_for_it_first(town, tmp_path):
    """From files to files; without the file it ends before anything is read."""
    from accelerate.state import AcceleratorState

    from vexkd.train.loop import RuntimeOptions

    AcceleratorState._reset_state(reset_partial_state=True)
    known = settings(SWIN, file=tmp_path / "model.safetensors")
    run = known.run("fusion-conv-det")
    run = run.model_copy(update={"train": run.train.model_copy(update={"epochs": 1, "batch": 2})})
    out = tmp_path / "out"
    files = {"infos": town / "infos", "paste": None, "start": None, "teacher": None}
    how = {"scratch": tmp_path / "scratch", "threads": 1, "runtime": RuntimeOptions(), "device": "cpu"}

    def train():
        session.train(run, root=town / "data", out=out, seed=0, **files, **how)

    with pytest.raises(InputError, match="the file is not there"):
        train()
    saved_by_transformers("swin", tmp_path)
    train()
    header = checkpoint.read_header(out / "weights.safetensors")
    digest = provenance.file_digest(tmp_path / "model.safetensors")
    assert header["inputs"]["backbone"] == header["provenance"]["inputs"]["backbone"] == digest


# ---- fetching; the network is a stand-in


def test_fetching_from_the_hub_writes_what_training_reads(tmp_path, monkeypatch):
    saved_by_transformers("swin", tmp_path / "hub")
    asked = []

    def download(name, file, *, local_dir):
        asked.append((name, file))
        target = local_dir / file
        target.write_bytes((tmp_path / "hub" / file).read_bytes())
        return str(target)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    run = a_run(SWIN, file=tmp_path / "weights/swin.safetensors")
    assert "tensors of https://" in fetch.fetch(run)
    assert asked == [("somebody/model", "model.safetensors")]
    with safe_open(tmp_path / "weights/swin.safetensors", framework="pt") as stream:
        note = stream.metadata()
    assert note["source"] == "transformers"
    assert note["sha256"] == provenance.file_digest(tmp_path / "hub/model.safetensors")
    assert list((tmp_path / "weights").iterdir()) == [tmp_path / "weights/swin.safetensors"]
    first = backbone(run).state_dict()["swin.encoder.layers.0.blocks.0.attention.q_proj.weight"]
    stored = load_file(tmp_path / "hub/model.safetensors")
    assert any(torch.equal(first, tensor) for tensor in stored.values() if tensor.shape == first.shape)
    assert "there already" in fetch.fetch(run)
    assert len(asked) == 1


def test_fetching_torchvisions_checks_the_hash_in_the_name(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    torch.save({"conv1.weight": torch.zeros(2)}, buffer)
    asked = []
    monkeypatch.setattr(
        "urllib.request.urlopen", lambda address, timeout: asked.append(address) or io.BytesIO(buffer.getvalue())
    )
    (tmp_path / "as-it-is").write_bytes(buffer.getvalue())
    digest = provenance.file_digest(tmp_path / "as-it-is")[:8]
    good = a_run(RESNET, source="torchvision", name=f"resnet50-{digest}.pth", file=tmp_path / "r50.safetensors")
    assert fetch.fetch(good) is not None
    assert asked == [f"https://download.pytorch.org/models/resnet50-{digest}.pth"]
    assert load_file(tmp_path / "r50.safetensors").keys() == {"conv1.weight"}
    bad = a_run(RESNET, source="torchvision", name="resnet50-00000000.pth", file=tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match="not what its name promises"):
        fetch.fetch(bad)
    assert not (tmp_path / "bad.safetensors").exists()


@pytest.mark.parametrize(
    ("source", "name"), [("torchvision", "resnet50-0676ba61.pth"), ("mmdet", "https://there.is/none.pth")]
)
def test_without_a_network_one_sentence_says_where_to_put_the_file(tmp_path, monkeypatch, source, name):
    def refuse(address, timeout):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(InputError, match=r"cannot be fetched .*put the file at .*x.safetensors yourself") as error:
        fetch.fetch(a_run(RESNET, source=source, name=name, file=tmp_path / "x.safetensors"))
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_hub_that_cannot_be_reached(tmp_path, monkeypatch):
    def refuse(name, file, *, local_dir):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(InputError, match=r"somebody/model: it cannot be fetched \(no route\)"):
        fetch.fetch(a_run(SWIN, file=tmp_path / "x.safetensors"))


def test_the_hub_with_its_own_switch_for_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"somebody/model: it cannot be fetched .*put the file at") as error:
        fetch.fetch(a_run(SWIN, file=tmp_path / "x.safetensors"))
    assert "\n" not in str(error.value)


def test_a_model_without_tensors_on_the_hub(tmp_path, monkeypatch):
    from huggingface_hub.errors import EntryNotFoundError

    def refuse(name, file, *, local_dir):
        raise EntryNotFoundError("404")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(InputError, match=r"neither model.safetensors nor pytorch_model.bin"):
        fetch.fetch(a_run(SWIN, file=tmp_path / "x.safetensors"))


def test_mmdet_needs_an_address(tmp_path):
    with pytest.raises(InputError, match="no https address"):
        fetch.fetch(a_run(RESNET, source="mmdet", name="r101.pth", file=tmp_path / "x.safetensors"))
