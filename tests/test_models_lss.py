"""The view transform: counts of the paper, pixels to points and back under augmentation, and where a lifted pixel lands."""

import numpy as np
import pytest
import torch

from vexkd.batch import Batch
from vexkd.models import lss
from vexkd.models.lss import LiftSplat


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
    out = view(torch.randn(1, 1, 6, 4, 8, requires_grad=True), camera_batch(points))
    assert out.shape == (1, 5, 20, 20)
    out.sum().backward()
    assert view.depth_net[0][0].weight.grad.abs().sum() > 0


def test_lifting_on_the_real_keyframe(keyframe, tmp_path):
    """A LiDAR point projected into a camera and lifted back with its depth lands in the LiDAR point's own cell."""
    from vexkd.batch import collate
    from vexkd.data import infos
    from vexkd.data.dataset import NuScenesDataset

    infos.build(keyframe, "v1.0-mini", tmp_path, progress=False)
    dataset = NuScenesDataset(
        root=keyframe, infos=infos.load(tmp_path).subset("mini_train"), sensors=["lidar", "camera"],
        bounds=(-54.0, -54.0, -5.0, 54.0, 54.0, 3.0), sweeps=0, image_size=(256, 704), test_resize=0.48,
    )  # fmt: skip
    batch = collate([dataset[0]])
    pixels, depth = lss.project(batch, 0)
    for camera in range(6):
        seen = (depth[camera] > 1) & (pixels[camera] >= 0).all(1) & (pixels[camera] < torch.tensor([704, 256])).all(1)
        assert seen.sum() > 500
        lifted = lss.unproject(batch, torch.cat([pixels[camera][seen], depth[camera][seen, None]], 1))[0, camera]
        assert (lifted - batch.points[0][seen, :3]).norm(dim=1).max() < 0.05
