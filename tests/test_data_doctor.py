"""The doctor finds every planted fault, all in one go, and writes its manifest only for a whole set."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_data_tiny import RINGS, VERSION, real_keyframe, write

from vexkd.data import doctor, file_checks, images, infos_build, tables
from vexkd.data import manifest as manifest_tools
from vexkd.errors import InputError


def _examine(root, **keywords):
    return doctor.examine(root, VERSION, workers=2, progress=False, **keywords)


def _some(root: Path, pattern: str) -> Path:
    return sorted(root.glob(pattern))[-1]


def test_whole_set_has_no_problem_and_a_stable_manifest(tmp_path):
    root = write(tmp_path / "set")
    assert _examine(root, manifest=tmp_path / "a.parquet") == []
    assert _examine(root, manifest=tmp_path / "b.parquet") == []
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    manifest = pd.read_parquet(tmp_path / "a.parquet")
    files = {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}
    assert set(manifest["path"]) == files
    assert manifest.set_index("path")["bytes"].to_dict() == {f: (root / f).stat().st_size for f in files}


def test_all_faults_are_named_in_one_go(tmp_path):
    root = write(tmp_path / "set")
    lidar = sorted(root.glob("samples/LIDAR_TOP/*"))
    sweeps = sorted(root.glob("sweeps/LIDAR_TOP/*"))
    images = sorted(root.glob("samples/CAM_FRONT/*"))
    data = lidar[0].read_bytes()
    lidar[0].write_bytes(data[:-13])
    lidar[1].write_bytes(b"")
    lidar[2].unlink()
    sweeps[0].write_bytes(data[:1000] + np.float32(np.nan).tobytes() + data[1004:])
    sweeps[1].write_bytes(data[: RINGS * 20 * 300])
    images[0].write_bytes(images[0].read_bytes()[:-40])
    images[1].write_bytes(_some(root, "samples/CAM_BACK/*").read_bytes()[:100])
    images[2].write_bytes(b"")
    expected = {lidar[0], lidar[1], lidar[2], sweeps[0], sweeps[1], images[0], images[1], images[2]}
    problems = _examine(root, manifest=tmp_path / "manifest.parquet")
    assert {problem.split(":")[0] for problem in problems} == {str(p.relative_to(root)) for p in expected}
    assert len(problems) == len(expected)
    assert not (tmp_path / "manifest.parquet").exists()


def test_manifest_catches_every_cut_and_change(tmp_path):
    root, manifest = write(tmp_path / "set"), tmp_path / "manifest.parquet"
    assert _examine(root, manifest=manifest) == []
    before = manifest.read_bytes()
    path = _some(root, "sweeps/LIDAR_TOP/*")
    data = path.read_bytes()
    path.write_bytes(data[: -RINGS * 20])  # one column: whole by structure
    assert _examine(root) == []
    [problem] = _examine(root, manifest=manifest)
    assert f"{len(data) - RINGS * 20} bytes instead of the {len(data)} of the manifest" in problem
    assert _examine(root, manifest=manifest, quick=True) == [problem]
    path.write_bytes(data[:8] + bytes([data[8] ^ 1]) + data[9:])
    assert _examine(root, manifest=manifest, quick=True) == []
    [problem] = _examine(root, manifest=manifest)
    assert problem == f"{path.relative_to(root)}: the content differs from the manifest"
    assert manifest.read_bytes() == before
    path.unlink()
    [problem] = _examine(root, manifest=manifest, quick=True)
    assert problem.endswith("the file is missing")


def test_quick_needs_a_manifest_and_manifests_know_their_version(tmp_path):
    root = write(tmp_path / "set")
    with pytest.raises(InputError, match="none.parquet: make it with --manifest, once without --quick"):
        _examine(root, manifest=tmp_path / "none.parquet", quick=True)
    manifest_tools.write_manifest(tmp_path / "other.parquet", "v1.0-test", [])
    [problem] = _examine(root, manifest=tmp_path / "other.parquet")
    assert problem.endswith("the manifest is of v1.0-test, not of v1.0-mini")


def test_tables_and_maps(tmp_path):
    root = write(tmp_path / "set")
    path = root / VERSION / "attribute.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps(rows * 2))
    mask = _some(root, "maps/*.png")
    mask.write_bytes(mask.read_bytes()[:-1])
    (root / "maps/expansion").mkdir()
    (root / "maps/expansion/singapore-onenorth.json").write_text('{"version": "1.0"}')
    problems = _examine(root)
    [problem] = problems
    assert problem.endswith(
        "attribute.json: row moving: its token stands twice in this table: extract nuScenes' metadata archive again."
    )
    path.write_text(json.dumps(rows))
    assert _examine(root) == [
        f"maps/{mask.name}: the image is cut",
        "maps/expansion/singapore-onenorth.json: the map expansion has version 1.0, older than 1.3",
    ]


def test_unused_files_may_be_left_out(tmp_path):
    root = write(tmp_path / "set")
    path = root / VERSION / "sample_data.json"
    rows = json.loads(path.read_text())
    extra = {**rows[0], "token": "x", "is_key_frame": False, "filename": "sweeps/CAM_FRONT/absent.jpg"}
    assert rows[0]["filename"].startswith("samples/CAM_FRONT/")
    path.write_text(json.dumps([*rows, extra]))
    assert _examine(root) == ["sweeps/CAM_FRONT/absent.jpg: the file is missing"]
    assert _examine(root, coverage=doctor.Coverage(unused=False)) == []


def test_some_blobs_only(tmp_path, caplog):
    """Files outside the asked splits and sensors may be absent; the manifest says what was looked at, and keeps the rest."""
    root, manifest = write(tmp_path / "set"), tmp_path / "manifest.parquet"
    (root / VERSION / "splits.json").write_text(json.dumps({"mine": ["scene-0103"]}))
    assert _examine(root, manifest=manifest) == []
    assert covers(manifest) == {"splits": None, "sensors": None, "unused": True}
    whole = manifest_tools.read_manifest(manifest)[1]
    for path in {*root.glob("samples/*/*scene-0061*"), *root.glob("sweeps/*/*"), *root.glob("samples/CAM_*/*")}:
        path.unlink()
    assert len(_examine(root)) == 3 + 6 + 4 * 6
    some = doctor.Coverage(("mine",), ("lidar",))
    assert _examine(root, manifest=manifest, coverage=some) == []
    assert manifest_tools.read_manifest(manifest)[1] == whole, "what was not looked at is not forgotten"
    assert _examine(root, manifest=tmp_path / "some.parquet", coverage=some) == []
    assert covers(tmp_path / "some.parquet") == {"splits": ["mine"], "sensors": ["lidar"], "unused": False}
    lidar = [name for name in manifest_tools.read_manifest(tmp_path / "some.parquet")[1] if name.startswith("samples/")]
    assert lidar == [str(p.relative_to(root)) for p in root.glob("samples/LIDAR_TOP/*scene-0103*")]
    [sentence] = {p.split(": ")[1] for p in _examine(root, coverage=doctor.Coverage(("mine",), ("lidar", "camera")))}
    assert sentence == "the file is missing"
    with pytest.raises(InputError, match="split 'other' has no samples in v1.0-mini: choose one of mini_train"):
        _examine(root, coverage=doctor.Coverage(("other",)))
    assert some.left_out() == "scenes outside mine, images, radar files and camera sweeps"


def test_what_a_sensor_file_is_instead_is_said(tmp_path):
    root = write(tmp_path / "set")
    contents = {
        "samples/LIDAR_TOP/*": (
            b"version https://git-lfs.github.com/spec/v1",
            "a pointer of git-lfs, not the file itself",
        ),
        "samples/CAM_FRONT/*": (b"<html>403</html>", "an HTML or XML page, as a failed download leaves it"),
        "sweeps/LIDAR_TOP/*": (b"\x1f\x8b" + bytes(30), "a gzip archive, not unpacked"),
    }
    for pattern, (content, _) in contents.items():
        _some(root, pattern).write_bytes(content)
    problems = _examine(root)
    assert len(problems) == 3
    for _, words in contents.values():
        assert sum(f": the file is {words}" in problem for problem in problems) == 1


def covers(manifest: Path) -> dict:
    return json.loads(pq.read_schema(manifest).metadata[b"vexkd.covers"])


@pytest.mark.parametrize("missing", ["root", "version"])
def test_no_data_at_all(tmp_path, missing):
    if missing == "version":
        (tmp_path / "set").mkdir()
    with pytest.raises(InputError, match="does not exist" if missing == "root" else "holds no nuScenes tables"):
        _examine(tmp_path / "set")


def test_radar_header_is_held_to_the_content():
    header = b"# .PCD v0.7\nVERSION 0.7\nFIELDS x y\nSIZE 4 4\nTYPE F F\nCOUNT 1 1\nPOINTS 3\nDATA binary\n"
    assert file_checks.radar_problem(header + bytes(25)) == ""
    assert file_checks.radar_problem(header + bytes(23)) == "the file is cut: 23 bytes of points instead of 24"
    assert file_checks.radar_problem(header[:40]) == "the file is not a binary PCD file"


def test_boxes_reveal_a_cut_in_any_order_of_points():
    """A set stored ring after ring: the turn is complete, but a box has lost its points."""
    azimuth = np.linspace(-np.pi, np.pi, 720)
    low = np.stack([20 * np.cos(azimuth), 20 * np.sin(azimuth), -np.ones(720), np.ones(720), np.zeros(720)], axis=1)
    box = np.array([[10.0, 0, 0, 2, 2, 2, 0, 0, 0]])
    inside = np.tile([10.0, 0, 0, 1, 1], (30, 1))
    points = np.concatenate([low, inside]).astype(np.float32)
    counts = np.array([30])
    assert file_checks.lidar_problem(points.tobytes(), box, counts) == ""
    assert "a box holds 10 points where the table counts 30" in file_checks.lidar_problem(
        points[:-20].tobytes(), box, counts
    )


def test_real_sweep_cut_anywhere():
    """Every cut of the real keyframe is seen, but for whole columns of less than 1.4 % at its end."""
    root = real_keyframe()
    path = _some(root, f"samples/{tables.LIDAR}/*")
    data = path.read_bytes()
    known = infos_build.annotated(root, VERSION)[str(path.relative_to(root))]
    assert file_checks.lidar_problem(data, *known) == ""
    cuts = [*range(1, 1300), *np.random.default_rng(0).integers(1, len(data), 150), *range(512, len(data), 8192)]
    unseen = [cut for cut in cuts if not file_checks.lidar_problem(data[: len(data) - cut], *known)]
    assert unseen == [640, 1280]
    for columns in range(15, 1084, 16):
        assert "cut" in file_checks.lidar_problem(data[: len(data) - columns * 640], *known), columns


def test_real_image_cut_anywhere():
    data = _some(real_keyframe(), "samples/CAM_FRONT/*").read_bytes()
    assert file_checks.image_problem(data, (1600, 900)) == ""
    assert file_checks.image_problem(data, (1600, 800)) == "the image is 1600x900 instead of 1600x800"
    cuts = [*range(1, 50), *range(50, len(data), 4999), len(data)]
    assert all(file_checks.image_problem(data[: len(data) - cut], (1600, 900)) for cut in cuts)


@pytest.mark.parametrize("hole", ["zeros", "ones", "random", "left out"])
def test_a_hole_in_a_real_image_is_seen(hole):
    data = _some(real_keyframe(), "samples/CAM_FRONT/*").read_bytes()
    middle, length = len(data) // 2, 4000
    noise = np.random.default_rng(0).integers(0, 255, length, dtype=np.uint8).tobytes()
    filling = {"zeros": bytes(length), "ones": b"\xff" * length, "random": noise, "left out": b""}[hole]
    damaged = data[:middle] + filling + data[middle + length :]
    assert file_checks.image_problem(damaged, (1600, 900)).startswith("the image ")


@pytest.mark.parametrize("mode", ["L", "I;16", "RGBA", "P", "CMYK"])
def test_an_image_of_another_kind_is_named(tmp_path, mode):
    path = tmp_path / ("x.jpg" if mode in ("L", "CMYK") else "x.png")
    Image.new(mode, (64, 36)).save(path)
    words = f"holds pixels of the kind {mode}, not 8-bit RGB"
    assert file_checks.image_problem(path.read_bytes(), (64, 36)) == f"the image {words}"
    with pytest.raises(InputError, match=re.escape(f"x{path.suffix} {words}")):
        images.read_image(path)


def test_a_turned_image_is_named(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 36)).save(tmp_path / "x.jpg", exif=exif)
    assert "marked as turned" in file_checks.image_problem((tmp_path / "x.jpg").read_bytes(), (64, 36))
