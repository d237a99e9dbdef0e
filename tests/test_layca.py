"""Layca, held to a plain numpy version of the algorithm; its states."""

import copy
import io
import math

import numpy as np
import pytest
import torch
from torch import nn

import cpfast
from cpfast import Layca, schedules

RATE = 0.05


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)
    )


def gradients(model, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


BASES = {
    "sgd": lambda p: torch.optim.SGD(p, RATE),
    "momentum": lambda p: torch.optim.SGD(p, RATE, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, RATE),
    "adamw": lambda p: torch.optim.AdamW(p, RATE, weight_decay=0.1),
}


class Reference:
    """The steps of SGD and Adam, and the algorithm on top, in float64."""

    def __init__(self, name, model):
        self.name, self.time = name, 0
        self.values = [p.detach().double().numpy().copy() for p in model.parameters()]
        self.norms = [np.linalg.norm(value) for value in self.values]
        self.one = [np.zeros_like(value) for value in self.values]
        self.two = [np.zeros_like(value) for value in self.values]

    def update(self, i, w, g):
        if self.name == "sgd":
            return -RATE * g
        if self.name == "momentum":
            g = g + 0.01 * w
            self.one[i] = g if self.time == 1 else 0.9 * self.one[i] + g
            return -RATE * (g + 0.9 * self.one[i])
        self.one[i] = 0.9 * self.one[i] + 0.1 * g
        self.two[i] = 0.999 * self.two[i] + 0.001 * g**2
        mean, square = self.one[i] / (1 - 0.9**self.time), self.two[i] / (1 - 0.999**self.time)
        decay = RATE * 0.1 * w if self.name == "adamw" else 0
        return -RATE * mean / (np.sqrt(square) + 1e-8) - decay

    def step(self, model):
        self.time += 1
        for i, p in enumerate(model.parameters()):
            w = self.values[i]
            s = self.update(i, w, p.grad.double().numpy())
            if p.dim() < 2:
                self.values[i] = w + s
                continue
            s = s - np.sum(s * w) / np.sum(w * w) * w
            s = s * np.linalg.norm(w) / np.linalg.norm(s)
            w = w + RATE * s
            self.values[i] = w * self.norms[i] / np.linalg.norm(w)


@pytest.mark.parametrize("name", BASES)
def test_it_is_the_algorithm(name):
    model = make_model()
    layca, reference = Layca(BASES[name](model.parameters()), model), Reference(name, model)
    for step in range(8):
        gradients(model, step)
        layca.step()
        reference.step(model)
        for p, expected in zip(model.parameters(), reference.values, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", BASES)
def test_each_step_turns_each_layer_by_the_rate_and_keeps_its_norm(name):
    model = make_model()
    layca, norms = Layca(BASES[name](model.parameters()), model), []
    rotation = cpfast.LayerRotation(model)
    assert layca.names == list(rotation.names) == ["0.weight", "4.weight"]
    for step in range(5):
        gradients(model, step)
        for group, rate in zip(layca.param_groups, [0.02 * (step + 1)], strict=True):
            group["lr"] = rate
        layca.step()
        angle = 1 - math.cos(math.atan(0.02 * (step + 1)))
        torch.testing.assert_close(rotation.update(), torch.full((2,), angle), rtol=1e-4, atol=0)
        norms.append(torch.stack([w.norm() for w in rotation.weights()]))
        rotation.reset()
    torch.testing.assert_close(torch.stack(norms), layca.norms.detach().expand(5, 2))


def test_what_has_no_direction_gets_the_optimizers_own_step():
    model = make_model()
    with torch.no_grad():
        model[4].weight.zero_()
    layca = Layca(torch.optim.SGD(model.parameters(), RATE), model)
    before = copy.deepcopy(model.state_dict())
    gradients(model, 0)
    model[0].weight.grad = None
    gradient = model[4].weight.grad.clone()
    layca.step()
    assert torch.equal(model[0].weight, before["0.weight"])
    torch.testing.assert_close(model[4].weight.detach(), -RATE * gradient)
    # one along the weights alone turns nothing, and rounding has no direction that could hurt
    model = make_model()
    with torch.no_grad():
        model[0].weight.copy_(torch.ones(3, 1, 3, 3))
    layca = Layca(torch.optim.SGD(model.parameters(), 0.5), model)
    model[0].weight.grad = torch.ones(3, 1, 3, 3)
    layca.step()
    assert model[0].weight.detach().norm() == pytest.approx(27**0.5)


def test_half_precision_weights_keep_their_norm():
    model = make_model().bfloat16()
    layca = Layca(torch.optim.SGD(model.parameters(), RATE), model)
    for step in range(20):
        gradients(model, step)
        layca.step()
    found = torch.stack([model[i].weight.detach().float().norm() for i in (0, 4)])
    torch.testing.assert_close(found, layca.norms, rtol=1e-2, atol=0)


@pytest.mark.parametrize("name", BASES)
def test_a_resume_equals_no_stop_to_the_bit(name):
    whole = make_model()
    layca = Layca(BASES[name](whole.parameters()), whole)
    for step in range(6):
        if step == 3:
            buffer = io.BytesIO()
            torch.save([whole.state_dict(), layca.state_dict()], buffer)
        gradients(whole, step)
        layca.step()
    buffer.seek(0)
    model_state, state = torch.load(buffer, weights_only=True)
    resumed = make_model()
    with torch.no_grad():
        resumed[0].weight.mul_(3)  # norms are those of the state
    other = Layca(BASES[name](resumed.parameters()), resumed)
    resumed.load_state_dict(model_state)
    other.load_state_dict(state)
    for step in range(3, 6):
        gradients(resumed, step)
        other.step()
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_states_that_do_not_fit_are_refused():
    model = make_model()
    layca = Layca(torch.optim.SGD(model.parameters(), RATE), model)
    state = layca.state_dict()
    for change in ({"norms": torch.ones(3)}, {"norms": 1.0}, {"optimizer": []}):
        with pytest.raises(ValueError, match="^state_dict"):
            layca.load_state_dict({**state, **change})
    with pytest.raises(ValueError, match="^state_dict: no 'norms'$"):
        layca.load_state_dict({"optimizer": state["optimizer"]})


def test_an_optimizer_without_the_models_weights_is_refused():
    model = make_model()
    with pytest.raises(ValueError, match="got none of them"):
        Layca(torch.optim.SGD([model[4].bias], RATE), model)


def test_schedules_a_closure_and_zero_grad():
    model = make_model()
    layca = Layca(torch.optim.SGD(model.parameters(), RATE), model)
    schedules.FractionSchedule(layca, schedules.linear()).step(0.5)
    assert layca.param_groups[0]["lr"] == RATE / 2
    scheduler = torch.optim.lr_scheduler.LambdaLR(layca.optimizer, lambda epoch: 0.5**epoch)
    inputs = torch.rand(4, 1, 4, 4)

    def closure():
        layca.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        return loss

    first = layca.step(closure)
    scheduler.step()
    assert layca.param_groups[0]["lr"] == RATE / 4
    assert first.item() > 0 and model[4].bias.grad is not None
    layca.zero_grad()
    assert model[4].bias.grad is None


def test_it_trains():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))
    layca = Layca(torch.optim.SGD(model.parameters(), 0.05, momentum=0.9), model)
    inputs = torch.randn(128, 2)
    labels = (inputs[:, 0] * inputs[:, 1] > 0).long()
    schedule = schedules.FractionSchedule(layca, schedules.linear())
    for step in range(200):
        schedule.step(step / 200)
        layca.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        layca.step()
        right = (model(inputs).argmax(1) == labels).float().mean().item()
        if step == 0:
            assert right < 0.7
    assert right > 0.8
