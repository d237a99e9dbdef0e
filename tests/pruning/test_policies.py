"""Each policy against what its source says, written out in numpy."""

import math

import numpy as np
import pytest
import torch

import cpfast
from cpfast import Moment
from cpfast.pruning import Draw, Samples, policies
from cpfast.pruning.policy import ascending, descending
from cpfast.pruning.seta import kmeans_bounds

N = 500


def samples_of(rule, columns, *, labels=None, **state):
    """The samples, of numpy columns, with the state that the policy begins with."""
    own = rule.state(len(next(iter(columns.values()))), torch.device("cpu"))
    own |= {name: torch.from_numpy(np.asarray(value)).to(own[name].dtype)
            for name, value in state.items()}  # fmt: skip
    tensors = {name: torch.from_numpy(value.astype(np.float32)) for name, value in columns.items()}
    return Samples(
        len(next(iter(columns.values()))), torch.device("cpu"), tensors, own,
        None if labels is None else torch.from_numpy(labels),
        0 if labels is None else int(labels.max()) + 1,
    )  # fmt: skip


def chosen_by(rule, samples, epoch, keep, *, seed=0, total=100, period_end=None, stream=0):
    """Mask and weights of all samples, in numpy; and who is scored again."""
    moment = Moment(epoch, total, period_end)
    assert not rule.is_full(moment)
    found = rule.select(samples, moment, keep, Draw(seed, epoch, stream))
    count = int(found.count) if found.take is None else found.take
    indices = found.indices[:count].numpy()
    mask, weights = np.zeros(samples.size, bool), np.ones(samples.size)
    if found.take is not None:
        return found.take, None, None
    mask[indices] = True
    if found.weights is not None:
        weights[indices] = found.weights[:count].numpy()
    again = np.zeros(samples.size, bool)
    if found.rescored is not None:
        again[found.rescored[0][: int(found.rescored[1])].numpy()] = True
    return mask, weights, again


def updated(rule, samples, epoch, trained, **columns):
    """The samples after an epoch that trained on some of them."""
    for name, value in columns.items():
        where = torch.from_numpy(trained)
        samples.columns[name][where] = torch.from_numpy(value.astype(np.float32))[where]
    rule.update(samples._replace(trained=torch.from_numpy(trained)), Moment(epoch, 100))
    return samples


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_random_in_turns_leaves_nobody_out_and_takes_nobody_twice():
    rule = policies.make("random", mode="split")
    samples = samples_of(rule, {"loss": np.zeros(N)})
    for turn in range(2):
        masks = [chosen_by(rule, samples, 5 * turn + i, 0.2)[0] for i in range(5)]
        assert [mask.sum() for mask in masks] == [100] * 5
        assert (np.sum(masks, 0) == 1).all()
    assert not (masks[0] == chosen_by(rule, samples, 0, 0.2)[0]).all()
    passes = [chosen_by(rule, samples, 0, 0.2, stream=s)[0] for s in range(2)]
    assert not (passes[0] == passes[1]).all()


