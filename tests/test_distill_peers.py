"""The published methods: every term by loops or by hand, then each of them in training on a tiny town."""

import copy
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_settings
from counted import step_of

from vexkd import settings
from vexkd.batch import Batch, Output, collate
from vexkd.distill import distiller, regions
from vexkd.distill.lesson import weights_of
from vexkd.distill.peers import bevdistill, focal, maskd, s2m2, unidistill
from vexkd.errors import InputError
from vexkd.geometry import BevGrid
from vexkd.models import bev_model, detr_head, transfusion
from vexkd.models.centerpoint import BRANCHES
from vexkd.models.targets import Counts, Targets

GRID = BevGrid((-6.0, -4.0, -5.0, 6.0, 4.0, 3.0), 1.0)  # 8 rows, 12 columns


def maps(channels=3, seed=0, batch=2):
    return torch.randn(batch, channels, 8, 12, generator=torch.Generator().manual_seed(seed))


def boxes():
    """Two boxes in the first sample, none in the second."""
    both = [[0.4, 0.2, 0, 4.0, 2.0, 1.5, 0.5, 0, 0], [-3.2, 1.4, 0, 1.0, 2.4, 1.5, -0.3, 0, 0]]
    return [torch.tensor(both), torch.zeros(0, 9)]


def lesson(output=None, teacher_features=None, predictions=None, truth=None, **more):
    """A step without models: what a method reads of it, and a teacher whose predictions are known."""
    truth = boxes() if truth is None else truth
    empty = dict.fromkeys(
        ("points", "images", "intrinsics", "camera_from_lidar", "image_augment", "lidar_augment", "global_from_lidar")
    )
    batch = Batch(token=["a", "b"], **empty, boxes=truth, labels=[torch.zeros(len(b)).long() for b in truth])
    return SimpleNamespace(
        batch=batch,
        output=output,
        teacher_features=teacher_features,
        teacher_predictions=lambda: predictions,
        learning=False,
        **more,
    )


# UniDistill


def bilinear(feature, x, y):
    """One sample of a map (C, Y, X) at cells (x, y), zero outside, by its four neighbours."""
    total = np.zeros(len(feature))
    for row in (math.floor(y - 0.5), math.floor(y - 0.5) + 1):
        for column in (math.floor(x - 0.5), math.floor(x - 0.5) + 1):
            if 0 <= row < feature.shape[1] and 0 <= column < feature.shape[2]:
                total += feature[:, row, column] * (1 - abs(y - 0.5 - row)) * (1 - abs(x - 0.5 - column))
    return total


def nine(box, feature):
    """Features at the key points of one box (9, C), from the corners' definition."""
    x, y, _, length, width, _, yaw = box[:7].tolist()
    found = []
    for along, across in ((1, 1), (-1, 1), (-1, -1), (1, -1), (0, 0), (1, 0), (0, 1), (-1, 0), (0, -1)):
        dx, dy = along * length / 2, across * width / 2
        px, py = x + dx * math.cos(yaw) - dy * math.sin(yaw), y + dx * math.sin(yaw) + dy * math.cos(yaw)
        found.append(bilinear(feature, px + 6, py + 4))
    return np.stack(found)


def test_unidistill_features_and_relations_by_numpy():
    student, teacher, here = maps(seed=1), maps(seed=2), boxes()
    points = [[nine(box, f[0].double().numpy()) for box in here[0]] for f in (student, teacher)]
    feature = sum(np.abs(s - t).mean() for s, t in zip(*points, strict=True))
    assert float(unidistill.point_distance(student, teacher, here, GRID)) == pytest.approx(feature, rel=1e-4)
    relations = []
    for side in points:
        normed = [p / (np.linalg.norm(p, axis=1, keepdims=True) + 1e-4) for p in side]
        relations.append([p @ p.T for p in normed])
    relation = sum(np.abs(s - t).mean() for s, t in zip(*relations, strict=True))
    assert float(unidistill.relation_distance(student, teacher, here, GRID)) == pytest.approx(relation, rel=1e-4)


def test_unidistill_relations_need_no_equal_widths_and_no_boxes():
    student = maps(5).requires_grad_()
    assert float(unidistill.relation_distance(student, maps(3), boxes(), GRID)) > 0
    nothing = unidistill.point_distance(student, maps(5), [torch.zeros(0, 9)] * 2, GRID)
    nothing.backward()  # connected, so that every process has the same gradients to share
    assert float(nothing) == 0
    assert student.grad.abs().sum() == 0


