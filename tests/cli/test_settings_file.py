"""--config FILE.toml, and the config.toml of a run."""

import argparse

import numpy as np
import pytest
from support.toy_training import assert_same_checkpoint

from cpfast import cli
from cpfast.cli import settings_file, train
from cpfast.cli.options import Parser
from cpfast.train.config import Config
from cpfast.train.data import kind_of
from cpfast.train.errors import UserError
from cpfast.train.runfolder import RunFolder

RECIPE = """summary = "a \\"quoted\\" one, C:\\\\path, \u00e9\U0001f600"
source = "here"

[[actions]]
action = "repeats"
repeats = 2
window = { phase = "after" }
"""


@pytest.fixture
def parser():
    commands = Parser(prog="cpfast").add_subparsers()
    train.add(commands)
    return commands.choices["train"]


@pytest.fixture
def npz(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 24), ("test", 12)):
        labels = np.arange(count) % 3
        images = generator.integers(0, 150, (count, 9, 9), dtype=np.uint8)
        for label in range(3):
            images[labels == label, 3 * label : 3 * label + 3] += 105
        arrays[f"x_{split}"], arrays[f"y_{split}"] = images, labels
    np.savez(tmp_path / "toy.npz", **arrays)
    return str(tmp_path / "toy.npz")


def file(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_keys_are_the_long_options_with_either_sign(tmp_path, parser):
    path = file(
        tmp_path,
        'data = "digits"\nbatch-size = 8\nlabel_smoothing = 0.1\nlr = 1\nflip = true\n'
        "no-energy = true\nplot = false\nquiet = true\ndownload = false\nwarmup = 1e-1\n",
    )
    assert settings_file.read(path, parser) == {
        "data": "digits", "batch_size": 8, "label_smoothing": 0.1, "lr": 1.0, "flip": True,
        "energy": False, "plot": False, "quiet": True, "warmup": 0.1,
    }  # fmt: skip
    path = file(tmp_path, "no-flip = true\nno-plot = false\nenergy = true")
    assert settings_file.read(path, parser) == {"flip": False}
    path = file(tmp_path, "no-flip = false")
    assert settings_file.read(path, parser) == {"flip": True}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", r"no setting 'epoch'; did you mean epochs\? \(see cpfast train --help\)"),
        ("batch_sise = 3", r"no setting 'batch_sise'; did you mean batch-size\?"),
        ("zzz = 3", r"no setting 'zzz' \(see"),
        ("resume = true", "no setting 'resume'"),
        ("config = 'x.toml'", "no setting 'config'"),
        ("epochs = 'many'", r"argument --epochs: invalid int value: 'many'"),
        ("epochs = true", "epochs: expected a string or a number, got True"),
        ("epochs = [3]", r"epochs: expected a string or a number, got \[3\]"),
        ("flip = 1", "flip: expected true or false, got 1"),
        ("optimizer = 'lion'", "argument --optimizer: invalid choice: 'lion'"),
        ("epochs = ", r"no TOML \("),
        ("recipe_text = 'x = 1'\nmethod = 'mine'", "recipe_text: expected summary, .* got 'x'"),
        ("recipe_text = 'x = 1'", "recipe_text: expected a recipe's text, and its name"),
    ],
)
def test_what_is_wrong_is_a_line_that_names_the_file(tmp_path, parser, text, message):
    path = file(tmp_path, text)
    with pytest.raises(UserError, match=f"^--config {path}: {message}") as error:
        settings_file.read(path, parser)
    assert "\n" not in str(error.value)


def test_a_missing_file(tmp_path, parser):
    with pytest.raises(UserError, match=r"^--config .*nothing.toml: No such file or directory$"):
        settings_file.read(str(tmp_path / "nothing.toml"), parser)
    (tmp_path / "latin.toml").write_bytes(b"data = '\xe9'")
    with pytest.raises(UserError, match=r"latin.toml: no TOML"):
        settings_file.read(str(tmp_path / "latin.toml"), parser)


