"""Every feature loss against its closed form or a loop in NumPy, masked and not; adapters; what the gradients reach."""

import numpy as np
import pytest
import torch

from vexkd.distill.adapters import Generator, adapter
from vexkd.distill.losses import LOSSES, channel_divergence, generated, l1, l2, pearson, smooth_l1


def maps(channels=3, size=5, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, size, size + 1, generator=generator, dtype=torch.float64)


def mask_of(maps, seed=9):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(len(maps), 1, *maps.shape[2:], generator=generator, dtype=torch.float64)


def test_distances_of_two_numbers():
    """Differences of 0.5 and 3: means of |d|, d^2 and Huber's, masked with 1 and 0.5 in the second line."""
    student, teacher = torch.zeros(1, 1, 1, 2, dtype=torch.float64), torch.tensor([[[[0.5, 3.0]]]], dtype=torch.float64)
    mask = torch.tensor([[[[1.0, 0.5]]]], dtype=torch.float64)
    assert [float(f(student, teacher, None)) for f in (l1, l2, smooth_l1)] == pytest.approx([1.75, 4.625, 1.3125])
    assert [float(f(student, teacher, mask)) for f in (l1, l2, smooth_l1)] == pytest.approx([1.0, 1.25, 0.5625])


@pytest.mark.parametrize("masked", [False, True])
def test_pkd_is_one_minus_the_correlation(masked):
    """Times 59/60: the published deviations are those of a sample of the 2 * 5 * 6 numbers of a channel."""
    student, teacher = maps(seed=1), maps(seed=2)
    mask = mask_of(student) if masked else None
    laid = [(x * mask if masked else x).transpose(0, 1).flatten(1).numpy() for x in (student, teacher)]
    correlation = [np.corrcoef(s, t)[0, 1] for s, t in zip(*laid, strict=True)]
    assert float(pearson(student, teacher, mask)) == pytest.approx((1 - np.mean(correlation)) * 59 / 60, abs=1e-5)


def test_pkd_ignores_scale_and_offset_and_survives_a_dead_channel():
    student = maps().requires_grad_()
    assert float(pearson(3 * student + 7, student.detach(), None).detach()) == pytest.approx(0, abs=1e-5)
    pearson(student * 0, maps(seed=2), None).backward()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize(("tau", "masked"), [(1.0, False), (4.0, False), (2.0, True)])
def test_cwd_is_a_divergence_of_distributions_over_cells(tau, masked):
    student, teacher = maps(seed=1), maps(seed=2)
    mask = mask_of(student) if masked else None
    total = 0.0
    for b in range(2):
        for c in range(3):
            s, t = ((x[b, c] * (mask[b, 0] if masked else 1)).numpy().ravel() / tau for x in (student, teacher))
            p, q = np.exp(t) / np.exp(t).sum(), np.exp(s) / np.exp(s).sum()
            total += (p * np.log(p / q)).sum()
    assert float(channel_divergence(student, teacher, mask, tau=tau)) == pytest.approx(total * tau**2 / 6, rel=1e-9)


def test_mgd_with_a_generator_that_copies():
    """Hidden cells read zero, the others pass: the loss is the sum of T^2 over the hidden cells, per sample."""
    copying = Generator(2, 2, hidden=0.65)
    for layer in (copying.generate[0], copying.generate[2]):
        torch.nn.init.dirac_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    teacher = torch.rand(3, 2, 40, 40)  # positive: ReLU passes all
    torch.manual_seed(5)
    guess = copying(teacher)
    hidden = (guess == 0).all(dim=1, keepdim=True)
    assert torch.equal(guess, teacher * ~hidden)
    assert float(hidden.float().mean()) == pytest.approx(0.65, abs=0.03)
    expected = (teacher.double().square() * hidden).sum() / 3
    assert float(generated(guess, teacher, None)) == pytest.approx(float(expected), rel=1e-5)
    half = torch.full((3, 1, 40, 40), 0.5)
    assert float(generated(guess, teacher, half)) == pytest.approx(float(expected) / 4, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_works_at_every_precision_and_reaches_student_and_adapter_alone(name):
    loss = LOSSES[name]
    torch.manual_seed(0)
    student, teacher = maps(4).float().requires_grad_(), maps(6, seed=3).float().requires_grad_()
    mask = mask_of(student).float().requires_grad_()
    net = adapter(loss.adapter, 4, 6, hidden=0.5)
    options = {"power": 1} if name == "attention" else {}
    value = loss.compare(net(student), teacher.detach(), mask.detach(), **options)
    value.backward()
    assert student.grad.abs().sum() > 0
    assert all(p.grad is not None for p in net.parameters())
    assert teacher.grad is None
    assert mask.grad is None
    with torch.autocast("cpu", torch.bfloat16):
        half = loss.compare(net(student), teacher.detach(), mask.detach(), **options)
    assert half.dtype == torch.float32


def test_adapters_only_where_they_are_asked_for():
    assert isinstance(adapter("none", 4, 6, hidden=0), torch.nn.Identity)
    assert isinstance(adapter("where-widths-differ", 4, 4, hidden=0), torch.nn.Identity)
    assert adapter("where-widths-differ", 4, 6, hidden=0)(torch.zeros(1, 4, 3, 3)).shape == (1, 6, 3, 3)
    assert adapter("always", 4, 4, hidden=0).weight.shape == (4, 4, 1, 1)