def test_unidistill_responses_by_hand():
    """Largest logits 0 and 2 in a cell of weight 0.5: |sigmoid(0) - sigmoid(1)| / 2; ten box maps, one of them off by 5."""
    mask = torch.zeros(1, 1, 1, 2)
    mask[..., 0] = 0.5
    ours = [{n: torch.zeros(1, w, 1, 2) for n, w in {**BRANCHES, "heatmap": 2}.items()}]
    theirs = copy.deepcopy(ours)
    theirs[0]["heatmap"][0, 1], ours[0]["heatmap"][0, 1] = 2.0, -9.0
    theirs[0]["z"] += 5.0
    found = unidistill.response_distance(ours, theirs, mask, boxes=True)
    assert float(found["heatmap"]) == pytest.approx(0.5 * (1 / (1 + math.exp(-1)) - 0.5), rel=1e-5)
    assert float(found["box"]) == pytest.approx(0.5 * 5 / 10)


def test_unidistill_regions_are_small():
    """A car of 4 x 2 m in cells of 1 m: CornerNet's radius at an overlap of 0.7 is below 1, so its own cell alone."""
    batch = SimpleNamespace(boxes=[torch.tensor([[0.4, 0.2, 0.0, 4.0, 2.0, 1.5, 0.5, 0.0, 0.0]])])
    mask = regions.gaussians(batch, GRID, overlap=unidistill.OVERLAP, min_radius=unidistill.MIN_RADIUS)
    assert mask.nonzero().tolist() == [[0, 0, 4, 6]]


def test_unidistill_scores_are_clipped_as_published():
    """Logits of -30 and -30: both scores are 1e-4 at least, so that nothing is left between them."""
    mask = torch.ones(1, 1, 1, 2)
    ours, theirs = ({"heatmap": torch.full((1, 2, 1, 2), value)} for value in (-30.0, -40.0))
    assert float(unidistill.response_distance(ours, theirs, mask, boxes=False)["heatmap"]) == 0


def test_unidistill_divides_by_the_whole_batch():
    method = unidistill.UniDistill(
        grid=GRID,
        adapter=torch.nn.Identity(),
        same_boxes=False,
        weights={"feature": 10.0, "relation": 1.0, "response": 4.0},
    )
    features = {"low": maps(seed=1), "high": maps(seed=3)}
    teacher_features = {"low": maps(seed=2), "high": maps(seed=4)}
    heat = [{"heatmap": maps(2, seed=s)} for s in (5, 6)]
    truth = boxes()
    truth[0][0, 3:5] = torch.tensor([10.0, 8.0])  # large enough for a Gaussian of more than one cell
    step = lesson(Output(features, [heat[0]]), teacher_features, heat[1], truth)
    targets = Targets.join(method=method.targets(step.batch))
    assert targets.counts["method.boxes"] == 2
    assert targets.counts["method.area"] > 2
    terms, _ = method(SimpleNamespace(**vars(step), targets=targets, counts=Counts.of([targets])))
    expected = unidistill.point_distance(features["low"], teacher_features["low"], truth, GRID) * 10 / 2
    assert float(terms["distill.feature"]) == pytest.approx(float(expected))
    mask = regions.gaussians(step.batch, GRID, overlap=0.7, min_radius=0)
    response = unidistill.response_distance([heat[0]], heat[1], mask, boxes=False)["heatmap"]
    assert float(terms["distill.heatmap"]) == pytest.approx(float(4 * response / mask.sum()))


# BEVDistill


def test_bevdistill_dense_by_loops():
    student, teacher = maps(seed=1), maps(seed=2)
    mask = regions.gaussians(lesson().batch, GRID, overlap=0.1, min_radius=1)
    total = area = 0.0
    for row in range(8):
        for column in range(12):
            weight = float(mask[0, 0, row, column])
            area += weight
            total += weight * sum(float(student[0, c, row, column] - teacher[0, c, row, column]) ** 2 for c in range(3))
    expected = total / area / 2  # the second of two samples has no boxes
    assert float(bevdistill.dense(student, teacher, mask)) == pytest.approx(expected, rel=1e-5)


def test_bevdistill_contrast_by_numpy():
    """Two samples of six points: a point is told from those of its own sample."""
    student, teacher = torch.randn(2, 6, 4), torch.randn(2, 6, 4)
    expected = []
    for b in range(2):
        s, t = (x[b].double().numpy() / np.linalg.norm(x[b].numpy(), axis=1, keepdims=True) for x in (student, teacher))
        logits = t @ s.T / 0.07
        expected += [-np.log(np.exp(logits[i, i]) / np.exp(logits[i]).sum()) for i in range(6)]
    assert float(bevdistill.contrast(student, teacher, 0.07)) == pytest.approx(np.mean(expected), rel=1e-4)
    same = torch.eye(6)[None] * 3
    assert float(bevdistill.contrast(same, same, 0.07)) < 1e-4


# FGD and DistillBEV


