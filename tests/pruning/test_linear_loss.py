"""DataPruner.linear_loss beside DataPruner.loss of the same logits, and its layer."""

import pytest
import torch
import torch.nn.functional as F
from support.torchrun import launch
from torch import nn

import cpfast

N, WIDTH, CLASSES = 60, 12, 30


def pruners(policy="infobatch", **options):
    """Two in the same epoch, whose plan has weights that are not 1."""
    made = []
    for _ in range(2):
        pruner = cpfast.DataPruner(N, 10, policy, anneal=1.0, strict=None, **options)
        pruner.plan(0)
        columns = {name: torch.linspace(0, 1, N) for name in pruner.columns}
        first = columns.pop(next(iter(columns)))
        pruner.update(torch.arange(N), first, **columns)
        pruner.plan(1)
        made.append(pruner)
    return made


def batch(pruner, tokens=None, seed=0):
    g = torch.Generator().manual_seed(seed)
    index = pruner.plan(1)[:16]
    shape = (16,) if tokens is None else (16, tokens)
    target = torch.randint(CLASSES, shape, generator=g)
    if tokens is not None:
        target.view(-1)[::5] = -100
    hidden = torch.randn(*shape, WIDTH, generator=g).requires_grad_()
    head = cpfast.ScoredLMHead(WIDTH, CLASSES, bias=True)
    with torch.no_grad():
        head.weight.normal_(generator=g)
        head.bias.normal_(generator=g)
    return hidden, head, target, index


@pytest.mark.parametrize("policy", ["infobatch", "kakurenbo", "el2n", "aum"])
@pytest.mark.parametrize("tokens", [None, 7])
@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"num_tokens": 50}], ids=str)
def test_it_is_the_loss_of_the_logits(policy, tokens, options):
    whole, chunked = pruners(policy)
    hidden, head, target, index = batch(whole, tokens)
    expected = whole.loss(head(hidden), target, index, **options)
    expected.sum().backward()
    wanted = [x.grad for x in (hidden, head.weight, head.bias)]
    for given in (head, head.weight):
        bias = {"bias": head.bias} if given is head.weight else {}
        hidden.grad = head.weight.grad = head.bias.grad = None
        loss = chunked.linear_loss(hidden, given, target, index, chunk=5, **bias, **options)
        loss.sum().backward()
        torch.testing.assert_close(loss, expected)
        for leaf, grad in zip((hidden, head.weight, head.bias), wanted, strict=True):
            torch.testing.assert_close(leaf.grad, grad, rtol=1e-4, atol=1e-6)
        for name, column in whole.columns.items():
            torch.testing.assert_close(chunked.columns[name], column, rtol=1e-4, atol=1e-5)
    assert 2 * whole.samples_seen - N == chunked.samples_seen  # twice as many batches


@pytest.mark.parametrize("tokens", [None, 7])
def test_weights_are_one_a_sample_in_either_shape(tokens):
    pruner, _ = pruners()
    hidden, head, target, index = batch(pruner, tokens)
    weight = pruner.weights(index)
    expected = pruner.loss(head(hidden), target, index)
    for given in (weight, weight[:, None]):
        of_logits = pruner.loss(head(hidden), target, index, weight=given)
        of_hidden = pruner.linear_loss(hidden, head, target, index, weight=given)
        torch.testing.assert_close(of_logits, expected)
        torch.testing.assert_close(of_hidden, expected)


def test_evaluation_records_nothing_and_weighs_nothing():
    pruner, _ = pruners()
    hidden, head, target, _ = batch(pruner)
    before, seen = pruner.scores.clone(), pruner.samples_seen
    with torch.no_grad():
        loss = pruner.linear_loss(hidden, head, target, torch.tensor([10**6]))
    torch.testing.assert_close(loss, F.cross_entropy(head(hidden), target))
    assert torch.equal(pruner.scores, before) and pruner.samples_seen == seen


def test_what_does_not_fit_is_refused():
    pruner, _ = pruners()
    hidden, head, target, index = batch(pruner)
    with pytest.raises(ValueError, match=r"index: expected shape \(16,\) as target, got \(3,\)"):
        pruner.linear_loss(hidden, head, target, index[:3])
    with pytest.raises(ValueError, match="num_tokens: goes with reduction='mean'"):
        pruner.linear_loss(hidden, head, target, index, num_tokens=3, reduction="sum")
    with pytest.raises(RuntimeError, match=r"target\[0\]: expected a class in \[0, 30\)"):
        pruner.linear_loss(hidden, head, torch.full((16,), -100), index)  # a sample is not ignored
    with pytest.raises(TypeError, match="softcap"):
        head(hidden, softcap=3.0)


def test_a_head_takes_over_a_layer_with_its_ties():
    embedding, linear = nn.Embedding(CLASSES, WIDTH), nn.Linear(WIDTH, CLASSES, bias=False)
    linear.weight = embedding.weight
    head = cpfast.ScoredLMHead.of(linear.eval(), softcap=3.0, logit_scale=0.5)
    assert head.weight is embedding.weight and head.bias is None and not head.training
    hidden = torch.randn(4, WIDTH)
    expected = 3 * torch.tanh(0.5 * linear(hidden) / 3)
    torch.testing.assert_close(head(hidden), expected)
    target = torch.arange(4)
    torch.testing.assert_close(
        head(hidden, target).loss, F.cross_entropy(expected, target, reduction="none")
    )
    linear.register_forward_hook(lambda *_: None)
    with pytest.raises(TypeError, match="linear: has hooks"):
        cpfast.ScoredLMHead.of(linear)
    with pytest.raises(TypeError, match="linear: expected a Linear, got a Embedding"):
        cpfast.ScoredLMHead.of(embedding)


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_sharded_or_replicated_it_is_that_of_one_process(tmp_path, processes):
    launch("linear_losses.py", tmp_path, processes=processes)
    one = torch.load(tmp_path / "one.pt")
    for kind in ("ddp", "fsdp"):
        several = torch.load(tmp_path / f"{kind}.pt")
        torch.testing.assert_close(several, one, rtol=1e-5, atol=1e-6)
