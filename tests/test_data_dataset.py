"""The data set: one consistent sample under every augmentation, and orders that survive resume and rank changes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data_tiny import KEY, POST, START, VERSION, ego_pose, real_keyframe, sensors, write

from vexkd import boxes as box_tools
from vexkd import geometry
from vexkd.batch import collate
from vexkd.data import dataset as data
from vexkd.data import infos as info_tools
from vexkd.data import infos_build, paste, tables
from vexkd.data.augment import BevAugmentation, GridMaskAugmentation, ImageAugmentation
from vexkd.errors import InputError
from vexkd.settings import load
from vexkd.train import tasks

BOUNDS = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)
CAR, WALKER = box_tools.CLASSES.index("car"), box_tools.CLASSES.index("pedestrian")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    root = write(folder / "set")
    infos_build.build(root, VERSION, folder / "infos", progress=False)
    paste.build(root, folder / "infos", folder / "paste", split="mini_train", progress=False)
    return folder


def _dataset(folder, **changes) -> data.NuScenesDataset:
    keywords = {
        "root": folder / "set",
        "infos": info_tools.load(folder / "infos").subset("mini_train"),
        "sensors": ["lidar", "camera"],
        "bounds": BOUNDS,
        "sweeps": 3,
        "image_size": (16, 32),
        "test_resize": 0.5,
        "bev_augmentation": BevAugmentation(),
        "image_augmentation": ImageAugmentation(resize=(0.5, 0.7)),
        "training": True,
    }
    return data.NuScenesDataset(**{**keywords, **changes})


def _equal(first, second) -> bool:
    pairs = ((getattr(first, f.name), getattr(second, f.name)) for f in dataclasses.fields(first))
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def test_shapes_and_dtypes(built):
    sample = _dataset(built)[(0, 1)]
    assert sample.token == "scene-0061-1"
    assert sample.points.shape[1] == 5
    assert sample.points.dtype == torch.float32
    assert sample.images.shape == (6, 3, 16, 32)
    assert sample.intrinsics.shape == (6, 3, 3)
    assert sample.camera_from_lidar.shape == (6, 4, 4)
    assert sample.image_augment.shape == (6, 3, 3)
    assert sample.global_from_lidar.dtype == torch.float64
    assert sample.labels.tolist() == [CAR, WALKER], "boxes that no sensor saw are left out"
    assert sample.boxes.dtype == torch.float32
    camera = _dataset(built, sensors=["camera"])[(0, 1)]
    assert camera.points is None
    lidar = _dataset(built, sensors=["lidar"], image_size=None)[(0, 1)]
    assert lidar.images is None
    assert lidar.camera_from_lidar is None


def test_draws_depend_on_the_key_alone(built):
    dataset, other = _dataset(built), _dataset(built)
    first = dataset[(2, 1, 7)]
    other[(0, 0)]
    assert _equal(first, other[(2, 1, 7)])
    assert not _equal(first, dataset[(2, 1, 8)]), "drawn twice in an epoch, augmented twice"
    assert not _equal(first, dataset[(3, 1, 7)])
    assert not _equal(first, _dataset(built, seed=1)[(2, 1, 7)])


def test_testing_draws_nothing(built):
    dataset = _dataset(built, training=False)
    sample = dataset[2]
    assert _equal(sample, dataset[(9, 2, 5)])
    np.testing.assert_array_equal(sample.lidar_augment, np.eye(4))
    np.testing.assert_allclose(np.unique(sample.points[:, 4]), [0, 0.05, 0.1, 0.15], atol=1e-6)
    assert (sample.points[:-1, 4] <= sample.points[1:, 4]).all(), "not shuffled"


def test_training_draws_sweeps_and_shuffles(built):
    dataset = _dataset(built, bev_augmentation=None)
    lags = {tuple(np.unique(dataset[(e, 2)].points[:, 4].numpy().round(3))) for e in range(8)}
    assert all(len(lag) == 4 and lag[0] == 0 for lag in lags)
    assert len(lags) > 3
    points = dataset[(0, 2)].points
    assert not (points[:-1, 4] <= points[1:, 4]).all()


@settings(max_examples=12, deadline=None)
@given(epoch=st.integers(0, 10**6))
def test_boxes_keep_their_points(built, epoch):
    """The walker stands still: all its points, keyframe and sweeps, stay in its box, whatever is drawn."""
    sample = _dataset(built)[(epoch, 2)]
    box = sample.boxes[sample.labels == WALKER].numpy()[0]
    inside = box_tools.points_inside(sample.points.numpy(), box, margin=1e-3)
    assert inside.sum() == 7 * 4


@settings(max_examples=12, deadline=None)
@given(epoch=st.integers(0, 10**6))
def test_augmented_chain_projects_as_the_plain_one(built, epoch):
    """The post, undone from the augmented cloud, is where the plain chain puts it in the original front image."""

    def original_pixel(sample):
        post = sample.points[(sample.points[:, 3] == 255) & (sample.points[:, 4] == 0), :3].double().numpy()
        post = geometry.move(geometry.inverse(sample.lidar_augment.double().numpy()), post)
        in_camera = geometry.move(sample.camera_from_lidar[0].double().numpy(), post)
        pixels, depths = geometry.project(sample.intrinsics[0].double().numpy(), in_camera)
        assert len(post) == 1
        assert depths[0] > 20
        return pixels[0]

    plain, drawn = _dataset(built, training=False)[(0, 1)], _dataset(built)[(epoch, 1)]
    np.testing.assert_allclose(original_pixel(drawn), original_pixel(plain), atol=1e-3)
    assert not torch.equal(plain.lidar_augment, drawn.lidar_augment)
    assert not torch.equal(plain.image_augment, drawn.image_augment)


def test_history_adds_images_and_changes_no_draw(built):
    """Nothing but the camera's tensors grows; their first six are those of the same sample without history."""
    cameras = ("images", "intrinsics", "camera_from_lidar", "image_augment")
    plain, longer = _dataset(built)[(4, 2)], _dataset(built, history=2)[(4, 2)]
    assert longer.images.shape == (18, 3, 16, 32)
    assert longer.intrinsics.shape == longer.image_augment.shape == (18, 3, 3)
    assert longer.camera_from_lidar.shape == (18, 4, 4)
    for name in cameras:
        assert torch.equal(getattr(longer, name)[:6], getattr(plain, name)), name
    rest = {name: None for name in cameras}
    assert _equal(dataclasses.replace(longer, **rest), dataclasses.replace(plain, **rest))
    for back in (1, 2):
        window = slice(6 * back, 6 * back + 6)
        assert torch.equal(longer.image_augment[window], plain.image_augment), "one draw a camera, for all frames"
        assert not torch.equal(longer.camera_from_lidar[window], plain.camera_from_lidar)


