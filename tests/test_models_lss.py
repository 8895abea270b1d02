"""The view transform: counts of the paper, pixels to points and back under augmentation, where a lifted pixel lands, and
the depth that LiDAR teaches."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from counted import depth_loss
from pyquaternion import Quaternion

from vexkd.batch import Batch, collate
from vexkd.data import infos, infos_build, tables
from vexkd.data.dataset import NuScenesDataset
from vexkd.errors import InputError
from vexkd.models import depth_net, lss
from vexkd.models.lss import LiftSplat
from vexkd.models.targets import Counts


def camera_batch(points=None) -> Batch:
    """One forward-looking camera at the LiDAR, flipped, scaled and cropped; BEV turned, scaled, shifted and mirrored."""
    camera_from_lidar = torch.tensor([[1.0, 0, 0, 0.1], [0, 0, -1, 0.2], [0, 1, 0, -0.3], [0, 0, 0, 1]])  # y is forward
    turn = np.deg2rad(20)
    augment = torch.eye(4)
    augment[:2, :2] = 1.05 * torch.tensor([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    augment[2, 2] = 1.05
    augment[0] *= -1
    augment[:3, 3] = torch.tensor([0.5, -0.3, 0.1])
    image_augment = torch.tensor([[-0.5, 0.02, 60.0], [0.01, 0.5, -4.0], [0, 0, 1.0]])
    return Batch(
        token=["a"],
        points=None if points is None else [points],
        images=torch.zeros(1, 1, 3, 32, 64),
        intrinsics=torch.tensor([[[[80.0, 0, 64.0], [0, 80.0, 40.0], [0, 0, 1]]]]),
        camera_from_lidar=camera_from_lidar[None, None],
        image_augment=image_augment[None, None],
        lidar_augment=augment[None],
        global_from_lidar=torch.eye(4)[None],
        boxes=[torch.zeros(0, 9)],
        labels=[torch.zeros(0, dtype=torch.long)],
    )


def small_view(**more) -> LiftSplat:
    settings = {
        "in_channels": 6, "channels": 5, "bounds": (-12.0, -12.0, -5.0, 12.0, 12.0, 3.0), "z": (-10.0, 10.0),
        "depth": (1.0, 13.0, 1.0), "step": 0.6, "cell": 1.2, "stride": 8, "depth_channels": (2, 2, 4),
    }  # fmt: skip
    return LiftSplat(**{**settings, **more})


def test_frustum_sizes_of_the_paper():
    """118 bins x 32 x 88 x 6 cameras (BEVFusion) and 59 x 16 x 44 x 6 (BEVDet)."""
    first = lss.frustum(torch.arange(1.0, 60.0, 0.5), (32, 88), (256, 704))
    second = lss.frustum(torch.arange(1.0, 60.0, 1.0), (16, 44), (256, 704))
    assert 6 * first[..., 0].numel() == 1_993_728
    assert 6 * second[..., 0].numel() == 249_216


def test_project_undoes_unproject_under_augmentation():
    batch = camera_batch()
    pixels = torch.tensor([[5.0, 7.0, 4.0], [50.0, 20.0, 9.0]])
    points = lss.unproject(batch, pixels)[0, 0]
    batch.points = [points]
    back, depth = lss.project(batch, 0)
    torch.testing.assert_close(back[0], pixels[:, :2], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(depth[0], pixels[:, 2], rtol=1e-4, atol=1e-4)


def test_depth_image_keeps_the_nearest_point():
    batch = camera_batch()
    near, far = (lss.unproject(batch, torch.tensor([[30.0, 12.0, d]]))[0, 0] for d in (4.0, 8.0))
    for order in ([near, far], [far, near]):
        batch.points = [torch.cat(order)]
        image = lss.depth_image(batch, (32, 64))[0, 0, 0]
        assert float(image[12, 30]) == pytest.approx(4.0, abs=1e-3)
        assert (image > 0).sum() == 1


def test_a_lifted_pixel_lands_in_its_cell():
    """All depth in one bin: the context of one pixel arrives in the cell of the point it shows, rows y, columns x."""
    batch, view = camera_batch(), small_view()
    cells = view.cells(batch, (4, 8), (32, 64))  # B N D H W
    points = lss.unproject(batch, lss.frustum(view.bins, (4, 8), (32, 64)))[0, 0]
    inside = cells[0, 0] >= 0
    assert inside.float().mean() > 0.3
    row, column = cells[0, 0][inside] // 40, cells[0, 0][inside] % 40
    low = torch.tensor([-12.0, -12.0])
    assert torch.equal(torch.floor((points[inside][:, :2] - low) / 0.6).long(), torch.stack([column, row], 1))


def test_view_transform_makes_a_map_at_the_cell_size():
    torch.manual_seed(0)
    points = lss.unproject(camera_batch(), torch.tensor([[30.0, 12.0, 4.0]]))[0, 0]
    view = small_view()
    out = view([torch.randn(1, 1, 6, 4, 8, requires_grad=True)], camera_batch(points))
    assert out.shape == (1, 5, 20, 20)
    out.sum().backward()
    assert view.depth_net[0][0].weight.grad.abs().sum() > 0


def two_cameras(points=None) -> Batch:
    """The camera of `camera_batch`, and one that looks backwards."""
    batch = camera_batch(points)
    back = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0]))  # half a turn about z, then as the other camera
    return replace(
        batch,
        images=batch.images.repeat(1, 2, 1, 1, 1),
        intrinsics=batch.intrinsics.repeat(1, 2, 1, 1),
        image_augment=batch.image_augment.repeat(1, 2, 1, 1),
        camera_from_lidar=torch.cat([batch.camera_from_lidar, batch.camera_from_lidar @ back], dim=1),
    )


def cloud(count: int = 400) -> torch.Tensor:
    """Points (P, 5) around the cameras; a third are of an earlier sweep."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(count, 5, generator=generator) * torch.tensor([24.0, 24.0, 4.0, 255.0, 0.0])
    points -= torch.tensor([12.0, 12.0, 2.0, 0.0, 0.0])
    points[::3, 4] = 0.05
    return points