def regions_by_loop(weight_of):
    """Foreground weights and coverage (Y, X) of the first sample's boxes: the larger weight where boxes meet."""
    weights, inside = np.zeros((8, 12)), np.zeros((2, 8, 12), dtype=bool)
    for m, (x, y, _, length, width, _, yaw, *_) in enumerate(boxes()[0].tolist()):
        for row in range(8):
            for column in range(12):
                dx, dy = column - 5.5 - x, row - 3.5 - y
                along, across = dx * math.cos(yaw) + dy * math.sin(yaw), dy * math.cos(yaw) - dx * math.sin(yaw)
                inside[m, row, column] = abs(along) <= length / 2 and abs(across) <= width / 2
        inside[m, math.floor(y + 4), math.floor(x + 6)] = True
    for m, box in enumerate(boxes()[0].tolist()):
        weights = np.maximum(weights, inside[m] * weight_of(box, inside[m].sum()))
    return weights


def attentions(feature, temperature=0.5):
    spatial, channel = np.abs(feature).mean(axis=0), np.abs(feature).mean(axis=(1, 2))
    spatial = np.exp(spatial / temperature) / np.exp(spatial / temperature).sum() * spatial.size
    return spatial, np.exp(channel / temperature) / np.exp(channel / temperature).sum() * len(channel)


def weighted(error, spatial, channel, mask):
    """sum over channels and cells of error * attention * mask, one after the other."""
    total = 0.0
    for c in range(error.shape[0]):
        for row in range(error.shape[1]):
            for column in range(error.shape[2]):
                total += error[c, row, column] * spatial[row, column] * channel[c] * mask[row, column]
    return total


def test_fgd_by_loops():
    student, teacher = maps(seed=1), maps(seed=2)
    method = focal.FGD(
        grid=GRID,
        adapters={"low": torch.nn.Identity()},
        contexts={"low": torch.nn.ModuleList(focal.ContextBlock(3) for _ in range(2))},
        levels=["low"],
        temperature=0.5,
        weights={"foreground": 1.0, "background": 2.0, "attention": 3.0, "context": 4.0},
    )
    terms, _ = method(lesson(Output({"low": student}), {"low": teacher}))
    expected = dict.fromkeys(("foreground", "background", "attention", "context"), 0.0)
    masks = [regions_by_loop(lambda box, cells: 1 / cells), np.zeros((8, 12))]
    for b in range(2):
        s, t = student[b].double().numpy(), teacher[b].double().numpy()
        (s_spatial, s_channel), (t_spatial, t_channel) = attentions(s), attentions(t)
        background = (masks[b] == 0) / (masks[b] == 0).sum()
        expected["foreground"] += weighted((s - t) ** 2, t_spatial, t_channel, masks[b]) / 2
        expected["background"] += 2 * weighted((s - t) ** 2, t_spatial, t_channel, background) / 2
        expected["attention"] += 3 * (np.abs(s_spatial - t_spatial).sum() + np.abs(s_channel - t_channel).sum()) / 2
        expected["context"] += 4 * ((s - t) ** 2).sum() / 2  # context blocks start as the identity
    assert {k: float(v.detach()) for k, v in terms.items()} == pytest.approx(
        {f"distill.{k}.low": v for k, v in expected.items()}, rel=1e-4
    )