def test_the_command_line_counts(tmp_path, parser):
    read = settings_file.read(
        file(tmp_path, "epochs = 3\nflip = true\nlr = 0.5\nmethod = 'prune'"), parser
    )

    def merged(*arguments):
        options = vars(parser.parse_args(list(arguments)))
        return settings_file.merged(options, read, parser)

    options = merged("--epochs", "7", "--no-flip")
    assert (options["epochs"], options["flip"], options["lr"]) == (7, False, 0.5)
    assert options["method"] == "prune"
    options = merged("--recipe", "mine.toml")
    assert (options["recipe"], options["method"]) == ("mine.toml", None)


SETTINGS = [
    {},
    {"preset": "fast", "batch_size": 8, "lr": 1e-05, "flip": True},
    {"preset": "fast", "data": "segments", "model": "mlp", "clip": 1.5},
    {"preset": "fast", "data": "names"},
    {"ema": 0.9, "accumulate": 2, "save_every": 3, "limit_test": 20, "limit": 100},
    {"criterion": "fixed", "at": 3, "watch": "all", "patience": 2, "not_before": 5},
    {"keep": 1 / 3, "anneal": 0.7, "policy": "random", "method": "prune", "bn_momentum": 1},
    {"energy": False, "plot": False, "country": "BRA", "price_kwh": 0.1, "augment": "none"},
    {"method": "mine", "recipe_text": RECIPE, "optimizer": "adamw", "step": "compile"},
    {"data": 'odd "name"\\ of \U0001f600\x7f', "labels": "random", "precision": "bf16"},
]  # fmt: skip


@pytest.mark.parametrize("options", SETTINGS)
def test_a_run_s_file_gives_the_same_settings(tmp_path, parser, options):
    config = Config.from_options(options, 200)
    settings_file.write(config, tmp_path, kind_of(config.data) or "images")
    read = settings_file.read(str(tmp_path / "config.toml"), parser)
    empty = {a.dest: parser.get_default(a.dest) for a in parser._actions}
    merged = settings_file.merged(empty, read, parser)
    names = {*Config.__dataclass_fields__, "preset"}
    given = {key: value for key, value in merged.items() if key in names}
    assert Config.from_options(given, 3000) == config


def test_every_setting_is_an_option(parser):
    options = {action.dest for action in parser._actions if isinstance(action, argparse.Action)}
    missing = Config.__dataclass_fields__.keys() - options
    assert missing == {"recipe_text", "detect", "extended_from"}


def test_a_run_s_file_trains_the_same_run_to_the_bit(npz, tmp_path, capsys):
    options = [
        "--epochs", "3", "--model", "cnn", "--batch-size", "8", "--threads", "1", "--no-energy",
        "--no-plot", "--mixup", "0.3", "--ema", "0.8",
    ]  # fmt: skip
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    assert cli.main(["train", "--data", npz, *options, "--out", str(one)]) == 0
    again = ["train", "--config", str(one / "config.toml")]
    assert cli.main([*again, "--out", str(two)]) == 0
    folders = [RunFolder(path) for path in (one, two)]
    assert_same_checkpoint(*folders)
    assert folders[0].config() == folders[1].config()
    kept = [(path / "model.safetensors").read_bytes() for path in (one, two)]
    assert kept[0] == kept[1]
    assert cli.main([*again, "--seed", "1", "--out", str(three)]) == 0
    assert RunFolder(three).config() == folders[0].config().replace(seed=1)
    capsys.readouterr()
    (one / "config.toml").write_text("epoch = 3")
    assert cli.main(again) == 2
    assert "did you mean epochs?" in capsys.readouterr().err


