"""The distillation against closed forms: losses, masks, who learns from what, and what is left in the weights."""

from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from counted import step_of
from tqdm import tqdm

from vexkd.distill import distiller, masks
from vexkd.distill.losses import LOSSES, attention_transfer
from vexkd.distill.schedule import MaskSchedule
from vexkd.errors import InputError
from vexkd.models import bev_model
from vexkd.settings import Distill
from vexkd.train import loop as train


def maps(channels=4, size=6, batch=2):
    return torch.randn(batch, channels, size, size, dtype=torch.float64)


@pytest.mark.parametrize("power", [1, 2])
def test_a_scaled_copy_costs_nothing(power):
    teacher, mask = maps(), torch.rand(2, 1, 6, 6, dtype=torch.float64)
    assert float(attention_transfer(3.7 * teacher, teacher, mask, power=power)) == pytest.approx(0, abs=2e-6)


def test_scaling_the_mask_changes_nothing():
    student, teacher, mask = maps(3), maps(5), torch.rand(2, 1, 6, 6, dtype=torch.float64)
    one, tenth = (attention_transfer(student, teacher, scale * mask, power=1) for scale in (1.0, 0.1))
    assert float(one) == pytest.approx(float(tenth), rel=1e-6)


def test_disjoint_supports_cost_the_root_of_two():
    student, teacher = torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4)
    student[..., :2], teacher[..., 2:] = 1.0, 2.0
    assert float(attention_transfer(student, teacher, None, power=1)) == pytest.approx(2**0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("channels", "power", "expected"), [(256, 1, 0.0663), (256, 2, 0.1237), (64, 1, 0.133), (64, 2, 0.246)]
)
def test_independent_gaussian_maps(channels, power, expected):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(1, channels, 180, 180, generator=generator) for _ in range(2))
    assert float(attention_transfer(student, teacher, None, power=power)) == pytest.approx(expected, abs=0.002)


def test_gradient_is_finite_where_maps_agree():
    student = maps().requires_grad_()
    attention_transfer(student, student.detach().clone(), None, power=1).backward()
    assert torch.isfinite(student.grad).all()


def mask_net(**more):
    torch.manual_seed(0)
    settings = {"query": torch.randn(30, 8), "shape": (6, 5), "in_channels": 12, "blocks": 3, "heads": 2, "points": 4,
                "ffn": 16, "dropout": 0.1, "bias": 2.0}  # fmt: skip
    return masks.MaskNet(**{**settings, **more})


def test_mask_is_a_map_between_zero_and_one_that_starts_open():
    mask = mask_net()(torch.randn(2, 12, 6, 5))
    assert mask.shape == (2, 1, 6, 5)
    assert ((mask > 0) & (mask < 1)).all()
    assert float(mask.mean()) == pytest.approx(0.88, abs=0.03)


def test_parameters_of_a_mask_block_at_the_papers_size():
    block = masks.MaskBlock(channels=256, heads=8, points=4, ffn=512, dropout=0.1)
    assert sum(p.numel() for p in block.parameters()) == 444_768


def test_mask_starts_from_a_copy_of_the_query():
    query = torch.nn.Parameter(torch.randn(30, 8))
    net = mask_net(query=query)
    assert torch.equal(net.query, query)
    assert net.query.data_ptr() != query.data_ptr()


def test_schedule_stops_by_epoch_or_iteration():
    assert [MaskSchedule(2, None).learning(e, 0) for e in range(4)] == [True, True, False, False]
    assert [MaskSchedule(None, 3).learning(0, i) for i in (0, 2, 3)] == [True, True, False]
    assert MaskSchedule().learning(99, 9999)


@pytest.fixture
def lesson(settings, town):
    """A distiller at test size and a batch for it."""
    from vexkd.batch import collate
    from vexkd.data import infos
    from vexkd.train import tasks

    torch.manual_seed(0)
    run, teacher_run = settings.run("centerpoint-det-vexkd"), settings.run("fusion-det")
    task = distiller.build(
        settings=run.distill,
        student=bev_model.build(run),
        teacher=bev_model.build(teacher_run),
        teacher_name="fusion-det",
    )
    dataset = tasks.training_set(
        run, teacher_run, root=town / "data", infos=infos.load(town / "infos"), paste=None, seed=0
    )
    return task, collate([dataset[(0, 0, 0)], dataset[(0, 1, 1)]])


def gradients(module):
    return [p.grad for p in module.parameters() if p.grad is not None and p.grad.abs().sum() > 0]


