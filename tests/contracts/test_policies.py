"""What holds for every policy that is registered, whoever wrote it."""

import copy
import io
import math
import pickle

import pytest
import torch
from support.host_reads import counted

import cpfast
from cpfast import Moment
from cpfast.pruning import Draw

N, EPOCHS, BATCH = 60, 8, 12


@pytest.fixture(params=sorted(cpfast.policies))
def policy(request):
    return request.param


def make(policy, **options):
    settings = {"num_epochs": EPOCHS, "policy": policy, "anneal": 1.0, "seed": 3, "strict": None,
                "labels": target_of(torch.arange(N))}  # fmt: skip
    return cpfast.DataPruner(N, **{**settings, **options})


def losses(index, epoch):
    """Of an imagined network that learns: some samples sooner, some never."""
    logits = torch.sin(torch.outer(index + 1.0, torch.arange(1.0, 6.0)))
    return logits * (1 + epoch * (index % 3)[:, None])


def target_of(index):
    return index % 5


def batch_of(pruner, index, epoch):
    """Logits and targets; of a policy that selects among tokens, of sequences of three."""
    logits, target = losses(index, epoch), target_of(index)
    if pruner.rule.needs_tokens:
        shift = torch.arange(3)
        logits = torch.stack([logits.roll(n, 1) for n in range(3)], 1)
        target = (target[:, None] + shift) % 5
    return logits.requires_grad_(), target


def train(pruner, epochs, batch=BATCH):
    """The plan and the weights of each epoch."""
    seen = []
    for epoch in epochs:
        plan = pruner.plan(epoch, repeats=2, period_end=4 if epoch >= 4 else None)
        seen.append((plan.clone(), pruner.weights(plan), pruner.lr))
        for index in plan.split(batch):
            pruner.loss(*batch_of(pruner, index, epoch), index)
        again = pruner.prepare(epoch, repeats=2, period_end=4 if epoch >= 4 else None).rescored
        if len(again):
            pruner.score(*batch_of(pruner, again, epoch), again)
    return seen


def is_same(a, b):
    return all(
        torch.equal(x[0], y[0]) and torch.equal(x[1], y[1]) and x[2] == y[2]
        for x, y in zip(a, b, strict=True)
    )


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_resume_equals_the_undisturbed_run_to_the_bit(policy, stop):
    whole = make(policy)
    expected = train(whole, range(EPOCHS))
    first = make(policy)
    train(first, range(stop))
    state = through_a_file(first.state_dict())
    resumed = make("random" if policy == "infobatch" else "infobatch")
    resumed.load_state_dict(state)
    assert is_same(train(resumed, range(stop, EPOCHS)), expected[stop:])
    for name, column in whole.columns.items():
        assert torch.equal(resumed.columns[name], column)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_copies_go_on_alike(policy, copied):
    pruner = make(policy)
    train(pruner, range(3))
    other = copied(pruner)
    assert is_same(train(other, range(3, EPOCHS)), train(pruner, range(3, EPOCHS)))


def test_its_state_keeps_its_names_and_shapes(policy):
    def shapes(state):
        if isinstance(state, dict):
            return {key: shapes(value) for key, value in state.items()}
        return (state.shape, state.dtype) if isinstance(state, torch.Tensor) else type(state)

    pruner = make(policy)
    before = shapes(pruner.state_dict())
    for epoch in range(EPOCHS):
        train(pruner, [epoch])
        assert shapes(pruner.state_dict()) == before


def known_samples(pruner):
    state = {name: value.clone() for name, value in pruner._state.items()}
    columns = {name: value.clone() for name, value in pruner.columns.items()}
    samples = pruner._samples(columns, state)
    return samples._replace(trained=samples.mask(pruner._trained()))


def test_a_selection_is_pure_and_never_waits_for_the_device(policy):
    pruner = make(policy)
    train(pruner, range(3))
    for epoch in (1, 3, 6):
        samples, moment = known_samples(pruner), Moment(epoch, EPOCHS, 2)
        before = copy.deepcopy((samples.columns, samples.state))
        with counted() as reads:
            chosen = pruner.rule.select(samples, moment, 0.5, Draw(3, epoch, 0))
            pruner.rule.batch_filter(moment, 0.5)
            pruner.rule.is_full(moment)
        assert reads == []
        again = pruner.rule.select(samples, moment, 0.5, Draw(3, epoch, 0))
        count = int(chosen.count)
        assert torch.equal(chosen.indices[:count], again.indices[:count])
        assert 0 < count <= N and chosen.indices.shape == (N,)
        picked = chosen.indices[:count]
        assert torch.equal(picked, picked.unique()) and 0 <= picked[0] <= picked[-1] < N
        for kept, now in zip(before, (samples.columns, samples.state), strict=True):
            assert all(torch.equal(kept[name], now[name]) for name in kept)


