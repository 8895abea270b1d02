"""BEVFormer's view: places of pillars by hand, both attentions against loops over every number, samples kept apart."""

import math

import numpy as np
import pytest
import torch

from vexkd.batch import Batch
from vexkd.models.bevformer import BEVFormerView, HistoryFreeAttention, ImageAttention, pack

BOUNDS = (-6.0, -4.0, -5.0, 6.0, 4.0, 3.0)
CELL = 2.0  # 4 rows, 6 columns


def two_cameras(samples=1, augment=None) -> Batch:
    """One camera that looks along +y, one along -x; images of 32 x 64, halved and shifted against the originals."""
    forward = torch.tensor([[1.0, 0, 0, 0.1], [0, 0, -1, 0.2], [0, 1, 0, -0.3], [0, 0, 0, 1]])
    left = torch.tensor([[0.0, 1, 0, 0.0], [0, 0, -1, 0.2], [-1, 0, 0, 0.1], [0, 0, 0, 1]])
    lidar_augment = torch.eye(4)[None].repeat(samples, 1, 1) if augment is None else augment
    return Batch(
        token=["a"] * samples,
        points=None,
        images=torch.zeros(samples, 2, 3, 32, 64),
        intrinsics=torch.tensor([[20.0, 0, 64.0], [0, 20.0, 40.0], [0, 0, 1]]).expand(samples, 2, 3, 3),
        camera_from_lidar=torch.stack([forward, left]).expand(samples, 2, 4, 4),
        image_augment=torch.tensor([[0.5, 0, 1.0], [0, 0.5, -4.0], [0, 0, 1.0]]).expand(samples, 2, 3, 3),
        lidar_augment=lidar_augment,
        global_from_lidar=torch.eye(4)[None].repeat(samples, 1, 1),
        boxes=[torch.zeros(0, 9)] * samples,
        labels=[torch.zeros(0, dtype=torch.long)] * samples,
    )


def turned_and_mirrored() -> torch.Tensor:
    """An augmentation of the LiDAR frame, and another one."""
    first, second = torch.eye(4), torch.eye(4)
    c, s = math.cos(0.3), math.sin(0.3)
    first[:3, :3] = 1.05 * torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    first[:3, 3] = torch.tensor([0.5, -0.3, 0.1])
    second[0, 0] = -1
    return torch.stack([first, second])


def small_view(**more) -> BEVFormerView:
    torch.manual_seed(0)
    settings = {
        "in_channels": 6, "bounds": BOUNDS, "cell": CELL, "channels": 8, "cameras": 2, "levels": 2, "layers": 2, "heads": 2,
        "points": 3, "image_points": 4, "pillar": 2, "ffn": 12, "dropout": 0.1, "query_std": 1.0,
    }  # fmt: skip
    return BEVFormerView(**{**settings, **more})


def features(samples=1, requires_grad=False) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(4, 8), (2, 4)]
    return [torch.randn(samples, 2, 6, *s, generator=generator).requires_grad_(requires_grad) for s in shapes]


def test_pillars_stand_on_cell_centres_half_a_metre_inside_the_range():
    pillars = small_view(pillar=4).pillars()
    assert pillars.shape == (24, 4, 3)
    torch.testing.assert_close(pillars[0], torch.tensor([[-5, -3, z] for z in (-4.5, -13 / 6, 1 / 6, 2.5)]))
    torch.testing.assert_close(pillars[7, 0], torch.tensor([-3.0, -1.0, -4.5]))  # row 1, column 1: x along columns


def test_a_known_point_in_both_cameras_by_hand():
    """Cell (row 3, column 0) at (-5, 3): forward it lies at camera (-4.9, 0.2 - z, 2.7), to the left at (3, 0.2 - z, 5.1)."""
    places, seen = small_view().pillars_in_images(two_cameras())
    cell, (low, high) = 3 * 6, (-4.5, 2.5)
    for height, z in enumerate((low, high)):
        for camera, (x, depth) in enumerate([(-4.9, 2.7), (3.0, 5.1)]):
            u, v = 20 * x / depth + 64, 20 * (0.2 - z) / depth + 40
            u, v = (0.5 * u + 1) / 64, (0.5 * v - 4) / 32
            torch.testing.assert_close(places[0, camera, cell, height], torch.tensor([u, v]), rtol=1e-4, atol=1e-4)
            assert bool(seen[0, camera, cell, height]) == (0 < u < 1 and 0 < v < 1)
    behind = places[0, 0, 0], seen[0, 0, 0]  # row 0 lies behind the forward camera
    assert not behind[1].any()
    assert behind[0].isfinite().all()


