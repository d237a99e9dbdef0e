"""The optimizers: torch's to tolerance, decay of kernels alone, resumed to the bit, captured."""

import io
import math

import pytest
import torch
from torch.nn import functional as F

import cpfast
from cpfast.train import models, optimizers
from cpfast.train.config import OPTIMIZERS, Config

pytestmark = pytest.mark.usefixtures("one_thread")
PLAIN = {
    "sgd": lambda params, lr: torch.optim.SGD(params, lr, momentum=0.9, nesterov=True),
    "adamw": lambda params, lr: torch.optim.AdamW(params, lr),
    "rmsprop": lambda params, lr: torch.optim.RMSprop(params, lr),
    "adagrad": lambda params, lr: torch.optim.Adagrad(params, lr),
}


def make(name, device="cpu", weight_decay=1e-2):
    options = {} if device == "cpu" else {"device": "cuda:0", "step": "graph"}
    config = Config.from_options({"optimizer": name, "weight_decay": weight_decay, **options})
    model = models.build("cnn", (8, 8, 1), 3, seed=0).to(memory_format=torch.channels_last)
    model = model.to(device)
    return model, optimizers.build(config, model)


def batch(device="cpu"):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(12, 1, 8, 8, generator=generator)
    return images.to(device), (torch.arange(12) % 3).to(device)


def step(model, optimizer):
    images, labels = batch(next(model.parameters()).device)
    loss = F.cross_entropy(model(images), labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


def assert_same(model, other):
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_torch(name):
    model, optimizer = make(name)
    twin, _ = make(name)
    kernels = [p for n, p in twin.named_parameters() if cpfast.is_weight(n, p)]
    others = [p for n, p in twin.named_parameters() if not cpfast.is_weight(n, p)]
    groups = [
        {"params": kernels, "weight_decay": 1e-2}, {"params": others, "weight_decay": 0.0}
    ]  # fmt: skip
    plain = PLAIN[name](groups, optimizer.param_groups[0]["lr"])
    losses = [(step(model, optimizer), step(twin, plain)) for _ in range(8)]
    assert losses[-1][0] < 0.9 * losses[0][0]
    for ours, theirs in losses:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_only_kernels_decay(name):
    model, optimizer = make(name, weight_decay=0.1)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    lr = optimizer.param_groups[0]["lr"]
    for n, parameter in model.named_parameters():
        if not n.startswith("conv") and n != "head.weight":
            assert torch.equal(parameter, before[n]), n
        elif name in ("sgd", "adamw"):
            # Nesterov's momentum adds .9 of the gradient, which is the decay
            factor = 1 - lr * 0.1 * (1.9 if name == "sgd" else 1)
            torch.testing.assert_close(parameter, before[n] * factor, rtol=1e-5, atol=1e-8)
        else:
            # divided by its own size, the decay is a step towards zero of about the same length
            turned = (parameter - before[n]).sign() == -before[n].sign()
            assert turned.float().mean() > 0.99, n


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resumed_in_the_middle_to_the_bit(name):
    def train(model, optimizer, schedule, steps):
        for number in steps:
            schedule.step(number / 6)
            step(model, optimizer)

    model, optimizer = make(name)
    schedule = cpfast.schedules.FractionSchedule(optimizer, cpfast.schedules.cosine())
    train(model, optimizer, schedule, range(3))
    state = through_a_file([x.state_dict() for x in (model, optimizer, schedule)])
    train(model, optimizer, schedule, range(3, 6))

    resumed, again = make(name)
    rates = cpfast.schedules.FractionSchedule(again, cpfast.schedules.cosine())
    for part, saved in zip((resumed, again, rates), state, strict=True):
        part.load_state_dict(saved)
    train(resumed, again, rates, range(3, 6))
    assert_same(model, resumed)
    for ours, theirs in zip(
        optimizer.state_dict()["state"].values(), again.state_dict()["state"].values(), strict=True
    ):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_does_not_bring_its_device(name):
    model, optimizer = make(name)
    step(model, optimizer)
    own = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    state = through_a_file(optimizer.state_dict())
    for group in state["param_groups"]:
        # as of a run on CUDA
        group["lr"] = torch.tensor(0.25)
        group.update({key: True for key in ("fused", "capturable") if key in group})
        if "foreach" in group:
            group["foreach"] = None
    optimizer.load_state_dict(state)
    for group, before in zip(optimizer.param_groups, own, strict=True):
        assert {k: v for k, v in group.items() if k != "params"} == {**before, "lr": 0.25}
    step(model, optimizer)
    assert not optimizers.can_capture(optimizer)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_rate_in_a_tensor_outlives_a_load(name):
    model, optimizer = make(name)
    step(model, optimizer)
    state = through_a_file(optimizer.state_dict())
    twin, _ = make(name)
    rate = torch.tensor(optimizer.param_groups[0]["lr"])
    options = {"fused": True} if name != "rmsprop" else {"foreach": True}
    options |= optimizers._own(Config.from_options({"optimizer": name}))
    groups = optimizers._parameter_groups(twin, 1e-2)
    other = optimizers._CLASSES[name](groups, lr=rate, **options)
    optimizers._keep_execution(other)
    twin.load_state_dict(model.state_dict())
    rate.zero_()
    other.load_state_dict(state)
    assert all(group["lr"] is rate for group in other.param_groups)
    assert rate.item() == pytest.approx(state["param_groups"][0]["lr"])
    schedule = cpfast.schedules.FractionSchedule(other, cpfast.schedules.linear())
    schedule.step(1.0)
    before = [p.detach().clone() for p in twin.parameters()]
    step(twin, other)
    assert rate.item() == 0
    assert all(torch.equal(a, b) for a, b in zip(before, twin.parameters(), strict=True))


def test_a_skipped_first_step_leaves_the_momentum_defined():
    model, optimizer = make("sgd")
    twin, usual = make("sgd")
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.found_inf, optimizer.grad_scale = torch.ones(()), torch.ones(())  # as a GradScaler
    step(model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    del optimizer.found_inf, optimizer.grad_scale
    step(model, optimizer)
    step(twin, usual)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True)
    )


