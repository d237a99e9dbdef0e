"""Training on the tokens of the largest excess loss, from the file of a reference model on."""

import dataclasses

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from support.toy_training import assert_same_checkpoint, make_config, start, toy_data, toy_text

from cpfast.recipes import StepShape
from cpfast.train import checks, last_layer, loop, references, run, scoring, trained
from cpfast.train.errors import UserError
from cpfast.train.ranks import Ranks

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTH = """[[actions]]
action = "prune"

[[actions]]
action = "length"
share = 0.5
window = { begin = 0.5 }
"""


def config_of(**options):
    base = {"data": "python-docs", "epochs": 3, "batch_size": 8, "method": "prune", "repeats": 1,
            "energy": False, "policy": "tokens", "anneal": 1.0}  # fmt: skip
    return make_config(**{**base, "model": "transformer", "criterion": "slope45", "at": None,
                          "lr": 1e-3, **options})  # fmt: skip


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """The model of a short run, and a file of its scores."""
    path = tmp_path_factory.mktemp("reference")
    config = config_of(policy="random", epochs=1)
    run.train(config, toy_text(), start(path / "run", config))
    model = trained.load(path / "run")
    scores = scoring.score(model, toy_text(), "train")
    references.write(path / "scores.safetensors", scores, toy_text(), "train", run="run")
    return model, path / "scores.safetensors"


def other_file(scored, path, about=None, **tensors):
    """The file with some of it changed; a tensor that is None is left out."""
    with safetensors.safe_open(scored[1], "pt") as file:
        metadata = {**file.metadata(), **(about or {})}
        kept = {name: file.get_tensor(name) for name in file.keys()} | tensors  # noqa: SIM118
    kept = {name: value for name, value in kept.items() if value is not None}
    safetensors.torch.save_file(kept, path, metadata)
    return str(path)


def test_scores_are_those_of_the_samples(scored):
    model, path = scored
    tokens = toy_text().train_tokens.long()
    with torch.no_grad():
        logits = model(tokens[:, :-1])
    losses = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    scores = scoring.score(model, toy_text(), "train")
    torch.testing.assert_close(scores["token_loss"], losses)
    torch.testing.assert_close(scores["loss"], losses.mean(1))
    errors = logits.softmax(-1) - F.one_hot(tokens[:, 1:], 5)
    torch.testing.assert_close(scores["el2n"], errors.norm(dim=-1).mean(1))
    right = (logits.argmax(-1) == tokens[:, 1:]).float().mean(1)
    torch.testing.assert_close(scores["correct"], right)
    assert torch.equal(references.load(str(path), toy_text()), scores["token_loss"])
    assert len(scoring.score(model, toy_text(), "test")["loss"]) == 10


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"precision": "bf16"}], ids=str)
@pytest.mark.parametrize("together", [False, True])
def test_it_trains_and_resumes_to_the_bit(tmp_path, monkeypatch, scored, options, together):
    monkeypatch.setattr(last_layer, "pays", lambda *_: together)
    config = config_of(reference=str(scored[1]), **options)
    whole, parts = start(tmp_path / "whole", config), start(tmp_path / "parts", config)
    training = run.train(config, toy_text(), whole)
    assert (training.hidden is not None) == together
    for epochs in (1, 2, 3):
        run.train(config, toy_text(), parts, epochs=epochs)
    assert_same_checkpoint(whole, parts)
    # Others than of all tokens, and than by their own loss.
    for name, changes in (("all", {"policy": "random", "keep": 1.0}), ("own", {})):
        other = start(tmp_path / name, config_of(**options, **changes))
        run.train(other.config(), toy_text(), other)
        lines = [folder.metrics()[-1]["test_loss"] for folder in (whole, other)]
        assert lines[0] != lines[1]


def test_the_last_layer_with_its_loss_trains_as_whole_logits_do(tmp_path, monkeypatch, scored):
    ends = []
    for together in (False, True):
        monkeypatch.setattr(last_layer, "pays", lambda *_, together=together: together)
        config = config_of(reference=str(scored[1]))
        folder = start(tmp_path / str(together), config)
        training = run.train(config, toy_text(), folder)
        ends.append((training.pruner.scores, folder.metrics()[-1]["test_loss"]))
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-4)


def test_a_step_is_that_of_the_selected_tokens(scored):
    """Against a mean that is written out."""
    training = loop.Training(config_of(reference=str(scored[1]), keep=0.25), toy_text())
    settings = training.recipe.settings(training.moment())
    loop._plan(training, settings, training.moment())
    model, losses = training.model, references.load(str(scored[1]), toy_text())
    index, draw, _ = training.stream.next()
    training.stream._cursor.zero_()
    inputs, targets = training.batches.train(index, draw)
    own = F.cross_entropy(model(inputs).transpose(1, 2), targets, reduction="none")
    chosen = (own - losses[index]).topk(2, dim=1).indices  # a quarter of 8
    own.gather(1, chosen).mean().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    training.optimizer.zero_grad()
    training._add_gradients(StepShape(), None)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    # The loss of the epoch is that of all tokens.
    torch.testing.assert_close(training.loss_sum.float(), own.mean().detach())