def test_context_block_by_numpy():
    torch.manual_seed(1)
    block, feature = focal.ContextBlock(4), torch.randn(1, 4, 3, 3)
    torch.nn.init.normal_(block.change[3].weight)
    w, b = block.look.weight.detach().numpy()[0, :, 0, 0], float(block.look.bias.detach())
    f = feature[0].numpy().reshape(4, 9)
    logits = w @ f + b
    context = f @ (np.exp(logits) / np.exp(logits).sum())
    hidden = block.change[0].weight.detach().numpy()[:, :, 0, 0] @ context + block.change[0].bias.detach().numpy()
    hidden = np.maximum((hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-5), 0)
    added = block.change[3].weight.detach().numpy()[:, :, 0, 0] @ hidden
    expected = f + added[:, None]
    assert block(feature)[0].flatten(1).detach().numpy() == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_distillbev_by_loops():
    """One false positive of the teacher far from the boxes; a hot cell inside a box is none."""
    student, teacher = maps(seed=1), maps(seed=2)
    heat = torch.full((2, 2, 8, 12), -9.0)
    heat[0, 1, 0, 11], heat[0, 0, 4, 6] = 1.0, 1.0
    pool = torch.nn.Conv2d(1, 1, 3, padding=1)
    torch.nn.init.dirac_(pool.weight)
    torch.nn.init.zeros_(pool.bias)
    method = focal.DistillBEV(
        grid=GRID,
        adapters={"high": torch.nn.Identity()},
        pools={"high": pool},
        levels=["high"],
        temperature=0.5,
        weights=dict.fromkeys(focal.DISTILLBEV_WEIGHTS, 1.0),
    )
    terms, watched = method(lesson(Output({"high": student}), {"high": teacher}, {"heatmap": heat}))
    assert watched["mask.false"] == pytest.approx(1 / 192)
    foreground = [regions_by_loop(lambda box, cells: math.sqrt(1 / (box[3] * box[4]))), np.zeros((8, 12))]
    expected = dict.fromkeys(("foreground", "background", "false", "channel", "spatial"), 0.0)
    for b in range(2):
        s, t = student[b].double().numpy(), teacher[b].double().numpy()
        spatial = (attentions(s)[0] + attentions(t)[0]) / 2
        channel = attentions(t)[1]
        false = np.zeros((8, 12))
        false[0, 11] = b == 0
        background = (foreground[b] == 0) & (false == 0)
        masks = {"foreground": foreground[b], "background": background / background.sum(), "false": false}
        for name, mask in masks.items():
            expected[name] += weighted((s - t) ** 2, spatial, channel, mask) / 2
        expected["channel"] += np.abs(s.mean(axis=(1, 2)) - t.mean(axis=(1, 2))).sum() / 2
        expected["spatial"] += np.abs(s.mean(axis=0) - t.mean(axis=0)).sum() / 2
    assert {k: float(v.detach()) for k, v in terms.items()} == pytest.approx(
        {f"distill.{k}.high": v for k, v in expected.items()}, rel=1e-4
    )


# MasKD


def test_maskd_distance_by_loops():
    student, teacher = maps(seed=1), maps(seed=2)
    masks, shares = torch.rand(2, 4, 8, 12), torch.randn(2, 4).softmax(1)
    expected = 0.0
    for b in range(2):
        for k in range(4):
            for c in range(3):
                error = (masks[b, k] * (student[b, c] - teacher[b, c])).double().square().sum() / masks[b, k].sum()
                expected += float(error * shares[b, k]) / 3 / 2
    assert float(maskd.masked_distance(student, teacher, masks, shares)) == pytest.approx(expected, rel=1e-4)


def test_dice_of_equal_and_of_disjoint_masks():
    apart = torch.zeros(1, 2, 2, 2)
    apart[0, 0, 0], apart[0, 1, 1] = 1, 1
    assert float(maskd.dice(apart)) == 0
    assert float(maskd.dice(torch.rand(1, 1, 2, 2).expand(-1, 3, -1, -1))) == pytest.approx(1, rel=1e-6)
    half = torch.tensor([[[[1.0, 0.0]], [[0.5, 0.5]]]])
    assert float(maskd.dice(half)) == pytest.approx(2 * 0.5 / (1 + 0.5))


def test_mask_tokens():
    torch.manual_seed(0)
    net, feature = maskd.MaskTokens(3), maps()
    masks, shares = net(feature)
    assert masks.shape == (2, 6, 8, 12)
    assert shares.sum(1).tolist() == pytest.approx([1, 1])
    logit = float(net.tokens[2].detach() @ feature[1, :, 4, 5])
    assert float(masks[1, 2, 4, 5]) == pytest.approx(1 / (1 + math.exp(-logit)), rel=1e-5)


# S2M2


def test_s2m2_by_loops():
    student, teacher = maps(seed=1), maps(seed=2)
    heat = [torch.randn(2, 2, 8, 12, generator=torch.Generator().manual_seed(s)) * 3 - 2 for s in (1, 2)]
    method = s2m2.S2M2(
        grid=GRID,
        adapters={"low": torch.nn.Identity()},
        levels=["low"],
        weights={**s2m2.WEIGHTS, "feature.missed": 5.0},
    )
    step = lesson(Output({"low": student}, {"heatmap": heat[0]}), {"low": teacher}, {"heatmap": heat[1]})
    terms, _ = method(step)
    truth = regions.gaussians(step.batch, GRID, overlap=0.1, min_radius=2)
    sums: dict[str, float] = {}
    for b in range(2):
        found: dict[str, list[float]] = {name: [] for name in terms}
        for row in range(8):
            for column in range(12):
                ours, theirs = (float(h[b, :, row, column].max().sigmoid()) for h in heat)
                seen, there = ours > 0.1, float(truth[b, 0, row, column]) > 0.1
                if not (seen or there):
                    continue
                group = "true" if seen and there else "false" if seen else "missed"
                found[f"distill.heatmap.{group}"].append(abs(ours - theirs))
                error = (student[b, :, row, column] - teacher[b, :, row, column]).square().mean()
                found[f"distill.feature.{group}.low"].append(float(error) * (5 if group == "missed" else 1))
        for name, values in found.items():
            sums[name] = sums.get(name, 0.0) + (np.mean(values) if values else 0.0) / 2
    assert {k: float(v) for k, v in terms.items()} == pytest.approx(sums, rel=1e-4)


