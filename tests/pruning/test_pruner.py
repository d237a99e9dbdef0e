import contextlib
import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import cpfast
from cpfast import pruning

N = 1001


def scored(device="cpu", **options):
    pruner = cpfast.DataPruner(N, device=device, **options)
    g = torch.Generator().manual_seed(0)
    scores = torch.rand(N, generator=g)
    pruner.plan(0)
    pruner.update(torch.arange(N), scores)
    return pruner, scores


def test_infobatch_epoch_0_is_full_with_weights_1(device):
    pruner = cpfast.DataPruner(N, device=device)
    plan = pruner.plan(0)
    assert torch.equal(plan.sort().values.cpu(), torch.arange(N))
    assert not torch.equal(plan.cpu(), torch.arange(N))
    assert (pruner.weights(plan) == 1).all()


@pytest.mark.parametrize("keep", [0.5, 0.3, 1.0])
def test_infobatch_prunes_below_the_mean(device, keep):
    pruner, scores = scored(device, keep=keep)
    plan = pruner.plan(1).cpu()
    below = scores.double() < scores.double().mean()
    assert len(set(plan.tolist())) == len(plan)
    assert set((~below).nonzero()[:, 0].tolist()) <= set(plan.tolist())
    assert int(below[plan].sum()) == math.floor(keep * int(below.sum()))
    expected = torch.where(below[plan], 1 / keep, 1.0)
    torch.testing.assert_close(pruner.weights(plan.to(device)).cpu(), expected)


def test_annealing_is_full_from_the_ceiling_of_its_fraction():
    for num_epochs, anneal in [(200, 0.875), (10, 0.73), (7, 0.5), (3, 1.0), (5, 0.0)]:
        pruner, _ = scored(num_epochs=num_epochs, anneal=anneal)
        first = math.ceil(anneal * num_epochs)
        for epoch in range(1, num_epochs):
            assert (len(pruner.plan(epoch)) == N) == (epoch >= first)
            if epoch >= first:
                assert (pruner.weights(torch.arange(N)) == 1).all()


def test_random_draws_a_fresh_subset_of_exact_size(device):
    pruner = cpfast.DataPruner(N, policy="random", keep=0.3, device=device)
    plans = [pruner.plan(epoch) for epoch in range(3)]
    assert [len(set(p.tolist())) for p in plans] == [math.floor(0.3 * N)] * 3
    assert len({tuple(sorted(p.tolist())) for p in plans}) == 3
    assert (pruner.weights(plans[-1]) == 1).all()
    assert len(pruner.plan(180)) == N


def test_repeats_are_separate_permutations():
    pruner, scores = scored()
    passes = pruner.plan(0, repeats=3).view(3, N)
    for one in passes:
        assert torch.equal(one.sort().values, torch.arange(N))
    assert len({tuple(p.tolist()) for p in passes}) == 3
    low = (scores.double() < scores.double().mean()).sum().item()
    pruned = pruner.plan(1, repeats=3)
    size = N - low + low // 2
    assert len(pruned) == 3 * size
    subsets = [frozenset(p.tolist()) for p in pruned.view(3, size)]
    assert len(set(subsets)) == 3
    # A sample that any of the passes kept has the weight of a kept sample.
    below = scores.double() < scores.double().mean()
    torch.testing.assert_close(pruner.weights(pruned), torch.where(below[pruned], 2.0, 1.0))


@pytest.mark.parametrize("policy", ["infobatch", "random"])
@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("epoch", [0, 1])
def test_batches_are_slices_of_the_plan(device, policy, repeats, epoch):
    lazy, _ = scored(device, policy=policy, keep=0.3)
    whole, _ = scored(device, policy=policy, keep=0.3)
    plan = lazy.prepare(epoch, repeats=repeats)
    expected = whole.plan(epoch, repeats=repeats)
    assert len(plan) == len(expected)
    assert lazy.prepare(epoch, repeats=repeats) is plan
    for size in (64, 1000, 10 * N):
        batches = [plan.batch(start, size) for start in range(0, len(plan), size)]
        for start, batch in zip(range(0, len(plan), size), batches, strict=True):
            assert torch.equal(batch, expected[start : start + size])
    assert plan.batch(len(plan), 5).tolist() == []
    assert torch.equal(lazy.weights(expected), whole.weights(expected))
    assert torch.equal(lazy.plan(epoch, repeats=repeats), expected)
    for name in ("samples_planned", "samples_saved"):
        assert getattr(lazy, name) == getattr(whole, name)
    with pytest.raises(ValueError, match="start: .* got -1"):
        plan.batch(-1, 5)