def test_a_pixel_of_known_depth_is_lifted_to_the_known_point():
    """Camera at the LiDAR, looking along +y: 80 pixels right of the centre at depth 8 m is 8 m right, 20 above 2 m up."""
    batch = camera_batch()
    batch.image_augment, batch.lidar_augment = torch.eye(3)[None, None], torch.eye(4)[None]
    batch.camera_from_lidar[..., :3, 3] = 0
    point = lss.unproject(batch, torch.tensor([64.0 + 80.0, 40.0 - 20.0, 8.0]))
    torch.testing.assert_close(point.flatten(), torch.tensor([8.0, 8.0, 2.0]))


def test_plain_depth_net_adds_each_pixel_to_the_cell_it_shows():
    """All depth in the bin at 5 m: the map counts, per cell, the pixels whose point at 5 m lies in it. No convolution."""
    view = small_view(depth_net="plain", step=1.2)
    assert isinstance(view.down, torch.nn.Identity)
    with torch.no_grad():
        view.depth_net.weight.zero_()
        view.depth_net.bias.copy_(torch.cat([90.0 * torch.eye(12)[4], torch.ones(5)]))
    batch = camera_batch()  # no points
    bev = view([torch.randn(1, 1, 6, 4, 8)], batch)
    points = lss.unproject(batch, lss.frustum(torch.tensor([5.0]), (4, 8), (32, 64))).reshape(-1, 3)
    wanted = torch.zeros(20, 20)
    for x, y, _ in points.tolist():
        if -12 <= x < 12 and -12 <= y < 12:
            wanted[math.floor((y + 12) / 1.2), math.floor((x + 12) / 1.2)] += 1
    assert wanted.sum() > 10
    torch.testing.assert_close(bev[0], wanted.expand(5, -1, -1))


def test_plain_depth_net_down_samples_only_a_finer_map():
    view = small_view(depth_net="plain")
    assert view([torch.randn(1, 1, 6, 4, 8)], camera_batch()).shape == (1, 5, 20, 20)
    assert sum(p.numel() for p in view.down.parameters()) == 3 * (5 * 5 * 9 + 2 * 5)