def test_places_undo_the_augmentation_of_the_scene():
    """A cell's pillar lies where the projection of its points, moved back by hand in float64, lies."""
    view, augment = small_view(), turned_and_mirrored()
    batch = two_cameras(2, augment)
    places, seen = view.pillars_in_images(batch)
    for sample in range(2):
        points = np.concatenate([view.pillars().flatten(0, 1).numpy().astype(np.float64), np.ones((48, 1))], axis=1)
        for camera in range(2):
            chain = batch.camera_from_lidar[sample, camera].double().numpy() @ np.linalg.inv(
                augment[sample].double().numpy()
            )
            x, y, z, _ = chain @ points.T
            ahead = z > 0.01
            u, v = 0.5 * (20 * x / z + 64) + 1, 0.5 * (20 * y / z + 40) - 4
            expected = np.stack([u / 64, v / 32], axis=1)[ahead]
            np.testing.assert_allclose(places[sample, camera].flatten(0, 1)[ahead], expected, rtol=1e-3, atol=1e-3)
            assert not seen[sample, camera].flatten()[~ahead].any()
    assert seen[0].any()
    assert not torch.equal(seen[0], seen[1])


def test_places_on_the_real_keyframe_are_the_depth_images(keyframe, tmp_path):
    """The cell under a LiDAR point shows where the point shows: through the projection that places the depth image."""
    from vexkd.batch import collate
    from vexkd.data import infos, infos_build
    from vexkd.data.dataset import NuScenesDataset
    from vexkd.models import lss

    infos_build.build(keyframe, "v1.0-mini", tmp_path, progress=False)
    bounds = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)
    dataset = NuScenesDataset(
        root=keyframe, infos=infos.load(tmp_path).subset("mini_train"), sensors=["camera"],
        bounds=bounds, sweeps=0, image_size=(256, 704), test_resize=0.48,
    )  # fmt: skip
    batch = collate([dataset[0]])
    view = small_view(bounds=bounds, cell=0.6, cameras=6, pillar=4, layers=0)
    places, seen = view.pillars_in_images(batch)
    batch.points = [view.pillars().flatten(0, 1)]
    pixels, depth = lss.project(batch, 0)
    inside = (depth > 0) & ((pixels > 0) & (pixels < torch.tensor([704.0, 256.0]))).all(-1)
    assert (inside == seen[0].flatten(1)).float().mean() > 0.9999
    found = places[0].flatten(1, 2)[inside] * torch.tensor([704.0, 256.0])
    assert (found - pixels[inside]).abs().max() < 0.05
    cameras = seen.any(-1).sum(1)  # cameras per cell: one or two round the car
    assert cameras.max() == 2
    assert (cameras > 0).float().mean() > 0.9


def bilinear(plane: np.ndarray, u: float, v: float) -> np.ndarray:
    """Sample of a map (H, W, C) at (u, v) in [0, 1], cell centres at (i + 0.5) / size, zero outside."""
    height, width = plane.shape[:2]
    x, y = u * width - 0.5, v * height - 0.5
    total = np.zeros(plane.shape[2])
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * plane[row, column]
    return total


def linear(layer: torch.nn.Linear, x: np.ndarray) -> np.ndarray:
    return layer.weight.detach().numpy() @ x + layer.bias.detach().numpy()


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum()


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.7, generator=generator)
    return module.double()


