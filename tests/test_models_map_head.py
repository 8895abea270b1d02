"""The map head: where it samples, what its loss is, and that a batch may be split."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from counted import loss_of

from vexkd.geometry import BevGrid
from vexkd.models.losses import focal_loss
from vexkd.models.map_head import MapHead
from vexkd.models.targets import Counts

FEATURES = BevGrid((-54.0, -54.0, -5.0, 54.0, 54.0, 3.0), 0.6)
LABELS = BevGrid((-50.0, -50.0, 0.0, 50.0, 50.0, 0.0), 0.5)
SMALL = {
    "grid": BevGrid((-8.0, -8.0, -5.0, 8.0, 8.0, 3.0), 1.0),
    "labels": BevGrid((-6.0, -6.0, 0.0, 6.0, 6.0, 0.0), 0.5),
}


def head_of(channels: int = 2, **grids) -> MapHead:
    torch.manual_seed(0)
    return MapHead(in_channels=channels, classes=6, gamma=2.0, **{"grid": FEATURES, "labels": LABELS, **grids})


def batch_of(*maps: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(maps=torch.stack(maps))


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    """Labels of some samples on the small label grid."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 2, (samples, 6, 24, 24), dtype=np.uint8))


def test_a_ramp_stays_the_same_ramp():
    """Features that are x and y at their cells' centres are x and y at the label cells' centres, -49.75 ... 49.75."""
    centres = -54 + (torch.arange(180) + 0.5) * 0.6
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    found = head_of().resample(torch.stack([x, y])[None])[0]
    expected = torch.linspace(-49.75, 49.75, 200)
    assert found.shape == (2, 200, 200)
    assert torch.allclose(found[0], expected.expand(200, 200), atol=2e-4), "columns are x"
    assert torch.allclose(found[1], expected[:, None].expand(200, 200), atol=2e-4), "rows are y"


def test_a_place_keeps_its_metres():
    """A cell at x = 30.3, y = -12.3 m shines at the label cells around there, and nowhere else."""
    high = torch.zeros(1, 2, 180, 180)
    high[0, 0, int((-12.3 + 54) / 0.6), int((30.3 + 54) / 0.6)] = 1.0
    rows, columns = torch.nonzero(head_of().resample(high)[0, 0] > 0.3, as_tuple=True)
    assert len(rows)
    assert (columns * 0.5 - 49.75 - 30.3).abs().max() < 0.5
    assert (rows * 0.5 - 49.75 + 12.3).abs().max() < 0.5


def test_beyond_the_features_there_is_nothing():
    found = head_of(labels=BevGrid((-60.0, -60.0, 0.0, 60.0, 60.0, 0.0), 0.5)).resample(torch.ones(1, 2, 180, 180))
    assert found[0, 0, 0, 0] == 0
    assert found[0, 0, 120, 120] == 1


def test_the_loss_is_the_plain_one():
    """Minus (1 - p)^2 log p of what each cell is, mean over cells and samples, sum over classes: a loop in float64."""
    logits, labels = 3 * torch.randn(2, 6, 24, 24, generator=torch.Generator().manual_seed(1)), noise(2)
    expected = 0.0
    for sample in range(2):
        for name in range(6):
            cells = zip(logits[sample, name].flatten().tolist(), labels[sample, name].flatten().tolist(), strict=True)
            losses = []
            for logit, label in cells:
                p = 1 / (1 + math.exp(-logit))
                p = p if label else 1 - p
                losses.append(-((1 - p) ** 2) * math.log(p))
            expected += sum(losses) / len(losses) / 2
    found = loss_of(head_of(**SMALL), logits, batch_of(*labels))
    assert set(found) == {"map"}
    assert found["map"].item() == pytest.approx(expected, rel=1e-5)


def test_a_half_costs_a_quarter_of_log_two():
    loss = focal_loss(torch.zeros(3), torch.tensor([0.0, 1.0, 1.0]), gamma=2.0)
    assert loss.tolist() == pytest.approx([math.log(2) / 4] * 3)
    extreme = focal_loss(torch.tensor([80.0, -80.0]), torch.tensor([1.0, 1.0]), gamma=2.0)
    assert extreme.tolist() == pytest.approx([0.0, 80.0])


@pytest.mark.parametrize("cuts", [[1, 1, 1, 1], [2, 2], [4]])
def test_any_split_of_a_batch_has_the_same_loss(cuts):
    head, labels = head_of(**SMALL).eval(), noise(4)
    logits = torch.randn(4, 6, 24, 24, generator=torch.Generator().manual_seed(2))
    whole = loss_of(head, logits, batch_of(*labels))["map"]
    targets = [head.targets(batch_of(*part)) for part in labels.split(cuts)]
    pairs = zip(logits.split(cuts), targets, strict=True)
    parts = [head.loss(own, target, Counts.of(targets))["map"] for own, target in pairs]
    assert sum(parts) / len(cuts) == pytest.approx(whole.item(), rel=1e-6)


def test_half_precision_moves_no_place_and_rounds_no_loss():
    head, labels = head_of(8, **SMALL), noise(1)
    high = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(high)
        assert logits.dtype == torch.bfloat16
        assert torch.equal(head.resample(high), head_of(8, **SMALL).resample(high))
        loss = loss_of(head, logits, batch_of(*labels))["map"]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(loss_of(head, logits.float(), batch_of(*labels))["map"].item())


def test_layout_as_published():
    """Two 3x3 convolutions with BatchNorm at the input's width, then 1x1 to six classes; nothing is stored of the grids."""
    head = head_of(32)
    assert sum(p.numel() for p in head.parameters()) == 2 * (32 * 32 * 9 + 2 * 32) + 32 * 6 + 6
    assert not [name for name in head.state_dict() if not name.startswith("classifier.")]


def test_it_learns_a_map():
    """Features that hold the map at twice the cell: every class is found."""
    labels = torch.zeros(6, 24, 24, dtype=torch.uint8)
    for name in range(6):
        labels[name, 4 * (name // 2) : 4 * (name // 2) + 8, 8 * (name % 2) : 8 * (name % 2) + 8] = 1
    high = torch.zeros(1, 6, 16, 16)
    high[:, :, 2:14, 2:14] = labels[None, :, ::2, ::2].float()
    head = head_of(6, **SMALL)
    optimiser = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(150):
        optimiser.zero_grad()
        loss_of(head, head(high), batch_of(labels))["map"].backward()
        optimiser.step()
    found = head.probabilities(head(high))[0] > 0.5
    both, either = (found & labels.bool()).sum((1, 2)), (found | labels.bool()).sum((1, 2))
    assert (both / either).min() > 0.9
