"""The stepped schedule against the published recipes' numbers (the others' tests stand in test_engine.py)."""

import pytest

from vexkd.settings import Schedule
from vexkd.train import optim


def schedule(**more) -> Schedule:
    settings = {
        "kind": "step", "peak": 1.0, "rise": 0.4, "final": 1.0, "warmup": 200, "warmup_from": 1e-3, "beta1": [0.9, 0.9],
        "milestones": [16, 22], "gamma": 0.1,
    }  # fmt: skip
    return Schedule(**{**settings, **more})


def test_bevdets_steps_after_16_and_22_of_24_epochs():
    """1000 iterations an epoch, warm-up over 200 from a thousandth: 0.001 + 0.999 / 2 half way."""
    wanted = {0: 1e-3, 100: 0.5005, 200: 1.0, 15_999: 1.0, 16_000: 0.1, 21_999: 0.1, 22_000: 0.01, 23_999: 0.01}
    for step, factor in wanted.items():
        assert optim.factors(schedule(), step, 24_000, epochs=24) == pytest.approx((factor, 0.9)), step


@pytest.mark.parametrize("milestones", [[], None, [20]])
def test_flat_without_milestones_or_with_one_at_the_end(milestones):
    """BEVDet4D-Longterm steps after its last epoch: never."""
    for step in (200, 7_000, 19_999):
        assert optim.factors(schedule(milestones=milestones), step, 20_000, epochs=20)[0] == 1.0