def test_a_state_of_another_model_is_refused():
    _, optimizer = make("sgd")
    state = optimizer.state_dict()
    with pytest.raises(ValueError):
        optimizer.load_state_dict({**state, "param_groups": state["param_groups"][:1]})
    for change in ({"momentum": 0.5}, {"nesterov": 1}, {"lr": math.nan}, {"weight_decay": None}):
        groups = [{**group, **change} for group in state["param_groups"]]
        with pytest.raises(ValueError, match=f"optimizer.*'{next(iter(change))}'"):
            optimizer.load_state_dict({**state, "param_groups": groups})


@pytest.mark.cuda
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_captured_step_equals_an_eager_one_and_sees_the_rate(name):
    model, optimizer = make(name, "cuda")
    if not optimizers.can_capture(optimizer):
        pytest.skip(f"torch {torch.__version__} has no {name} that can be captured")
    step(model, optimizer)
    state = through_a_file([model.state_dict(), optimizer.state_dict()])
    captured, other = make(name, "cuda")
    captured.load_state_dict(state[0])
    other.load_state_dict(state[1])
    schedules = [
        cpfast.schedules.FractionSchedule(o, cpfast.schedules.linear()) for o in (optimizer, other)
    ]
    for parameter, twin in zip(model.parameters(), captured.parameters(), strict=True):
        parameter.grad = torch.ones_like(parameter)
        twin.grad = parameter.grad.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # records, and does not run
        other.step()
    for fraction in (0.0, 0.5, 0.9):
        for schedule in schedules:
            schedule.step(fraction)
        optimizer.step()
        graph.replay()
    assert_same(model, captured)
