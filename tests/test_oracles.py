"""What an implementation of the method must give, known without nuScenes: twenty oracles by number, then further checks.

Each is held to a closed form, a hand-worked number or a plain loop in float64. Thorough tests of the same parts stand in the
files of the parts.
"""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import shapely
import torch
from conftest import tiny_settings
from counted import loss_of, step_of
from shapely import affinity

from vexkd import boxes as box_tools
from vexkd import geometry, settings
from vexkd.batch import Batch
from vexkd.boxes import CLASSES
from vexkd.data import infos as info_tools
from vexkd.data import infos_build, tables
from vexkd.data.map_predictions import levels
from vexkd.distill import distiller
from vexkd.distill.losses import attention_transfer
from vexkd.distill.masks import MaskNet
from vexkd.evaluate import detection, resamples
from vexkd.evaluate.segmentation import Accumulator
from vexkd.geometry import BevGrid
from vexkd.models import bev_model, heatmap, lss
from vexkd.models.centerpoint import CenterPointHead
from vexkd.models.fusion import FusionBlock, ModalityGeneralFusion
from vexkd.models.map_head import MapHead
from vexkd.models.sparse_encoder import SparseEncoder
from vexkd.models.transfusion import TransFusionHead
from vexkd.ops.bev_pool import lift_pool
from vexkd.ops.deform_conv import deform_conv
from vexkd.ops.deformable_attention import DeformableAttention, reference_points
from vexkd.ops.rotated_iou import rotated_iou

PAPER_GRID = BevGrid((-54.0, -54.0, -5.0, 54.0, 54.0, 3.0), 0.6)
GRID = BevGrid((-12.0, -12.0, -5.0, 12.0, 12.0, 3.0), 0.6)
CODE_WEIGHTS = [1.0] * 8 + [0.2] * 2
CAR, PEDESTRIAN = CLASSES.index("car"), CLASSES.index("pedestrian")
BOXES = torch.tensor(
    [
        [3.1, -4.7, 0.5, 4.6, 1.95, 1.7, 0.6, 2.0, -1.0],
        [-6.2, 5.9, 0.2, 0.7, 0.7, 1.8, -2.0, float("nan"), float("nan")],
    ]
)
LABELS = torch.tensor([CAR, PEDESTRIAN])


def random_maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def centerpoint_head(grid: BevGrid = GRID) -> CenterPointHead:
    torch.manual_seed(0)
    return CenterPointHead(
        in_channels=4, grid=grid, tasks=[["car", "truck"], ["pedestrian"]], shared_channels=4, branch_channels=4,
        overlap=0.1, min_radius=2, max_objects=500, box_weight=0.25, code_weights=CODE_WEIGHTS,
    )  # fmt: skip


def transfusion_head(grid: BevGrid = GRID) -> TransFusionHead:
    torch.manual_seed(0)
    return TransFusionHead(
        in_channels=4, grid=grid, channels=8, proposals=3, layers=1, heads=2, ffn=8, dropout=0.0,
        peak_classes=["pedestrian", "traffic_cone"], overlap=0.1, min_radius=2, class_cost=0.15, box_cost=0.25,
        iou_cost=0.25, class_weight=1.0, heatmap_weight=1.0, box_weight=0.25, code_weights=CODE_WEIGHTS,
    )  # fmt: skip


def identity_attention(**sizes: int) -> DeformableAttention:
    """Value and output projections are the identity."""
    attention = DeformableAttention(**sizes).double()
    for projection in (attention.value, attention.output):
        torch.nn.init.eye_(projection.weight)
    return attention


def small_fusion() -> ModalityGeneralFusion:
    torch.manual_seed(0)
    module = ModalityGeneralFusion(
        in_channels={"lidar": 6, "camera": 3}, shape=(6, 5), channels=8, blocks=2, query_std=1.0, heads=2, points=4,
        ffn=16, dropout=0.1,
    )  # fmt: skip
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.eval()


# The twenty.


@pytest.mark.parametrize("power", [1, 2])
def test_01_attention_transfer_of_a_scaled_copy_is_zero(power):
    teacher, mask = random_maps(2, 4, 6, 6), torch.rand(2, 1, 6, 6, dtype=torch.float64)
    assert float(attention_transfer(3.7 * teacher, teacher, mask, power=power)) < 1e-11


def test_02_attention_transfer_does_not_see_the_scale_of_the_mask():
    student, teacher, mask = random_maps(2, 3, 6, 6), random_maps(2, 5, 6, 6, seed=1), random_maps(2, 1, 6, 6).abs()
    whole, tenth = (attention_transfer(student, teacher, scale * mask, power=1) for scale in (1.0, 0.1))
    assert float(whole) == pytest.approx(float(tenth), rel=1e-9)