def test_history_reads_the_images_of_the_earlier_keyframes(built):
    dataset = _dataset(built, training=False, history=2)
    own = [_dataset(built, training=False)[i].images for i in range(3)]
    assert torch.equal(dataset[2].images, torch.cat([own[2], own[1], own[0]]))


def test_history_at_the_start_of_a_scene_is_the_keyframe_itself(built):
    """As in BEVDet4D; the second scene, which has one keyframe, does not look into the first."""
    infos = info_tools.load(built / "infos")
    tokens = [keyframe.token for keyframe in infos]
    assert tokens == ["scene-0061-0", "scene-0061-1", "scene-0061-2", "scene-0103-0"]
    assert [k.token for k in infos.history(2, 3)] == ["scene-0061-1", "scene-0061-0", "scene-0061-2"]
    assert [k.token for k in infos.history(0, 2)] == ["scene-0061-0"] * 2
    assert [k.token for k in infos.history(3, 2)] == ["scene-0103-0"] * 2
    assert infos.history(2, 0) == []
    alone = _dataset(built, infos=infos.subset("mini_val"), training=False, history=1)[0]
    assert alone.token == "scene-0103-0"
    assert torch.equal(alone.images[:6], alone.images[6:])
    torch.testing.assert_close(alone.camera_from_lidar[6:], alone.camera_from_lidar[:6], rtol=0, atol=1e-5)