def test_who_learns_from_what(lesson):
    """Detached: the masked teacher's loss moves only the masks, the task loss only the student, nothing the teacher."""
    task, batch = lesson
    task.begin_step(0, 0)
    terms, watched = step_of(task, batch)
    assert {"task.heatmap", "task.box", "masked.heatmap", "distill.low", "distill.high", "mask.low"} <= set(terms)
    assert 0.8 < watched["mask.low.mean"] < 0.95
    sum(v for k, v in terms.items() if k.startswith("masked.")).backward(retain_graph=True)
    assert gradients(task.masks)
    assert not gradients(task.student)
    task.zero_grad()
    sum(v for k, v in terms.items() if k.startswith("distill.")).backward(retain_graph=True)
    assert gradients(task.student)
    assert not gradients(task.masks)
    task.zero_grad()
    sum(v for k, v in terms.items() if k.startswith("mask.")).backward()
    assert gradients(task.masks)
    assert not gradients(task.student)
    assert all(p.grad is None for p in task.teacher.parameters())


def test_summed_coupling_moves_both(lesson):
    task, batch = lesson
    task.method.detached = False
    terms, _ = step_of(task, batch)
    terms["distill.high"].backward()
    assert gradients(task.student)
    assert gradients(task.masks)


def test_after_the_stop_masks_stay_and_distillation_goes_on(lesson):
    task, batch = lesson
    task.begin_step(1, 7)  # stop_mask_epoch is 1
    optimiser = torch.optim.AdamW(task.parameters(), lr=0.1)
    before = [p.detach().clone() for p in task.masks.parameters()]
    terms, _ = step_of(task, batch)
    assert not any(k.startswith(("masked.", "mask.")) for k in terms)
    assert {"distill.low", "distill.high"} <= set(terms)
    sum(terms.values()).backward()
    optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(before, task.masks.parameters(), strict=True))


def test_the_teachers_targets_are_drawn_only_while_masks_learn(lesson):
    task, batch = lesson
    task.begin_step(0, 0)
    assert {name.split(".")[0] for name in task.targets(batch).counts} == {"student", "teacher"}
    task.begin_step(1, 7)  # stop_mask_epoch is 1
    assert {name.split(".")[0] for name in task.targets(batch).counts} == {"student"}


def test_where_low_alone_is_distilled_the_teacher_makes_no_high_map(lesson):
    task, batch = lesson
    task.method.levels, task.method.reads_high = ("low",), False
    del task.method.drawing.nets["high"]
    task.teacher.bev_encoder.register_forward_hook(lambda _module, inputs, _output: passes.append(inputs[0]))
    passes = []
    step_of(task, batch)  # masks learn: the masked `low` alone passes through
    task.begin_step(1, 7)
    terms, _ = step_of(task, batch)
    assert len(passes) == 1
    assert passes[0].requires_grad
    assert [name for name in terms if not name.startswith("task.")] == ["distill.low"]


def test_the_teacher_stays_as_it_was(lesson):
    """BatchNorm statistics included, also in the masked pass."""
    task, batch = lesson
    task.train()
    before = {k: v.clone() for k, v in task.teacher.state_dict().items()}
    terms, _ = step_of(task, batch)
    sum(terms.values()).backward()
    assert all(torch.equal(v, before[k]) for k, v in task.teacher.state_dict().items())
    assert not any(m.training for m in task.teacher.modules())


def test_a_measured_gradient_is_in_the_curve_whatever_steps_it_keeps(monkeypatch):
    """Of 20 steps the curve keeps each tenth, and each third for its measurement."""
    monkeypatch.setattr(train, "CURVE_POINTS", 2)
    trainer = train.Trainer.__new__(train.Trainer)
    trainer.position, trainer.total = train.Position(), 20
    trainer.accelerator = SimpleNamespace(is_main_process=False)
    for step in range(1, 21):
        trainer.position.step = step
        row = {"step": step - 1, "loss": 1.0, "lr": 1.0, "gradient": 3.0}
        trainer._log(row | ({"gradient.distill.low.low": 2.0} if step % 3 == 0 else {}), tqdm(disable=True))
    kept = [row["step"] + 1 for row in trainer.position.curve]
    assert kept == [3, 6, 9, 10, 12, 15, 18, 20]
    assert sum("gradient.distill.low.low" in row for row in trainer.position.curve) == 6


def test_a_teacher_without_a_query_is_refused(settings):
    run, teacher = settings.run("centerpoint-det-vexkd"), settings.run("fusion-conv-det")
    with pytest.raises(InputError, match="fusion-conv-det has no BEV query"):
        distiller.build(
            settings=run.distill,
            student=bev_model.build(run),
            teacher=bev_model.build(teacher),
            teacher_name="fusion-conv-det",
        )


def test_the_settings_know_the_names_that_are_built():
    """A name that stands in one place alone is refused by the settings, or would fail when the training starts."""

    def known(setting: str) -> set[str]:
        annotation = Distill.model_fields[setting].annotation
        texts = [part for part in (annotation, *get_args(annotation)) if set(map(type, get_args(part))) == {str}]
        return set(get_args(texts[0]))

    assert known("loss") == set(LOSSES)
    assert known("mask") == {"none", "ones", "random-query", "learned-query", *masks.DRAWN}
    assert known("method") | {"vexkd"} == set(distiller.METHODS)