# All of them in training

METHODS = ["unidistill", "bevdistill", "fgd", "distillbev", "maskd", "s2m2"]
CHOICES = [{"method": name} for name in METHODS]
CHOICES += [{"mask": name} for name in ("ones", "key-points", "gaussian", "activation", "random-query")]
CHOICES += [{"loss": name} for name in ("l1", "l2", "smooth-l1", "pkd", "cwd", "mgd")]
CHOICES += [{"levels": ["high"], "coupling": "summed", "loss": "l2"}]


@pytest.fixture(scope="module")
def class_room(town):
    """Student, teacher and a batch, to be copied: they are the same for every choice."""
    from vexkd.data import infos
    from vexkd.train import tasks

    torch.manual_seed(0)
    params = settings.parse(tiny_settings())
    run, teacher = params.run("centerpoint-det-vexkd"), params.run("fusion-det")
    dataset = tasks.training_set(run, teacher, root=town / "data", infos=infos.load(town / "infos"), paste=None, seed=0)
    samples = [dataset[(0, 0, 0)], dataset[(0, 1, 1)]]
    return bev_model.build(run), bev_model.build(teacher), collate(samples), samples


def enrol(class_room, more, student=None):
    raw = tiny_settings()
    raw["distilled"]["centerpoint-det-vexkd"]["distill"] = more
    run = settings.parse(raw).run("centerpoint-det-vexkd")
    torch.manual_seed(1)
    return distiller.build(
        settings=run.distill,
        student=copy.deepcopy(student or class_room[0]),
        teacher=copy.deepcopy(class_room[1]),
        teacher_name="fusion-det",
    )


def two_steps(task, batch):
    """Two optimiser steps; the first step's terms, and where gradients came."""
    optimiser = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=1e-3)
    first, reached = None, {}
    for step in range(2):
        task.begin_step(0, step)
        terms, watched = step_of(task, batch)
        sum(terms.values()).backward()
        if step == 0:
            first = {k: v.detach() for k, v in terms.items()} | watched
            reached = {n: p.grad is not None and bool(p.grad.any()) for n, p in task.named_parameters()}
        optimiser.step()
        optimiser.zero_grad()
    return first, reached


@pytest.mark.parametrize("more", CHOICES, ids=lambda m: "-".join(str(v) for v in m.values()))
def test_every_choice_trains_and_leaves_the_teacher_alone(class_room, more):
    task = enrol(class_room, more)
    before = {k: v.clone() for k, v in task.state_dict().items()}
    first, reached = two_steps(task, class_room[2])
    assert all(np.isfinite(float(v)) for v in first.values())
    assert any(k.startswith("distill.") and float(v) > 0 for k, v in first.items())
    after = task.state_dict()
    assert all(torch.equal(v, before[k]) for k, v in after.items() if k.startswith("teacher."))
    assert not any(hit for name, hit in reached.items() if name.startswith("teacher."))
    assert any(hit for name, hit in reached.items() if name.startswith("student.lidar"))
    own = {name: hit for name, hit in reached.items() if name.startswith("method.")}
    # A context block starts as the identity, so that only its last layer is reached by the first step.
    silent = {name for name, hit in own.items() if not hit and ".contexts." not in name}
    assert not {n for n in silent if ".look." not in n and "drawing.nets" not in n}, silent
    assert not set(task.model.state_dict()) & {name for name in after if name.startswith("method.")}


@pytest.mark.parametrize("more", CHOICES[:6], ids=lambda m: m["method"])
def test_parts_of_a_batch_teach_as_the_whole(class_room, more):
    """BatchNorm as in evaluation: two samples at once, and one by one with the whole's counts, give one gradient."""
    task = enrol(class_room, more)
    task.eval()
    whole, singles = class_room[2], [collate([sample]) for sample in class_room[3]]
    counts = [Counts.of([task.targets(batch) for batch in parts]).total for parts in ([whole], singles)]
    assert counts[0].keys() == counts[1].keys()
    assert all(torch.allclose(counts[0][name], counts[1][name]) for name in counts[0])
    found = []
    for parts in ([whole], singles):
        task.zero_grad()
        targets = [task.targets(batch) for batch in parts]
        for part, target in zip(parts, targets, strict=True):
            terms, _ = task(part, target, Counts.of(targets))
            (sum(terms.values()) / len(parts)).backward()
        reached = [p.grad.flatten() for p in task.parameters() if p.grad is not None]
        found.append(torch.cat(reached))
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 1e-3