@settings(max_examples=8, deadline=None)
@given(epoch=st.integers(0, 10**6))
def test_a_static_point_seen_by_the_past_cameras(built, epoch):
    """The post, taken from the augmented current cloud, falls into each past image where the car's own path puts it.

    The truth goes from the map through the pose of the car at that camera's exposure, 7 ms before its keyframe.
    """
    sample = _dataset(built, history=2)[(epoch, 2)]
    post = sample.points[(sample.points[:, 3] == 255) & (sample.points[:, 4] == 0), :3].double().numpy()
    post = geometry.move(geometry.inverse(sample.lidar_augment.double().numpy()), post)
    for back in (0, 1, 2):
        global_from_ego = geometry.rigid(*ego_pose(START + (2 - back) * KEY - 7_000))
        for camera, channel in enumerate(tables.CAMERAS):
            rotation, translation = sensors()[channel]
            global_from_camera = global_from_ego @ geometry.rigid(rotation.elements, translation)
            wanted = geometry.move(geometry.inverse(global_from_camera), POST[None])[0]
            row = 6 * back + camera
            found = geometry.move(sample.camera_from_lidar[row].double().numpy(), post)[0]
            np.testing.assert_allclose(found, wanted, atol=2e-4, err_msg=f"{channel}, {back} frames back")
            assert torch.equal(sample.intrinsics[row], sample.intrinsics[camera])


def test_range_filter_drops_points_and_boxes(built):
    sample = _dataset(built, bounds=(-10.0, 0.0, -5.0, 10.0, 18.0, 3.0), bev_augmentation=None)[(0, 0)]
    low, high = sample.points[:, :3].amin(dim=0), sample.points[:, :3].amax(dim=0)
    assert low[0] >= -10
    assert low[1] >= 0
    assert high[0] < 10
    assert high[1] < 18
    assert sample.labels.tolist() == [WALKER], "the car is 19.1 m ahead of the LiDAR"


def test_paste_only_in_lidar_training_and_its_epochs(built):
    database = paste.PasteDatabase(built / "paste")
    lidar = {"sensors": ["lidar"], "image_size": None, "paste": database, "paste_counts": {"pedestrian": 3}}
    dataset = _dataset(built, **lidar, paste_epochs=15, bev_augmentation=None)
    assert (dataset[(14, 0)].labels == WALKER).sum() > 1
    assert (dataset[(15, 0)].labels == WALKER).sum() == 1
    assert (_dataset(built, **lidar, training=False)[0].labels == WALKER).sum() == 1
    with pytest.raises(InputError, match="ground-truth pasting would show objects"):
        _dataset(built, paste=database)


def test_database_travels_by_its_name(built):
    database = paste.PasteDatabase(built / "paste")
    build, (directory,) = database.__reduce__()
    again = build(directory)
    np.testing.assert_array_equal(again.points(1), database.points(1))


def test_settings_that_cannot_be(built):
    with pytest.raises(InputError, match=r"sensors \['radar'\] are not some of lidar, camera"):
        _dataset(built, sensors=["radar"])
    with pytest.raises(InputError, match="has a camera but no image size"):
        _dataset(built, image_size=None)