def test_what_it_remembers_is_updated_without_waiting(policy):
    pruner = make(policy)
    train(pruner, range(2))
    samples = known_samples(pruner)
    with counted() as reads:
        pruner.rule.update(samples, Moment(1, EPOCHS))
    assert reads == []


def test_an_epoch_waits_for_the_device_when_it_is_planned_and_no_more(policy):
    def reads_of(batch):
        pruner = make(policy)
        train(pruner, range(5), batch)
        plan = pruner.plan(5, repeats=2)
        with counted() as reads:
            for index in plan.split(batch):
                pruner.loss(*batch_of(pruner, index, 5), index)
                pruner.weights(index)
        return reads

    assert reads_of(BATCH) == reads_of(3) == []


def test_a_batch_filter_keeps_as_many_of_every_batch(policy):
    rule = make(policy).rule
    for epoch in range(EPOCHS):
        chosen = rule.batch_filter(Moment(epoch, EPOCHS), 0.3)
        if chosen is None:
            continue
        for size in (1, 7, 64):
            values = torch.rand(size, generator=torch.Generator().manual_seed(size))
            uniform = Draw(0, epoch, 1).uniform(torch.arange(size))
            with counted() as reads:
                positions = chosen.choose(values, uniform)
            assert reads == []
            assert len(positions) == chosen.kept(size) == len(positions.unique())
            assert 1 <= len(positions) <= size


def test_a_token_filter_chooses_among_what_counts(policy):
    rule = make(policy).rule
    g = torch.Generator().manual_seed(0)
    for epoch in range(EPOCHS):
        chosen = rule.token_filter(Moment(epoch, EPOCHS), 0.3)
        assert chosen is None or rule.needs_tokens
        if chosen is None:
            continue
        again = rule.token_filter(Moment(epoch, EPOCHS), 0.3)
        assert chosen == again and hash(chosen) == hash(again)
        for length in (1, 2, 7):
            losses, counts = torch.rand(2, 6, length, generator=g)
            counts = (counts > 0.4).index_fill_(0, torch.tensor([0]), False)
            for reference in (None, torch.rand(6, length, generator=g)):
                with counted() as reads:
                    tokens = chosen.choose(losses, counts, reference)
                assert reads == []
                assert tokens.dtype == torch.bool and not (tokens & ~counts).any()
                number = tokens.sum(1)
                assert torch.equal(number > 0, counts.any(1))
                assert int(number.max()) <= chosen.most(length) <= length


def test_the_unbiased_are(policy):
    """The mean over draws of each sample's weight, 0 where it is left out, is 1."""
    rule = make(policy).rule
    if not rule.unbiased:
        pytest.skip("does not claim to be")
    pruner = make(policy)
    train(pruner, range(3))
    samples, moment = known_samples(pruner), Moment(3, EPOCHS)
    draws, total, squares = 3000, torch.zeros(N).double(), torch.zeros(N).double()
    for seed in range(draws):
        chosen = rule.select(samples, moment, 0.5, Draw(seed, 3, 0))
        count = int(chosen.count)
        weights = torch.zeros(N).double()
        ones = torch.ones(count)
        weights[chosen.indices[:count]] = (
            ones if chosen.weights is None else chosen.weights[:count]
        ).double()
        total += weights
        squares += weights.square()
    mean = total / draws
    deviation = ((squares / draws - mean.square()).clamp_min(0) / draws).sqrt()
    # A subset of floor(keep x M) of M samples lacks at most one of them: stated, not hidden.
    floor = 1 / (0.5 * N / 3)
    assert ((mean - 1).abs() <= 5 * deviation + floor).all()
    assert math.isclose(float(mean.mean()), 1, abs_tol=floor)


def test_its_columns_are_those_of_the_loss(policy):
    pruner = make(policy)
    assert set(pruner.rule.columns) <= set(cpfast.pruning.COLUMNS)
    entry = cpfast.policies[policy]
    assert entry.line.endswith(".") and entry.source