@pytest.mark.parametrize("more", CHOICES, ids=lambda m: "-".join(str(v) for v in m.values()))
def test_terms_are_float32_at_half_precision(class_room, more):
    task = enrol(class_room, more)
    with torch.autocast("cpu", torch.bfloat16):
        terms, _ = step_of(task, class_room[2])
    assert all(term.dtype == torch.float32 and bool(term.isfinite()) for term in terms.values())
    sum(terms.values()).backward()


def test_the_query_mask_is_the_default_and_ones_is_everywhere(class_room):
    assert enrol(class_room, {}).masks is not None
    ones, none = (enrol(class_room, {"mask": mask}) for mask in ("ones", "none"))
    assert ones.masks is None
    found = [two_steps(task, class_room[2])[0] for task in (ones, none)]
    assert found[0] == found[1]


@pytest.mark.parametrize("head", ["transfusion", "detr"])
def test_bevdistill_between_query_heads(class_room, head):
    """A student with queries and a teacher with TransFusion's head: all three terms, which train both projections."""
    raw = tiny_settings()
    raw["students"]["centerpoint-det"]["head"] = head
    raw |= {"distilled": {}, "tables": {}}  # other methods need another head
    torch.manual_seed(0)
    student = bev_model.build(settings.parse(raw).run("centerpoint-det"))
    task = enrol(class_room, {"method": "bevdistill"}, student)
    first, reached = two_steps(task, class_room[2])
    assert {"distill.dense", "distill.contrast", "distill.box"} <= set(first)
    assert all(hit for name, hit in reached.items() if name.startswith("method.") and not name.endswith("bias"))
    assert any(hit for name, hit in reached.items() if name.startswith("student.head"))


@pytest.mark.parametrize("kind", ["transfusion", "detr"])
def test_bevdistill_boxes_by_hand(kind):
    """Codes off by 0.5 and by 0.25, scores 0.8 and 0.2: (0.8^2 * 5 + 0.2^2 * 2.5) / (0.8 + 0.2), for one sample, two layers."""
    truth = torch.cat(boxes())
    kinds = {"detr": detr_head.DetrHead, "transfusion": transfusion.TransFusionHead}
    head = kinds[kind].__new__(kinds[kind])  # without its layers: its predictions are given
    torch.nn.Module.__init__(head)
    head.grid, head.code_weights = GRID, torch.ones(10)
    wanted = head.encode(truth)
    codes = torch.full((1, 5, 10), 40.0)
    codes[0, [3, 1]] = wanted + torch.tensor([[0.5], [0.25]])
    layers = [{"codes": codes, "logits": torch.zeros(1, 5, 10)}] * 2
    theirs = {"codes": wanted[None], "logits": torch.tensor([[[0.8, 0.1], [0.1, 0.2]]]).logit()}
    theirs["logits"] = torch.nn.functional.pad(theirs["logits"], (0, 8), value=-30.0)
    more = {"score": torch.ones(1, 2), "label": torch.tensor([[0, 1]])}
    predictions = layers if kind == "detr" else {"layers": layers}
    step = lesson(
        Output(predictions=predictions), predictions=[theirs] if kind == "detr" else {"layers": [theirs], **more}
    )
    step.student = step.teacher = SimpleNamespace(head=head)
    expected = 2 * (0.8**2 * 5 + 0.2**2 * 2.5) / (0.8 + 0.2)
    assert float(bevdistill.box_distance(step)) == pytest.approx(expected, rel=1e-4)
    place = bevdistill.places(head, predictions)
    assert place.shape == (1, 10, 2)
    metres = truth[0, :2] + (0.5 if kind == "detr" else 0.5 * GRID.cell)
    assert torch.allclose(place[0, 3], metres)


def test_bevdistill_takes_the_best_queries_by_their_largest_score():
    """Sixty queries, fifty teach: each once, whatever its second class; a proposal's place weighs its class's score alone."""
    codes, logits = torch.randn(1, 60, 10), torch.randn(1, 60, 10, generator=torch.Generator().manual_seed(4))
    expected = logits[0].amax(1).argsort(descending=True)[:50]
    head = detr_head.DetrHead.__new__(detr_head.DetrHead)
    ((found, scores),) = bevdistill.best_boxes(head, [{"codes": codes, "logits": logits}])
    assert torch.allclose(scores, logits[0, expected].sigmoid())
    assert torch.allclose(found, head.boxes_of(codes[0, expected]))
    head = transfusion.TransFusionHead.__new__(transfusion.TransFusionHead)
    torch.nn.Module.__init__(head)
    head.grid = GRID
    label, place = torch.arange(60)[None] % 10, torch.rand(1, 60)
    predictions = {"layers": [{"codes": codes, "logits": logits}], "score": place, "label": label}
    ((_, scores),) = bevdistill.best_boxes(head, predictions)
    joint = logits[0, torch.arange(60), label[0]].sigmoid() * place[0]
    assert scores.amax(1).tolist() == pytest.approx(joint.sort(descending=True).values[:50].tolist())
    assert int((scores > 0).sum()) == 50


