"""The moving average of the weights against its closed form, and across an interruption."""

import math

import torch
from torch import nn

from vexkd.settings import Ema
from vexkd.train.ema import MovingAverage


def trained(model: nn.Module, steps: int, seed: int = 0):
    """The model after each of some made-up optimiser steps."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
            model.num_batches_tracked.add_(1)
            model.running_mean.add_(0.5)
        yield model


def test_average_is_the_weighted_sum_of_its_definition():
    model = nn.BatchNorm1d(3)
    settings = Ema(decay=0.9, ramp=5.0, updates=2)
    average = MovingAverage(model, settings)
    wanted, mean = model.weight.detach().double().clone(), model.running_mean.double().clone()
    for number, stepped in enumerate(trained(model, 6), start=3):
        average.update(stepped)
        keep = 0.9 * (1 - math.exp(-number / 5.0))
        wanted = keep * wanted + (1 - keep) * stepped.weight.detach().double()
        mean = keep * mean + (1 - keep) * stepped.running_mean.double()
    torch.testing.assert_close(average.tensors["weight"].double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(average.tensors["running_mean"].double(), mean, rtol=1e-5, atol=1e-6)
    assert int(average.tensors["num_batches_tracked"]) == 6
    assert not torch.equal(average.tensors["weight"], model.weight)


def test_average_goes_on_from_a_saved_state():
    settings = Ema(decay=0.9, ramp=5.0, updates=0)
    model = nn.BatchNorm1d(3)
    whole = MovingAverage(model, settings)
    for stepped in trained(model, 4):
        whole.update(stepped)
    half = MovingAverage(nn.BatchNorm1d(3), settings)
    half.restore({name: value.clone() for name, value in whole.state().items()})
    for stepped in trained(model, 4, seed=1):
        whole.update(stepped)
        half.update(stepped)
    assert half.updates == whole.updates == 8
    assert all(torch.equal(half.tensors[name], value) for name, value in whole.tensors.items())
