import copy

import pytest
import torch
from support.examples import given, st

from cpfast import schedules

ALL = {
    "constant": schedules.constant(),
    "constant, warm-up": schedules.constant(warmup=0.1),
    "cosine": schedules.cosine(),
    "cosine, warm-up": schedules.cosine(warmup=0.1, floor=0.01),
    "linear": schedules.linear(warmup=0.2),
    "step": schedules.step(),
    "one_cycle": schedules.one_cycle(),
}


@given(st.sampled_from(sorted(ALL)), st.floats(0, 1))
def test_multipliers_stay_in_0_and_1(name, fraction):
    assert 0 <= ALL[name](fraction) <= 1 + 1e-12


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        (schedules.constant(warmup=0.5), {0: 0, 0.25: 0.5, 0.5: 1, 1: 1}),
        (schedules.cosine(), {0: 1, 0.5: 0.5, 1: 0}),
        (schedules.cosine(warmup=0.2, floor=0.1), {0.1: 0.5, 0.2: 1, 0.6: 0.55, 1: 0.1}),
        (schedules.cosine(power=2.0), {0: 1, 0.5**0.5: 0.5, 1: 0}),
        (schedules.linear(floor=0.2), {0: 1, 0.5: 0.6, 1: 0.2}),
        (schedules.linear(warmup=0.5, power=2.0), {0.25: 0.5, 0.5: 1, 0.75: 0.75, 1: 0}),
        (schedules.step(), {0: 1, 0.499: 1, 0.5: 0.1, 0.75: 0.01, 1: 0.01}),
        (schedules.one_cycle(0.4, 0.2), {0: 0.2, 0.2: 0.6, 0.4: 1, 0.7: 0.5, 1: 0}),
    ],
)
def test_known_points(schedule, points):
    for fraction, expected in points.items():
        assert schedule(fraction) == pytest.approx(expected, abs=1e-12)


def optimizer(lr=0.5):
    a, b = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    return torch.optim.SGD([{"params": [a]}, {"params": [b], "lr": 0.1}], lr=lr)


def test_every_group_follows_its_base_rate():
    opt = optimizer()
    schedule = schedules.FractionSchedule(opt, schedules.linear())
    assert schedule.step(0.75) == pytest.approx(0.25)
    assert [g["lr"] for g in opt.param_groups] == pytest.approx([0.125, 0.025])
    schedule.step(0.0)
    assert [g["lr"] for g in opt.param_groups] == [0.5, 0.1]


def test_a_learning_rate_in_a_tensor_is_written_in_place():
    lr = torch.tensor(0.5)
    opt = optimizer(lr)
    opt.param_groups[0]["lr"] = lr
    schedules.FractionSchedule(opt, schedules.linear()).step(0.5)
    assert lr.item() == 0.25


def test_resumed_in_the_middle_it_does_not_decay_twice():
    opt = optimizer()
    schedule = schedules.FractionSchedule(opt, schedules.linear())
    schedule.step(0.5)
    state = copy.deepcopy((opt.state_dict(), schedule.state_dict()))
    resumed_opt = optimizer()
    resumed_opt.load_state_dict(state[0])
    resumed = schedules.FractionSchedule(resumed_opt, schedules.linear())
    resumed.load_state_dict(state[1])
    resumed.step(0.75)
    assert [g["lr"] for g in resumed_opt.param_groups] == pytest.approx([0.125, 0.025])
    with pytest.raises(ValueError, match="base_lrs.*expected 2 learning rates, got 1"):
        resumed.load_state_dict({"base_lrs": [1.0]})


def test_bad_numbers_are_named():
    schedule = schedules.FractionSchedule(optimizer(), schedules.cosine())
    with pytest.raises(ValueError, match="fraction: .* got 1.01"):
        schedule.step(1.01)
    for make, message in [
        (lambda: schedules.cosine(warmup=-1), "warmup: .* got -1"),
        (lambda: schedules.cosine(power=0.0), "power: expected a finite number above 0, got 0"),
        (lambda: schedules.linear(power=float("inf")), "power: expected a finite number above 0"),
        (lambda: schedules.linear(floor=2), "floor: .* got 2"),
        (lambda: schedules.step((0.5, 100)), "milestones: .* got 100"),
        (lambda: schedules.one_cycle(peak=7), "peak: .* got 7"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