def test_03_attention_transfer_of_disjoint_supports_is_the_root_of_two():
    student, teacher = torch.zeros(1, 2, 4, 4).double(), torch.zeros(1, 3, 4, 4).double()
    student[..., :2], teacher[..., 2:] = 1.0, 2.0
    assert float(attention_transfer(student, teacher, None, power=1)) == pytest.approx(math.sqrt(2), rel=1e-9)


@pytest.mark.parametrize(
    ("channels", "power", "expected"), [(256, 1, 0.0663), (256, 2, 0.1237), (64, 1, 0.133), (64, 2, 0.246)]
)
def test_04_attention_transfer_of_independent_gaussian_maps(channels, power, expected):
    student, teacher = (random_maps(1, channels, 180, 180, seed=seed, dtype=torch.float32) for seed in (0, 1))
    assert float(attention_transfer(student, teacher, None, power=power)) == pytest.approx(expected, abs=0.002)


def test_05_deformable_attention_without_offsets_is_the_identity():
    attention = identity_attention(channels=16, heads=4, points=3)
    torch.nn.init.zeros_(attention.offsets.bias)
    value = random_maps(2, 30, 16)
    out = attention(random_maps(2, 30, 16, seed=1), reference_points(5, 6).double(), value, [(5, 6)])
    torch.testing.assert_close(out, value, atol=1e-5, rtol=0)  # the reference is float32


def test_06_deformable_attention_starts_as_a_star_of_eight_rays():
    """One lit cell: the queries that see it stand 1 to 4 cells before it on the eight compass rays, a quarter each."""
    attention = identity_attention(channels=8, heads=8, points=4)
    impulse = torch.zeros(1, 13 * 13, 8, dtype=torch.float64)
    impulse[0, 6 * 13 + 6] = 1.0
    seen = attention(random_maps(1, 13 * 13, 8), reference_points(13, 13).double(), impulse, [(13, 13)])
    rays = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]  # x, y
    expected = torch.zeros(13, 13, 8, dtype=torch.float64)
    for head, (dx, dy) in enumerate(rays):
        for step in range(1, 5):
            expected[6 - step * dy, 6 - step * dx, head] = 0.25
    torch.testing.assert_close(seen.view(13, 13, 8), expected, atol=1e-5, rtol=0)


def test_07_fusion_prefers_no_sensor():
    module, swapped = small_fusion(), small_fusion()
    swapped.load_state_dict(module.state_dict())
    for part in [swapped.project, *(block.cross for block in swapped.blocks)]:
        part["lidar"], part["camera"] = part["camera"], part["lidar"]
    lidar, camera = torch.randn(2, 6, 6, 5), torch.randn(2, 3, 6, 5)
    one, other = module({"lidar": lidar, "camera": camera}), swapped({"lidar": camera, "camera": lidar})
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("missing", "left"), [("lidar", "camera"), ("camera", "lidar")])
def test_08_fusion_without_one_sensor_still_reads_the_other(missing, left):
    module = small_fusion()
    maps = {"lidar": torch.randn(1, 6, 6, 5), "camera": torch.randn(1, 3, 6, 5)}
    maps[missing] = torch.zeros_like(maps[missing])
    out, changed = module(maps), module({**maps, left: -maps[left]})
    assert bool(out.isfinite().all())
    assert (out - changed).abs().max() > 1e-2


def test_09_parameters_of_a_fusion_block():
    """Each sensor: offsets and weights from 512 numbers, value, output; self-attention from 256; feed-forward; norms."""
    block = FusionBlock(sensors=["lidar", "camera"], channels=256, heads=8, points=4, ffn=512, dropout=0.1)
    square = 256 * 256 + 256
    cross, itself = (512 + 1) * 96 + 2 * square, (256 + 1) * 96 + 2 * square
    expected = 2 * cross + itself + 256 * 512 + 512 + 512 * 256 + 256 + 3 * 2 * 256
    assert sum(p.numel() for p in block.parameters()) == expected == 782_368


def test_10_masks_lie_between_zero_and_one_on_180_by_180_cells():
    torch.manual_seed(0)
    net = MaskNet(
        query=torch.randn(180 * 180, 16), shape=(180, 180), in_channels=24, blocks=3, heads=2, points=4, ffn=16,
        dropout=0.1, bias=2.0,
    )  # fmt: skip
    torch.nn.init.normal_(net.mask.weight)
    with torch.no_grad():
        mask = net(torch.randn(1, 24, 180, 180))
    assert mask.shape == (1, 1, 180, 180)
    assert 0 < float(mask.min()) < float(mask.max()) < 1


