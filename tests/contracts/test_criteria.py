"""What holds for every criterion that is registered, whoever wrote it."""

import copy
import io
import pickle

import pytest
import torch
from support.host_reads import counted

import cpfast
from cpfast import Moment
from cpfast.detection import Measured, criteria
from cpfast.detection.probe import ModelProbe
from cpfast.registry import options_of

EPOCHS, STEPS = 7, 5


@pytest.fixture(params=sorted(criteria))
def criterion(request):
    return request.param


def options(criterion):
    """A whole number for each option that must be given."""
    known = options_of(criteria[criterion].factory)
    return {name: 3 for name, is_needed in known.items() if is_needed}


class Toy:
    """A small training that a criterion watches."""

    def __init__(self, criterion):
        self.detector = cpfast.CriticalPeriodDetector(criterion, EPOCHS, **options(criterion))
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(6, 8),
            torch.nn.BatchNorm1d(8),
            torch.nn.ReLU(),
            torch.nn.Linear(8, 3),
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1, momentum=0.9, nesterov=True)
        self.x = torch.randn(20, 6)
        self.y = torch.arange(20) % 3
        self.scores = torch.full((20,), torch.inf)
        self.probe = ModelProbe(
            cpfast.LayerRotation(self.model),
            losses=lambda: self.scores,
            optimizer=self.optimizer,
            needs=self.detector.rule.needs,
            batches=lambda number: (self.model(self.batch(number)[0]), self.batch(number)[1]),
        )
        self.widths = set()

    def batch(self, number):
        index = (torch.arange(5) + 5 * number) % 20
        return self.x[index], self.y[index]

    def epoch(self, number):
        self.probe.begin(STEPS)
        for step in range(STEPS):
            index = torch.arange(4 * step, 4 * step + 4)
            logits = self.model(self.x[index])
            scored = cpfast.ops.scored_cross_entropy(
                logits, self.y[index], table=self.scores, index=index
            )
            self.optimizer.zero_grad()
            scored.loss.mean().backward()
            with counted() as reads:
                self.probe.after_forward(logits, self.y[index])
                self.optimizer.step()
                self.probe.after_step()
            assert reads == []
        training = [module.training for module in self.model.modules()]
        gradients = [parameter.grad.clone() for parameter in self.model.parameters()]
        state = [value.clone() for value in self.model.state_dict().values()]
        with counted() as reads:
            measured = self.detector.rule.measure(self.probe)
        assert reads == []
        # It has left the model as it was.
        assert training == [module.training for module in self.model.modules()]
        assert all(map(torch.equal, state, self.model.state_dict().values()))
        assert all(map(torch.equal, gradients, [p.grad for p in self.model.parameters()]))
        # What goes through the model for it is counted.
        assert (self.probe.measured_samples > 0) == ("batches" in self.detector.rule.needs)
        self.widths.add(measured.shape)
        return self.detector.step(measured, number)

    def state(self):
        return {
            "detector": self.detector.state_dict(),
            "probe": self.probe.state_dict(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rotation": self.probe._rotation.state_dict(),
            "scores": self.scores,
        }

    def load(self, state):
        self.detector.load_state_dict(state["detector"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.probe._rotation.load_state_dict(state["rotation"])
        self.probe.load_state_dict(state["probe"])
        self.scores.copy_(state["scores"])


def test_it_measures_as_many_numbers_each_time_without_waiting(criterion):
    toy = Toy(criterion)
    for epoch in range(1, EPOCHS + 1):
        toy.epoch(epoch)
    (width,) = toy.widths
    assert len(width) == 1


@pytest.mark.parametrize("stop", [1, 3, 6])
def test_a_resume_equals_the_undisturbed_run(criterion, stop):
    whole = Toy(criterion)
    fired = [whole.epoch(epoch) for epoch in range(1, EPOCHS + 1)]
    first = Toy(criterion)
    for epoch in range(1, stop + 1):
        first.epoch(epoch)
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    resumed = Toy(criterion)
    resumed.load(torch.load(file, weights_only=True))
    assert [resumed.epoch(epoch) for epoch in range(stop + 1, EPOCHS + 1)] == fired[stop:]
    # as text, in which NaN equals NaN
    assert str(resumed.detector.state_dict()) == str(whole.detector.state_dict())


def test_its_judgement_is_pure(criterion):
    toy = Toy(criterion)
    for epoch in range(1, EPOCHS + 1):
        toy.epoch(epoch)
    rule = toy.detector.rule
    values = [m if isinstance(m, tuple) else (m,) for _, m in toy.detector.history]
    history = [Measured(epoch, v) for epoch, v in enumerate(values, 1)]
    judged = [epoch for epoch in range(1, EPOCHS + 1) if rule.is_judged(epoch)]
    verdicts = [rule.judge(history[:epoch], Moment(epoch, EPOCHS)) for epoch in judged]
    backwards = [rule.judge(history[:epoch], Moment(epoch, EPOCHS)) for epoch in judged[::-1]]
    assert verdicts == backwards[::-1]
    found = zip(judged, verdicts, strict=True)
    first = next((epoch for epoch, verdict in found if verdict), None)
    assert first == toy.detector.end_epoch
    assert first is None or first >= rule.earliest


def test_it_is_copied_and_pickled(criterion):
    detector = Toy(criterion).detector
    for other in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        assert other.state_dict() == detector.state_dict()


def test_it_says_where_it_comes_from(criterion):
    entry = criteria[criterion]
    assert entry.line.endswith(".") and entry.source
