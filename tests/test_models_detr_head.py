"""The query head: matching against brute force, loss and refinement by hand, decoding, and overfitting two boxes."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from counted import loss_of

from vexkd.boxes import CLASSES
from vexkd.geometry import BevGrid
from vexkd.models import box_code, detr_head
from vexkd.models.detr_head import DetrHead
from vexkd.models.targets import Counts

GRID = BevGrid((-12.0, -9.0, -5.0, 12.0, 9.0, 3.0), 1.5)
CODE_WEIGHTS = [1.0] * 8 + [0.2] * 2
BOXES = torch.tensor(
    [
        [3.1, -4.7, 0.5, 4.6, 1.95, 1.7, 0.6, 2.0, -1.0],
        [-6.2, 5.9, 0.2, 0.7, 0.7, 1.8, -2.0, float("nan"), float("nan")],
    ]
)
LABELS = torch.tensor([CLASSES.index("car"), CLASSES.index("pedestrian")])
BOUNDS = (-20.0, -20.0, -10.0, 20.0, 20.0, 10.0)


def labelled(boxes: list[torch.Tensor], labels: list[torch.Tensor]) -> SimpleNamespace:
    """What a head reads of a batch."""
    return SimpleNamespace(boxes=boxes, labels=labels)


def small_head(**more) -> DetrHead:
    torch.manual_seed(0)
    settings = {
        "in_channels": 12, "grid": GRID, "channels": 16, "queries": 10, "layers": 2, "heads": 2, "points": 2, "ffn": 32,
        "dropout": 0.0, "class_cost": 2.0, "box_cost": 0.25, "class_weight": 2.0, "box_weight": 0.25,
        "code_weights": CODE_WEIGHTS,
    }  # fmt: skip
    return DetrHead(**{**settings, **more})


def encode(boxes) -> torch.Tensor:
    return box_code.encode(boxes[:, :2], boxes)


def feature(samples=1) -> torch.Tensor:
    return torch.randn(samples, 12, *GRID.shape, generator=torch.Generator().manual_seed(1))


def test_codes_decode_to_their_boxes():
    head = small_head()
    codes = head.encode(BOXES)
    wanted = [3.1, -4.7, 0.5, math.log(4.6), math.log(1.95), math.log(1.7), math.sin(0.6), math.cos(0.6), 2.0, -1.0]
    torch.testing.assert_close(codes[0], torch.tensor(wanted))
    torch.testing.assert_close(head.boxes_of(codes), BOXES, equal_nan=True)


def test_inverse_sigmoid_is_clipped():
    found = detr_head.inverse_sigmoid(torch.tensor([0.25, 0.0, 1.0]))
    torch.testing.assert_close(found, torch.tensor([-math.log(3), math.log(1e-5), -math.log(1e-5)]))


def test_matching_is_the_best_of_all():
    """Four queries, three boxes: of all 24 injections the one with the lowest hand-made cost."""
    head = small_head()
    generator = torch.Generator().manual_seed(2)
    boxes = torch.cat([BOXES, BOXES[:1] + torch.tensor([2.0, 1, 0, 0, 0, 0, 0.5, 0, 0])])
    labels = torch.tensor([0, 8, 1])
    codes = encode(boxes)[[2, 0, 1, 0]].nan_to_num() + torch.randn(4, 10, generator=generator)
    logits = torch.randn(4, len(CLASSES), generator=generator)
    query, box = head.assign(codes, logits, boxes, labels)

    def cost(q, b):
        p = 1 / (1 + math.exp(-float(logits[q, labels[b]])))
        focal = -math.log(p) * 0.25 * (1 - p) ** 2 + math.log(1 - p) * 0.75 * p**2
        target = encode(boxes)[b]
        return 2.0 * focal + 0.25 * sum(abs(float(codes[q, i] - target[i])) for i in range(8))

    best = min(itertools.permutations(range(4), 3), key=lambda chosen: sum(cost(q, b) for b, q in enumerate(chosen)))
    assert dict(zip(box.tolist(), query.tolist(), strict=True)) == dict(enumerate(best))


def test_the_velocity_has_no_part_in_the_matching():
    head = small_head()
    codes = encode(BOXES[[0, 0]])
    codes[0, 0] += 0.1
    codes[1, 8:] += 100
    query, _ = head.assign(codes, torch.zeros(2, len(CLASSES)), BOXES[:1], LABELS[:1])
    assert query.tolist() == [1]


def test_loss_by_hand():
    """One layer, two queries, one box of unknown speed: focal terms of twenty logits, L1 of eight numbers."""
    head = small_head()
    codes = encode(BOXES[1:]).nan_to_num(nan=5.0)
    prediction = {"codes": torch.cat([codes + 3, codes + 0.5])[None], "logits": torch.zeros(1, 2, len(CLASSES))}
    losses = loss_of(head, [prediction], labelled([BOXES[1:]], [LABELS[1:]]))
    focal = math.log(2) * 0.25  # p = 1/2: (1 - p)^2 of the cross entropy
    assert float(losses["class"]) == pytest.approx(2.0 * (0.25 * focal + 19 * 0.75 * focal), rel=1e-5)
    assert float(losses["box"]) == pytest.approx(0.25 * 8 * 0.5, rel=1e-5)
    twice = loss_of(head, [prediction, prediction], labelled([BOXES[1:]], [LABELS[1:]]))
    assert float(twice["class"]) == pytest.approx(2 * float(losses["class"]))


def test_boxes_beside_the_grid_are_no_targets():
    outside = BOXES.clone()
    outside[0, 0] = 12.1
    head = small_head()
    assert float(head.targets(labelled([outside, BOXES], [LABELS, LABELS])).counts["matched"]) == 3
    few = small_head(queries=1)
    assert float(few.targets(labelled([BOXES, BOXES], [LABELS, LABELS])).counts["matched"]) == 2


def test_each_layer_moves_the_place_of_the_one_before():
    """Layer by layer the box is sigmoid(raw + logit(place)) over the range; the second layer looks there, without gradient."""
    head = small_head().eval()
    for branch, shift in zip(head.boxes, (0.3, -0.2), strict=True):
        torch.nn.init.zeros_(branch[-1].weight)
        with torch.no_grad():
            branch[-1].bias.copy_(torch.tensor([shift, 2 * shift, 3 * shift] + [0.0] * 7))
    looked = []
    for layer in head.layers:
        layer.register_forward_pre_hook(lambda module, given: looked.append(given[2]))
    outputs = head(feature())
    start = torch.logit(torch.sigmoid(head.reference(head.position)))
    low, extent = torch.tensor([-12.0, -9.0, -5.0]), torch.tensor([24.0, 18.0, 8.0])
    steps = torch.tensor([1.0, 2.0, 3.0])
    places = [start, start + 0.3 * steps, start + 0.1 * steps]
    for index, output in enumerate(outputs):
        expected = low + extent * torch.sigmoid(places[index + 1])
        torch.testing.assert_close(output["codes"][0, :, :3], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(looked[index][0], torch.sigmoid(places[index])[:, :2], rtol=1e-4, atol=1e-4)
    assert looked[0].requires_grad
    assert not looked[1].requires_grad


def test_a_query_looks_where_its_place_says():
    """With offsets and weights silenced, the attention of a query at (x, y) reads the map at row y, column x."""
    head = small_head(layers=1)
    cross = head.layers[0].cross
    torch.nn.init.zeros_(cross.offsets.bias)
    memory = torch.zeros(1, 12, *GRID.shape, requires_grad=True)
    place = torch.tensor([[[(3.0 + 0.5) / GRID.shape[1], (7.0 + 0.5) / GRID.shape[0]]]])
    query = torch.randn(1, 1, 16)
    out = cross(query, place, memory.flatten(2).transpose(1, 2), [GRID.shape])
    (gradient,) = torch.autograd.grad(out.square().sum() + out.sum(), memory)
    assert gradient.abs().sum(1)[0].argmax() == 7 * GRID.shape[1] + 3
    assert (gradient.abs().sum(1)[0] > 1e-4 * gradient.abs().max()).sum() == 1


def test_decode_takes_the_best_pairs_and_keeps_to_the_bounds():
    head = small_head()
    logits = torch.full((1, 3, len(CLASSES)), -4.0)
    logits[0, 0, 2], logits[0, 0, 5], logits[0, 1, 7], logits[0, 2, 1] = 1.0, 3.0, 2.0, 4.0
    codes = encode(BOXES[[0, 1, 0]].nan_to_num())[None].clone()
    codes[0, 2, 0] = 21.0  # outside the bounds: its place among the `top` stays empty
    (found,) = head.decode([{"codes": codes, "logits": logits}], bounds=BOUNDS, top=4)
    assert found.labels.tolist() == [5, 7, 2]
    torch.testing.assert_close(found.scores, torch.sigmoid(torch.tensor([3.0, 2.0, 1.0])))
    torch.testing.assert_close(found.boxes, BOXES[[0, 1, 0]].nan_to_num())


def test_loss_of_parts_adds_up_to_the_loss_of_the_whole():
    head = small_head().eval()
    boxes, labels = [BOXES, BOXES[:1]], [LABELS, LABELS[:1]]
    predictions = head(feature(2))
    whole = loss_of(head, predictions, labelled(boxes, labels))
    singles = [head.targets(labelled(boxes[i : i + 1], labels[i : i + 1])) for i in range(2)]
    parts = [head.loss(head(feature(2)[i : i + 1]), singles[i], Counts.of(singles)) for i in range(2)]
    for name, value in whole.items():
        assert float(sum(p[name].detach() for p in parts) / 2) == pytest.approx(float(value.detach()), rel=1e-4)


def test_no_object_gives_a_finite_loss():
    head = small_head()
    losses = loss_of(head, head(feature()), labelled([BOXES[:0]], [LABELS[:0]]))
    assert float(losses["box"].detach()) == 0
    assert torch.isfinite(losses["class"])
    sum(losses.values()).backward()


def test_every_parameter_gets_a_finite_gradient():
    head = small_head()
    for layer in head.layers:
        for part in (layer.cross.offsets, layer.cross.weights):
            torch.nn.init.normal_(part.weight, std=0.1)
    memory = feature().requires_grad_()
    sum(loss_of(head, head(memory), labelled([BOXES], [LABELS])).values()).backward()
    for name, tensor in [*head.named_parameters(), ("map", memory)]:
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.abs().sum() > 0, name


def test_head_overfits_two_boxes():
    head = small_head(queries=6)
    optimiser = torch.optim.AdamW(head.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 120)
    for _ in range(120):
        loss = sum(loss_of(head, head(feature()), labelled([BOXES], [LABELS])).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    found = head.eval().decode(head(feature()), bounds=BOUNDS, top=20)[0]
    assert sorted(found.labels[:2].tolist()) == sorted(LABELS.tolist())
    assert found.scores[1] > 2 * found.scores[2]
    for box, label in zip(BOXES, LABELS, strict=True):
        best = found.boxes[found.labels == label][0]
        assert (best[:2] - box[:2]).norm() < 0.3
        assert (best[3:6] - box[3:6]).abs().max() < 0.3
        assert torch.cos(best[6] - box[6]) > 0.97


def test_parameters_at_the_papers_size():
    """Six layers of 683,872; per layer 135,178 for classes and 134,154 for boxes; 900 queries of 512; places 771."""
    grid = BevGrid((-54.0, -54.0, -5.0, 54.0, 54.0, 3.0), 0.6)
    head = small_head(in_channels=256, grid=grid, channels=256, queries=900, layers=6, heads=8, points=4, ffn=512)
    assert sum(p.numel() for p in head.parameters()) == 6 * (683_872 + 135_178 + 134_154) + 900 * 512 + 771


def test_places_keep_float32_under_bfloat16():
    """Steps of bfloat16 in a logit of 3 are centimetres on the ground: places are computed beside autocast."""
    head = small_head(layers=1).eval()
    torch.nn.init.normal_(head.boxes[0][-1].weight)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(feature())[0]["codes"]
    assert found.dtype == torch.float32
    assert not torch.equal(found[..., 3:], found[..., 3:].bfloat16().float())
