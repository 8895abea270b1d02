"""Targets and decoding of both heads against hand-worked numbers, and each head overfitting two boxes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from counted import loss_of
from shapely import affinity
from shapely.geometry import Polygon

from vexkd.boxes import CLASSES
from vexkd.geometry import BevGrid
from vexkd.models import box_code, centerpoint, heatmap
from vexkd.models.centerpoint import CenterPointHead
from vexkd.models.targets import Counts
from vexkd.models.transfusion import TransFusionHead

GRID = BevGrid((-12.0, -12.0, -5.0, 12.0, 12.0, 3.0), 0.6)
CODE_WEIGHTS = [1.0] * 8 + [0.2] * 2
BOXES = torch.tensor(
    [
        [3.1, -4.7, 0.5, 4.6, 1.95, 1.7, 0.6, 2.0, -1.0],
        [-6.2, 5.9, 0.2, 0.7, 0.7, 1.8, -2.0, float("nan"), float("nan")],
    ]
)
LABELS = torch.tensor([CLASSES.index("car"), CLASSES.index("pedestrian")])


def labelled(boxes: list[torch.Tensor], labels: list[torch.Tensor]) -> SimpleNamespace:
    """What a head reads of a batch."""
    return SimpleNamespace(boxes=boxes, labels=labels)


def centerpoint_head(**more):
    settings = {
        "in_channels": 16, "grid": GRID, "tasks": [["car", "truck"], ["pedestrian"]], "shared_channels": 16,
        "branch_channels": 16, "overlap": 0.1, "min_radius": 2, "max_objects": 500, "box_weight": 0.25,
        "code_weights": CODE_WEIGHTS,
    }  # fmt: skip
    return CenterPointHead(**{**settings, **more})


def transfusion_head(**more):
    settings = {
        "in_channels": 16, "grid": GRID, "channels": 16, "proposals": 12, "layers": 1, "heads": 2, "ffn": 32, "dropout": 0.0,
        "peak_classes": ["pedestrian", "traffic_cone"], "overlap": 0.1, "min_radius": 2, "class_cost": 0.15, "box_cost": 0.25,
        "iou_cost": 0.25, "class_weight": 1.0, "heatmap_weight": 1.0, "box_weight": 0.25, "code_weights": CODE_WEIGHTS,
    }  # fmt: skip
    return TransFusionHead(**{**settings, **more})


@pytest.mark.parametrize(
    ("length", "width", "radius"), [(4.6, 1.95, 2.096), (10, 3, 3.724), (12, 2.9, 3.917), (0.6, 0.6, 0.432)]
)
def test_gaussian_radius(length, width, radius):
    """In cells of 0.6 m, overlap 0.1: the published, non-exact variant."""
    found = heatmap.gaussian_radius(torch.tensor(length / 0.6), torch.tensor(width / 0.6), 0.1)
    assert float(found) == pytest.approx(radius, abs=1e-3)


def test_heatmap_by_hand():
    """Peak 1 at the box's cell, exp(-1 / (2 (5/6)^2)) beside it, nothing beyond the radius, maximum where two meet."""
    drawn = heatmap.draw(BOXES[:1], torch.zeros(1, dtype=torch.long), 1, GRID, overlap=0.1, min_radius=2)[0]
    row, column = int((-4.7 + 12) / 0.6), int((3.1 + 12) / 0.6)  # y, x
    assert (row, column) == (12, 25)
    assert drawn[row, column] == 1
    assert float(drawn[row + 1, column]) == pytest.approx(0.486752, abs=1e-5)
    assert drawn[row, column + 3] == 0
    near = BOXES[:1].clone()
    near[0, 0] += 0.6
    both = heatmap.draw(
        torch.cat([BOXES[:1], near]), torch.zeros(2, dtype=torch.long), 1, GRID, overlap=0.1, min_radius=2
    )[0]
    assert both[row, column] == 1
    assert both[row, column + 1] == 1