def test_shortened_sequences_are_compared_with_their_own_tokens(tmp_path, scored):
    config = config_of(recipe_text=LENGTH, method="short", reference=str(scored[1]))
    data = toy_text()
    training = loop.Training(config, data)
    index, draw = torch.arange(20), torch.arange(20) % 3
    shape = StepShape(length=0.5)
    _, targets = training.batches.train(index, draw, shape)
    everything = data.train_tokens[:, 1:].long()
    assert torch.equal(training.batches.beside(everything[index], index, draw, shape), targets)
    assert targets.shape == (20, 4) and training._reference_of(index, draw, StepShape()) is None
    beside = training._reference_of(index, draw, shape)
    assert beside.shape == (20, 4)
    run.train(config, data, start(tmp_path / "run", config))


def test_each_selection_has_a_step_of_its_own():
    training = loop.Training(config_of(), toy_text())
    steps = []
    for epoch, keep in enumerate((0.5, 0.5, 0.25)):
        training.pruner.plan(epoch, keep=keep)
        settings = training.recipe.settings(training.moment())
        steps.append(training.step_of(settings, None))
    assert steps[0] is steps[1] is not steps[2]


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({"policy": "random"}, toy_text(), "--reference goes with a policy that selects among to"),
        ({"label_smoothing": 0.1}, toy_text(), "--reference: its losses .* --label-smoothing 0.1$"),
        ({"labels": "random"}, toy_text(), "--reference: its losses .* got --labels random$"),
        (
            {"model": "cnn", "data": "digits"},
            toy_data(),
            "--policy tokens selects among the tokens",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_line(scored, options, data, message):
    config = config_of(reference=str(scored[1]), **options)
    with pytest.raises(UserError, match=f"^{message}") as caught:
        checks.check(config, data, Ranks())
    assert "\n" not in str(caught.value)


def changed_text(**changes):
    return dataclasses.replace(toy_text(), **changes)


def test_a_file_of_other_data_is_refused_in_a_line(scored, tmp_path):
    path, text = str(scored[1]), toy_text()
    losses = references.load(path, text)
    half = other_file(scored, tmp_path / "half", token_loss=losses.half())
    assert references.load(half, text).dtype == torch.float16
    moved = text.train_tokens.clone()
    moved[3, 2] += 1
    (tmp_path / "no").write_bytes(b"no such file")
    cases = [
        (path, changed_text(vocabulary="abcdx"), "of toy, whose 5 characters are not the 5 of toy"),
        (path, changed_text(vocabulary="abcdef"), "of toy, whose 5 characters are not the 6"),
        (path, changed_text(train_tokens=text.train_tokens[1:]),
         r"losses of \[30, 8\] torch.float32; toy has 29 training sequences of 8 tokens"),
        (path, changed_text(train_tokens=text.train_tokens[:, 1:]),
         r"losses of \[30, 8\] torch.float32; toy has 30 training sequences of 7 tokens"),
        (path, changed_text(train_tokens=moved), "of toy, whose text is not that of toy"),
        (other_file(scored, tmp_path / "a", token_loss=None), text, "losses of none; toy has 30"),
        (other_file(scored, tmp_path / "b", {"split": "test"}), text, "scores of the test split; "),
        (other_file(scored, tmp_path / "c", {"format": "x"}), text, "not what cpfast score of th"),
        (other_file(scored, tmp_path / "d", {"tokens": ""}), text, "scores of toy, which has no t"),
        (other_file(scored, tmp_path / "e", token_loss=losses.long()), text, "losses of .* torch"),
        (str(tmp_path / "no"), text, "no safetensors file"),
        (str(tmp_path / "missing"), text, "no such file"),
    ]  # fmt: skip
    for file, data, message in cases:
        with pytest.raises(UserError, match=f"^--reference {file}: {message}") as caught:
            references.load(file, data)
        assert "\n" not in str(caught.value)
    # Other test sequences do not matter.
    assert torch.equal(references.load(path, text.with_test(torch.arange(4))), losses)


def test_a_resume_with_another_file_is_refused(scored, tmp_path):
    path = other_file(scored, tmp_path / "file")
    config = config_of(reference=path)
    folder = start(tmp_path / "run", config)
    run.train(config, toy_text(), folder, epochs=1)
    other_file(scored, path, token_loss=torch.rand(30, 8))
    with pytest.raises(UserError, match=r"state_dict\['reference'\]: expected the checksum"):
        run.train(config, toy_text(), folder)


def test_losses_that_are_not_finite_are_refused(scored, tmp_path):
    losses = references.load(str(scored[1]), toy_text())
    losses = losses.index_fill(0, torch.tensor([4]), torch.nan)
    path = other_file(scored, tmp_path / "file", token_loss=losses)
    with pytest.raises(
        UserError, match=f"^--reference {path}: expected finite .* token 0 of sequence 4$"
    ):
        loop.Training(config_of(reference=path), toy_text())