def test_bevdistill_matches_by_soft_classes_and_boxes():
    """Costs by loops, and the cheapest of all assignments by trying each."""
    codes, logits, wanted = torch.randn(3, 10), torch.randn(3, 4), torch.randn(2, 10)
    scores = torch.rand(2, 4)
    cost = np.zeros((3, 2))
    for q, m in itertools.product(range(3), range(2)):
        for k in range(4):
            p, s = 1 / (1 + math.exp(-float(logits[q, k]))), float(scores[m, k])
            cost[q, m] -= s * math.log(p) + (1 - s) * math.log(1 - p)
        cost[q, m] += 0.25 * float((codes[q, :8] - wanted[m, :8]).abs().sum())
    best = min(itertools.permutations(range(3), 2), key=lambda pair: cost[pair[0], 0] + cost[pair[1], 1])
    chosen, truth = bevdistill.match(codes, logits, wanted, scores)
    assert {int(t): int(c) for c, t in zip(chosen, truth, strict=True)} == dict(enumerate(best))


def test_maskd_tokens_learn_from_the_masked_teacher_and_stop(class_room):
    task = enrol(class_room, {"method": "maskd", "stop_mask_epoch": 1})
    task.begin_step(0, 0)
    terms, watched = step_of(task, class_room[2])
    assert {"masked.heatmap", "mask.diversity.low", "distill.high"} <= set(terms)
    assert {"mask.low.mean", "mask.high.entropy"} <= set(watched)
    sum(v for k, v in terms.items() if k.startswith("distill.")).backward(retain_graph=True)
    assert all(p.grad is None for p in task.masks.parameters())
    sum(v for k, v in terms.items() if k.startswith("mask")).backward()
    assert all(p.grad is not None for p in task.masks.parameters())
    task.begin_step(1, 7)
    terms, _ = step_of(task, class_room[2])
    assert not any(k.startswith("mask") for k in terms)


@pytest.mark.parametrize("more", [{}, {"method": "s2m2"}, {"coupling": "summed", "loss": "l2"}], ids=str)
def test_monitoring_changes_nothing_but_the_figures(class_room, more):
    plain, watching = enrol(class_room, more), enrol(class_room, {**more, "monitor_every": 1})
    torch.manual_seed(3)
    expected, _ = two_steps(plain, class_room[2])
    torch.manual_seed(3)
    found, _ = two_steps(watching, class_room[2])
    assert {k: v for k, v in found.items() if not k.startswith("gradient.")} == expected
    states = plain.state_dict(), watching.state_dict()
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_gradient_norms_of_terms():
    low = torch.ones(1, 2, 1, 1, requires_grad=True)
    high = 2 * low
    terms = {"a": (3 * high).sum(), "b": low.square().sum(), "c": torch.tensor(1.0)}
    found = distiller.gradient_norms(terms, {"low": low, "high": high})
    root = math.sqrt(2)
    expected = {"gradient.a.low": 6 * root, "gradient.a.high": 3 * root, "gradient.b.low": 2 * root}
    expected |= {"gradient.b.high": 0.0, "gradient.c.low": 0.0, "gradient.c.high": 0.0}
    assert found == pytest.approx(expected)
    assert low.grad is None


def test_gradient_norms_do_not_depend_on_the_split():
    whole = torch.randn(4, 2, 3, 3, requires_grad=True)
    expected = distiller.gradient_norms({"a": whole.square().flatten(1).sum(1).mean()}, {"low": whole})
    parts = [part.detach().requires_grad_() for part in whole.split(2)]
    found = [distiller.gradient_norms({"a": p.square().flatten(1).sum(1).mean()}, {"low": p}) for p in parts]
    mean = np.mean([float(norms["gradient.a.low"]) for norms in found])
    assert mean == pytest.approx(float(expected["gradient.a.low"]), rel=1e-5)


def test_monitoring_comes_every_so_many_steps(class_room):
    task = enrol(class_room, {"monitor_every": 3})
    seen = []
    for step in range(6):
        task.begin_step(0, step)
        seen.append(task.monitoring)
    assert seen == [False, False, True] * 2