def test_boxes_outside_the_grid_are_no_targets():
    outside = BOXES[:1].clone()
    outside[0, 0] = -12.1  # truncation toward zero would put it into cell 0
    drawn = heatmap.draw(outside, torch.zeros(1, dtype=torch.long), 1, GRID, overlap=0.1, min_radius=2)
    assert drawn.max() == 0
    counts = centerpoint_head().targets(labelled([outside], [LABELS[:1]])).counts
    assert [count.tolist() for count in counts.values()] == [[0, 0], [0, 0]]


def test_both_heads_see_a_box_in_the_same_cell():
    """Axis order is the silent bug of this field."""
    dense = transfusion_head().heatmap_targets([BOXES], [LABELS])[0, CLASSES.index("car")]
    sparse = centerpoint_head().targets(labelled([BOXES], [LABELS])).values[0].heatmap[0, 0]
    assert dense.argmax() == sparse.argmax() == 12 * 40 + 25


def test_centerpoint_targets_by_hand():
    target = centerpoint_head().targets(labelled([BOXES], [LABELS])).values[0]
    assert (int(target.sample), int(target.row), int(target.column)) == (0, 12, 25)
    wanted = torch.tensor(
        [15.1 / 0.6 - 25, 7.3 / 0.6 - 12, 0.5, *torch.tensor([4.6, 1.95, 1.7]).log(), 0.564642, 0.825336, 2.0, -1.0]
    )
    torch.testing.assert_close(target.code[0], wanted, rtol=1e-4, atol=1e-4)


