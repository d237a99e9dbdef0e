"""Mixup and CutMix against a small account of both, written from the papers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.host_reads import counted

import cpfast
from cpfast import Mixer

B, N, C = 6, 20, 5


def batch(size=(9, 12)):
    g = torch.Generator().manual_seed(1)
    images = torch.rand(B, 3, *size, generator=g).contiguous(memory_format=torch.channels_last)
    return images, torch.randint(C, (B,), generator=g), torch.randperm(N, generator=g)[:B]


def mixer(kind, alpha=0.4, epoch=2, steps=50):
    made = Mixer(seed=7, steps=50)
    made.begin(kind, alpha, epoch, steps)
    return made


def test_mixup_is_a_convex_combination_with_the_sample_before():
    images, _, _ = batch()
    one = mixer("mixup")
    for _ in range(3):
        mixed, share = one.mix("mixup", images)
        x, s = images.numpy(), share.item()
        expected = s * x + (1 - s) * x[[B - 1, *range(B - 1)]]
        np.testing.assert_allclose(mixed.numpy(), expected, rtol=1e-6)
        assert mixed.dtype == images.dtype and mixed.stride() == images.stride()


def test_cutmix_pastes_a_rectangle_whose_area_is_what_is_left():
    images, _, _ = batch((16, 12))
    one = mixer("cutmix", alpha=1.0)
    shares = []
    for _ in range(50):
        mixed, share = one.mix("cutmix", images)
        assert mixed.stride() == images.stride()
        foreign = (mixed != images).any(1)
        assert all(torch.equal(foreign[0], other) for other in foreign)
        rows, columns = foreign[0].any(1), foreign[0].any(0)
        assert torch.equal(foreign[0], rows[:, None] & columns)
        for run in (rows, columns):  # in one piece
            assert (run.int().diff().abs().sum() + run[0].int() + run[-1].int()) in (0, 2)
        inside = foreign[0]
        assert torch.equal(mixed[..., inside], images.roll(1, 0)[..., inside])
        assert share.item() == pytest.approx(1 - foreign[0].float().mean().item(), abs=1e-6)
        shares.append(share.item())
    assert min(shares) < 0.3 and max(shares) > 0.9


def test_the_rectangle_is_as_large_as_the_paper_has_it():
    """Sides of sqrt(1 - share) of the image's, where no edge cuts it (algorithm A1)."""
    one = mixer("cutmix", alpha=1.0)
    for drawn in one._draws[:50]:
        _, share = one.mix("cutmix", torch.zeros(2, 1, 1000, 1000))
        side = (1 - drawn[0].item()) ** 0.5
        if all(side / 2 < place < 1 - side / 2 for place in drawn[1:].tolist()):
            assert share.item() == pytest.approx(drawn[0].item(), abs=0.005)


def test_shares_are_those_of_beta():
    one = Mixer(seed=1, steps=20_000)
    for alpha in (0.2, 1.0, 2.0):
        one.begin("mixup", alpha, 0, 20_000)
        share = one._draws[:, 0].double()
        assert share.mean().item() == pytest.approx(0.5, abs=0.015)
        assert share.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


def test_draws_follow_from_seed_and_epoch_alone():
    images, _, _ = batch()

    def drawn(epoch, seed=7):
        one = Mixer(seed, 50)
        one.begin("mixup", 0.4, epoch, 50)
        return torch.stack([one.mix("mixup", images)[1] for _ in range(5)])

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4)) and not torch.equal(drawn(3), drawn(3, seed=8))
    one = mixer("mixup", epoch=3)
    one.mix("mixup", images)
    one.begin("mixup", 0.4, 3, 50)  # again from the beginning
    assert torch.equal(torch.stack([one.mix("mixup", images)[1] for _ in range(5)]), drawn(3))


def test_the_loss_weighs_each_label_by_its_share_and_its_sample():
    _, target, index = batch()
    logits = torch.randn(B, C, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    logits.requires_grad_()
    weight = torch.linspace(0.5, 2, B)
    pruner = cpfast.DataPruner(N, strict=None)
    share = torch.tensor(0.3)
    loss = mixer("mixup").loss(pruner, logits, target, index, share, weight=weight)
    (gradient,) = torch.autograd.grad(loss, logits)
    each = F.cross_entropy(logits, target, reduction="none")
    others = F.cross_entropy(logits, target.roll(1), reduction="none")
    expected = (0.3 * weight * each + 0.7 * weight.roll(1) * others).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    (wanted,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(pruner.scores[index], each.float())


def test_expected_over_places_no_weight_is_lost():
    """A sample's label counts share x weight in its place, (1 - share) x weight in the next: in a
    batch of equal logits the loss is that without mixing."""
    _, target, index = batch()
    logits = torch.zeros(B, C, requires_grad=True)
    weight = torch.linspace(0.5, 2, B)
    losses = [
        mixer("mixup")
        .loss(cpfast.DataPruner(N, strict=None), logits, target, index, share, weight=weight)
        .item()
        for share in (None, torch.tensor(0.1), torch.tensor(0.8))
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


def test_without_a_kind_nothing_is_mixed():
    images, target, index = batch()
    one = mixer(None)
    mixed, share = one.mix(None, images)
    assert mixed is images and share is None
    pruner, logits = cpfast.DataPruner(N, strict=None), torch.randn(B, C, requires_grad=True)
    expected = pruner.loss(logits, target, index)
    assert torch.equal(one.loss(pruner, logits, target, index, share), expected)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_step_reads_nothing_from_the_device(kind):
    images, target, index = batch()
    one, pruner = mixer(kind), cpfast.DataPruner(N, strict=None)
    pruner.plan(0)
    with counted() as reads:
        mixed, share = one.mix(kind, images)
        one.loss(pruner, mixed.mean((2, 3)).repeat(1, 2)[:, :C], target, index, share)
    assert reads == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "blend"}, "kind: expected one of .* got 'blend'"),
        ({"alpha": 0.0}, "alpha: expected a number above 0, got 0"),
        ({"steps": 51}, "steps: expected an integer up to 50, got 51"),
        ({"epoch": -1}, "epoch: expected at least 0, got -1"),
    ],
)
def test_what_is_wrong_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        Mixer(0, 50).begin(**{"kind": "mixup", "alpha": 0.2, "epoch": 0, "steps": 3, **options})