def test_broken_files_stop_the_sample_by_name(built, tmp_path):
    root = write(tmp_path / "set")
    dataset = _dataset(built, root=root)
    keyframe = dataset.infos[2]
    sweep = root / keyframe.sweep_paths[0]
    sweep.write_bytes(sweep.read_bytes()[:-640])
    with pytest.raises(InputError, match=f"{sweep.name} has"):
        [dataset[(epoch, 2)] for epoch in range(30)]
    image = root / dataset.infos[0].camera_paths[3]
    image.write_bytes(image.read_bytes()[:300])
    with pytest.raises(InputError, match=f"{image.name} cannot be decoded"):
        dataset[(0, 0)]


def test_cbgs_counts():
    """1000 samples, all with cars, 100 with buses: total 1100, so 110 draws for each of the two classes."""

    class Held:
        def holds_class(self):
            held = np.zeros((1000, 10), dtype=bool)
            held[:, 0], held[:100, 3] = True, True
            return held

    drawn = data.cbgs_indices(Held(), np.random.default_rng(0))
    assert len(drawn) == 220
    assert 110 <= (drawn < 100).sum() <= 140
    again = data.cbgs_indices(Held(), np.random.default_rng(0))
    np.testing.assert_array_equal(drawn, again)
    assert (np.diff(drawn) < 0).any(), "shuffled"


def test_plain_order_is_a_permutation(built):
    infos = info_tools.load(built / "infos")
    order = data.epoch_order(infos, seed=3, epoch=1, balanced=False)
    assert sorted(order) == [0, 1, 2, 3]
    np.testing.assert_array_equal(order, data.epoch_order(infos, seed=3, epoch=1, balanced=False))


ORDER = np.random.default_rng(0).permutation(50)


def _global_batches(world: int, accumulate: int, start: int = 0) -> list[set]:
    """What all ranks together take in each step."""
    ranks = [
        list(data.EpochSampler(ORDER, epoch=4, batch=12, rank=r, world=world, accumulate=accumulate, start_step=start))
        for r in range(world)
    ]
    steps = [sum((rank[i : i + accumulate] for rank in ranks), []) for i in range(0, len(ranks[0]), accumulate)]
    taken = [sum(step, []) for step in steps]
    assert all(len(keys) == 12 == len(set(keys)) for keys in taken)
    return [set(keys) for keys in taken]


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (4, 3), (1, 6), (3, 2)])
def test_global_batches_do_not_depend_on_the_ranks(world, accumulate):
    batches = _global_batches(world, accumulate)
    assert len(batches) == 4, "two samples are dropped"
    for step, keys in enumerate(batches):
        assert keys == {data.Key(4, int(ORDER[i]), i) for i in range(step * 12, step * 12 + 12)}


def test_resume_in_mid_epoch_continues_exactly():
    whole = list(data.EpochSampler(ORDER, epoch=4, batch=12, rank=1, world=2, accumulate=2))
    for step in range(5):
        rest = data.EpochSampler(ORDER, epoch=4, batch=12, rank=1, world=2, accumulate=2, start_step=step)
        assert list(rest) == whole[2 * step :]
        assert len(rest) == len(whole) - 2 * step
        assert rest.steps == 4


def test_batches_that_cannot_be():
    with pytest.raises(InputError, match="batch 12 cannot be split over 5 processes .*: make it a multiple of 5"):
        data.EpochSampler(ORDER, epoch=0, batch=12, world=5)
    with pytest.raises(InputError, match="holds 50 samples, fewer than one batch of 64: lower"):
        data.EpochSampler(ORDER, epoch=0, batch=64)


def test_evaluation_takes_every_sample_once():
    batches = [data.in_order(11, batch=2, rank=rank, world=3) for rank in range(3)]
    assert sorted(key.index for rank in batches for batch in rank for key in batch) == list(range(11))