def naive_targets(batch: Batch, stride: int, first: float, last: float, step: float) -> np.ndarray:
    """Point by point in float64: its pixel, the cell's nearest depth, its bin."""
    cameras, (height, width) = batch.images.shape[1], batch.images.shape[-2:]
    nearest = np.full((cameras, -(-height // stride), -(-width // stride)), np.inf)
    undo = np.linalg.inv(batch.lidar_augment[0].double().numpy())
    for camera in range(cameras):
        camera_from_lidar = batch.camera_from_lidar[0, camera].double().numpy() @ undo
        for x, y, z, _, lag in batch.points[0].double().numpy():
            point = (camera_from_lidar @ [x, y, z, 1])[:3]
            if lag > 0 or not first <= point[2] < last:
                continue
            pixel = batch.intrinsics[0, camera].double().numpy() @ point / point[2]
            u, v, w = batch.image_augment[0, camera].double().numpy() @ pixel
            u, v = round(u / w), round(v / w)
            if 0 <= u < width and 0 <= v < height:
                cell = camera, v // stride, u // stride
                nearest[cell] = min(nearest[cell], point[2])
    seen = np.isfinite(nearest)
    return np.where(seen, np.floor((np.where(seen, nearest, first) - first) / step), -1).astype(int)


@pytest.mark.parametrize(("stride", "first"), [(8, 1.0), (12, 1.0), (8, 4.0)])
def test_depth_targets_are_the_nearest_keyframe_depth_of_each_cell(stride, first):
    """Points nearer than the first bin hide none behind them, as published."""
    batch = two_cameras(cloud())
    found = lss.depth_targets(batch, stride, (first, 9.0, 0.5))[0].numpy()
    wanted = naive_targets(batch, stride, first, 9.0, 0.5)
    assert found.shape == wanted.shape
    np.testing.assert_array_equal(found, wanted)
    assert (wanted >= 0).sum() > 8
    assert (wanted < 0).any()


def test_depth_loss_by_hand_and_in_parts():
    """-log p of the right bin and -log(1 - p) of the others, summed over cells with a depth, over their number, times 3."""
    torch.manual_seed(0)
    view = small_view(depth_net="bevdepth", aspp_channels=4)
    batch = two_cameras(cloud())
    logits = torch.randn(1, 2, 12, 4, 8, requires_grad=True)
    targets = naive_targets(batch, 8, 1.0, 13.0, 1.0)
    total, count = 0.0, 0
    for camera, row, column in zip(*np.nonzero(targets >= 0), strict=True):
        p = np.exp(logits[0, camera, :, row, column].detach().double().numpy())
        p /= p.sum()
        right = targets[camera, row, column]
        total -= sum(math.log(p[k] if k == right else 1 - p[k]) for k in range(12))
        count += 1
    loss = depth_loss(view, {"depth": logits}, batch)
    assert float(view.targets(batch).counts["cells"]) == count > 8
    assert loss.item() == pytest.approx(3.0 * total / count, rel=1e-5)
    doubled = view.auxiliary_loss({"depth": logits}, view.targets(batch), Counts(view.targets(batch).counts, parts=2))
    assert doubled["depth"].item() == pytest.approx(2 * loss.item(), rel=1e-6)
    loss.backward()
    assert bool(logits.grad.isfinite().all())
    assert logits.grad[0, torch.from_numpy(targets < 0).unsqueeze(1).expand(-1, 12, -1, -1)].abs().max() == 0


def test_depth_loss_of_sure_answers_is_finite():
    view = small_view(depth_net="bevdepth", aspp_channels=4)
    batch = two_cameras(cloud())
    logits = torch.zeros(1, 2, 12, 4, 8)
    logits[:, :, 11] = 1000.0
    logits.requires_grad_()
    loss = depth_loss(view, {"depth": logits}, batch)
    loss.backward()
    assert bool(loss.isfinite())
    assert bool(logits.grad.isfinite().all())


def test_depth_loss_without_points_says_what_to_do():
    with pytest.raises(InputError, match="depth loss needs LiDAR points"):
        small_view(depth_net="bevdepth", aspp_channels=4).targets(two_cameras())


def test_bevdepth_sees_the_cameras_and_needs_no_points_at_test():
    torch.manual_seed(0)
    view = small_view(depth_net="bevdepth", aspp_channels=4, step=1.2).eval()
    features = [torch.randn(1, 2, 6, 4, 8)]
    batch = two_cameras()
    bev, auxiliary = view.forward_with_auxiliary(features, batch)
    assert bev.shape == (1, 5, 20, 20)
    assert auxiliary["depth"].shape == (1, 2, 12, 4, 8)
    other = view.forward_with_auxiliary(features, batch, cameras=torch.randn(1, 2, 27))[1]["depth"]
    assert not torch.allclose(auxiliary["depth"], other)
    torch.testing.assert_close(view(features, batch), bev)


def test_bevdepth_gradients_are_finite_and_reach_every_weight():
    torch.manual_seed(0)
    view = small_view(depth_net="bevdepth", aspp_channels=4, step=1.2)
    batch = two_cameras(cloud())
    bev, auxiliary = view.forward_with_auxiliary([torch.randn(1, 2, 6, 4, 8)], batch)
    (bev.square().mean() + depth_loss(view, auxiliary, batch)).backward()
    for name, parameter in view.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


def test_camera_numbers_by_hand():
    """fx fy cx cy, two rows of the image augmentation, the BEV augmentation's turn and height, the camera's pose."""
    batch = camera_batch()
    batch.lidar_augment[0, :2, :2] = torch.tensor([[0.9, -0.2], [0.3, 0.8]])
    numbers = depth_net.camera_numbers(batch)
    assert numbers.shape == (1, 1, 27)
    torch.testing.assert_close(
        numbers[0, 0, :10], torch.tensor([80.0, 80.0, 64.0, 40.0, -0.5, 0.02, 60.0, 0.01, 0.5, -4.0])
    )
    torch.testing.assert_close(numbers[0, 0, 10:15], torch.tensor([0.9, -0.2, 0.3, 0.8, 1.05]))
    # camera = (x + 0.1, -z + 0.2, y - 0.3), so x = camera x - 0.1, y = camera z + 0.3, z = 0.2 - camera y
    pose = torch.tensor([[1.0, 0, 0, -0.1], [0, 0, 1, 0.3], [0, -1, 0, 0.2]])
    torch.testing.assert_close(numbers[0, 0, 15:].view(3, 4), pose)


def test_depth_nets_of_the_papers_size():
    """Weights counted layer by layer from the published layouts: BEVDet's 1x1, BEVDepth's net without deformable conv."""
    size = {"bounds": (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0), "z": (-5.0, 3.0), "step": 0.6, "cell": 0.6, "stride": 16}
    plain = LiftSplat(in_channels=256, channels=64, depth=(1.0, 60.0, 1.0), depth_net="plain", **size)
    assert sum(p.numel() for p in plain.parameters()) == 256 * (59 + 64) + (59 + 64)
    assert plain.size == (180, 180)
    net = LiftSplat(in_channels=512, channels=80, depth=(1.0, 60.0, 0.5), depth_net="bevdepth", **size)
    square, norm = 512 * 512, 2 * 512
    reduce = 9 * square + 512 + norm
    gate = (27 * 512 + 512) + 3 * (square + 512)
    blocks = 3 * 2 * (9 * square + norm)
    aspp = (1 + 3 * 9 + 1) * 512 * 96 + 5 * 2 * 96 + 5 * 96 * 512 + norm
    heads = (512 + 1) * 80 + (512 + 1) * 118
    assert sum(p.numel() for p in net.parameters()) == reduce + 2 * 27 + 2 * gate + blocks + aspp + heads == 19_902_140


def dataset_of(keyframe, folder) -> NuScenesDataset:
    infos_build.build(keyframe, "v1.0-mini", folder, progress=False)
    return NuScenesDataset(
        root=keyframe, infos=infos.load(folder).subset("mini_train"), sensors=["lidar", "camera"],
        bounds=(-54.0, -54.0, -5.0, 54.0, 54.0, 3.0), sweeps=0, image_size=(256, 704), test_resize=0.48,
    )  # fmt: skip


def test_a_feature_on_the_real_keyframe_lands_where_the_tables_say(keyframe, tmp_path):
    """One feature cell at one depth, put on the map by the view, against nuScenes' tables and quaternions in float64."""
    batch = collate([dataset_of(keyframe, tmp_path)[0]])
    table = {n: json.loads((keyframe / "v1.0-mini" / f"{n}.json").read_text()) for n in ("sample_data", "ego_pose")}
    table["calibrated_sensor"] = json.loads((keyframe / "v1.0-mini/calibrated_sensor.json").read_text())

    def poses(channel):
        row = next(r for r in table["sample_data"] if f"/{channel}/" in r["filename"] and r["is_key_frame"])
        sensor = next(r for r in table["calibrated_sensor"] if r["token"] == row["calibrated_sensor_token"])
        return sensor, next(r for r in table["ego_pose"] if r["token"] == row["ego_pose_token"])

    def outwards(point, pose):
        return Quaternion(pose["rotation"]).rotate(point) + np.array(pose["translation"])

    def inwards(point, pose):
        return Quaternion(pose["rotation"]).inverse.rotate(point - np.array(pose["translation"]))

    view = LiftSplat(
        in_channels=1, channels=1, bounds=(-54.0, -54.0, -5.0, 54.0, 54.0, 3.0), z=(-10.0, 10.0),
        depth=(1.0, 60.0, 1.0), step=0.6, cell=0.6, stride=16, depth_net="plain",
    )  # fmt: skip
    lidar_sensor, lidar_ego = poses("LIDAR_TOP")
    for camera, channel in enumerate(tables.CAMERAS):
        sensor, ego = poses(channel)
        row, column, depth = 9, 5 + 6 * camera, 10 + 3 * camera
        u, v = column * 703 / 43, row * 255 / 15  # feature cells span the image from edge to edge
        u, v = (u + 32 + 0.26) / 0.48, (v + 176 + 0.26) / 0.48  # crop of 768 x 432, resize about the image's corner
        (fx, _, cx), (_, fy, cy), _ = sensor["camera_intrinsic"]
        point = np.array([(u - cx) / fx * depth, (v - cy) / fy * depth, depth])
        point = inwards(inwards(outwards(outwards(point, sensor), ego), lidar_ego), lidar_sensor)
        with torch.no_grad():
            view.depth_net.weight.zero_()
            view.depth_net.weight[-1] = 1.0
            view.depth_net.bias.copy_(90.0 * torch.eye(60)[depth - 1])
            features = torch.zeros(1, 6, 1, 16, 44)
            features[0, camera, 0, row, column] = 1.0
            bev = view([features], batch)[0, 0]
        wanted = math.floor((point[1] + 54) / 0.6), math.floor((point[0] + 54) / 0.6)
        assert (bev > 0.5).nonzero().tolist() == [list(wanted)], channel


def test_lifting_on_the_real_keyframe(keyframe, tmp_path):
    """A LiDAR point projected into a camera and lifted back with its depth lands in the LiDAR point's own cell."""
    batch = collate([dataset_of(keyframe, tmp_path)[0]])
    pixels, depth = lss.project(batch, 0)
    for camera in range(6):
        seen = (depth[camera] > 1) & (pixels[camera] >= 0).all(1) & (pixels[camera] < torch.tensor([704, 256])).all(1)
        assert seen.sum() > 500
        lifted = lss.unproject(batch, torch.cat([pixels[camera][seen], depth[camera][seen, None]], 1))[0, camera]
        assert (lifted - batch.points[0][seen, :3]).norm(dim=1).max() < 0.05


def test_depths_are_not_rounded_under_bfloat16():
    """bfloat16 has steps of 0.25 m from 32 m on, half of BEVFusion's bins: what reads the depth image stays float32."""
    view, batch = small_view().eval(), camera_batch(torch.tensor([[0.0, 40.3, 0.0, 0.0, 0.0]]))
    batch.lidar_augment = torch.eye(4)[None]
    seen = []
    view.depth_image.register_forward_hook(lambda module, given, out: seen.append((given[0], out)))
    with torch.autocast("cpu", torch.bfloat16):
        view([torch.randn(1, 1, 6, 4, 8)], batch)
    ((image, guidance),) = seen
    assert float(image.max()) == pytest.approx(40.0, abs=0.01)
    assert guidance.dtype == torch.float32
    torch.testing.assert_close(guidance, view.depth_image(image))


def test_the_published_border_truncates_towards_zero(monkeypatch):
    from vexkd.models import lss

    place = {
        "bounds": (-8.0, -8.0, -5.0, 8.0, 8.0, 3.0),
        "z": (-4.0, 4.0),
        "depth": (1.0, 9.0, 1.0),
        "step": 1.0,
        "cell": 1.0,
    }
    points = torch.tensor(
        [[-8.5, 0.5, 0.0], [0.5, -8.5, 0.0], [0.5, 0.5, -11.9], [0.5, 0.5, -12.0], [-9.0, 0.5, 0.0], [8.0, 0.5, 0.0]]
    )
    monkeypatch.setattr(lss, "unproject", lambda batch, pixels: points)
    middle = 8 * 16 + 8
    for border, expected in (("exact", [-1] * 6), ("published", [8 * 16, 8, middle, -1, -1, -1])):
        view = LiftSplat(in_channels=4, channels=2, stride=8, depth_net="plain", border=border, **place)
        assert view.cells(None, (1, 1), (8, 8)).tolist() == expected