def test_a_prepared_plan_holds_while_scores_change_and_after_a_resume():
    pruner, _ = scored()
    plan = pruner.prepare(1, repeats=2)
    first = plan.batch(0, 100)
    pruner.update(first, torch.rand(100))
    resumed = cpfast.DataPruner(N)
    resumed.load_state_dict(copy.deepcopy(pruner.state_dict()))
    assert resumed.planned == (1, 2, True)
    again = resumed.prepare(1, repeats=2)
    assert len(again) == len(plan)
    for start in range(0, len(plan), 100):
        assert torch.equal(again.batch(start, 100), plan.batch(start, 100))
    pruner.prepare(2)
    assert torch.equal(plan.batch(0, 100), first)


def test_a_prepared_plan_follows_the_first_logits(device):
    pruner = cpfast.DataPruner(100)
    plan = pruner.prepare(0)
    index = plan.batch(0, 10)
    pruner.loss(torch.zeros(10, 3, device=device), (index % 3).to(device), index)
    assert torch.equal(pruner.prepare(0).batch(0, 100).cpu(), plan.batch(0, 100))
    assert pruner.prepare(0).batch(0, 100).device.type == device.type


@pytest.mark.cuda
def test_the_host_reads_once_an_epoch(recwarn):
    pruner, _ = scored("cuda")
    torch.cuda.set_sync_debug_mode("warn")
    try:
        plan = pruner.prepare(1, repeats=3)
        for start in range(0, len(plan), 100):
            plan.batch(start, 100)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in recwarn if "synchronizing" in str(w.message)]) == 1


def test_prune_false_plans_full_passes_with_weights_1():
    pruner, _ = scored()
    pruner.plan(1)
    plan = pruner.plan(2, prune=False)
    assert torch.equal(plan.sort().values, torch.arange(N))
    assert (pruner.weights(plan) == 1).all()


def test_the_plan_of_an_epoch_holds_while_its_scores_change():
    pruner, _ = scored()
    plan = pruner.plan(1)
    weights = pruner.weights(plan)
    pruner.update(plan, torch.rand(len(plan)))
    assert pruner.plan(1) is plan
    assert torch.equal(pruner.weights(plan), weights)


def test_counts():
    pruner, _ = scored()
    assert (pruner.samples_planned, pruner.samples_saved) == (N, 0)
    n = len(pruner.plan(1))
    assert (pruner.samples_planned, pruner.samples_saved) == (N + n, N - n)
    pruner.plan(1)
    m = len(pruner.plan(1, repeats=2))  # replaces the plan of epoch 1
    assert (pruner.samples_planned, pruner.samples_saved) == (N + m, 2 * N - m)


def test_unseen_samples_are_kept():
    pruner = cpfast.DataPruner(10)
    pruner.update(torch.arange(8), torch.arange(8.0))
    for epoch in range(1, 30):
        assert {8, 9} <= set(pruner.plan(epoch).tolist())
        assert len(pruner.plan(epoch)) == 8


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_weighted_mean_and_records_unweighted_losses(device, smoothing):
    pruner, _ = scored(device)
    index = pruner.plan(1)[:64]
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(64, 10, generator=g).to(device).requires_grad_()
    target = torch.randint(10, (64,), generator=g).to(device)
    loss = pruner.loss(logits, target, index, label_smoothing=smoothing)
    plain = F.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)
    weights = pruner.weights(index)
    assert weights.unique().tolist() == [1, 2]
    torch.testing.assert_close(loss, (weights * plain).mean())
    torch.testing.assert_close(pruner.scores[index], plain.detach())
    (grad,) = torch.autograd.grad(loss, logits)
    (expected,) = torch.autograd.grad((weights * plain).mean(), logits)
    torch.testing.assert_close(grad, expected)