def test_attention_into_images_equals_loops_over_every_number():
    """Loops over samples, cells, cameras, heads, levels and points; cells without a camera keep the projection's bias."""
    heads, levels, points, pillar, cells, cameras, dim = 2, 2, 4, 2, 5, 3, 3
    sizes = [(3, 4), (2, 2)]
    attention = randomised(
        ImageAttention(channels=6, value_channels=4, heads=heads, points=points, levels=levels, pillar=pillar)
    )
    generator = torch.Generator().manual_seed(4)
    query = torch.randn(2, cells, 6, generator=generator, dtype=torch.float64)
    values = torch.randn(2 * cameras, 16, 4, generator=generator, dtype=torch.float64)
    places = torch.rand(2, cameras, cells, pillar, 2, generator=generator, dtype=torch.float64) * 1.6 - 0.3
    seen = torch.rand(2, cameras, cells, pillar, generator=generator) < 0.35
    seen[0, :, 2] = False  # no camera at all
    seen[1, 1] = False  # a camera that sees nothing
    out = attention(query, values, sizes, pack(places, seen)).detach().numpy()

    for sample in range(2):
        for cell in range(cells):
            q = query[sample, cell].numpy()
            offsets = linear(attention.offsets, q).reshape(heads, levels, points, 2)
            logits = linear(attention.weights, q).reshape(heads, levels * points)
            total, hit = np.zeros(6), 0
            for camera in range(cameras):
                if not seen[sample, camera, cell].any():
                    continue
                hit += 1
                value = np.stack([linear(attention.value, v) for v in values[sample * cameras + camera].numpy()])
                planes = [value[:12].reshape(3, 4, 6), value[12:].reshape(2, 2, 6)]
                for head in range(heads):
                    shares = softmax(logits[head]).reshape(levels, points)
                    for level in range(levels):
                        height, width = sizes[level]
                        plane = planes[level][..., head * dim : (head + 1) * dim]
                        for point in range(points):
                            u, v = places[sample, camera, cell, point % pillar].numpy() + offsets[
                                head, level, point
                            ] / [
                                width,
                                height,
                            ]
                            total[head * dim : (head + 1) * dim] += shares[level, point] * bilinear(plane, u, v)
            expected = linear(attention.output, total / max(hit, 1))
            np.testing.assert_allclose(out[sample, cell], expected, rtol=1e-9, atol=1e-9)


