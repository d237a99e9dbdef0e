"""DataPruner.binary_loss and mse_loss beside torch's losses, weighted and recorded by hand."""

import pytest
import torch
import torch.nn.functional as F

import cpfast

N, B = 20, 6


def case(way, device, dtype=torch.float32):
    """The pruner's loss, torch's of the elements, operands and a plan's batch with weights."""
    g = torch.Generator().manual_seed(0)
    pruner = cpfast.DataPruner(N, keep=0.5, device=device)
    scores = torch.rand(N, generator=g)
    pruner.update(torch.arange(N, device=device), scores.to(device))
    index = pruner.plan(1)[-B:]
    input = torch.randn(B, 3, 4, generator=g).to(dtype).to(device).requires_grad_()
    target = torch.rand(B, 3, 4, generator=g).to(device)
    if way == "binary":
        return pruner, pruner.binary_loss, F.binary_cross_entropy_with_logits, input, target, index
    return pruner, pruner.mse_loss, F.mse_loss, input, target, index


@pytest.mark.parametrize("way", ["binary", "squared"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_losses_gradients_and_what_is_recorded(device, way, reduction, weighted):
    pruner, own, torchs, input, target, index = case(way, device)
    weight = torch.linspace(0.5, 2, B, device=device) if weighted else pruner.weights(index)
    assert weighted or weight.unique().tolist() == [1, 2]
    loss = own(input, target, index, weight=weight if weighted else None, reduction=reduction)
    other = input.detach().clone().requires_grad_()
    each = torchs(other, target, reduction="none").flatten(1).mean(1)
    expected = each * weight
    expected = expected if reduction == "none" else getattr(expected, reduction)()
    torch.testing.assert_close(loss, expected)
    up = torch.linspace(1, 2, loss.numel(), device=device).view(loss.shape)
    loss.backward(up)
    expected.backward(up)
    torch.testing.assert_close(input.grad, other.grad)
    torch.testing.assert_close(pruner.scores[index], each.detach())
    assert pruner.samples_seen == N + B


@pytest.mark.parametrize("way", ["binary", "squared"])
def test_evaluation_records_and_weights_nothing(device, way):
    pruner, own, torchs, input, target, _ = case(way, device)
    before = pruner.scores.clone()
    with torch.no_grad():
        loss = own(input, target, torch.full((B,), 10**6, device=device))
        torch.testing.assert_close(loss, torchs(input, target))
    assert torch.equal(pruner.scores, before)


def test_policies_of_other_columns(device):
    input, target = torch.randn(B, 3, device=device), torch.rand(B, 3, device=device)
    index = torch.arange(B, device=device)
    forgetting = cpfast.DataPruner(N, policy="kakurenbo", device=device)
    forgetting.plan(0)
    forgetting.binary_loss(input.requires_grad_(), target, index)
    for column in forgetting.columns.values():
        assert column[:B].isfinite().all()
    with pytest.raises(ValueError, match="input: the policy 'kakurenbo' needs .*regression does"):
        forgetting.mse_loss(input, target, index)
    tokens = cpfast.DataPruner(N, policy="tokens", device=device)
    with pytest.raises(ValueError, match="logits: the policy 'tokens' selects among tokens"):
        tokens.binary_loss(input, target, index)


@pytest.mark.parametrize("way", ["binary", "squared"])
def test_as_many_samples_as_elements_and_half_precision(device, way):
    pruner, own, torchs, *_ = case(way, device)
    pruner = cpfast.DataPruner(N, device=device)
    index = pruner.plan(0)[:4]
    own = pruner.binary_loss if way == "binary" else pruner.mse_loss
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        input = torch.randn(4, 4, device=device).to(dtype).requires_grad_()
        target = torch.rand(4, 4, device=device).to(dtype)
        loss = own(input, target, index)
        loss.backward()
        torch.testing.assert_close(
            loss, torchs(input.detach().float(), target.float()), rtol=1e-4, atol=1e-5
        )
        assert input.grad.dtype == dtype


def test_an_index_of_another_shape_is_refused():
    pruner = cpfast.DataPruner(N)
    pruner.plan(0)
    x = torch.randn(4, 2, requires_grad=True)
    with pytest.raises(ValueError, match=r"index: expected shape \(4,\) as target, got \(3,\)"):
        pruner.mse_loss(x, torch.zeros(4, 2), torch.arange(3))