def test_sequences_are_samples(device):
    pruner, _ = scored(device)
    index = pruner.plan(1)[:8]
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(8, 6, 20, generator=g).to(device).requires_grad_()
    target = torch.randint(20, (8, 6), generator=g).to(device)
    target[2, 1:4] = -100
    loss = pruner.loss(logits, target, index)
    plain = F.cross_entropy(logits.transpose(1, 2), target, reduction="none")
    counted = target != -100
    torch.testing.assert_close(pruner.scores[index], plain.detach().sum(1) / counted.sum(1))
    expected = (pruner.weights(index)[:, None] * plain).sum() / counted.sum()
    torch.testing.assert_close(loss, expected)
    (grad,) = torch.autograd.grad(loss, logits)
    (expected_grad,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(grad, expected_grad)


@pytest.mark.parametrize("policy", ["infobatch", "kakurenbo"])
@pytest.mark.parametrize("kind", ["classes", "distributions"])
def test_images_with_a_class_a_pixel(device, policy, kind):
    g = torch.Generator().manual_seed(0)
    logits, weight = torch.randn(4, 5, 3, 2, generator=g), torch.rand(5, generator=g)
    target = torch.randint(5, (4, 3, 2), generator=g)
    if kind == "classes":
        target[1, 0] = 255
    else:
        target = torch.rand(4, 5, 3, 2, generator=g)
    pruner = cpfast.DataPruner(9, policy=policy, device=device)
    index = torch.tensor([2, 8, 0, 5], device=device)
    x = logits.to(device).requires_grad_()
    pruner.plan(0)
    ignored = {"ignore_index": 255} if kind == "classes" else {}
    loss = pruner.loss(
        x, target.to(device), index, class_weight=weight.to(device), label_smoothing=0.1,
        class_dim=1, z_loss=0.01, **ignored,
    )  # fmt: skip
    loss.backward()
    other = logits.detach().clone().requires_grad_()
    options = {"weight": weight, "label_smoothing": 0.1, **ignored}
    each = F.cross_entropy(other, target, reduction="none", **options)
    z = 0.01 * other.logsumexp(1) ** 2
    if kind == "classes":
        z = z * (target != 255)
        counted = weight[target.clamp(max=4)][target != 255].sum()
    else:
        counted = each.numel()
    expected = (each + z).sum() / counted
    expected.backward()
    torch.testing.assert_close(loss.detach().cpu(), expected.detach())
    torch.testing.assert_close(x.grad.cpu(), other.grad, rtol=1e-4, atol=1e-6)
    each = each.detach().flatten(1)
    kept = (target != 255).flatten(1).sum(1) if kind == "classes" else 6
    torch.testing.assert_close(pruner.scores[index].cpu(), each.sum(1) / kept)
    assert pruner.scores.isfinite().sum() == 4
    for column in pruner.columns.values():
        assert column[index].isfinite().all()


def test_the_pruned_loss_estimates_the_full_one():
    # On data whose losses do not change, the mean over epochs of the weighted sums is the full sum.
    pruner, scores = scored(num_epochs=2000)
    sums = []
    for epoch in range(1, 400):
        plan = pruner.plan(epoch)
        sums.append((pruner.weights(plan) * scores[plan]).sum().double())
    low = scores[scores.double() < scores.double().mean()]
    # keep * M is rounded down: the bias is that of at most one sample in M / 2.
    bias = low.sum() * (1 - 2 * (len(low) // 2) / len(low))
    deviation = torch.stack(sums).std() / math.sqrt(len(sums))
    assert abs(torch.stack(sums).mean() - (scores.sum() - bias)) < 5 * deviation


@pytest.mark.parametrize("policy", ["infobatch", "random"])
@pytest.mark.parametrize(
    "stop", [1, *(pytest.param(n, marks=pytest.mark.not_emulated("250 calls")) for n in (2, 4))]
)
def test_resuming_is_equal_to_the_bit(device, policy, stop):
    def train(pruner, epochs):
        plans = []
        for epoch in epochs:
            plan = pruner.plan(epoch, repeats=2)
            plans.append(plan.clone())
            for index in plan.split(100):
                logits = torch.sin(torch.outer(index + 1.0, torch.arange(5.0, device=device)))
                pruner.loss(logits * (epoch + 1), index % 5, index)
        return plans

    options = {"policy": policy, "num_epochs": 6, "device": device, "seed": 9}
    whole = cpfast.DataPruner(N, **options)
    plans = train(whole, range(6))
    first = cpfast.DataPruner(N, **options)
    train(first, range(stop))
    resumed = cpfast.DataPruner(N, device=device)
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(resumed.plan(stop - 1, repeats=2), plans[stop - 1])
    for actual, expected in zip(train(resumed, range(stop, 6)), plans[stop:], strict=True):
        assert torch.equal(actual, expected)
    assert torch.equal(resumed.scores, whole.scores)
    assert resumed.samples_saved == whole.samples_saved > 0


def test_a_pruner_without_a_device_follows_the_first_logits(device):
    pruner = cpfast.DataPruner(4)
    pruner.loss(
        torch.zeros(2, 3, device=device),
        torch.tensor([0, 1], device=device),
        torch.tensor([3, 0]),  # as a DataLoader yields them: on the CPU
    )
    assert pruner.device.type == device.type
    assert pruner.scores.isfinite().tolist() == [True, False, False, True]


def test_nan_losses_are_reported_with_their_sample():
    pruner, _ = scored()
    pruner.update(torch.tensor([5, 17]), torch.tensor([math.nan, math.nan]))
    with pytest.raises(ValueError, match=f"scores: 2 of {N} are NaN, .* sample 5"):
        pruner.plan(1)
    assert pruner.planned == (0, 1, True)
    assert (pruner.weights(torch.arange(N)) == 1).all()
    pruner.update(torch.tensor([5, 17]), torch.ones(2))
    assert len(pruner.plan(1)) < N


def test_a_state_of_another_data_set_is_refused_and_changes_nothing():
    pruner, _ = scored()
    before = copy.deepcopy(pruner.state_dict())
    with pytest.raises(ValueError, match=rf"num_samples'\]: expected {N}, got 7"):
        pruner.load_state_dict(cpfast.DataPruner(7, seed=3).state_dict())
    assert pruner.seed == 0
    assert torch.equal(pruner.scores, before["columns"]["loss"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "num_samples: .* got 0"),
        ({"num_epochs": 0}, "num_epochs: .* got 0"),
        ({"policy": "magic"}, "policy: .* got 'magic'"),
        ({"keep": 0.0}, "keep: .* got 0.0"),
        ({"keep": 1.5}, "keep: .* got 1.5"),
        ({"anneal": -0.1}, "anneal: .* got -0.1"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        cpfast.DataPruner(**{"num_samples": 5, **arguments})


def test_bad_calls_are_named():
    pruner = cpfast.DataPruner(5, device="cpu")
    with pytest.raises(ValueError, match="epoch: .* got -1"):
        pruner.plan(-1)
    with pytest.raises(ValueError, match="repeats: .* got 0"):
        pruner.plan(0, repeats=0)
    logits, target = torch.zeros(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"index: expected shape \(2,\) as target, got \(3,\)"):
        pruner.loss(logits, target, torch.tensor([0, 1, 2]))
    with pytest.raises(RuntimeError, match=r"logits: on meta, .* device='cpu'"):
        pruner.loss(logits.to("meta"), target.to("meta"), torch.tensor([0, 1]))
    with pytest.raises(RuntimeError, match=r"index\[0\]: expected a sample in \[0, 5\), got 5"):
        pruner.update(torch.tensor([5]), torch.zeros(1))


def test_random_never_plans_an_empty_epoch():
    assert len(cpfast.DataPruner(3, policy="random", keep=0.1).plan(0)) == 1


def test_an_epoch_planned_again_at_once_is_counted_once():
    pruner, _ = scored()
    for _ in range(3):
        n = len(pruner.plan(3))
    assert (pruner.samples_planned, pruner.samples_saved) == (N + n, N - n)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": "foo"}, "policy: .* got 'foo'"),
        (
            {"columns": {"loss": torch.zeros(3)}},
            rf"'loss'\]: expected a tensor \[{N}\] .*, got a tensor \[3\]",
        ),
        ({"columns": {}}, r"^state_dict\['columns'\]: no 'loss'"),
    ],
)
def test_a_malformed_state_is_refused_and_changes_nothing(change, message):
    pruner, scores = scored()
    with pytest.raises(ValueError, match=message):
        pruner.load_state_dict({**pruner.state_dict(), "seed": 5, **change})
    assert pruner.seed == 0
    assert torch.equal(pruner.scores, scores)
    with pytest.raises(ValueError, match="^state_dict: no 'num_epochs'$"):
        pruner.load_state_dict({"num_samples": N})


def test_ignored_targets_and_large_seeds_are_refused():
    pruner = cpfast.DataPruner(5)
    with pytest.raises(RuntimeError, match=r"target\[0\]: .* got -100"):
        pruner.loss(torch.zeros(1, 3), torch.tensor([-100]), torch.tensor([0]))
    assert pruner.scores.isinf().all()
    with pytest.raises(ValueError, match="seed: .* got 9223372036854775808"):
        cpfast.DataPruner(5, seed=2**63)


@pytest.mark.cuda
def test_an_epoch_of_scoring_rotation_and_selection_never_waits_for_the_device():
    samples, batch = 4096, 256
    g = torch.Generator("cuda").manual_seed(0)
    images = torch.randint(256, (samples, 8, 8, 1), generator=g, device="cuda").byte()
    labels = torch.randint(10, (samples,), generator=g, device="cuda")
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rotation = cpfast.LayerRotation(model)
    pruner = cpfast.DataPruner(samples, device="cuda")
    key = {"seed": 0, "epoch": 1}

    def epoch():
        selection = cpfast.ops.select_samples(pruner.scores, keep=0.5, **key)
        for start in range(0, samples // 2, batch):
            index = cpfast.ops.shuffled_slice(
                selection.indices, selection.count, start, batch, **key
            )
            x = cpfast.ops.augment_batch(images, index, flip=True, rotation=15.0, **key)
            pruner.loss(model(x), labels[index], index).backward()
            optimizer.step()
            optimizer.zero_grad()
        rotation.update()
        return rotation.mean()

    pruner.update(torch.arange(samples, device="cuda"), torch.rand(samples, device="cuda"))
    epoch()
    torch.cuda.set_sync_debug_mode("error")
    try:
        mean = epoch()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert 0 < mean.item() < 1
    assert pruner.scores.isfinite().all()


def warned(pruner, index=None, scores=None, **options):
    """What the plan of the next epoch warns of."""
    epoch = pruner.planned[0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pruner.plan(epoch + 1, **options)
    return [str(w.message) for w in caught]


def test_samples_seen_are_those_trained_on():
    pruner = cpfast.DataPruner(10)
    plan = pruner.plan(0)
    logits = torch.zeros(4, 3, requires_grad=True)
    pruner.loss(logits, torch.zeros(4, dtype=torch.int64), plan[:4])
    assert (pruner.samples_seen, pruner.samples_planned) == (4, 10)
    assert pruner.remaining == 6
    with torch.no_grad():
        pruner.loss(logits, torch.zeros(4, dtype=torch.int64), plan[:4])
    pruner.score(logits, torch.zeros(4, dtype=torch.int64), plan[4:8])
    assert pruner.samples_seen == 4
    pruner.weighted(torch.ones(6, 2, requires_grad=True), plan[4:])
    assert pruner.samples_seen == 10
    assert warned(pruner) == []
    assert pruner.samples_seen == 10


@pytest.mark.parametrize("recorded", [9, 20])
def test_what_was_delivered_is_compared_with_what_was_planned(recorded):
    pruner = cpfast.DataPruner(10)
    for epoch in range(2):
        plan = pruner.plan(epoch).repeat(2)[:recorded]
        pruner.update(plan, torch.ones(len(plan)))
        (message,) = warned(pruner) or [None] if epoch == 0 else [None]
        if epoch == 0:
            assert f"epoch 0 planned 10 samples, and the losses of {recorded} were" in message
            assert all(cause in message for cause in ("length once", "sharding", "drop_last"))
        else:
            assert message is None  # once
    strict = cpfast.DataPruner(10, strict=True)
    strict.update(strict.plan(0).repeat(2)[:recorded], torch.ones(recorded))
    before = copy.deepcopy(strict.state_dict())
    with pytest.raises(RuntimeError, match=f"planned 10 samples, .* of {recorded}"):
        strict.plan(1)
    assert str(strict.state_dict()) == str(before)


@pytest.mark.parametrize(("recorded", "is_right"), [(10, True), (9, True), (8, False), (11, False)])
def test_equal_shares_may_miss_fewer_samples_than_there_are_ranks(recorded, is_right, monkeypatch):
    pruner = cpfast.DataPruner(10)
    pruner.update(pruner.plan(0).repeat(2)[:recorded], torch.ones(recorded))
    monkeypatch.setattr("cpfast.pruning.pruner.world_size", lambda: 2)
    assert (warned(pruner) == []) == is_right


def test_a_policy_that_needs_no_losses_misses_none():
    pruner = cpfast.DataPruner(10, policy="random")
    pruner.plan(0)
    assert warned(pruner) == []


@pytest.mark.parametrize("policy", ["infobatch", "random", "kakurenbo", "selective_backprop"])
def test_it_is_pickled_and_copied_in_the_middle_of_an_epoch(policy):
    pruner, _ = scored(policy=policy) if policy != "kakurenbo" else (cpfast.DataPruner(N), None)
    plan = pruner.plan(1, repeats=2)
    for other in (copy.deepcopy(pruner), pickle.loads(pickle.dumps(pruner))):
        assert torch.equal(other.plan(1, repeats=2), plan)
        assert torch.equal(other.weights(plan), pruner.weights(plan))


def test_its_state_is_of_plain_numbers_and_fixed_shapes():
    def shapes(value):
        if isinstance(value, dict):
            return {key: shapes(v) for key, v in value.items()}
        if isinstance(value, torch.Tensor):
            return value.shape, value.dtype
        assert type(value) in (int, float, str, bool)
        return type(value)

    pruner = cpfast.DataPruner(np.int64(N), num_epochs=np.int32(9), keep=np.float32(0.5))
    before = shapes(pruner.state_dict())
    pruner.plan(np.int64(0), repeats=np.int64(2))
    pruner.update(torch.arange(N), torch.rand(N))
    assert shapes(pruner.state_dict()) == before
    pruner.plan(1, period_end=np.int64(1))
    assert shapes(pruner.state_dict()) == before


def test_it_is_loaded_by_torchs_distributed_checkpoints(tmp_path):
    from torch.distributed import checkpoint

    pruner, _ = scored(policy="infobatch")
    pruner.plan(1)
    checkpoint.save({"pruner": pruner.state_dict()}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    fresh = cpfast.DataPruner(N, policy="infobatch")
    state = {"pruner": fresh.state_dict()}
    checkpoint.load(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    fresh.load_state_dict(state["pruner"])
    assert torch.equal(fresh.plan(1), pruner.plan(1))
    assert torch.equal(fresh.scores, pruner.scores)


def test_accumulated_losses_add_up_to_one_batch():
    pruner, _ = scored()
    index = pruner.plan(0)[:6]
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 4, 7, generator=g).requires_grad_()
    target = torch.randint(7, (6, 4), generator=g)
    target[0, 1:] = -100  # so that micro-batches have different numbers of tokens
    (whole,) = torch.autograd.grad(pruner.loss(logits, target, index), logits)
    tokens = int((target != -100).sum())
    parts = [
        pruner.loss(logits[part], target[part], index[part], num_tokens=tokens)
        for part in (slice(0, 2), slice(2, 6))
    ]
    (grad,) = torch.autograd.grad(sum(parts), logits)
    torch.testing.assert_close(grad, whole)


def test_evaluation_leaves_scores_alone_and_weights_nothing():
    pruner, _ = scored()
    pruner.plan(1)
    before = pruner.scores.clone()
    logits, target = torch.randn(3, 4), torch.tensor([1, 2, 0])
    index = torch.tensor([N, N + 1, N + 2])  # of another data set
    for training in (None, False):
        with torch.no_grad() if training is None else contextlib.nullcontext():
            loss = pruner.loss(logits, target, index, training=training)
        torch.testing.assert_close(loss, F.cross_entropy(logits, target))
    assert torch.equal(pruner.scores, before)


def test_nan_scores_are_kept_where_asked():
    pruner, _ = scored(nan="keep")
    pruner.update(torch.tensor([5, 17]), torch.tensor([math.nan, math.inf]))
    for epoch in range(1, 20):
        assert {5, 17} <= set(pruner.plan(epoch).tolist())
    with pytest.raises(ValueError, match="nan: .* got 'drop'"):
        cpfast.DataPruner(5, nan="drop")


def test_kakurenbo_hides_easy_samples_and_scores_them_again():
    pruner = cpfast.DataPruner(100, num_epochs=10, policy="kakurenbo", keep=0.7, anneal=1.0)
    assert len(pruner.prepare(0)) == 100
    loss = torch.linspace(0.01, 2, 100)
    correct = torch.ones(100)
    correct[3] = 0  # of the lowest losses, but wrong
    pruner.update(torch.arange(100), loss, correct=correct)
    plan = pruner.prepare(1)
    easy = [i for i in range(30) if math.exp(-loss[i]) >= 0.7 and i != 3]
    assert plan.rescored.tolist() == pruner.rescored.tolist() == easy
    trained = set(pruner.plan(1).tolist())
    assert trained == set(range(100)) - set(easy)
    assert pruner.lr == pytest.approx(1 / (1 - len(easy) / 100))
    assert pruner.weights(torch.arange(100)).eq(1).all()
    # from 30 % of the training on, .8 of the candidates
    assert set(pruner.prepare(3).rescored.tolist()) == {i for i in easy if i < 24}
    with pytest.raises(ValueError, match="columns: .* needs loss, correct; got score and no other"):
        pruner.update(torch.arange(2), torch.zeros(2))


def test_selective_backprop_prefers_large_losses():
    pruner = cpfast.DataPruner(1000, num_epochs=10, policy="selective_backprop", keep=0.25)
    assert pruner.plan(0).numel() == 1000
    assert pruner.batch_filter is None  # before half of the training
    pruner.plan(5)
    chosen = pruner.batch_filter
    losses = torch.rand(64, generator=torch.Generator().manual_seed(0))
    draws = 4000
    counts = torch.zeros(64)
    for i in range(draws):
        uniform = pruning.Draw(0, 0, 0).uniform(torch.arange(64) + 64 * i)
        positions = chosen.choose(losses, uniform)
        assert len(positions.unique()) == len(positions) == chosen.kept(64) == 16
        counts[positions] += 1
    # numpy's own draw without replacement, as the paper's code has it
    generator = np.random.default_rng(0)
    percentile = (np.arange(64) + 0.5) / 64
    weights = percentile**3 / (percentile**3).sum()
    expected = np.zeros(64)
    for _ in range(draws):
        expected[generator.choice(64, 16, replace=False, p=weights)] += 1
    measured = counts[losses.argsort()].numpy()
    error = 5 * np.sqrt(2 * draws * 0.25)
    assert np.abs(measured - expected).max() < error
    assert measured[:16].sum() < 0.1 * measured[48:].sum()


def test_a_target_that_is_no_class_is_told_without_numbers_of_ours():
    pruner = cpfast.DataPruner(10, 5)
    logits = torch.randn(4, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"target\[2\]: expected a class in \[0, 3\), got 5$"):
        pruner.loss(logits, torch.tensor([0, 1, 5, 2]), torch.arange(4))