def lloyd(values, groups):
    """k-means of numbers, from quantiles."""
    values = np.sort(values).astype(np.float64)
    means = values[(np.arange(groups) * 2 + 1) * len(values) // (2 * groups)]
    for _ in range(50):
        group = np.abs(values[:, None] - means[None]).argmin(1)
        means = np.array([
            values[group == g].mean() if (group == g).any() else means[g] for g in range(groups)
        ])  # fmt: skip
    return np.concatenate([[0], np.bincount(group, minlength=groups).cumsum()])


@pytest.mark.parametrize("groups", [1, 2, 5, 9])
def test_groups_of_k_means(rng, groups):
    mixture = np.concatenate([rng.normal(i, 0.1, 90) for i in range(5)])
    for values in (rng.exponential(size=N), mixture):
        ordered = torch.from_numpy(np.sort(values).astype(np.float32))
        assert kmeans_bounds(ordered, groups).tolist() == lloyd(ordered.numpy(), groups).tolist()


def test_groups_of_few_or_equal_or_unknown_losses():
    for values in ([1.0], [2.0, 2.0, 2.0], [1.0, torch.inf, torch.nan], [torch.inf] * 3):
        bounds = kmeans_bounds(torch.tensor(values), 3)
        assert bounds[0] == 0 and bounds[-1] == len(values) and (bounds.diff() >= 0).all()


def test_seta_slides_a_window_over_groups(rng):
    rule = policies.make("seta", groups=5, alpha=0.6)
    loss = np.concatenate([rng.normal(i, 0.05, N // 5) for i in (2, 0, 4, 1, 3)])
    group = np.repeat([2, 0, 4, 1, 3], N // 5)
    samples = samples_of(rule, {"loss": loss})
    assert rule.is_full(Moment(0, 100))
    for epoch in (1, 2, 3, 4, 7):
        mask, weights, _ = chosen_by(rule, samples, epoch, 1.0)
        first = epoch % 3
        assert (mask == ((group >= first) & (group < first + 3))).all() and (weights == 1).all()
        part, _, _ = chosen_by(rule, samples, epoch, 0.5)
        assert (part <= mask).all() and 0.3 * mask.sum() < part.sum() < 0.7 * mask.sum()
    assert chosen_by(rule, samples, 88, 0.9)[0] == int(0.9 * N)
    assert chosen_by(rule, samples, 88, 0.01)[0] == int(0.1 * N)


def test_repb_weighs_by_how_rarely_a_sample_was_there(rng):
    rule = policies.make("repb")
    loss, times = rng.exponential(size=N), rng.integers(0, 4, N)
    present = rng.random(N) < 0.6
    samples = samples_of(rule, {"loss": loss}, present=present, times=times)
    loss = loss.astype(np.float32)
    hard = present & (loss >= loss[present].astype(np.float64).mean())
    mean = np.zeros(N)
    for seed in range(200):
        mask, weights, _ = chosen_by(rule, samples, 4, 0.3, seed=seed)
        assert mask[hard].all()
        np.testing.assert_allclose(weights[mask], (4 / np.maximum(times, 1))[mask], rtol=1e-6)
        mean += mask / 200
    assert abs(mean[~hard].mean() - 0.3) < 0.01 and mean[~hard].std() < 0.04
    trained = rng.random(N) < 0.5
    updated(rule, samples, 4, trained)
    assert (samples.state["times"].numpy() == times + trained).all()
    assert (samples.state["present"].numpy() == trained).all()


def test_orderdp_takes_the_hardest_of_a_pool(rng):
    loss = rng.exponential(size=N)
    loss[7] = np.inf
    for pool, keep in ((0.8, 0.375), (1.0, 0.5), (0.5, 0.5)):
        rule = policies.make("orderdp", pool=pool)
        samples = samples_of(rule, {"loss": loss})
        mask, _, _ = chosen_by(rule, samples, 1, keep)
        assert mask.sum() == int(keep * int(pool * N))
        order = Draw(0, 1, 0).order(N, torch.device("cpu"))[: int(pool * N)].numpy()
        expected = order[np.argsort(-loss[order], kind="stable")][: mask.sum()]
        assert set(np.flatnonzero(mask)) == set(expected)


def running(losses, trained, rate):
    """Means and variances of the losses of some epochs, one a row."""
    mean, var = np.full(N, np.inf), np.zeros(N)
    for loss, there in zip(losses, trained, strict=True):
        for i in np.flatnonzero(there):
            if np.isinf(mean[i]):
                mean[i] = loss[i]
                continue
            var[i] = (1 - rate) * var[i] + rate * (loss[i] - mean[i]) ** 2
            mean[i] = (1 - rate) * mean[i] + rate * loss[i]
    return mean, var


def test_ucb_keeps_high_and_changing_losses(rng):
    rule = policies.make("ucb", rate=0.3, c=2.0, every=2)
    losses, trained = rng.exponential(size=(5, N)), rng.random((5, N)) < 0.7
    samples = samples_of(rule, {"loss": np.full(N, np.inf)})
    assert rule.is_full(Moment(1, 100)) and not rule.is_full(Moment(2, 100))
    for epoch in range(5):
        updated(rule, samples, epoch, trained[epoch], loss=losses[epoch])
    mean, var = running(losses, trained, 0.3)
    np.testing.assert_allclose(samples.state["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(samples.state["variance"][np.isfinite(mean)],
                               var[np.isfinite(mean)], rtol=1e-4, atol=1e-6)  # fmt: skip
    mean, var = running(losses[:4], trained[:4], 0.3)  # chosen anew after every second epoch
    mask, weights, _ = chosen_by(rule, samples, 5, 0.4)
    score = np.where(np.isinf(mean), np.inf, mean + 2 * var)
    assert mask.sum() == int(0.4 * N) and (weights == 1).all()
    assert score[mask].min() >= score[~mask].max() - 1e-5


def test_eps_greedy_draws_some_of_the_rest(rng):
    rule = policies.make("eps_greedy", rate=0.3, eps=0.25, every=2)
    losses = rng.exponential(size=(2, N))
    samples = samples_of(rule, {"loss": np.full(N, np.inf)})
    for epoch in range(2):
        updated(rule, samples, epoch, np.ones(N, bool), loss=losses[epoch])
    mean, _ = running(losses, np.ones((2, N), bool), 0.3)
    kept, drawn = int(0.4 * N), int(0.25 * int(0.4 * N))
    top = set(np.argsort(-samples.state["mean"].numpy(), kind="stable")[: kept - drawn])
    np.testing.assert_allclose(samples.state["mean"], mean, rtol=1e-5)
    one, again, other = (chosen_by(rule, samples, e, 0.4)[0] for e in (2, 3, 4))
    for mask in (one, again, other):
        assert mask.sum() == kept and top <= set(np.flatnonzero(mask))
    assert (one == again).all() and not (one == other).all()  # a selection lasts two epochs


def test_ies_leaves_out_what_changes_its_pace_no_more(rng):
    rule = policies.make("ies", tau=0.01)
    epochs = 8
    losses = rng.normal(size=(epochs, N)) * rng.choice([1.0, 1e-3], N) + np.arange(epochs)[:, None]
    samples = samples_of(rule, {"loss": np.full(N, np.inf)})
    for epoch in range(epochs):
        assert rule.is_full(Moment(epoch, 100)) == (epoch < 6)
        updated(rule, samples, epoch, np.ones(N, bool), loss=losses[epoch])
    mask, weights, again = chosen_by(rule, samples, epochs, 0.5)
    changes = np.abs(np.diff(losses.astype(np.float32), 2, axis=0))[-3:].mean(0)
    clear = np.abs(changes - 0.01) > 1e-5
    assert (mask == (changes >= 0.01))[clear].all() and 0.3 * N < mask.sum() < 0.7 * N
    assert (again == ~mask).all() and (weights == 1).all()
    assert chosen_by(policies.make("ies", tau=1e9), samples, 8, 0.5)[0].all()


def test_pdd_trains_on_what_is_not_known_or_on_as_many(rng):
    loss = rng.exponential(size=N)
    hard = np.exp(-loss.astype(np.float32)) < 0.3
    rule = policies.make("pdd")
    samples = samples_of(rule, {"loss": loss})
    assert rule.is_full(Moment(0, 100)) and rule.is_full(Moment(99, 100))
    mask, _, again = chosen_by(rule, samples, 3, 0.5)
    assert (mask == hard).all() and again.all()
    mask, _, again = chosen_by(policies.make("pdd", mode="matched"), samples, 3, 0.5)
    assert mask.sum() == hard.sum() and not (mask == hard).all() and again.all()
    taken, _, _ = chosen_by(policies.make("pdd", mode="decay", gamma=0.9), samples, 7, 0.5)
    assert taken == math.floor(0.9**7 * N)
    easy = samples_of(rule, {"loss": np.zeros(N)})
    assert chosen_by(rule, easy, 3, 0.5)[0].sum() == 1


def test_el2n_and_aum_score_the_first_epochs(rng):
    for name, column, drops_high in (("el2n", "el2n", False), ("aum", "margin", False)):
        rule = policies.make(name, epochs=3)
        values = rng.normal(size=(5, N))
        samples = samples_of(rule, {column: np.zeros(N)})
        for epoch in range(5):
            updated(rule, samples, epoch, np.ones(N, bool), **{column: values[epoch]})
        mean = values[:3].mean(0)  # high: a large error; or a clear margin
        kept = np.sort(np.argsort(-mean)[: int(0.6 * N)])
        assert rule.is_full(Moment(2, 100))
        for epoch in (3, 50):
            assert (np.flatnonzero(chosen_by(rule, samples, epoch, 0.6)[0]) == kept).all(), name
        assert not drops_high


def test_forgetting_counts_changes_from_correct_to_wrong(rng):
    rule = policies.make("forgetting", epochs=6)
    correct = rng.random((6, N)) < rng.random(N)
    samples = samples_of(rule, {"correct": np.zeros(N)})
    for epoch in range(6):
        updated(rule, samples, epoch, np.ones(N, bool), correct=correct[epoch].astype(float))
    forgotten = (correct[:-1] & ~correct[1:]).sum(0).astype(float)
    forgotten[~correct.any(0)] = np.inf
    assert (samples.state["score"].numpy() == forgotten).all()
    mask, _, _ = chosen_by(rule, samples, 6, 0.5)
    assert mask.sum() == N // 2 and forgotten[mask].min() >= forgotten[~mask].max()


def shares(weight, count, total):
    """In proportion to the weights, at most the counts: one after the other is filled."""
    kept, open_ = np.zeros(len(count)), np.ones(len(count), bool)
    while open_.any():
        level = (total - count[~open_].sum()) / weight[open_].sum()
        full = open_ & (level * weight > count)
        kept[open_] = (level * weight)[open_]
        if not full.any():
            break
        open_ &= ~full
        kept[full] = count[full]
    return np.minimum(kept, count)


def test_rcap_shares_by_class_and_draws_by_loss(rng):
    rule = policies.make("rcap", beta=0.5)
    labels = rng.choice(5, N, p=[0.5, 0.2, 0.15, 0.1, 0.05])
    loss = rng.exponential(size=N) * (0.2 + labels)
    samples = samples_of(rule, {"loss": loss}, labels=labels)
    clipped = np.minimum(loss.astype(np.float32), np.float32(math.log(5)))
    count = np.bincount(labels)
    class_loss = np.array([clipped[labels == c].mean() for c in range(5)])
    expected = shares(np.sqrt(class_loss * count / N), count, int(0.5 * N))
    assert (expected == count).any()  # the rarest is full
    drawn = np.zeros(N)
    for seed in range(400):
        mask, weights, _ = chosen_by(rule, samples, 2, 0.5, seed=seed)
        assert mask.sum() == int(0.5 * N) and (weights == 1).all()
        assert (np.abs(np.bincount(labels[mask], minlength=5) - expected) < 1.0001).all()
        drawn += mask / 400
    for c in range(5):
        if expected[c] < count[c] - 1:  # those of higher loss come more often
            assert np.corrcoef(drawn[labels == c], np.exp(clipped[labels == c] / 0.5))[0, 1] > 0.5
    with pytest.raises(ValueError, match="^labels: the policy 'rcap' needs them, got None$"):
        cpfast.DataPruner(N, policy="rcap")


def test_rcap_draws_one_of_a_class_by_softmax(rng):
    rule = policies.make("rcap", beta=0.7)
    loss = np.array([0.1, 0.2, 0.4, 0.65])
    samples = samples_of(
        rule, {"loss": loss}, labels=np.zeros(4, np.int64) + np.array([0, 0, 0, 0])
    )
    samples = samples._replace(classes=2, labels=torch.zeros(4, dtype=torch.int64))
    drawn = sum(chosen_by(rule, samples, 1, 0.25, seed=s)[0] for s in range(4000)) / 4000
    expected = np.exp(loss / 0.7) / np.exp(loss / 0.7).sum()
    assert np.abs(drawn - expected).max() < 5 * math.sqrt(0.25 / 4000)


def test_high_losses_are_removed_while_the_period_lasts(rng):
    rule = policies.make("high_loss_removal")
    loss = rng.exponential(size=N)
    loss[3] = np.inf
    samples = samples_of(rule, {"loss": loss})
    mask, _, _ = chosen_by(rule, samples, 2, 0.9)
    ordered = np.argsort(np.where(np.isfinite(loss), loss, -np.inf))
    assert set(np.flatnonzero(mask)) == set(ordered[: N - int((1 - 0.9) * N)]) and mask[3]
    assert rule.is_full(Moment(5, 100, 5)) and not rule.is_full(Moment(4, 100, 5))
    assert cpfast.DataPruner(N, policy="high_loss_removal").keep == 0.9


@pytest.mark.parametrize("keep", [0.1, 0.37, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("floor", [0.05, 0.25, 1.0])
def test_the_budget_is_exact_and_each_probability_known(rng, keep, floor):
    rule = policies.make("budget", floor=floor)
    loss = rng.exponential(size=N)
    loss[:3] = np.inf
    samples = samples_of(rule, {"loss": loss})
    rank = np.empty(N)
    rank[np.argsort(loss, kind="stable")] = np.arange(N)
    least = floor * keep
    power = (1 - least) / (keep - least) - 1 if least < keep else 0
    share = least + (1 - least) * ((rank + 0.5) / N) ** power if power else np.full(N, keep)
    share *= math.floor(keep * N) / share.sum()
    draws, drawn = 1500, np.zeros(N)
    for seed in range(draws):
        mask, weights, _ = chosen_by(rule, samples, 1, keep, seed=seed)
        assert mask.sum() == math.floor(keep * N)
        if mask.all():
            return
        np.testing.assert_allclose(weights[mask], 1 / share[mask], rtol=1e-5)
        drawn += mask / draws
    error = np.sqrt(share * (1 - share) / draws)
    assert (np.abs(drawn - share) < 5 * error + 1e-9).all()
    assert share.std() < 0.1 or np.corrcoef(drawn, share)[0, 1] > 0.9


def test_a_cap_misses_the_share_of_the_losses_that_is_told(rng):
    rule = policies.make("budget", floor=0.1, cap=3.0)
    assert not rule.unbiased and policies.make("budget").unbiased
    loss = rng.exponential(size=N)
    pruner = cpfast.DataPruner(N, policy=rule, strict=None)
    pruner.plan(0)
    assert pruner.bias is None
    pruner.update(torch.arange(N), torch.from_numpy(loss))
    pruner.plan(1, repeats=2)
    draws, total = 3000, 0.0
    samples = samples_of(rule, {"loss": loss})
    for seed in range(draws):
        mask, weights, _ = chosen_by(rule, samples, 1, 0.5, seed=seed)
        assert weights.max() <= 3
        total += (loss * weights)[mask].sum() / draws
    assert pruner.bias > 0.02
    assert abs(1 - total / loss.sum() - pruner.bias) < 0.005
    again = cpfast.DataPruner(N, policy=rule, strict=None)
    again.load_state_dict(pruner.state_dict())
    again.plan(1, repeats=2)
    assert again.bias == pruner.bias


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("random", {"mode": "new"}, "mode: expected one of .*, got 'new'"),
        ("seta", {"groups": 0}, "groups: .* got 0"),
        ("seta", {"alpha": 1.5}, "alpha: .* got 1.5"),
        ("seta", {"delta": -1}, "delta: .* got -1"),
        ("orderdp", {"pool": 0}, "pool: .* got 0"),
        ("ucb", {"rate": 0}, "rate: .* got 0"),
        ("ucb", {"c": -1}, "c: .* got -1"),
        ("ucb", {"every": 0}, "every: .* got 0"),
        ("eps_greedy", {"eps": 2}, "eps: .* got 2"),
        ("ies", {"tau": -1}, "tau: .* got -1"),
        ("pdd", {"mode": "x"}, "mode: .* got 'x'"),
        ("pdd", {"tau": 0}, "tau: .* got 0"),
        ("pdd", {"gamma": 2}, "gamma: .* got 2"),
        ("el2n", {"epochs": 0}, "epochs: .* got 0"),
        ("aum", {"drop": "all"}, "drop: .* got 'all'"),
        ("rcap", {"beta": 0}, "beta: .* got 0"),
        ("budget", {"floor": 0}, "floor: .* got 0"),
        ("budget", {"cap": 0.5}, "cap: .* got 0.5"),
    ],
)
def test_options_out_of_range_are_named(name, options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        policies.make(name, **options)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), r"expected \[4\] integers, got \[3\] torch.int64"),
        (torch.zeros(4), r"expected \[4\] integers, got \[4\] torch.float32"),
        (torch.tensor([0, 1, -1, 2]), "expected classes from 0 on, got -1"),
    ],
)
def test_labels_that_do_not_fit_are_named(labels, message):
    with pytest.raises(ValueError, match=f"^labels: {message}$"):
        cpfast.DataPruner(4, labels=labels)


def test_orders_are_those_of_sorting(rng):
    special = [0.0, -0.0, math.inf, -math.inf, math.nan, -math.nan, 1e-45, -1e-45, 3e38, -3e38]
    values = torch.tensor([*special, *rng.normal(size=200).round(1), *special], dtype=torch.float32)
    assert torch.equal(ascending(values), values.argsort(stable=True))
    assert torch.equal(descending(values), values.argsort(descending=True, stable=True))
