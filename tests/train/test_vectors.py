"""Tables and time series in the training loop: they train, resume to the bit, and refuse what is
of images or text."""

import pytest
import torch
from support.toy_training import assert_same_checkpoint, make_config, start, without_times

import cpfast
from cpfast.detection import criteria
from cpfast.pruning import policies
from cpfast.recipes import recipes
from cpfast.train import batches, checks, loop, run
from cpfast.train.data import FloatData
from cpfast.train.errors import UserError
from cpfast.train.ranks import Ranks

pytestmark = pytest.mark.usefixtures("one_thread")
KINDS = {"table": (5,), "series": (2, 12)}


def toy(kind, seed=0):
    """Three classes told apart by the first number of a sample, of a scale and a place."""
    generator = torch.Generator().manual_seed(seed)

    def make(count):
        labels = torch.arange(count) % 3
        values = torch.randn(count, *KINDS[kind], generator=generator)
        values[:, 0] += (9.0 * labels).view(-1, *[1] * (len(KINDS[kind]) - 1))
        return 100 * values + 1000, labels

    return FloatData(*make(30), *make(15), ("a", "b", "c"), "toy")


def config_of(kind, **options):
    data = {"table": "segments", "series": "arrow-head"}[kind]
    return make_config(**{"model": None, "data": data, "lr": 0.01, **options})


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_learn_it(tmp_path, kind):
    config = config_of(kind, epochs=20, lr=None)
    assert (config.optimizer, config.repeats, config.flip) == ("adamw", 1, False)
    assert config.model == {"table": "mlp", "series": "resnet1d"}[kind]
    folder = start(tmp_path / "run", config)
    run.train(config, toy(kind), folder)
    assert folder.metrics()[-1]["test_accuracy"] > 0.9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {"method": "detector+prune", "watch": "fisher,accordion", "repeats": 2},
        {"method": "prune", "policy": "rcap", "optimizer": "sgd"},
        {"method": "prune", "policy": "selective_backprop", "precision": "bf16"},
        {"labels": "random", "method": "enlightenment-small"},
        {"criterion": "early_bird", "at": None, "method": "detector"},
    ],
)
def test_it_resumes_to_the_bit(tmp_path, kind, options):
    config, data = config_of(kind, **options), toy(kind)
    whole, parts = (start(tmp_path / name, config) for name in ("whole", "parts"))
    run.train(config, data, whole)
    for epochs in (1, 3, 6):
        run.train(config, data, parts, epochs=epochs)
    assert_same_checkpoint(whole, parts)
    assert without_times(whole.metrics()) == without_times(parts.metrics())


@pytest.mark.parametrize("kind", KINDS)
def test_every_policy_and_criterion_goes_with_it(kind):
    data = toy(kind)
    for policy in policies:
        if not policies.make(policy).needs_tokens:
            loop.train_epoch(loop.Training(config_of(kind, method="prune", policy=policy), data))
    for criterion in criteria:
        at = 2 if criterion == "fixed" else None
        config = config_of(kind, method="detector", criterion=criterion, at=at)
        loop.train_epoch(loop.Training(config, data))


@pytest.mark.parametrize("kind", KINDS)
def test_recipes_of_images_or_text_are_refused_in_a_line(kind):
    refused = set()
    for name in recipes:
        possible = cpfast.Recipe.named(name, 6).possible()
        config = config_of(kind, method=name, batch_size=4)
        foreign = {
            key
            for key in ("augment", "resolution", "length")
            if any(getattr(s, key) != getattr(cpfast.EpochSettings(), key) for s in possible)
        }
        if not foreign:
            checks.check(config, toy(kind), Ranks())
            continue
        with pytest.raises(
            UserError, match=rf"^--method {name} changes the \w+, of [\w, ]+ alone, "
        ):
            checks.check(config, toy(kind), Ranks())
        refused |= foreign
    assert refused == {"augment", "resolution", "length"}


def test_mirroring_and_other_kinds_models_are_refused():
    with pytest.raises(UserError, match=r"^--flip mirrors images, and segments has none$"):
        loop.Training(config_of("table", flip=True), toy("table"))
    with pytest.raises(UserError, match=r"^--model cnn does not fit .*; choose from mlp$"):
        config_of("table", model="cnn")
    # a path says what it holds only once it is loaded
    config = make_config(data="/nowhere", model="mlp", flip=False)
    with pytest.raises(UserError, match=r"^--model mlp does not fit .*; choose from resnet1d$"):
        loop.Training(config, toy("series"))


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_normalised_by_the_training_data(kind):
    data = toy(kind)
    made = batches.of(config_of(kind), data)
    index = torch.arange(30)
    values, labels = made.plain(index)
    over = (0,) if kind == "table" else (0, 2)
    assert torch.equal(labels, data.train_labels) and values.dtype == torch.float32
    torch.testing.assert_close(values.mean(over), torch.zeros(KINDS[kind][0]), atol=1e-5, rtol=0)
    ones = torch.ones(KINDS[kind][0])
    torch.testing.assert_close(values.std(over, correction=0), ones)
    # the test data by the same numbers
    first, _ = made.test(torch.tensor([0]))
    mean, deviation = data.normalisation()
    torch.testing.assert_close(first[0], (data.test_values[0] - mean) / deviation)
    half = batches.of(config_of(kind, precision="bf16"), data).train(index, index)[0]
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_a_constant_feature_is_zero(constant):
    values = torch.randn(5000, 2, generator=torch.Generator().manual_seed(0))
    values[:, 1] = constant
    labels = torch.arange(5000) % 2
    data = FloatData(values, labels, values[:4], labels[:4], ("a", "b"), "toy")
    seen, _ = batches.of(config_of("table"), data).plain(torch.arange(5000))
    assert seen[:, 1].abs().max() <= 1e-6 * max(constant, 1)
    assert seen[:, 0].std(correction=0).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_describes_it(kind):
    data = toy(kind)
    what = {"table": "rows of 5 features", "series": "series of length 12 in 2 channels"}[kind]
    line = f"toy: 30 training and 15 test {what}, 3 classes"
    assert data.describe() == line
    random = data.with_random_labels(3)
    assert random.describe() == f"{line}; random training labels"
    assert random.fingerprint() != data.fingerprint() == toy(kind).fingerprint()
    assert torch.equal(random.test_labels, data.test_labels)
    moved = data.to(torch.device("cpu"))
    assert moved.fingerprint() == data.fingerprint()
