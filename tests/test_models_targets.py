"""Counts of a global batch: added up by name, shared among its parts."""

import torch

from vexkd.models.targets import Counts, Targets


def drawn(peaks: list[float], cells: float) -> Targets:
    return Targets.join(
        head=Targets("boxes", {"peaks": torch.tensor(peaks)}), camera=Targets("bins", {"cells": torch.tensor(cells)})
    )


def test_counts_of_parts_are_added_up_by_name():
    counts = Counts.of([drawn([1.0, 0.0], 5.0), drawn([2.0, 0.0], 7.0)])
    assert counts.parts == 2
    assert {name: count.tolist() for name, count in counts.total.items()} == {"head.peaks": [3, 0], "camera.cells": 12}


def test_a_part_sees_its_own_targets_and_counts_alone():
    targets = drawn([3.0], 1.0)
    assert targets.under("camera").values == "bins"
    assert Counts.of([targets]).under("head").total == {"peaks": torch.tensor([3.0])}


def test_a_part_divides_by_its_share_of_a_count_that_is_raised_first():
    counts = Counts({"peaks": torch.tensor([6.0, 0.0])}, parts=4)
    assert counts.share("peaks").tolist() == [1.5, 0.0]
    assert counts.share("peaks", at_least=1).tolist() == [1.5, 0.25]
    assert counts.share("peaks", extra=2.0).tolist() == [2.0, 0.5]