def test_codes_decode_to_their_boxes():
    exact, whole, _ = heatmap.cells_of(BOXES, GRID)
    codes = box_code.encode(exact - whole, BOXES)
    back = box_code.decode(GRID.to_metres(whole.float() + codes[:, :2]), codes)
    torch.testing.assert_close(back, BOXES, rtol=1e-4, atol=1e-4, equal_nan=True)
    head = transfusion_head()
    back = head.boxes_of(head.encode(BOXES))
    torch.testing.assert_close(back, BOXES, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize(("make", "steps"), [(centerpoint_head, 300), (transfusion_head, 300)])
def test_head_overfits_two_boxes(make, steps):
    torch.manual_seed(0)
    head = make()
    feature = torch.randn(1, 16, *GRID.shape)
    optimiser = torch.optim.Adam(head.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        loss = sum(loss_of(head, head(feature), labelled([BOXES], [LABELS])).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    head.eval()
    for module in head.modules():  # one sample's statistics are not the running ones
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.train()
    bounds = (-20.0, -20.0, -10.0, 20.0, 20.0, 10.0)
    if make is centerpoint_head:
        nms = {"top": 50, "score": 0.1, "nms": "rotated", "threshold": 0.2, "radius": [4, 1], "pre": 100, "post": 10}
        found = head.decode(head(feature), bounds=bounds, **nms)[0]
    else:
        found = head.decode(head(feature), bounds=bounds, score=0.1)[0]
    for box, label in zip(BOXES, LABELS, strict=True):
        best = found.boxes[found.labels == label][0]
        assert (best[:2] - box[:2]).norm() < 0.3
        assert (best[3:6] - box[3:6]).abs().max() < 0.3
        assert torch.cos(best[6] - box[6]) > 0.97


@pytest.mark.parametrize("make", [centerpoint_head, transfusion_head])
def test_loss_of_parts_adds_up_to_the_loss_of_the_whole(make):
    """With the counts of the whole batch, the mean over equal parts is the loss of the batch, whatever the split."""
    torch.manual_seed(0)
    head = make().eval()
    feature = torch.randn(2, 16, *GRID.shape)
    boxes, labels = [BOXES, BOXES[:1]], [LABELS, LABELS[:1]]
    whole = loss_of(head, head(feature), labelled(boxes, labels))
    singles = [head.targets(labelled(boxes[i : i + 1], labels[i : i + 1])) for i in range(2)]
    parts = [head.loss(head(feature[i : i + 1]), singles[i], Counts.of(singles)) for i in range(2)]
    for name, value in whole.items():
        assert float(sum(p[name].detach() for p in parts) / 2) == pytest.approx(float(value.detach()), rel=1e-5)


@pytest.mark.parametrize("make", [centerpoint_head, transfusion_head])
def test_no_object_gives_a_finite_loss(make):
    head = make()
    losses = loss_of(head, head(torch.randn(1, 16, *GRID.shape)), labelled([BOXES[:0]], [LABELS[:0]]))
    assert all(torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()


def test_transfusion_assigns_each_box_its_nearest_proposal():
    head = transfusion_head()
    codes = head.encode(torch.cat([BOXES[1:], BOXES[:1], BOXES[:1] + 3])).nan_to_num()
    logits = torch.zeros(3, len(CLASSES))
    proposal, box = head.assign(codes, logits, BOXES, LABELS)
    assert sorted(zip(proposal.tolist(), box.tolist(), strict=True)) == [(0, 1), (1, 0)]


def test_transfusion_finds_no_border_peak_but_for_the_small_classes():
    head = transfusion_head(proposals=4)
    logits = torch.full((1, len(CLASSES), *GRID.shape), -9.0)
    logits[0, CLASSES.index("car"), 0, 7] = 5.0
    logits[0, CLASSES.index("pedestrian"), 0, 9] = 3.0
    logits[0, CLASSES.index("bus"), 20, 20] = 2.0
    _, label, cell = head._propose(logits)
    assert label[0, :2].tolist() == [CLASSES.index("pedestrian"), CLASSES.index("bus")]
    assert cell[0, :2].tolist() == [9, 20 * 40 + 20]


# BEVDet dev2.1, in the order of CLASSES.
SCALES = [1.0, 0.7, 0.7, 0.4, 0.55, 1.1, 1.0, 1.0, 1.5, 3.5]


def predictions_of(
    head: CenterPointHead, boxes: torch.Tensor, labels: torch.Tensor, scores: torch.Tensor
) -> list[dict]:
    """Raw maps of the head that hold exactly these boxes, each in a cell of its own."""
    rows, columns = GRID.shape
    maps = [
        {name: torch.zeros(1, width, rows, columns) for name, width in centerpoint.BRANCHES.items()}
        | {"heatmap": torch.full((1, len(task), rows, columns), -20.0)}
        for task in head.labels
    ]
    exact, whole, _ = heatmap.cells_of(boxes, GRID)
    codes = box_code.encode(exact - whole, boxes)
    for code, (column, row), label, score in zip(codes, whole.tolist(), labels.tolist(), scores, strict=True):
        task = next(i for i, own in enumerate(head.labels) if label in own)
        maps[task]["heatmap"][0, head.labels[task].index(label), row, column] = torch.logit(score)
        for name, part in zip(centerpoint.BRANCHES, code.split(list(centerpoint.BRANCHES.values())), strict=True):
            maps[task][name][0, :, row, column] = part
    return maps


def outline(box: list[float], scale: float) -> Polygon:
    """The box on the ground, its sides multiplied."""
    x, y, _, l, w, _, yaw = box[:7]  # noqa: E741
    a, b = l * scale / 2, w * scale / 2
    flat = Polygon([(a, b), (-a, b), (-a, -b), (a, -b)])
    return affinity.translate(affinity.rotate(flat, np.rad2deg(yaw), origin=(0, 0)), x, y)


def kept_by_hand(boxes, labels, scores, scales, threshold) -> list[int]:
    """Greedy suppression with shapely's areas, whatever the class."""
    kept: list[int] = []
    for i in np.argsort(-np.array(scores)):
        mine = outline(boxes[i], scales[labels[i]])
        others = [outline(boxes[j], scales[labels[j]]) for j in kept]
        if all(mine.intersection(o).area / mine.union(o).area <= threshold for o in others):
            kept.append(int(i))
    return kept


def crowd(classes: list[str], count: int = 60) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes, each in a cell of its own, near enough to overlap; labels; scores without ties."""
    generator = torch.Generator().manual_seed(3)
    boxes = torch.rand(count, 9, generator=generator)
    cells = torch.randperm(20 * 20, generator=generator)[:count]
    boxes[:, 0] = (cells % 20 - 10 + 0.1 + 0.8 * boxes[:, 0]) * 0.6
    boxes[:, 1] = (cells // 20 - 10 + 0.1 + 0.8 * boxes[:, 1]) * 0.6
    boxes[:, 3:6] = 0.4 + 2.0 * boxes[:, 3:6]
    boxes[:, 6] = 6 * boxes[:, 6] - 3
    labels = torch.tensor([CLASSES.index(c) for c in classes])[
        torch.randint(len(classes), (count,), generator=generator)
    ]
    return boxes, labels, torch.linspace(0.2, 0.9, count)[torch.randperm(count, generator=generator)]


BOUNDS = (-20.0, -20.0, -10.0, 20.0, 20.0, 10.0)


def test_scale_nms_against_brute_force():
    """One task of ten classes, as dev2.1 has it: suppression across classes, boxes scaled by their class' factor."""
    boxes, labels, scores = crowd(list(CLASSES))
    head = centerpoint_head(tasks=[list(CLASSES)])
    raw = predictions_of(head, boxes, labels, scores)
    settings = {"top": 500, "score": 0.1, "threshold": 0.2, "radius": [4.0], "pre": 1000, "post": 500}
    found = head.decode(raw, bounds=BOUNDS, nms="scale", scales=SCALES, **settings)[0]
    kept = kept_by_hand(boxes.tolist(), labels.tolist(), scores.tolist(), SCALES, 0.2)
    torch.testing.assert_close(found.scores, scores[kept], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.boxes, boxes[kept], rtol=1e-3, atol=1e-3)  # with their own sizes
    assert torch.equal(found.labels, labels[kept])
    plain = head.decode(raw, bounds=BOUNDS, nms="rotated", **settings)[0]
    assert len(plain.scores) == len(kept_by_hand(boxes.tolist(), labels.tolist(), scores.tolist(), [1.0] * 10, 0.2))
    assert len(plain.scores) != len(found.scores)


def test_each_task_has_its_own_suppression():
    """The first BEVDet: scaled and rotated with a threshold a task, circles for barriers."""
    tasks = [["pedestrian", "traffic_cone"], ["barrier"]]
    boxes, labels, scores = crowd(["pedestrian", "traffic_cone", "barrier"])
    head = centerpoint_head(tasks=tasks)
    scales = [1.0] * 8 + [4.5, 9.0]
    found = head.decode(
        predictions_of(head, boxes, labels, scores), bounds=BOUNDS, top=500, score=0.1, nms=["scale", "circle"],
        threshold=[0.5, 0.2], radius=[0.175, 1.0], scales=scales, pre=1000, post=500,
    )[0]  # fmt: skip
    barrier = CLASSES.index("barrier")
    small = (labels != barrier).nonzero().flatten()
    kept = kept_by_hand(boxes[small].tolist(), labels[small].tolist(), scores[small].tolist(), scales, 0.5)
    torch.testing.assert_close(found.scores[found.labels != barrier], scores[small[kept]], rtol=1e-4, atol=1e-4)
    places, points = boxes[labels == barrier, :2].tolist(), scores[labels == barrier].tolist()
    alone: list[int] = []
    for i in np.argsort(-np.array(points)):
        if all((places[i][0] - places[j][0]) ** 2 + (places[i][1] - places[j][1]) ** 2 > 1.0 for j in alone):
            alone.append(int(i))
    torch.testing.assert_close(
        found.scores[found.labels == barrier], torch.tensor([points[i] for i in alone]), rtol=1e-4, atol=1e-4
    )


def test_heatmap_weight_multiplies_the_heatmap_loss_alone():
    torch.manual_seed(0)
    head = centerpoint_head()
    maps = head(torch.randn(2, 16, *GRID.shape))
    batch = labelled([BOXES, BOXES[:1]], [LABELS, LABELS[:1]])
    before = loss_of(head, maps, batch)
    head.heatmap_weight = centerpoint_head(heatmap_weight=6.0).heatmap_weight
    after = loss_of(head, maps, batch)
    torch.testing.assert_close(after["heatmap"], 6 * before["heatmap"])
    assert torch.equal(after["box"], before["box"])


def test_centerpoint_divides_boxes_by_their_number_and_a_little():
    """As published: heatmaps by the peaks, at least 1, boxes by n + 1e-4; of a task without objects too."""
    head = centerpoint_head()
    targets = head.targets(labelled([BOXES[:1]], [LABELS[:1]]))
    assert {name: count.tolist() for name, count in targets.counts.items()} == {"peaks": [1, 0], "objects": [1, 0]}
    prediction = head.eval()(torch.randn(1, 16, *GRID.shape))
    code = torch.cat([prediction[0][name] for name in centerpoint.BRANCHES], dim=1)[0, :, 12, 25]
    wanted = targets.values[0].code[0]
    total = ((code - wanted).abs() * torch.tensor(CODE_WEIGHTS)).sum()
    found = loss_of(head, prediction, labelled([BOXES[:1]], [LABELS[:1]]))["box"]
    torch.testing.assert_close(found, 0.25 * total / 1.0001, rtol=1e-6, atol=0.0)


def test_transfusion_divides_by_the_matches_of_all_layers():
    head = transfusion_head(layers=3)
    counts = head.targets(labelled([BOXES, BOXES[:1]], [LABELS, LABELS[:1]])).counts
    assert {name: float(count) for name, count in counts.items()} == {"peaks": 3, "matched": 9}


def test_starts_are_the_published_ones():
    """mmcv's convolutions before a norm by what leaves them, every matrix of TransFusion's decoder by Xavier."""
    torch.manual_seed(0)
    head = centerpoint_head(in_channels=32, shared_channels=32, branch_channels=64)
    for convolution in (head.shared[0], head.tasks[0].branches["size"][0][0]):
        spread = (2 / (9 * convolution.out_channels)) ** 0.5
        assert float(convolution.weight.detach().std()) == pytest.approx(spread, rel=0.1)
    assert head.tasks[0].branches["heatmap"][1].bias.eq(heatmap.HEATMAP_BIAS).all()
    head = transfusion_head(channels=64, ffn=128)
    for last in (head.heatmap[1], head.predictors[0].branches["heatmap"][3]):  # ours, for a calmer start
        assert last.bias.eq(heatmap.HEATMAP_BIAS).all()
    assert float(head.heatmap[0][0].weight.detach().std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.1)
    for name, parameter in head.layers.named_parameters():
        if parameter.dim() > 1:
            limit = (6 / (parameter.shape[0] + parameter.shape[1])) ** 0.5
            assert 0.9 * limit < float(parameter.detach().abs().max()) <= limit, name


def test_transfusion_under_bfloat16_tells_places_and_peaks_apart():
    """bfloat16 knows no halves from 128 on, and few steps between neighbouring scores."""
    head = transfusion_head().eval()
    place = torch.tensor([[[128.5, 3.0], [129.5, 3.0], [130.5, 3.0], [131.5, 3.0]]])
    feature = torch.randn(1, 16, *GRID.shape)
    with torch.autocast("cpu", torch.bfloat16):
        code = head.layers[0].memory_place(place)
        dense = head(feature)["heatmap"]
    torch.testing.assert_close(code, head.layers[0].memory_place(place))
    assert dense.dtype == torch.float32
    assert not torch.equal(dense, dense.bfloat16().float())


def test_transfusion_keeps_scores_of_zero_and_bounds_the_bottom():
    head = transfusion_head(proposals=3)
    boxes = BOXES[:1].repeat(3, 1)
    boxes[1, 2] = -9.5  # gravity centre within, bottom below
    predictions = {
        "score": torch.tensor([[0.5, 0.5, 0.0]]),
        "label": torch.zeros(1, 3, dtype=torch.long),
        "layers": [{"codes": transfusion_head().encode(boxes)[None], "logits": torch.zeros(1, 3, len(CLASSES))}],
    }
    bounds = (-20.0, -20.0, -10.0, 20.0, 20.0, 10.0)
    assert head.decode(predictions, bounds=bounds, score=0.0)[0].scores.tolist() == [0.25, 0.0]
    assert head.decode(predictions, bounds=bounds, score=0.1)[0].scores.tolist() == [0.25]