@pytest.mark.parametrize("start", [None, "spawn"])
def test_loader_gives_the_same_with_and_without_workers(built, start):
    dataset = _dataset(built)
    batches = data.EpochSampler(np.array([2, 0, 1, 2]), epoch=1, batch=2)
    state = torch.random.get_rng_state()
    plain = list(data.loader(dataset, batches))
    worked = list(data.loader(dataset, batches, workers=2 if start is None else 1, start=start))
    assert torch.equal(state, torch.random.get_rng_state()), "the loader leaves torch's random state alone"
    assert [b.token for b in plain] == [["scene-0061-2", "scene-0061-0"], ["scene-0061-1", "scene-0061-2"]]
    for one, two in zip(plain, worked, strict=True):
        assert torch.equal(one.images, two.images)
        assert all(torch.equal(a, b) for a, b in zip(one.points, two.points, strict=True))
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(one.boxes, two.boxes, strict=True))


def test_real_keyframe_as_a_sample(tmp_path):
    root = real_keyframe()
    infos_build.build(root, VERSION, tmp_path, progress=False)
    dataset = data.NuScenesDataset(
        root=root,
        infos=info_tools.load(tmp_path).subset("mini_train"),
        sensors=["lidar", "camera"],
        bounds=BOUNDS,
        image_size=(256, 704),
    )
    sample = dataset[0]
    assert sample.images.shape == (6, 3, 256, 704)
    assert abs(float(sample.images.mean())) < 1
    assert len(sample.boxes) == len(sample.labels) > 30
    counted = [int(box_tools.points_inside(sample.points.numpy(), box).sum()) for box in sample.boxes.numpy()]
    assert np.mean(np.array(counted) > 0) > 0.9


def test_a_teacher_may_see_the_images_otherwise(town):
    """The student's draws are those without a teacher; the teacher's matrix leads to the same pixel of the original."""
    infos = info_tools.load(town / "infos").subset("mini_train")
    own = ImageAugmentation(resize=(0.8, 1.0), rotation=0.05, mask=GridMaskAugmentation(1.0, 0.5))
    theirs = ImageAugmentation(resize=(0.5, 0.6), rotation=0.0, flip=0.0)
    common = {
        "root": town / "data", "infos": infos, "sensors": ["camera"], "bounds": (-20, -20, -5, 20, 20, 3),
        "image_size": (48, 96), "image_augmentation": own, "history": 1, "training": True,
    }  # fmt: skip
    alone = data.NuScenesDataset(**common)[2]
    taught = data.NuScenesDataset(**common, teacher_image_size=(40, 80), teacher_augmentation=theirs)[2]
    assert torch.equal(alone.images, taught.images)
    assert (taught.images.shape[0], taught.teacher_images.shape) == (12, (6, 3, 40, 80))
    assert (taught.images.flatten(1) == 0).float().mean() > 0.1, "the grid mask"
    seen = collate([taught]).for_teacher()
    assert torch.equal(seen.images[0], taught.teacher_images)
    assert torch.equal(seen.camera_from_lidar[0], taught.camera_from_lidar[:6])
    assert seen.intrinsics.shape == (1, 6, 3, 3)
    assert 0.5 <= float(seen.image_augment[0, 0, 0, 0]) <= 0.6


def test_a_teacher_without_history_shares_the_keyframes_images(town):
    """BEVDet4D and its teacher are drawn once, as published; alone, the student carries no second set of images."""
    settings = load(ROOT / "demo/full/params.yaml")
    infos = info_tools.load(town / "infos")
    taught, alone = settings.run("bevdet4d-det-vexkd"), settings.run("bevdet4d-det")
    teacher = settings.run(taught.teacher)
    shared = {"root": town / "data", "infos": infos, "paste": None, "seed": 0}
    sample = tasks.training_set(taught, teacher, **shared)[2]
    assert sample.images.shape[0] == 18
    assert torch.equal(sample.teacher_images, sample.images[:6])
    assert torch.equal(sample.teacher_image_augment, sample.image_augment[:6])
    assert collate([sample]).for_teacher().images.shape[1] == 6
    assert tasks.training_set(alone, alone, **shared)[2].teacher_images is None