def test_history_free_attention_equals_loops_over_every_number():
    heads, points, rows, columns, dim = 2, 3, 2, 3, 2
    attention = randomised(HistoryFreeAttention(channels=4, heads=heads, points=points))
    generator = torch.Generator().manual_seed(5)
    query = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    position = torch.randn(1, 6, 4, generator=generator, dtype=torch.float64)
    out = attention(query, position, (rows, columns)).detach().numpy()
    for sample in range(2):
        value = np.stack([linear(attention.value, q) for q in query[sample].numpy()]).reshape(rows, columns, 4)
        for cell in range(6):
            context = np.concatenate([query[sample, cell], query[sample, cell] + position[0, cell]])
            offsets = linear(attention.offsets, context).reshape(heads, 2, points, 2)
            logits = linear(attention.weights, context).reshape(heads, 2, points)
            queues = np.zeros((2, 4))
            for queue in range(2):
                for head in range(heads):
                    part = slice(head * dim, (head + 1) * dim)
                    for point, share in enumerate(softmax(logits[head, queue])):
                        dx, dy = offsets[head, queue, point]
                        u = (cell % columns + 0.5 + dx) / columns
                        v = (cell // columns + 0.5 + dy) / rows
                        queues[queue, part] += share * bilinear(value[..., part], u, v)
            expected = linear(attention.output, queues.mean(0))
            np.testing.assert_allclose(out[sample, cell], expected, rtol=1e-5, atol=1e-5)  # the reference is float32


def test_packing_keeps_the_cells_in_their_order_and_counts_cameras():
    seen = torch.zeros(1, 3, 5, 2, dtype=torch.bool)
    seen[0, 0, [1, 4], 0] = True
    seen[0, 1, [0, 2, 4], 1] = True
    places = torch.arange(5.0).view(1, 1, 5, 1, 1).expand(1, 3, 5, 2, 2)
    hits = pack(places, seen)
    assert hits.cells.shape == (3, 3)
    assert hits.filled.tolist() == [[True, True, False], [True, True, True], [False, False, False]]
    assert hits.cells[0, :2].tolist() == [1, 4]
    assert hits.cells[1].tolist() == [0, 2, 4]
    assert torch.equal(hits.places[..., 0, 0], hits.cells.float())
    assert hits.cameras.tolist() == [[1, 1, 1, 1, 2]]


def test_a_view_no_camera_of_which_sees_a_cell_is_finite():
    batch = two_cameras()
    batch.camera_from_lidar = batch.camera_from_lidar.clone()
    batch.camera_from_lidar[..., 2, :3] *= 0  # everything lies behind
    batch.camera_from_lidar[..., 2, 3] = -1
    assert small_view()(features(), batch).isfinite().all()


def test_map_has_rows_along_y_and_samples_do_not_mix():
    view = small_view().eval()
    augment = turned_and_mirrored()
    maps = features(2)
    together = view(maps, two_cameras(2, augment))
    assert together.shape == (2, 8, 4, 6)
    assert view.shape == (4, 6)
    for sample in range(2):
        alone = view([level[sample : sample + 1] for level in maps], two_cameras(1, augment[sample : sample + 1]))
        torch.testing.assert_close(together[sample : sample + 1], alone, rtol=1e-4, atol=1e-5)


def test_only_seen_cells_change_with_the_image():
    """One layer with its self-attention silenced: an image changes the cells that see it, and no other."""
    view = small_view(layers=1).eval()
    torch.nn.init.zeros_(view.layers[0].itself.output.weight)
    batch, maps = two_cameras(), features()
    places, seen = view.pillars_in_images(batch)
    other = [level.clone() for level in maps]
    for level in other:
        level[:, 1] += torch.randn(level[:, 1].shape, generator=torch.Generator().manual_seed(9))
    changed = (view(maps, batch) - view(other, batch)).abs().amax(1)[0].flatten() > 1e-7
    hit = seen[0, 1].any(-1)
    assert torch.equal(changed & ~hit, torch.zeros_like(hit))
    assert 4 <= hit.sum() < 24
    assert changed.sum() == hit.sum()


def test_cameras_and_their_codes_may_change_places_together():
    view = small_view().eval()
    batch, maps = two_cameras(), features()
    expected = view(maps, batch)
    swapped = two_cameras()
    swapped.camera_from_lidar = batch.camera_from_lidar.flip(1)
    with torch.no_grad():
        view.camera_code.copy_(view.camera_code.flip(0).clone())
    torch.testing.assert_close(view([level.flip(1) for level in maps], swapped), expected, rtol=1e-4, atol=1e-5)


def test_every_parameter_gets_a_finite_gradient():
    view = small_view(dropout=0.0)
    for layer in view.layers:  # offsets' weights start at zero, and so do the gradients through them
        for part in (layer.itself.offsets, layer.images.offsets, layer.itself.weights, layer.images.weights):
            torch.nn.init.normal_(part.weight, std=0.1)
    maps = features(2, requires_grad=True)
    view(maps, two_cameras(2, turned_and_mirrored())).square().mean().backward()
    for name, tensor in [*view.named_parameters(), *((f"level {i}", m) for i, m in enumerate(maps))]:
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.abs().sum() > 0, name


def test_recomputing_changes_no_number():
    """Dropout included: what is computed again draws the same."""
    grads = []
    for recompute in (False, True):
        view, maps = small_view(recompute=recompute), features(requires_grad=True)
        torch.manual_seed(7)
        out = view(maps, two_cameras())
        out.square().mean().backward()
        grads.append([out.detach(), *(m.grad for m in maps), *(p.grad for p in view.parameters())])
    torch.testing.assert_close(*grads)


def test_half_precision_keeps_its_geometry():
    view = small_view().eval()
    expected = view(features(), two_cameras())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = view(features(), two_cameras())
    torch.testing.assert_close(out.float(), expected, rtol=0.2, atol=0.2)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="image_points"):
        small_view(image_points=3)
    with pytest.raises(ValueError, match="2 levels, the neck gave 1"):
        small_view()(features()[:1], two_cameras())


def test_parameters_of_a_layer_at_the_papers_size():
    """Self-attention 230,080; into images 328,960; feed-forward 262,912; norms 1,536."""
    view = small_view(
        in_channels=256, channels=256, levels=4, heads=8, points=4, image_points=8, pillar=4, ffn=512, layers=1
    )
    assert sum(p.numel() for p in view.layers.parameters()) == 230_080 + 328_960 + 262_912 + 1_536