@pytest.fixture
def lesson() -> tuple[distiller.Distiller, Batch]:
    """A LiDAR student and its teacher of both sensors at test size, and two samples of noise with two boxes each."""
    torch.manual_seed(0)
    params = settings.parse(tiny_settings())
    run, teacher = params.run("centerpoint-det-vexkd"), params.run("fusion-det")
    task = distiller.build(
        settings=run.distill, student=bev_model.build(run), teacher=bev_model.build(teacher), teacher_name="fusion-det"
    )
    forward = torch.tensor([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # the camera looks along +y
    batch = Batch(
        token=["a", "b"],
        points=[torch.rand(500, 5) * torch.tensor([40.0, 40, 4, 255, 0]) - torch.tensor([20.0, 20, 2, 0, 0]) for _ in "ab"],
        images=torch.rand(2, 1, 3, 64, 128),
        intrinsics=torch.tensor([[80.0, 0, 64], [0, 80, 32], [0, 0, 1]]).expand(2, 1, 3, 3),
        camera_from_lidar=forward.expand(2, 1, 4, 4),
        image_augment=torch.eye(3).expand(2, 1, 3, 3),
        lidar_augment=torch.eye(4).expand(2, 4, 4),
        global_from_lidar=torch.eye(4).expand(2, 4, 4),
        boxes=[BOXES, BOXES],
        labels=[LABELS, LABELS],
    )  # fmt: skip
    return task, batch


def learning(module: torch.nn.Module) -> bool:
    return any(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in module.parameters())


def test_11_the_masked_teachers_loss_reaches_the_masks_and_nothing_of_the_teacher(lesson):
    task, batch = lesson
    task.begin_step(0, 0)
    terms, _ = step_of(task, batch)
    masked = {name: value for name, value in terms.items() if name.startswith("masked.")}
    assert set(masked) == {"masked.heatmap", "masked.class", "masked.box"}
    sum(masked.values()).backward()
    assert all(learning(net) for net in task.masks.nets.values()), "both levels"
    assert all(p.grad is None for p in task.teacher.parameters())
    assert not learning(task.student)


def test_12_after_the_stop_masks_stay_and_the_student_is_still_taught(lesson):
    task, batch = lesson
    task.begin_step(1, 0)  # the tiny settings stop before epoch 1
    optimiser = torch.optim.AdamW(task.parameters(), lr=0.1)
    before = [p.detach().clone() for p in task.masks.parameters()]
    terms, _ = step_of(task, batch)
    assert not [name for name in terms if name.startswith(("masked.", "mask."))]
    assert float(terms["distill.low"].detach()) > 0
    assert float(terms["distill.high"].detach()) > 0
    sum(terms.values()).backward()
    optimiser.step()
    assert learning(task.student)
    assert all(torch.equal(old, new) for old, new in zip(before, task.masks.parameters(), strict=True))


def test_13_one_box_peaks_in_the_same_cell_everywhere():
    """Its points in the LiDAR map (all weights one), CenterPoint's heatmap, TransFusion's: rows are y, columns x."""
    box = torch.tensor([[30.1, -20.3, -1.0, 4.6, 1.95, 1.7, 0.6, 0.0, 0.0]])
    row, column = math.floor((-20.3 + 54) / 0.6), math.floor((30.1 + 54) / 0.6)
    encoder = SparseEncoder(
        bounds=PAPER_GRID.bounds, voxel=(0.15, 0.15, 0.4), point_channels=5, channels=(1, 1, 1), blocks=0, out_channels=1,
        max_points=10, max_voxels_train=100, max_voxels_test=100,
    ).eval()  # fmt: skip
    for parameter in encoder.parameters():
        if parameter.dim() > 1:
            torch.nn.init.ones_(parameter)
    offsets = torch.tensor(
        list(itertools.product((0.075, 0.225, 0.375, 0.525), repeat=2))
    )  # a point a voxel of the cell
    places = torch.tensor([column * 0.6 - 54, row * 0.6 - 54]) + offsets
    with torch.no_grad():
        low = encoder([torch.cat([places, torch.tensor([[-1.0, 10.0, 0.0]]).expand(16, -1)], 1)])[0].sum(0)
    sparse = (
        centerpoint_head(PAPER_GRID).targets(SimpleNamespace(boxes=[box], labels=[LABELS[:1]])).values[0].heatmap[0, 0]
    )
    dense = transfusion_head(PAPER_GRID).heatmap_targets([box], [LABELS[:1]])[0, CAR]
    assert low.shape == sparse.shape == dense.shape == (180, 180)
    assert int(low.argmax()) == int(sparse.argmax()) == int(dense.argmax()) == row * 180 + column


@pytest.mark.parametrize(
    ("length", "width", "radius"), [(4.6, 1.95, 2.096), (10, 3, 3.724), (12, 2.9, 3.917), (0.6, 0.6, 0.432)]
)
def test_14_gaussian_radius_in_cells_of_0_6_m(length, width, radius):
    found = heatmap.gaussian_radius(torch.tensor(length / 0.6), torch.tensor(width / 0.6), 0.1)
    assert float(found) == pytest.approx(radius, abs=1e-3)


def test_15_map_iou_of_a_perfect_prediction_is_one():
    labels = (np.random.default_rng(0).random((6, 20, 30)) < 0.3).astype(np.uint8)
    labels[5] = 0  # a class that is nowhere scores nothing
    counts = Accumulator()
    counts.add(levels(labels.astype(np.float32)), labels)
    np.testing.assert_allclose(counts.iou(), np.repeat([[1.0]] * 5 + [[0.0]], 7, axis=1), atol=1e-8)


def test_16_map_iou_of_a_constant_half_is_the_share_of_positives():
    labels = np.zeros((6, 10, 10), dtype=np.uint8)
    labels[:, :3] = 1
    counts = Accumulator()
    counts.add(levels(np.full(labels.shape, 0.5)), labels)
    result = counts.result()
    assert result["mIoU"] == pytest.approx(0.30)
    assert result["curve"]["IoU"]["divider"] == pytest.approx([0.3] * 4 + [0.0] * 3)


@pytest.mark.parametrize("error", [0.0, 0.25, 1.7])
def test_17_nds_is_half_map_half_the_five_errors(error):
    """What is reported, and the arithmetic of the resampled scenes, where seven of ten classes are found."""
    from nuscenes.eval.detection.config import config_factory
    from nuscenes.eval.detection.data_classes import DetectionMetrics

    settings = config_factory("detection_cvpr_2019")
    metrics = DetectionMetrics(settings)
    for name in settings.class_names:
        for distance in settings.dist_ths:
            metrics.add_label_ap(name, distance, 0.6863)
        for theirs in detection.ERRORS.values():
            metrics.add_label_tp(name, theirs, error)
    assert metrics.nd_score == pytest.approx((5 * 0.6863 + 5 * (1 - min(1, error))) / 10)

    one = np.ones(1)
    found = resamples.Matches(
        scene=np.zeros(1, dtype=int), score=one, hit=np.ones((4, 1), dtype=bool), errors=np.full((5, 1), error), strict=2,
        positives=np.ones(1, dtype=int),
    )  # fmt: skip
    nothing = resamples.Matches(
        scene=np.zeros(0, dtype=int), score=np.zeros(0), hit=np.zeros((4, 0), dtype=bool), errors=np.zeros((5, 0)), strict=2,
        positives=np.ones(1, dtype=int),
    )  # fmt: skip
    mean_ap, nds = resamples.detection_scores(
        {name: found if i < 7 else nothing for i, name in enumerate(CLASSES)}, np.ones(1, dtype=int), settings
    )
    # Trailer is found; of the last three classes, not found, all have ATE and ASE, and the cone has nothing else.
    counts = {"trans": (7, 3), "scale": (7, 3), "orient": (7, 2), "velocity": (6, 2), "attribute": (6, 2)}
    errors = [(hit * error + missed) / (hit + missed) for hit, missed in counts.values()]
    assert mean_ap == pytest.approx(0.7)
    assert nds == pytest.approx((5 * mean_ap + sum(1 - min(1, value) for value in errors)) / 10)


def test_18_frustum_sizes():
    """BEVFusion: 118 bins of 32 x 88 cells in six cameras; BEVDet: 59 bins of 16 x 44."""
    counts = []
    for step, shape in ((0.5, (32, 88)), (1.0, (16, 44))):
        view = lss.LiftSplat(
            in_channels=1, channels=1, bounds=PAPER_GRID.bounds, z=(-10.0, 10.0), depth=(1.0, 60.0, step), step=0.6,
            cell=0.6, stride=16, depth_net="plain",
        )  # fmt: skip
        counts.append(6 * lss.frustum(view.bins, shape, (256, 704))[..., 0].numel())
    assert counts == [1_993_728, 249_216]


def test_19_the_map_heads_grid_keeps_a_ramp():
    centres = torch.linspace(-53.7, 53.7, 180)
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    labels = BevGrid((-50.0, -50.0, 0.0, 50.0, 50.0, 0.0), 0.5)
    found = MapHead(in_channels=2, grid=PAPER_GRID, labels=labels, classes=6, gamma=2.0).resample(
        torch.stack([x, y])[None]
    )
    expected = torch.linspace(-49.75, 49.75, 200)
    torch.testing.assert_close(found[0, 0], expected.expand(200, 200), atol=2e-4, rtol=0)
    torch.testing.assert_close(found[0, 1], expected[:, None].expand(200, 200), atol=2e-4, rtol=0)


def test_20_shape_trace_of_the_sparse_encoder():
    encoder = SparseEncoder(
        bounds=PAPER_GRID.bounds, voxel=(0.075, 0.075, 0.2), point_channels=5, channels=(16, 32, 64, 128), blocks=2,
        out_channels=128, max_points=10, max_voxels_train=120_000, max_voxels_test=160_000,
    ).eval()  # fmt: skip
    trace = []
    for stage in [encoder.stem, *encoder.stages, encoder.out]:
        stage.register_forward_hook(lambda _module, _input, out: trace.append(tuple(out.spatial_shape)))
    with torch.no_grad():
        dense = encoder([torch.tensor([[0.0, 0.0, 0.0, 10.0, 0.0], [30.0, -20.0, 1.0, 5.0, 0.1]])])
    z, plane = [41] * 3 + [21] * 3 + [11] * 3 + [5] * 3 + [2], [1440] * 3 + [720] * 3 + [360] * 3 + [180] * 4
    assert trace == [(depth, side, side) for depth, side in zip(z, plane, strict=True)]
    assert dense.shape == (1, 256, 180, 180)


# Operators against plain loops over every number, in float64.


def bilinear(plane: np.ndarray, x: float, y: float) -> np.ndarray:
    """plane (H, W, C) at column x and row y, centres of cells at whole numbers; zero outside."""
    total = np.zeros(plane.shape[2])
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
                total += (1 - abs(x - column)) * (1 - abs(y - row)) * plane[row, column]
    return total


@pytest.mark.parametrize("channels", [4, 32])  # narrow and wide heads take different routes
def test_deformable_attention_is_equation_1_in_loops(channels):
    heads, points, shapes = 2, 3, [(3, 5), (2, 2)]
    attention = DeformableAttention(channels=channels, heads=heads, points=points, levels=2, query_channels=5).double()
    for number, parameter in enumerate(attention.parameters()):
        parameter.data = random_maps(*parameter.shape, seed=number) * 0.7
    context, value = random_maps(1, 4, 5, seed=20), random_maps(1, 19, channels, seed=21)
    reference = torch.rand(1, 4, 2, generator=torch.Generator().manual_seed(22), dtype=torch.float64)
    found = attention(context, reference, value, shapes).detach().numpy()[0]

    def linear(layer: torch.nn.Linear, x: np.ndarray) -> np.ndarray:
        return layer.weight.detach().numpy() @ x + layer.bias.detach().numpy()

    projected = np.stack([linear(attention.value, v) for v in value[0].numpy()])
    planes = [projected[:15].reshape(3, 5, channels), projected[15:].reshape(2, 2, channels)]
    dim = channels // heads
    for query in range(4):
        offsets = linear(attention.offsets, context[0, query].numpy()).reshape(heads, 2, points, 2)
        logits = linear(attention.weights, context[0, query].numpy()).reshape(heads, 2 * points)
        seen = np.zeros(channels)
        for head in range(heads):
            part = slice(head * dim, (head + 1) * dim)
            weights = np.exp(logits[head]) / np.exp(logits[head]).sum()
            for level, point in itertools.product(range(2), range(points)):
                height, width = shapes[level]
                x = float(reference[0, query, 0]) * width + offsets[head, level, point, 0] - 0.5
                y = float(reference[0, query, 1]) * height + offsets[head, level, point, 1] - 0.5
                seen[part] += weights[level * points + point] * bilinear(planes[level][..., part], x, y)
        np.testing.assert_allclose(found[query], linear(attention.output, seen), rtol=1e-9, atol=1e-9)


def test_lift_splat_pooling_in_loops():
    batch, cameras, bins, rows, columns, channels, size = 2, 2, 3, 2, 4, 3, (3, 4)
    generator = torch.Generator().manual_seed(0)
    depth = random_maps(batch, cameras, bins, rows, columns).softmax(2)
    context = random_maps(batch, cameras, channels, rows, columns, seed=1)
    cells = torch.randint(-1, 12, depth.shape, generator=generator)
    expected = np.zeros((batch, channels, *size))
    for b, n, d, h, w in itertools.product(*map(range, depth.shape)):
        cell = int(cells[b, n, d, h, w])
        if cell >= 0:
            expected[b, :, cell // 4, cell % 4] += float(depth[b, n, d, h, w]) * context[b, n, :, h, w].numpy()
    np.testing.assert_allclose(lift_pool(depth, context, cells, size).numpy(), expected, rtol=1e-12, atol=1e-12)


def test_deformable_convolution_in_loops():
    image, weight = random_maps(1, 2, 5, 6), random_maps(3, 2, 3, 3, seed=1)
    offsets, shares = random_maps(1, 18, 3, 3, seed=2) * 1.5, random_maps(1, 9, 3, 3, seed=3).sigmoid()
    found = deform_conv(image, weight, offsets, shares, stride=2, padding=1)[0].numpy()
    plane, expected = image[0].permute(1, 2, 0).numpy(), np.zeros((3, 3, 3))
    for row, column, tap in itertools.product(range(3), range(3), range(9)):
        dy, dx = offsets[0, 2 * tap : 2 * tap + 2, row, column].tolist()
        y, x = 2 * row - 1 + tap // 3 + dy, 2 * column - 1 + tap % 3 + dx
        taken = float(shares[0, tap, row, column]) * bilinear(plane, x, y)
        expected[:, row, column] += weight[:, :, tap // 3, tap % 3].numpy() @ taken
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


# Overlaps, targets, losses and scores of the heads by other means.


def outline(box: np.ndarray) -> shapely.Polygon:
    x, y, _, length, width, _, yaw = (float(v) for v in box[:7])
    upright = shapely.box(x - length / 2, y - width / 2, x + length / 2, y + width / 2)
    return affinity.rotate(upright, yaw, origin=(x, y), use_radians=True)


def overlap_3d(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two boxes by shapely's ground overlap times the common height."""
    height = min(a[2] + a[5] / 2, b[2] + b[5] / 2) - max(a[2] - a[5] / 2, b[2] - b[5] / 2)
    shared = outline(a).intersection(outline(b)).area * max(0.0, height)
    return shared / (a[3] * a[4] * a[5] + b[3] * b[4] * b[5] - shared)


def test_rotated_iou_is_shapelys():
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(30, 5, generator=generator, dtype=torch.float64) * torch.tensor([6.0, 6, 5, 3, 6.28]) + 0.2
    found = rotated_iou(boxes, boxes).numpy()
    shapes = [outline(np.array([x, y, 0, l, w, 0, yaw])) for x, y, l, w, yaw in boxes.tolist()]  # noqa: E741
    for i, j in itertools.product(range(30), range(30)):
        shared = shapes[i].intersection(shapes[j]).area
        assert found[i, j] == pytest.approx(shared / (shapes[i].area + shapes[j].area - shared), abs=1e-9)


def test_centerpoint_targets_by_hand():
    """Cells of 0.6 m from -12: the car at 25.1667, 12.1667; the pedestrian at 9.6667, 29.8333."""
    car, pedestrian = centerpoint_head().targets(SimpleNamespace(boxes=[BOXES], labels=[LABELS])).values
    assert (car.row.tolist(), car.column.tolist()) == ([12], [25])
    assert (pedestrian.row.tolist(), pedestrian.column.tolist()) == ([29], [9])
    expected = [
        1 / 6,
        1 / 6,
        0.5,
        math.log(4.6),
        math.log(1.95),
        math.log(1.7),
        math.sin(0.6),
        math.cos(0.6),
        2.0,
        -1.0,
    ]
    assert car.code[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert pedestrian.code[0, :2].tolist() == pytest.approx([2 / 3, 5 / 6], abs=1e-5)
    # radius 2, so sigma is 5 / 6: one cell off exp(-0.72), the corner exp(-8 * 0.72), nothing three cells off
    drawn = car.heatmap[0, 0]
    near = [drawn[12, 25], drawn[12, 26], drawn[13, 25], drawn[14, 27], drawn[12, 28]]
    assert [float(v) for v in near] == pytest.approx(
        [1, math.exp(-0.72), math.exp(-0.72), math.exp(-5.76), 0], abs=1e-6
    )
    assert int((drawn > 0).sum()) == 25
    assert float(car.heatmap[0, 1].max()) == 0, "no truck"


def test_a_gaussian_at_the_border_is_cut_not_moved():
    corner = BOXES[:1].clone()
    corner[0, :2] = torch.tensor([-11.9, 11.9])  # first column, last row
    drawn = heatmap.draw(corner, torch.zeros(1, dtype=torch.long), 1, GRID, overlap=0.1, min_radius=2)[0]
    assert float(drawn[39, 0]) == 1
    assert int((drawn > 0).sum()) == 9
    assert float(drawn[37, 2]) == pytest.approx(math.exp(-5.76), abs=1e-6)


def plain_heatmap_loss(logits: torch.Tensor, target: torch.Tensor) -> float:
    """Cell by cell, with scores held within 1e-4 and 1 - 1e-4, over the number of peaks."""
    total, peaks = 0.0, 0
    for logit, wanted in zip(logits.flatten().tolist(), target.flatten().double().tolist(), strict=True):
        p = min(max(1 / (1 + math.exp(-logit)), 1e-4), 1 - 1e-4)
        peaks += wanted == 1
        total -= (1 - p) ** 2 * math.log(p) if wanted == 1 else (1 - wanted) ** 4 * p**2 * math.log(1 - p)
    return total / max(peaks, 1)


def test_centerpoint_loss_in_loops():
    """Scores beyond the clip too; the pedestrian's unknown velocity counts nothing, known ones a fifth."""
    head = centerpoint_head()
    maps = head(torch.randn(1, 4, *GRID.shape))
    maps[0]["heatmap"] = maps[0]["heatmap"].detach() * 8 - 4
    batch = SimpleNamespace(boxes=[BOXES], labels=[LABELS])
    found = loss_of(head, maps, batch)
    heat, box = 0.0, 0.0
    for task, target in zip(maps, head.targets(batch).values, strict=True):
        heat += plain_heatmap_loss(task["heatmap"], target.heatmap)
        row, column = int(target.row), int(target.column)
        code = torch.cat([task[name][0, :, row, column] for name in ("offset", "z", "size", "yaw", "velocity")])
        for said, wanted, weight in zip(code.tolist(), target.code[0].tolist(), CODE_WEIGHTS, strict=True):
            box += 0.0 if math.isnan(wanted) else weight * abs(said - wanted)
    assert float(found["heatmap"].detach()) == pytest.approx(heat, rel=1e-4)
    assert float(found["box"].detach()) == pytest.approx(0.25 * box / 1.0001, rel=1e-5)


def proposals() -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """Three boxes (3, 9) in float64 as proposed, their codes (3, 10), and class logits (3, 10)."""
    boxes = np.nan_to_num(BOXES.double().numpy())[[1, 0, 0]]
    boxes[1, :2] += [0.9, -0.4]
    boxes[2, [0, 2, 6]] += [1.5, 0.3, 0.2]
    boxes[2, 3:6] *= 1.1
    cells = (boxes[:, :2] + 12) / 0.6
    codes = np.concatenate(
        [cells, boxes[:, 2:3], np.log(boxes[:, 3:6]), np.sin(boxes[:, 6:7]), np.cos(boxes[:, 6:7]), boxes[:, 7:9]], 1
    )
    return boxes, torch.tensor(codes).float(), random_maps(3, 10, dtype=torch.float32)


def test_transfusion_matches_by_the_published_costs_and_learns_by_the_published_losses():
    """Every cost in plain numbers, the best of all matchings by trying them, then focal and L1 losses in loops."""
    head, (boxes, codes, logits) = transfusion_head(), proposals()
    truth, kinds = BOXES.double().numpy(), LABELS.tolist()
    cost = np.zeros((3, 2))
    for q, m in itertools.product(range(3), range(2)):
        p = 1 / (1 + math.exp(-float(logits[q, kinds[m]])))
        focal = -0.25 * (1 - p) ** 2 * math.log(p) + 0.75 * p**2 * math.log(1 - p)
        distance = np.abs(boxes[q, :2] - truth[m, :2]).sum() / 24
        cost[q, m] = 0.15 * focal + 0.25 * distance - 0.25 * overlap_3d(boxes[q], truth[m])
    best = min(itertools.permutations(range(3), 2), key=lambda order: sum(cost[q, m] for m, q in enumerate(order)))
    chosen, box = head.assign(codes, logits, BOXES, LABELS)
    assert {int(m): int(q) for q, m in zip(chosen, box, strict=True)} == dict(enumerate(best))
    runner_up = sorted(sum(cost[q, m] for m, q in enumerate(o)) for o in itertools.permutations(range(3), 2))[1]
    assert runner_up - sum(cost[q, m] for m, q in enumerate(best)) > 1e-3, "the example decides"

    dense = random_maps(1, 10, *GRID.shape, dtype=torch.float32) * 5
    predictions = {"heatmap": dense, "layers": [{"codes": codes[None], "logits": logits[None]}]}
    found = loss_of(head, predictions, SimpleNamespace(boxes=[BOXES], labels=[LABELS]))
    focal, l1 = 0.0, 0.0
    for q, k in itertools.product(range(3), range(10)):
        p = 1 / (1 + math.exp(-float(logits[q, k])))
        right = q in best and kinds[best.index(q)] == k
        focal -= 0.25 * (1 - p) ** 2 * math.log(p) if right else 0.75 * p**2 * math.log(1 - p)
    for m, q in enumerate(best):
        x, y, z, *size, yaw, vx, vy = truth[m]
        code = [(x + 12) / 0.6, (y + 12) / 0.6, z, *np.log(size), math.sin(yaw), math.cos(yaw), vx, vy]
        l1 += sum(
            w * abs(a - b) for a, b, w in zip(codes[q].tolist(), code, CODE_WEIGHTS, strict=True) if not math.isnan(b)
        )
    assert float(found["class"]) == pytest.approx(focal / 2, rel=1e-4)
    assert float(found["box"]) == pytest.approx(0.25 * l1 / 2, rel=1e-4)
    target = head.heatmap_targets([BOXES], [LABELS])
    assert float(target[0, CAR, 12, 25]) == float(target[0, PEDESTRIAN, 29, 9]) == 1
    assert float(found["heatmap"]) == pytest.approx(plain_heatmap_loss(dense, target), rel=1e-4)


@pytest.mark.parametrize(("farther", "chosen"), [(4.0, 1), (6.0, 0)])
def test_transfusion_counts_distance_over_the_range(farther, chosen):
    """The near proposal says car with 0.2, the other with 0.5; neither touches the box.

    By class the second is cheaper by 0.15 * 0.3375 = 0.0506, by place the first by 0.25 * farther / 24 m: 0.042 or 0.063.
    """
    head, box = transfusion_head(), BOXES[:1]
    proposed = box.repeat(2, 1)
    proposed[:, 0] -= torch.tensor([6.0, 6.0 + farther])
    logits = torch.full((2, 10), -5.0)
    logits[:, CAR] = torch.tensor([0.2, 0.5]).logit()
    proposal, _ = head.assign(head.encode(proposed), logits, box, LABELS[:1])
    assert proposal.tolist() == [chosen]


def test_transfusion_scores_are_class_times_heatmap_for_the_proposals_own_class():
    """The surest class of a proposal may be another than the one it was proposed for: it does not count."""
    head, (boxes, codes, logits) = transfusion_head(), proposals()
    label, score = torch.tensor([PEDESTRIAN, CAR, 3]), torch.tensor([0.9, 0.5, 0.7])
    predictions = {
        "score": score[None],
        "label": label[None],
        "layers": [{"codes": codes[None], "logits": logits[None]}],
    }
    (found,) = head.decode(predictions, bounds=(-20.0, -20.0, -10.0, 20.0, 20.0, 10.0), score=0.0)
    expected = [float(score[q]) / (1 + math.exp(-float(logits[q, label[q]]))) for q in range(3)]
    order = sorted(range(3), key=lambda q: -expected[q])
    assert found.scores.tolist() == pytest.approx([expected[q] for q in order], rel=1e-5)
    assert found.labels.tolist() == [int(label[q]) for q in order]
    turned = boxes.copy()
    turned[:, 6] = np.arctan2(np.sin(boxes[:, 6]), np.cos(boxes[:, 6]))
    np.testing.assert_allclose(found.boxes.numpy(), turned[order], atol=1e-4)
    again = head.encode(found.boxes)
    np.testing.assert_allclose(again.numpy(), codes.numpy()[order], atol=1e-4)


# The real keyframe.


def test_the_keyframes_boxes_project_as_the_devkits(keyframe, tmp_path):
    """Centres and corners in every image, within a pixel. Corners differ a little: nine numbers hold no tilt."""
    from nuscenes.nuscenes import NuScenes
    from nuscenes.utils.geometry_utils import view_points

    nusc = NuScenes("v1.0-mini", str(keyframe), verbose=False)
    infos_build.build(keyframe, "v1.0-mini", tmp_path, progress=False)
    frame = info_tools.load(tmp_path)[0]
    ours = dict(zip(frame.annotations, frame.boxes, strict=True))
    theirs_to_ours = [4, 7, 3, 0, 5, 6, 2, 1]  # the devkit's order of corners in ours
    centres, corners = [], []
    for camera, channel in enumerate(tables.CAMERAS):
        _, found, intrinsic = nusc.get_sample_data(nusc.get("sample", frame.token)["data"][channel])
        for box in found:
            if box.token not in ours or box.corners()[2].min() < 1:
                continue
            mine = ours[box.token][None]
            points = np.concatenate([mine[:, :3], box_tools.corners(mine)[0][theirs_to_ours]])
            pixels, _ = geometry.project(
                frame.intrinsics[camera], geometry.move(frame.camera_from_lidar[camera], points)
            )
            theirs = np.concatenate([box.center[:, None], box.corners()], axis=1)
            apart = np.linalg.norm(pixels - view_points(theirs, intrinsic, normalize=True)[:2].T, axis=1)
            centres.append(apart[0])
            corners.append(apart[1:].max())
    assert len(centres) > 40
    assert max(centres) < 0.01
    assert max(corners) < 1