def test_weights_replace_published_ones_by_name(class_room):
    assert weights_of("x", {"a": 1.0, "b": 2.0}, {"b": 5.0}) == {"a": 1.0, "b": 5.0}
    with pytest.raises(InputError, match=r"distill.weights.c: x has no such term; name one of a, b."):
        weights_of("x", {"a": 1.0, "b": 2.0}, {"c": 5.0})
    task = enrol(class_room, {"loss": "pkd", "weights": {"pkd": 1.0}})
    plain = enrol(class_room, {"loss": "pkd"})
    terms = [two_steps(t, class_room[2])[0]["distill.high"] for t in (task, plain)]
    assert float(terms[1]) == pytest.approx(5 * float(terms[0]), rel=1e-5)


# Refusals, when the settings are read


def read(distill=None, student=None, teacher=None):
    raw = tiny_settings()
    raw["students"]["centerpoint-det"] |= student or {}
    raw["teachers"]["fusion-det"] |= teacher or {}
    raw["distilled"]["centerpoint-det-vexkd"]["distill"] = distill or {}
    return settings.parse(raw)


@pytest.mark.parametrize(
    ("distill", "teacher", "message"),
    [
        ({"mask": "learned-query"}, {"fusion": "conv"}, "mask: learned-query starts from the query of a teacher"),
        ({"mask_blocks": 0}, {}, "mask_blocks"),
        ({"mask": "learned-querry"}, {}, "mask"),
        ({"method": "unidistil"}, {}, "method"),
        ({"levels": []}, {}, "levels"),
        ({"monitor_every": -1}, {}, "monitor_every"),
    ],
)
def test_settings_that_cannot_work_are_refused(distill, teacher, message):
    with pytest.raises(InputError) as caught:
        read(distill, teacher=teacher)
    text = str(caught.value)
    assert "distilled.centerpoint-det-vexkd" in text
    assert message in text
    assert text.count("\n") == 0
    assert text.endswith(".")


@pytest.mark.parametrize("name", METHODS + ["key-points", "gaussian"])
def test_what_needs_boxes_is_refused_for_maps(name):
    values = {"method": name} if name in METHODS else {"mask": name}
    distill = read(values).run("centerpoint-det-vexkd").distill
    assert distill.trouble(task="detection", student="centerpoint", teacher="transfusion", fusion="mgfm") is None
    trouble = distill.trouble(task="segmentation", student="map", teacher="map", fusion="mgfm")
    if name == "maskd":
        assert trouble is None
    else:
        assert name in trouble
        assert "boxes" in trouble


@pytest.mark.parametrize("distill", [{"method": "fgd"}, {"mask": "gaussian"}], ids=str)
def test_a_row_of_maps_taught_by_boxes_is_refused_as_it_is_read(distill):
    raw = tiny_settings()
    for group, name in (("teachers", "fusion-det"), ("students", "centerpoint-det")):
        raw[group][f"maps-{group}"] = {**raw[group][name], "task": "segmentation", "head": "map"}
    raw["distilled"]["maps"] = {"student": "maps-students", "teacher": "maps-teachers", "distill": distill}
    with pytest.raises(InputError, match=r"distilled.maps: distill.\w+: \w+ .*boxes, which segmentation lacks; choose"):
        settings.parse(raw)


def test_a_method_refuses_heads_without_heatmaps():
    heads = {"unidistill": ("detr", "detr"), "s2m2": ("detr", "centerpoint"), "distillbev": ("centerpoint", "detr")}
    for method, (student, teacher) in heads.items():
        distill = read({"method": method}).run("centerpoint-det-vexkd").distill
        trouble = distill.trouble(task="detection", student=student, teacher=teacher, fusion="mgfm")
        assert f"method: {method} reads heatmaps" in trouble
        assert "detr" in trouble
    for method in ("fgd", "bevdistill", "maskd"):
        distill = read({"method": method}).run("centerpoint-det-vexkd").distill
        assert distill.trouble(task="detection", student="detr", teacher="detr", fusion="mgfm") is None


def test_a_random_query_needs_no_fusion_module():
    """A row without MGFM can still have masks: noise as wide as the teacher's map."""
    settings = read({"mask": "random-query"}, teacher={"fusion": "conv"})
    run, teacher = settings.run("centerpoint-det-vexkd"), settings.run("fusion-det")
    task = distiller.build(
        settings=run.distill,
        student=bev_model.build(run),
        teacher=bev_model.build(teacher),
        teacher_name="fusion-det",
    )
    assert task.masks.nets["low"].query.shape == (32 * 32, 16)


def test_naming_the_default_changes_no_settings():
    plain, named = read(), read({"method": "vexkd"})
    assert plain.run("centerpoint-det-vexkd").training() == named.run("centerpoint-det-vexkd").training()
    peer = read({"method": "fgd"}).run("centerpoint-det-vexkd").distill
    assert (peer.mask, peer.learns_masks) == ("none", False)
    assert read({"method": "maskd"}).run("centerpoint-det-vexkd").distill.learns_masks
