"""nuScenes' test split: from a set without annotations to the zip that the evaluation server takes."""

import json
import zipfile

import pytest
from conftest import tiny_settings

from vexkd import settings
from vexkd.data import doctor, infos_build
from vexkd.errors import InputError
from vexkd.evaluate import detection, submission
from vexkd.synthetic.tables import synthesize

VERSION = "v1.0-test"
RUN = "centerpoint-det"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A town with a test set, its infos, and what untrained weights predict of it."""
    from vexkd.models import bev_model
    from vexkd.train import checkpoint, session

    folder = tmp_path_factory.mktemp("submission")
    size = {"image_size": (64, 48), "beams": 16, "azimuths": 180, "sweeps_per_sample": 2}
    synthesize(folder / "town", scenes=2, samples=2, test_scenes=1, workers=1, progress=False, **size)
    manifest = folder / "manifest.parquet"
    assert doctor.examine(folder / "town", VERSION, manifest=manifest, workers=1) == []
    infos_build.build(folder / "town", VERSION, folder / "infos", progress=False)
    params = settings.parse(tiny_settings())
    settings.write_configs(params, folder / "results")
    run = params.run(RUN)
    checkpoint.save_weights(folder / "weights.safetensors", bev_model.build(run), run=run, inputs={}, record={})
    session.predict(
        folder / "weights.safetensors", root=folder / "town", infos=folder / "infos", out=folder / "predictions.json",
        batch=1, workers=0, threads=1, device="cpu", split="test",
    )  # fmt: skip
    return folder, run


def write(made, out, **changes):
    folder, run = made
    files = {"weights": folder / "weights.safetensors", "infos": folder / "infos"}
    files |= {"predictions": folder / "predictions.json", "manifest": folder / "manifest.parquet", "out": out}
    return submission.write(changes.pop("run", run), 0, **(files | changes))


def test_the_devkit_reads_the_set_and_the_submission(made, tmp_path):
    from nuscenes import NuScenes
    from nuscenes.eval.common.loaders import load_prediction
    from nuscenes.eval.detection.data_classes import DetectionBox
    from nuscenes.utils.splits import test

    folder, _ = made
    nusc = NuScenes(version=VERSION, dataroot=str(folder / "town"), verbose=False)
    assert {scene["name"] for scene in nusc.scene} <= set(test)
    assert not nusc.sample_annotation
    write(made, tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist() == ["out.json"]
        archive.extract("out.json", tmp_path / "unpacked")
    boxes, meta = load_prediction(str(tmp_path / "unpacked/out.json"), 500, DetectionBox)
    assert set(boxes.sample_tokens) == {sample["token"] for sample in nusc.sample}
    assert meta == {
        "use_camera": False, "use_lidar": True, "use_radar": False, "use_map": False, "use_external": False
    }  # fmt: skip


def test_the_same_predictions_make_the_same_bytes_with_a_note(made, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(made, tmp_path / name / "out.zip")
    assert (tmp_path / "a/out.zip").read_bytes() == (tmp_path / "b/out.zip").read_bytes()
    note = json.loads((tmp_path / "a/out.json").read_text())
    assert note["run"] == RUN
    assert note["samples"] == 2
    assert {"weights", "predictions", "manifest", "zip", "settings", "inference", "code", "seed"} <= note.keys()


def broken(made, tmp_path, change):
    content = json.loads((made[0] / "predictions.json").read_text())
    first = next(iter(content["results"]))
    box = {
        "sample_token": first, "translation": [1.0, 2.0, 3.0], "size": [1.0, 1.0, 1.0], "rotation": [1.0, 0.0, 0.0, 0.0],
        "velocity": [0.0, 0.0], "detection_name": "car", "detection_score": 0.5, "attribute_name": "vehicle.moving",
    }  # fmt: skip
    content["results"][first] = [box]
    change(content, first, box)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(content))
    return path


REFUSED = {
    "a missing sample": (lambda c, t, b: c["results"].pop(t), "1 of the 2 samples of split 'test' are missing"),
    "another sample": (lambda c, t, b: c["results"].update({"other": []}), "1 samples are not in split 'test'"),
    "501 boxes": (lambda c, t, b: c["results"].update({t: [b] * 501}), "501 boxes, nuScenes allows 500"),
    "no class": (lambda c, t, b: b.update(detection_name="tram"), "Unknown detection_name tram"),
    "no attribute": (lambda c, t, b: b.update(attribute_name="vehicle.flying"), "vehicle.flying"),
    "another class's": (lambda c, t, b: b.update(attribute_name="pedestrian.moving"), "a car has no attribute"),
    "size zero": (lambda c, t, b: b.update(size=[1.0, 0.0, 1.0]), "is not positive"),
    "not finite": (lambda c, t, b: b.update(translation=[float("inf"), 0.0, 0.0]), "is not finite"),
    "another sensor": (
        lambda c, t, b: c["meta"].update(use_camera=True),
        "not made with the sensors of centerpoint-det",
    ),
    "other weights": (lambda c, t, b: c["meta"].update(made_from={"weights": "0"}), "made from other weights than"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_server_would_refuse_is_refused_here(made, tmp_path, case):
    change, words = REFUSED[case]
    with pytest.raises(InputError, match=r"broken\.json: ") as refused:
        write(made, tmp_path / "out.zip", predictions=broken(made, tmp_path, change))
    assert words in str(refused.value)
    assert not (tmp_path / "out.zip").exists()


def test_other_ends_in_a_sentence(made, tmp_path):
    folder, run = made
    with pytest.raises(InputError, match="make it with 'vexkd predict --split test'"):
        write(made, tmp_path / "out.zip", predictions=tmp_path / "none.json")
    with pytest.raises(InputError, match="a submission is a .zip file"):
        write(made, tmp_path / "out.json")
    segmenter = next(r for r in settings.parse(tiny_settings()).runs.values() if r.task == "segmentation")
    with pytest.raises(InputError, match=r"server scores detections.*segmentation"):
        write(made, tmp_path / "out.zip", run=segmenter)
    with pytest.raises(InputError, match="test"):
        detection.evaluate(
            folder / "predictions.json",
            root=folder / "town",
            version=VERSION,
            split="test",
            config="detection_cvpr_2019",
        )


def test_a_set_for_the_test_split_changes_no_byte_of_the_others(tmp_path):
    size = {"image_size": (64, 48), "beams": 4, "azimuths": 16, "sweeps_per_sample": 1, "progress": False, "workers": 1}
    for name, count in (("with", 1), ("without", 0)):
        synthesize(tmp_path / name, scenes=1, samples=1, test_scenes=count, **size)
    files = [path.relative_to(tmp_path / "without") for path in (tmp_path / "without").rglob("*") if path.is_file()]
    assert files
    for file in files:
        assert (tmp_path / "with" / file).read_bytes() == (tmp_path / "without" / file).read_bytes()
    assert not (tmp_path / "without" / VERSION).exists()
