"""Settings where nobody says, and what the settings do."""

import pytest
import torch
from support.toy_training import TRAIN, make_config, start, toy_data

from cpfast.cli import main
from cpfast.train import chance, loop, optimizers, presets, run
from cpfast.train.augmentations import AUGMENTATIONS
from cpfast.train.batches import ImageBatches
from cpfast.train.config import Config
from cpfast.train.errors import UserError
from cpfast.train.runfolder import RunFolder

pytestmark = pytest.mark.usefixtures("one_thread")


def fast(size, **options):
    return Config.from_options({"preset": "fast", **options}, size)


@pytest.mark.parametrize(
    ("size", "batch", "epochs"), [(100, 16, 100), (256, 16, 100), (4000, 32, 32), (50_000, 128, 11)]
)
def test_the_batch_and_the_epochs_follow_the_size(size, batch, epochs):
    config = fast(size)
    assert (config.batch_size, config.epochs) == (batch, epochs)
    assert config.lr == pytest.approx(0.2 * (batch / 32) ** 0.5)
    assert (config.method, config.schedule, config.warmup) == ("fast", "cosine", 0.1)
    assert (config.bn_momentum, config.label_smoothing) == (0.1, 0.1)
    assert (config.model, config.flip) == ("cnn", False)  # which digits are


def test_what_is_given_stays_and_the_rest_follows_it():
    config = fast(4000, batch_size=64, schedule="step", method="detector")
    assert (config.batch_size, config.schedule, config.warmup) == (64, "step", 0.0)
    assert config.epochs == -(-4000 // (4000 // 64)) and config.method == "detector"
    assert fast(4000, optimizer="adamw").lr == 2e-3
    assert fast(4000, label_smoothing=0.0).label_smoothing == 0


def test_what_fits_the_epochs_of_the_data_is_not_refused_before_they_are_known():
    options = {"preset": "fast", "criterion": "fixed", "at": 60}
    assert Config.from_options(options).at == 60
    assert Config.from_options(options, 256).at == 60
    with pytest.raises(UserError, match=r"--at must be in 1 .. 11 \(--epochs\), got 60"):
        Config.from_options(options, 50_000)


def test_the_optimizer_is_the_models():
    assert fast(256, model="vit-tiny").optimizer == "adamw"
    assert fast(256, model="vit-tiny").clip == 1.0
    assert fast(256, model="resnet8").optimizer == "sgd"
    text = fast(2000, data="python-docs")
    assert (text.optimizer, text.label_smoothing, text.weight_decay) == ("adamw", 0.0, 0.1)


def test_the_paper_is_as_it_was():
    assert Config.from_options({"preset": "paper"}) == Config.from_options({})
    config = Config.from_options({})
    assert (config.schedule, config.warmup, config.bn_momentum) == ("step", 0.0, None)
    assert config.lr == pytest.approx(0.1) and config.label_smoothing == 0
    with pytest.raises(UserError, match="--preset must be one of fast, paper; got 'slow'"):
        Config.from_options({"preset": "slow"})
    assert set(presets.PRESETS) == {"fast", "paper"}


@pytest.mark.needs("sklearn")
@pytest.mark.parametrize(
    ("options", "schedule"),
    [((), "cosine"), (("--method", "paper"), "step"), (("--preset", "paper"), "step")],
)
def test_train_is_fast_but_for_the_paper(tmp_path, options, schedule, capsys):
    options = (*options, "--epochs", "2", "--no-energy", "--no-plot", "--out", str(tmp_path / "r"))
    assert main(["train", *options]) == 0
    assert RunFolder(tmp_path / "r").config().schedule == schedule
    head = capsys.readouterr().out.splitlines()[2]
    assert head.startswith("sgd with momentum 0.9, lr ") and f", {schedule}" in head
    assert "augmented by turns of 15 degrees, shifts of 10 %" in head and "mirroring" not in head
    assert main(["train", "--resume", "--out", str(tmp_path / "r"), "--quiet"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup": 1.0}, r"--warmup must be in \[0, 1\), got 1.0"),
        ({"warmup": 0.1}, "--warmup goes with --schedule cosine, linear or constant; got step"),
        ({"momentum": -0.1}, r"--momentum must be in \[0, 1\), got -0.1"),
        ({"label_smoothing": 1.5}, r"--label-smoothing must be in \[0, 1\), got 1.5"),
        ({"clip": 0.0}, "--clip must be finite and positive, got 0.0"),
        ({"bn_momentum": 0.0}, r"--bn-momentum must be in \(0, 1\], got 0.0"),
        (
            {"augment": "some"},
            "--augment must be one of paper, crop-flip, randaugment, none; got 'some'",
        ),
        ({"mixup": -1.0}, "--mixup must be finite and not negative, got -1.0"),
        ({"mixup": 0.2, "cutmix": 1.0}, "mixup and cutmix contradict each other"),
    ],
)
def test_refused(options, message):
    with pytest.raises(UserError, match=message):
        Config.from_options(options).recipe()


def test_the_rate_rises_to_its_value():
    schedule = optimizers.schedule(make_config(schedule="cosine", warmup=0.25))
    assert [schedule(x) for x in (0.0, 0.125, 0.25)] == [0.0, 0.5, 1.0]
    assert schedule(1.0) == pytest.approx(0)


def test_gradients_are_clipped_together():
    training = loop.Training(make_config(clip=0.5), toy_data())
    parameters = list(training.model.parameters())
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 3.0)
    optimizers.clip_gradients(training.config, training.optimizer, training.scaler)
    norm = torch.stack([p.grad.norm() for p in parameters]).norm()
    assert float(norm) == pytest.approx(0.5, rel=1e-4)
    assert all(torch.equal(p.grad, torch.full_like(p, float(p.grad.max())))
               for p in parameters)  # fmt: skip


def test_batch_norms_have_the_momentum_that_is_asked_for():
    def momenta(**options):
        model = loop.Training(make_config(**options), toy_data()).model
        return {m.momentum for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)}

    assert momenta() == {0.01}  # the paper's
    assert momenta(bn_momentum=0.3) == {0.3}


def test_without_momentum_a_run_resumes(tmp_path):
    config, data = make_config(momentum=0.0, epochs=4), toy_data()
    whole = run.train(config, data, start(tmp_path / "whole", config))
    folder = start(tmp_path / "parts", config)
    run.train(config, data, folder, epochs=2)
    resumed = run.train(config, data, folder)
    assert all(map(torch.equal, whole.model.parameters(), resumed.model.parameters()))


@pytest.mark.parametrize("augment", [k for k, v in AUGMENTATIONS.items() if v.layers == 0])
def test_images_are_augmented_as_it_says(augment):
    data = toy_data()
    batches = ImageBatches(make_config(augment=augment, flip=True), data)
    index = torch.arange(TRAIN)
    trained, plain = batches.train(index, torch.zeros_like(index))[0], batches.plain(index)[0]
    assert torch.equal(trained, plain) == (augment == "none")


def test_what_guessing_gives():
    data = toy_data()
    counts = torch.bincount(data.test_labels)
    assert chance.of(data) == float(counts.max()) / len(data.test_labels)
    assert chance.is_near(0.18, 0.1) and not chance.is_near(0.2, 0.1)


def test_a_run_that_learned_nothing_says_so(tmp_path, capsys):
    out = str(tmp_path / "r")
    pytest.importorskip("sklearn")
    options = ("--epochs", "1", "--lr", "1e-9", "--no-energy", "--no-plot", "--out", out)
    assert main(["train", *options]) == 0
    said = capsys.readouterr().out
    assert "; guessing the commonest class gives 10.19 %: nothing was learned" in said
