import pytest
import torch

from factory.recipe import Schedule
from factory.training.schedules import learning_rate, total_steps


def rates(total, per_epoch=10, **fields):
    schedule = Schedule(steps=total, batch_size=2, **fields)
    return [learning_rate(1.0, schedule, step, total, per_epoch) for step in range(total)]


def test_length_is_steps_or_epochs():
    assert total_steps(Schedule(steps=7, batch_size=2), 100) == 7
    assert total_steps(Schedule(epochs=3, batch_size=2), 100) == 300


def test_constant_after_a_linear_warmup():
    assert rates(10, warmup=0.4)[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_steps_divide_by_ten_at_their_epochs():
    made = rates(40, name="steps", milestones=(1, 3))
    assert made[9] == 1.0
    assert made[10] == pytest.approx(0.1)
    assert made[29] == pytest.approx(0.1)
    assert made[30] == pytest.approx(0.01)


def test_cosine_falls_to_its_final_share():
    made = rates(1000, name="cosine", final_lr=0.1)
    assert made[0] == 1.0
    assert made[500] == pytest.approx(0.55)
    assert made[-1] == pytest.approx(0.1, abs=1e-4)
    assert made == sorted(made, reverse=True)


def test_warm_restarts_repeat():
    made = rates(30, name="warm_restarts", restart_steps=10)
    assert made[:10] == made[10:20] == made[20:30]
    assert made[5] == pytest.approx(0.5)


def test_warm_restarts_double_as_torchs_do():
    made = rates(75, name="warm_restarts", restart_steps=10, restart_mult=2)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=10, T_mult=2)
    for rate in made:
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
