"""Arguments of wrong types end in one line that names them, for every argument of every op."""

import inspect

import pytest
import torch
import torch.nn.functional as F

import cpfast
from cpfast import ops

BAD = {
    "None": None,
    "a text": "text",
    "a list": [1.0, [2.0]],
    "an array's cousin": object(),
    "a huge number": 10**30,
}


def arguments():
    """A good call of each op."""
    scores = torch.rand(6)
    logits, target = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    images = torch.zeros(6, 8, 8, 1, dtype=torch.uint8)
    key = {"seed": 1, "epoch": 2}
    index = torch.arange(6)
    count = torch.tensor(6)
    return {
        "layer_rotation": {"params": [scores], "refs": [scores], "ref_sq_norms": None},
        "layer_statistics": {"params": [scores], "refs": [scores], "ref_sq_norms": None},
        "scored_binary_cross_entropy": {
            "input": logits, "target": torch.rand(6, 3), "weight": scores,
            "pos_weight": torch.ones(3), "reduction": "none", "gradient": "backward",
            "table": torch.zeros(6), "index": index, "score": "margin",
        },
        "scored_mse": {
            "input": logits, "target": torch.rand(6, 3), "weight": scores, "reduction": "none",
            "gradient": "backward", "table": torch.zeros(6), "index": index, "score": "el2n",
        },
        "scored_cross_entropy": {
            "input": logits, "target": target, "weight": scores, "class_weight": torch.ones(3),
            "label_smoothing": 0.1, "z_loss": 0.1, "ignore_index": -100, "class_dim": -1,
            "reduction": "none", "gradient": "backward", "table": torch.zeros(6), "index": index,
            "score": "loss",
        },
        "scored_linear_cross_entropy": {
            "hidden": torch.randn(6, 4), "weight": torch.randn(3, 4), "target": target,
            "bias": torch.zeros(3), "sample_weight": scores, "class_weight": torch.ones(3),
            "label_smoothing": 0.1, "z_loss": 0.1, "ignore_index": -100, "reduction": "mean",
            "gradient": "forward", "logit_scale": 2.0,
            "softcap": 3.0, "chunk": 4, "max_rows": 6, "table": torch.zeros(6), "index": index,
            "score": "loss",
        },
        "select_samples": {
            "scores": scores, "keep": 0.5, **key, "stream": 0, "subset": None,
            "dtype": torch.int64,
        },
        "shuffled_slice": {"indices": index, "count": count, "start": 0, "size": 3, **key},
        "record_scores": {"scores": scores, "index": index, "values": scores.clone()},
        "augment_batch": {
            "images": images, "index": index, **key, "repeat": 0, "shift": 0.1, "rotation": 5.0,
            "crop": 0, "cutout": 0, "mean": None, "std": None, "dtype": torch.float32,
            "size": (4, 3),
        },
    }  # fmt: skip


# Any value is true or false, and these may be None.
ANY = {"flip", "shuffle"}
OPTIONAL = {
    "layer_rotation": {"ref_sq_norms"},
    "layer_statistics": {"ref_sq_norms"},
    "scored_binary_cross_entropy": {"weight", "pos_weight"},
    "scored_cross_entropy": {"weight", "class_weight"},
    "scored_mse": {"weight"},
    "scored_linear_cross_entropy": {
        "bias", "sample_weight", "class_weight", "gradient", "softcap", "chunk", "max_rows"
    },
    "select_samples": {"subset"},
    "augment_batch": {"mean", "std", "size"},
}  # fmt: skip
CASES = [
    (op, name, kind)
    for op, good in arguments().items()
    for name in good
    for kind in BAD
    if not (kind == "a huge number" and name in ("logit_scale", "softcap", "z_loss"))
    and not (kind == "None" and name in OPTIONAL.get(op, ()))
]


@pytest.mark.parametrize(("op", "name", "kind"), CASES)
def test_a_wrong_type_is_named(op, name, kind):
    good = arguments()[op]
    getattr(ops, op)(**good)
    with pytest.raises((TypeError, RuntimeError)) as caught:
        getattr(ops, op)(**{**good, name: BAD[kind]})
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"cpfast::{op}: {name}")


def test_every_argument_is_tried():
    for op, good in arguments().items():
        names = set(inspect.signature(getattr(ops, op)).parameters)
        assert names - ANY == set(good) | ({"stream"} if op == "shuffled_slice" else set())


@pytest.mark.parametrize("shape", [(4, 4), (3, 3, 2)])
def test_weights_that_may_be_one_per_class_are_refused(shape):
    logits = torch.randn(*shape) if len(shape) == 2 else torch.randn(3, 2, 3)
    samples, rows = logits.shape[0], logits.shape[:-1]
    target = torch.zeros(rows, dtype=torch.int64)
    weight = torch.rand(samples)
    with pytest.raises(RuntimeError, match=rf"weight: .* weight\[:, None\], of shape \[{samples}"):
        ops.scored_cross_entropy(logits, target, weight=weight)
    loss = ops.scored_cross_entropy(logits, target, weight=weight[:, None]).loss
    plain = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none").view(rows)
    torch.testing.assert_close(loss, plain * weight.view(-1, *[1] * (len(rows) - 1)))


def test_a_pruner_weights_as_many_samples_as_classes():
    pruner = cpfast.DataPruner(8)
    pruner.update(torch.arange(8), torch.arange(8.0))
    index = pruner.plan(1)[:4]
    logits, target = torch.randn(4, 4), torch.arange(4)
    loss = pruner.loss(logits.requires_grad_(), target, index)
    plain = F.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(loss, (pruner.weights(index) * plain).mean())


def test_classes_that_are_not_last_are_refused():
    with pytest.raises(RuntimeError, match="input: expected classes last.*class_dim=1"):
        ops.scored_cross_entropy(torch.randn(2, 5, 7), torch.zeros(2, 7, dtype=torch.int64))


def test_one_class_and_no_rows_are_as_in_torch():
    for shape in [(4, 1), (0, 5)]:
        logits, target = torch.randn(shape), torch.zeros(shape[0], dtype=torch.int64)
        for reduction in ("none", "sum", "mean"):
            torch.testing.assert_close(
                ops.scored_cross_entropy(logits, target, reduction=reduction).loss,
                F.cross_entropy(logits, target, reduction=reduction),
                equal_nan=True,
            )
    logits = torch.zeros(0, 5, requires_grad=True) * 1
    loss = ops.scored_cross_entropy(
        logits, torch.zeros(0, dtype=torch.int64), reduction="sum", gradient="inplace"
    ).loss
    loss.backward()
    assert loss == 0


@pytest.mark.parametrize("transform", ["grad", "vmap"])
def test_functional_transforms_are_refused_with_what_to_use(transform):
    target = torch.tensor([0, 1])

    def loss(logits):
        return ops.scored_cross_entropy(logits, target).loss.sum()

    with pytest.raises(
        RuntimeError, match=r"torch\.func.*use torch\.nn\.functional\.cross_entropy"
    ):
        if transform == "grad":
            torch.func.grad(loss)(torch.randn(2, 3))
        else:
            torch.vmap(loss)(torch.randn(4, 2, 3))