def test_a_budget_lets_large_images_grow_and_says_so(npz, tmp_path, capsys):
    arrays = dict(np.load(npz))
    for name in ("x_train", "x_test"):
        arrays[name] = arrays[name].repeat(4, 1).repeat(4, 2)
    np.savez(tmp_path / "large.npz", **arrays)
    options = ["--data", str(tmp_path / "large.npz"), "--model", "cnn", "--batch-size", "8"]
    options += ["--epochs", "12", "--budget", "40", "--no-energy", "--no-plot", "--threads", "1"]
    assert cli.main(["train", *options, "--out", str(tmp_path / "one")]) == 0
    said = capsys.readouterr().out
    assert "; not augmented\n" in said
    assert "\nbudget: 40 % of 12 epochs, one pass each; growing-resolution: Images of half" in said
    config = RunFolder(tmp_path / "one").config()
    assert (config.method, config.epochs, config.augment) == ("growing-resolution", 5, "none")
    again = ["--config", str(tmp_path / "one" / "config.toml"), "--out", str(tmp_path / "two")]
    assert cli.main(["train", *again]) == 0
    assert RunFolder(tmp_path / "two").config() == config


def test_a_run_of_a_budget_comes_again_from_its_file(npz, tmp_path, capsys):
    one, two = tmp_path / "one", tmp_path / "two"
    options = ["--data", npz, "--model", "cnn", "--batch-size", "8", "--threads", "1"]
    options += ["--epochs", "10", "--budget", "20%", "--no-energy", "--no-plot"]
    assert cli.main(["train", *options, "--out", str(one)]) == 0
    said = capsys.readouterr().out
    assert " parameters; 2 epochs; " in said
    assert "\nbudget: 20 % of 10 epochs, one pass each\n" in said
    config = RunFolder(one).config()
    assert (config.epochs, config.method, config.repeats) == (2, "full", 1)
    assert cli.main(["train", "--config", str(one / "config.toml"), "--out", str(two)]) == 0
    assert RunFolder(two).config() == config
    capsys.readouterr()
    assert cli.main(["train", "--resume", "--budget", "20", "--out", str(one)]) == 2
    assert "--budget: not with --resume, which has the settings" in capsys.readouterr().err
    (tmp_path / "mine.toml").write_text('budget = "20%"\nepochs = 10')
    given = [*options[:6], "--no-energy", "--no-plot"]
    own = ["train", "--config", str(tmp_path / "mine.toml"), *given]
    assert cli.main([*own, "--out", str(tmp_path / "three")]) == 0
    assert RunFolder(tmp_path / "three").config().epochs == 2
    assert cli.main(["train", "--budget", "some"]) == 2
    assert "argument --budget: invalid percent value: 'some'" in capsys.readouterr().err


def test_a_run_is_extended_by_its_epochs(npz, tmp_path, capsys):
    out = tmp_path / "run"
    base = ["--threads", "1", "--no-energy", "--no-plot"]
    first = ["train", "--data", npz, "--model", "cnn", "--batch-size", "8", "--epochs", "2", *base]
    assert cli.main([*first, "--out", str(out)]) == 0
    capsys.readouterr()
    again = ["train", "--resume", "--out", str(out)]
    assert cli.main([*again, "--epochs", "1"]) == 2
    assert "--epochs 1: the run has 2, of which 2 are trained" in capsys.readouterr().err
    assert cli.main([*again, "--epochs", "2"]) == 0
    assert RunFolder(out).config().extended_from is None
    capsys.readouterr()
    assert cli.main([*again, "--epochs", "4"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("extended from 2 to 4 epochs after epoch 2: ")
    assert "4 epochs (extended from 2 after epoch 2); fp32" in said
    folder = RunFolder(out)
    assert (folder.config().epochs, folder.config().extended_from) == (4, "2@2")
    assert [line["epoch"] for line in folder.metrics()] == [1, 2, 3, 4]
    assert "# This one was extended (2@2)" in (out / "config.toml").read_text()
    assert cli.main(again) == 0
    assert "(extended from 2 after epoch 2)" in capsys.readouterr().out
