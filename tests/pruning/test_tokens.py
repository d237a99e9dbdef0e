"""Token selection, beside a reference in numpy written from the paper, and by hand."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.host_reads import counted

import cpfast
from cpfast.ops import _logit_chunks

N, T, WIDTH, CLASSES = 12, 9, 6, 11
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def pruner(keep=0.4, **options):
    made = cpfast.DataPruner(N, 4, "tokens", keep, anneal=1.0, strict=None, **options)
    made.plan(0)
    return made


def batch(dtype=torch.float32, ignored=True, seed=0):
    g = torch.Generator().manual_seed(seed)
    index = torch.randperm(N, generator=g)[:7]
    hidden = torch.randn(7, T, WIDTH, generator=g, dtype=dtype)
    head = torch.nn.Linear(WIDTH, CLASSES).to(dtype)
    with torch.no_grad():
        head.weight.normal_(generator=g)
        head.bias.normal_(generator=g)
    target = torch.randint(CLASSES, (7, T), generator=g)
    if ignored:  # sequences of 9, 8, ..., 3 tokens, the ignored ones anywhere
        for row in range(7):
            target[row, torch.randperm(T, generator=g)[:row]] = -100
    return hidden.requires_grad_(), head, target, index


def reference_losses(dtype=torch.float32, seed=1):
    return torch.rand(N, T, generator=torch.Generator().manual_seed(seed)).to(dtype) * 3


def selected_by_numpy(logits, target, keep, reference=None):
    """Rho-1, equations 3 to 5, of each sequence: the tokens of the top k % by their excess loss,
    that of the model less that of the reference model."""
    chosen = np.zeros(target.shape, bool)
    for row, labels in enumerate(target):
        places = [t for t in range(len(labels)) if labels[t] != -100]
        scores = {}
        for t in places:
            z = logits[row, t].astype(np.float64)
            loss = np.log(np.exp(z - z.max()).sum()) + z.max() - z[labels[t]]
            scores[t] = loss - (0 if reference is None else float(reference[row, t]))
        number = max(1, round(keep * len(places)))
        chosen[row, sorted(places, key=lambda t: -scores[t])[:number]] = True
    return chosen


def by_hand(logits, target, chosen):
    """The mean over the selected of each sequence, sequences weighted by what counts of them."""
    losses = F.cross_entropy(
        logits.flatten(0, 1), target.flatten(), reduction="none", ignore_index=-100
    ).view(target.shape)
    counts = (target != -100).sum(1)
    means = (losses * chosen).sum(1) / chosen.sum(1)
    return (means * counts).sum() / counts.sum()


def gradients(loss, leaves):
    return [loss, *torch.autograd.grad(loss, leaves)]


def losses_of(made, way, hidden, head, target, index, **options):
    if way == "logits":
        return made.loss(head(hidden), target, index, **options)
    return made.linear_loss(hidden, head.weight, target, index, bias=head.bias, **options)


WAYS = ["logits", "hidden", "hidden as on CUDA"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("kind", [None, "float32", "float16", "call"])
@pytest.mark.parametrize("keep", [0.1, 0.4, 0.6])
def test_it_is_the_loss_of_the_tokens_of_the_top_excess(monkeypatch, way, ignored, kind, keep):
    if way == "hidden as on CUDA":  # whose host does not know which rows count
        monkeypatch.setattr(_logit_chunks, "_is_blind", lambda device: True)
    hidden, head, target, index = batch(torch.float64, ignored)
    table = None if kind is None else reference_losses().half().double()
    given = {} if table is None else {"reference": table[index]}
    of_pruner = {}
    if kind in ("float32", "float16"):
        of_pruner, given = {"reference": table.to(getattr(torch, kind))}, {}
    made = pruner(keep, **of_pruner)
    logits = head(hidden)
    rows = None if table is None else table[index].numpy()
    chosen = selected_by_numpy(logits.detach().numpy(), target.numpy(), keep, rows)
    assert chosen.sum() == sum(max(1, round(keep * int(n))) for n in (target != -100).sum(1))
    leaves = (hidden, head.weight, head.bias)
    expected = gradients(by_hand(logits, target, torch.from_numpy(chosen)), leaves)
    loss = losses_of(made, way, hidden, head, target, index, **given)
    for own, other in zip(gradients(loss, leaves), expected, strict=True):
        torch.testing.assert_close(own, other)
    # Of what is left out nothing comes.
    moved = torch.autograd.grad(losses_of(made, way, hidden, head, target, index, **given), hidden)[
        0
    ]
    assert torch.equal((moved != 0).any(-1), torch.from_numpy(chosen))
    if not ignored:  # as the paper has it: the mean over all that are selected
        plain = F.cross_entropy(logits[torch.from_numpy(chosen)], target[torch.from_numpy(chosen)])
        torch.testing.assert_close(loss, plain)


@pytest.mark.parametrize("way", ["logits", "hidden"])
def test_the_scores_of_the_samples_are_those_of_all_their_tokens(way):
    hidden, head, target, index = batch()
    made, plain = pruner(0.2), cpfast.DataPruner(N, 4, "random", strict=None)
    plain.plan(0)
    losses_of(made, way, hidden, head, target, index)
    losses_of(plain, way, hidden, head, target, index)
    assert torch.equal(made.scores, plain.scores) and made.samples_seen == 7
    assert made.scores.isfinite().sum() == 7


@pytest.mark.parametrize("way", ["logits", "hidden"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(
    "options", [{}, {"reduction": "sum"}, {"reduction": "none"}, {"num_tokens": 50}], ids=str
)
def test_all_tokens_are_the_plain_loss(way, dtype, options):
    hidden, head, target, index = batch(dtype)
    plain = cpfast.DataPruner(N, 4, "random", strict=None)
    plain.plan(0)
    leaves = (hidden, head.weight, head.bias)
    pairs = []
    for made in (pruner(1.0, reference=reference_losses()), plain):
        loss = losses_of(made, way, hidden, head, target, index, **options)
        pairs.append([loss, *torch.autograd.grad(loss.sum(), leaves)])
    for own, other in zip(*pairs, strict=True):
        if way == "logits":  # to the bit
            assert torch.equal(own, other)
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("way", ["logits", "hidden"])
def test_the_gradients_of_parts_of_a_batch_add_up(way):
    hidden, head, target, index = batch(torch.float64)
    made = pruner(reference=reference_losses())
    leaves = (head.weight, head.bias)
    whole = gradients(losses_of(made, way, hidden, head, target, index), leaves)
    total = (target != -100).sum()
    parts = []
    for part in (slice(0, 3), slice(3, 7)):
        loss = losses_of(made, way, hidden[part], head, target[part], index[part], num_tokens=total)
        parts.append(gradients(loss, leaves))
    for one, two, both in zip(*parts, whole, strict=True):
        torch.testing.assert_close(one + two, both)
    summed = losses_of(made, way, hidden, head, target, index, reduction="sum")
    torch.testing.assert_close(summed / total, whole[0])
    each = losses_of(made, way, hidden, head, target, index, reduction="none")
    assert each.shape == target.shape
    torch.testing.assert_close(each.sum(), summed)


@pytest.mark.parametrize("way", ["logits", "hidden"])
def test_weights_of_samples_multiply(way):
    hidden, head, target, index = batch(torch.float64)
    weight = torch.rand(7, dtype=torch.float64)
    made = pruner(reference=reference_losses())
    each = losses_of(made, way, hidden, head, target, index, reduction="none")
    for given in (weight, weight[:, None], weight[:, None].expand(7, T)):
        loss = losses_of(made, way, hidden, head, target, index, weight=given.contiguous())
        torch.testing.assert_close(loss, (each * weight[:, None]).sum() / (target != -100).sum())


@pytest.mark.parametrize("way", ["logits", "hidden"])
def test_equal_losses_keep_the_first_and_what_is_no_number_shows(way):
    made = pruner(0.5)
    hidden, head = torch.zeros(2, T, WIDTH), torch.nn.Linear(WIDTH, CLASSES)
    target = torch.zeros(2, T, dtype=torch.int64)
    target[0, :3] = -100
    hidden.requires_grad_()
    index = torch.arange(2)
    grad = torch.autograd.grad(losses_of(made, way, hidden, head, target, index), hidden)[0]
    moved = (grad != 0).any(-1).tolist()
    assert moved == [[False] * 3 + [True] * 3 + [False] * 3, [True] * 4 + [False] * 5]
    hidden = hidden.detach().clone()
    hidden[1, 8] = torch.nan
    assert losses_of(made, way, hidden.requires_grad_(), head, target, index).isnan()


@pytest.mark.parametrize("way", ["logits", "hidden"])
def test_a_sequence_of_ignored_tokens_has_no_part(way):
    hidden, head, target, index = batch()
    target[2] = -100
    rest = torch.tensor([0, 1, 3, 4, 5, 6])
    made = pruner()
    loss = losses_of(made, way, hidden, head, target, index)
    others = losses_of(made, way, hidden[rest], head, target[rest], index[rest])
    torch.testing.assert_close(loss, others)
    target[:] = -100
    assert losses_of(made, way, hidden, head, target, index).isnan()  # as of any mean of nothing
    assert losses_of(made, way, hidden, head, target, index, reduction="sum") == 0


def test_nothing_is_selected_in_evaluation_and_in_full_epochs():
    hidden, head, target, index = batch()
    made = pruner(reference=reference_losses())
    expected = F.cross_entropy(head(hidden).flatten(0, 1), target.flatten())
    with torch.no_grad():
        torch.testing.assert_close(made.loss(head(hidden), target, index), expected)
    made.plan(1, prune=False)
    assert made.token_filter is None
    torch.testing.assert_close(made.loss(head(hidden), target, index), expected)
    made.plan(1)
    assert made.token_filter == pruner().token_filter != pruner(0.5).token_filter
    assert len({made.token_filter, pruner().token_filter, pruner(0.5).token_filter}) == 2
    made.plan(2, keep=1.0)
    torch.testing.assert_close(made.loss(head(hidden), target, index), expected)


def test_every_sample_is_in_every_epoch():
    made = pruner()
    for epoch in range(3):
        assert sorted(made.plan(epoch).tolist()) == list(range(N))
        assert (made.weights(made.plan(epoch)) == 1).all()


@pytest.mark.parametrize("way", ["logits", "hidden"])
def test_half_precision(way):
    hidden, head, target, index = batch()
    made = pruner(reference=reference_losses().bfloat16())
    expected = losses_of(made, way, hidden, head, target, index)
    with torch.autocast("cpu", torch.bfloat16):
        loss = losses_of(made, way, hidden, head, target, index)
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0.05)
    assert loss.dtype == torch.float32


def test_it_never_waits_for_the_device():
    hidden, head, target, index = batch()
    made = pruner(reference=reference_losses())
    logits = head(hidden)
    with counted() as reads:
        made.loss(logits, target, index)
    assert reads == []


def test_a_resume_has_the_same_reference():
    hidden, head, target, index = batch()
    made = pruner(reference=reference_losses())
    made.loss(head(hidden), target, index)
    state = made.state_dict()
    again = pruner(0.9, reference=reference_losses())
    again.load_state_dict(state)
    for other in (again, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(
            other.loss(head(hidden), target, index), made.loss(head(hidden), target, index)
        )
    with pytest.raises(ValueError, match=r"^state_dict\['reference'\]: expected the checksum"):
        pruner(reference=reference_losses(seed=2)).load_state_dict(state)
    with pytest.raises(ValueError, match=r"^state_dict\['reference'\]: .*None, got \d+$"):
        pruner().load_state_dict(state)
    with pytest.raises(ValueError, match=r"^state_dict\['reference'\]: .*, got None$"):
        again.load_state_dict(pruner().state_dict())
    with pytest.raises(ValueError, match=r"^state_dict\['reference'\]: expected int, got"):
        again.load_state_dict({**state, "reference": "x"})
    assert "reference" not in pruner().state_dict()


def test_a_reference_is_taken_as_it_lies():
    table = reference_losses()
    assert pruner(reference=table)._reference.data_ptr() == table.data_ptr()
    assert pruner(reference=table[:, ::2])._reference.shape == (N, 5)


def wrong(value):
    table = reference_losses()
    table[5, 2] = value
    return table


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": reference_losses()[1:]}, r"reference: expected \[12, T\] floating, got a"),
        ({"reference": reference_losses()[0]}, r"reference: expected \[12, T\] floating"),
        ({"reference": reference_losses().long()}, r"reference: expected \[12, T\] floating"),
        ({"reference": wrong(torch.nan)}, r"reference: expected finite .*, got nan at \[5, 2\]$"),
        ({"reference": wrong(torch.inf)}, r"reference: expected finite .*, got inf at \[5, 2\]$"),
        ({"reference": reference_losses(), "policy": "random"},
         "reference: the policy 'random' does not look at tokens, got a tensor"),
    ],
)  # fmt: skip
def test_a_reference_that_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        cpfast.DataPruner(N, **{"policy": "tokens", **options})


@pytest.mark.parametrize("way", ["logits", "hidden"])
def test_what_does_not_fit_a_batch_is_refused_in_a_line(way):
    hidden, head, target, index = batch()
    made = pruner(reference=reference_losses())
    cases = [
        ({"target": target[:, 0], "hidden": hidden[:, 0]}, ValueError,
         r"target: the policy 'tokens' selects among the tokens of sequences, and expects classes "
         r"\[B, T\], got \[7\]"),
        ({"target": target[:, 1:], "hidden": hidden[:, 1:]}, ValueError,
         r"reference: expected losses of the 8 tokens of each sample, got a tensor \[12, 9\]"),
        ({"reference": reference_losses()}, ValueError,
         r"reference: expected losses of the 9 tokens of each sample, got a tensor \[12, 9\]"),
        ({"label_smoothing": 0.1}, ValueError, r"label_smoothing: expected 0, for the losses of a"),
        ({"reference": [1.0]}, TypeError, "reference: expected a tensor"),
    ]  # fmt: skip
    for changes, kind, message in cases:
        given = {"hidden": hidden, "head": head, "target": target, "index": index, **changes}
        with pytest.raises(kind, match=f"^{message}") as caught:
            losses_of(made, way, **given)
        assert "\n" not in str(caught.value)
    unplanned = cpfast.DataPruner(N, policy="tokens")
    with pytest.raises(RuntimeError, match="^DataPruner: the policy 'tokens' selects tokens as"):
        losses_of(unplanned, way, hidden, head, target, index)
    with pytest.raises(ValueError, match="^losses: the policy 'tokens' selects among tokens in"):
        made.weighted(torch.rand(7, T), index)
    other = cpfast.DataPruner(N, policy="random")
    with pytest.raises(ValueError, match="^reference: the policy 'random' does not look at"):
        losses_of(other, way, hidden, head, target, index, reference=reference_losses()[index])
    # Without a reference labels may be smoothed.
    smoothed = losses_of(pruner(1.0), way, hidden, head, target, index, label_smoothing=0.1)
    expected = F.cross_entropy(head(hidden).flatten(0, 1), target.flatten(), label_smoothing=0.1)
    torch.testing.assert_close(smoothed, expected)


def test_weighted_classes_are_the_same_over_logits_and_without_them():
    hidden, head, target, index = batch()
    weight = torch.linspace(0.2, 2, CLASSES)
    whole, chunked = pruner(), pruner()
    loss = whole.loss(head(hidden), target, index, class_weight=weight, z_loss=0.01)
    (expected,) = torch.autograd.grad(loss, hidden)
    of_hidden = chunked.linear_loss(
        hidden, head.weight, target, index, bias=head.bias, class_weight=weight, z_loss=0.01
    )
    (grad,) = torch.autograd.grad(of_hidden, hidden)
    torch.testing.assert_close(of_hidden, loss)
    torch.testing.assert_close(grad, expected)
    torch.testing.assert_close(chunked.scores, whole.scores)
    with pytest.raises(ValueError, match="class_weight: expected None, for the losses of a ref"):
        pruner(reference=reference_losses()).loss(head(hidden), target, index, class_weight=weight)
