"""The parser, and the options that several commands have."""

from __future__ import annotations

import argparse
import difflib
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

import torch

import cpfast
from cpfast import _backend
from cpfast.detection import criteria
from cpfast.studies import studies
from cpfast.train import ranks
from cpfast.train.balance import CLASS_WEIGHTS
from cpfast.train.config import LABELS, OPTIMIZERS, PRECISIONS, SCHEDULES, STEPS
from cpfast.train.data import datasets
from cpfast.train.errors import UserError
from cpfast.train.models import models
from cpfast.train.presets import PRESETS

WIDTH = 90  # of lines of descriptions
CLOSE = 0.85  # of names: that --at may be --data helps nobody


class Parser(argparse.ArgumentParser):
    """Whose errors are a UserError's one line."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "allow_abbrev": False})

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """Knows all: the command itself refuses the rest, and names its own help."""
        options, unknown = super().parse_known_args(*args, **kwargs)
        for argument in unknown:
            name = argument.removeprefix("--")
            if argument.startswith("--") and name in studies:
                raise UserError(f"{argument} is a study of its own: cpfast study {name}")
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._near(unknown)}")
        return options, unknown

    def _near(self, unknown: Sequence[str]) -> str:
        """The options that may have been meant."""
        known = [*self._option_string_actions]
        near = [
            name
            for argument in unknown
            if argument.startswith("--")
            for name in difflib.get_close_matches(argument.split("=")[0], known, 1, CLOSE)
        ]
        return f"; did you mean {', '.join(near)}?" if near else ""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


DATA, AUGMENTATION, MODEL, METHOD, PERIOD, TRAINING, OUTPUT, MACHINE, ENERGY = (
    "data", "augmentation of images", "model", "method: what an epoch trains on", "critical period",
    "training", "output", "machine", "energy and cost",
)  # fmt: skip
# Where a term is defined, or what all options of a group share.
_OF_GROUPS = {
    METHOD: "A method (or recipe) says what an epoch is trained on: k augmented passes over the "
    "data, one pass, or a part of the samples, which a policy chooses (pruning); and how that "
    "changes once the critical period has ended.",
    PERIOD: "The epochs from the beginning of the training until a criterion says that the network "
    "has settled; by default one that looks at how far each layer has rotated away from its "
    "initial weights. Methods with a detector, and the default, fast, act on it.",
    TRAINING: "Defaults depend on --preset, and are given as: fast | paper.",
}


def group(parser: argparse.ArgumentParser, title: str) -> argparse._ArgumentGroup:
    """That of a title: of several calls the same."""
    for known in parser._action_groups:
        if known.title == title:
            return known
    said = _OF_GROUPS.get(title)
    return parser.add_argument_group(title, said and textwrap.fill(said, WIDTH))


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Those of every command that trains. None means not given: the default depends on the data."""
    data, augmentation, model, saved, period, training, output, machine, energy = (
        group(parser, title).add_argument
        for title in (
            DATA, AUGMENTATION, MODEL, METHOD, PERIOD, TRAINING, OUTPUT, MACHINE, ENERGY
        )
    )  # fmt: skip
    data(
        "--data",
        metavar="NAME|PATH|MODULE:FUNCTION",
        help=f"{', '.join(datasets)}; a folder or file of images, text, a table or time series; or "
        "a function of your own that returns them (docs/data.md). Default: digits",
    )
    data("--download", action="store_true", help="fetch --data if it is missing")
    data(
        "--image-size",
        metavar="N|HxW",
        help="pixels that the images of a folder are resized and cropped to; default: as they are "
        "where all have one size up to 96, else 64 (less where their median shorter side is)",
    )
    data(
        "--label",
        metavar="COLUMN",
        help="of a table: the column that holds the classes; default: one named label, class, "
        "target or y, else the last",
    )
    data(
        "--limit", type=int, metavar="N",
        help="train on N samples, of each class its share; default: all",
    )  # fmt: skip
    data(
        "--limit-test", type=int, metavar="N",
        help="evaluate on N test samples, of each class its share; default: all",
    )  # fmt: skip
    data(
        "--class-weight",
        choices=CLASS_WEIGHTS,
        help="balanced: each class counts alike in the loss, however many samples it has; "
        "default: none",
    )
    data(
        "--labels",
        choices=LABELS,
        help="random: training labels drawn at random, from which nothing can be learned, as a "
        "check; default: true",
    )
    augmentation(
        "--flip",
        action=argparse.BooleanOptionalAction,
        help="mirror images left to right at random; default: yes, but not digits, mnist and other "
        "idx files, nor folders whose classes are named after characters or sides (0, A, left)",
    )
    model(
        "--model",
        metavar="NAME|timm:NAME|MODULE:FUNCTION",
        help=f"{', '.join(models)}; one of timm's; or a function of your own, called with the "
        "shape of a sample and the number of logits. Default: cnn for digits and mnist, "
        "transformer for text, mlp for tables, resnet1d for time series, else resnet20",
    )
    model(
        "--weights",
        metavar="FILE",
        help="begin from a .safetensors file: whatever has the same name and size",
    )
    saved(
        "--repeats", type=int, metavar="K",
        help="k, the augmented passes over the data in an epoch, of methods that make several (not "
        "fast); default: 3, of text, tables and series with --preset paper 1",
    )  # fmt: skip
    period(
        "--criterion",
        choices=tuple(criteria),
        metavar="NAME",
        help="how its end is told (cpfast list criteria); default: slope45, of the mean rotation",
    )
    training(
        "--preset",
        choices=tuple(PRESETS),
        help="where the defaults come from. fast: chosen for good accuracy in little time, by the "
        "kind and the size of the data; paper: as arXiv 2506.15954 trains. Default: fast for "
        "cpfast train, but paper with --method paper; paper for comparisons and studies",
    )
    training(
        "--epochs", type=int, metavar="N",
        help="default: by the data's size, up to 100 (text 30, series 200) | 200 (digits 120, "
        "mnist 20, text 10, tables 60, series 100)",
    )  # fmt: skip
    training(
        "--batch-size", type=int, metavar="N",
        help="default: by the data's size, 16 to 128 | 128 (digits, text, tables and series 32)",
    )  # fmt: skip
    training(
        "--optimizer",
        choices=OPTIMIZERS,
        help="default: by the model: sgd for convolutional networks of images, else adamw | sgd "
        "(text, tables and series adamw)",
    )
    training(
        "--lr", type=float, metavar="RATE",
        help="learning rate, at its highest; default of sgd: 0.2 x root of (batch size / 32) | "
        "0.01 x batch size / 32 (cnn ten times that); of adamw: 0.002 | 0.001 (tables 0.002)",
    )  # fmt: skip
    training("--momentum", type=float, metavar="M", help="of sgd, Nesterov's; default: 0.9")
    training(
        "--weight-decay", type=float, metavar="W",
        help="of the weights of layers, not of biases and normalisation; default: 0.0005, of adamw "
        "0.05 (text 0.1) | 0.0002 (text 0.1)",
    )  # fmt: skip
    training(
        "--schedule",
        choices=SCHEDULES,
        help="of the learning rate: step divides it by ten at 1/2 and 3/4 of the training; "
        "default: cosine | step (text, tables and series cosine)",
    )
    training(
        "--warmup", type=float, metavar="SHARE",
        help="of the training, in which the learning rate rises from 0; default: 0.1 | 0",
    )  # fmt: skip
    training(
        "--decay-power", type=float, metavar="P",
        help="of the time after the warm-up, with cosine and linear: above 1 the learning rate "
        "falls later, and faster then; default: 1",
    )  # fmt: skip
    training(
        "--warp", metavar="PASSES@EPOCHS",
        help="the schedule passes so many times as slowly in the first EPOCHS: with one pass an "
        "epoch the same training as PASSES in each of EPOCHS / PASSES epochs, and then one; "
        "default: as it is",
    )  # fmt: skip
    training(
        "--clip", type=float, metavar="NORM",
        help="scale gradients down to this norm, of all together; default: 1 with adamw, else "
        "none | none",
    )  # fmt: skip
    training(
        "--label-smoothing", type=float, metavar="SHARE",
        help="of the training loss; default: 0.1 for images, else 0 | 0",
    )  # fmt: skip
    training(
        "--bn-momentum", type=float, metavar="M",
        help="of BatchNorm's running statistics, as torch means it; default: 0.1 | the model's own "
        "(0.01 for those of the paper)",
    )  # fmt: skip
    training("--seed", type=int, metavar="N", help="of all that is random; default: 0")
    output(
        "--eval-every", type=int, metavar="EPOCHS",
        help="between two evaluations on the test set; default: a tenth of all",
    )  # fmt: skip
    output(
        "--no-plot", dest="plot", action="store_const", const=False,
        help="draw no picture; by default one is, where matplotlib is installed",
    )  # fmt: skip
    machine("--device", metavar="NAME", help="cpu, cuda or cuda:N; default: cuda if there is one")
    machine("--precision", choices=PRECISIONS, help="default: fp32 on the CPU, else bf16")
    machine(
        "--step",
        choices=STEPS,
        help="how a training step is executed: as it is, by torch.compile, replayed as a CUDA "
        "graph, or both; default: eager on the CPU, else graph",
    )
    machine(
        "--threads", type=int, metavar="N",
        help="of the CPU; default: 1 for cnn, else half of the processors",
    )  # fmt: skip
    energy(
        "--no-energy", dest="energy", action="store_const", const=False,
        help="do not meter it; by default it is, where codecarbon is installed",
    )  # fmt: skip
    energy(
        "--country", metavar="CODE",
        help="of three letters, as BRA: whose electricity the CO2e is counted by; default: the "
        "world's mean, 475 g a kWh",
    )  # fmt: skip
    energy(
        "--price-kwh", type=float, metavar="PRICE",
        help="of a kWh, in any currency, for the cost of the run",
    )  # fmt: skip
    energy(
        "--price-hour", type=float, metavar="PRICE",
        help="of an hour of the machine; with --price-kwh, the cost is the sum of both",
    )  # fmt: skip


def percent(text: str) -> float:
    """
    >>> percent("30%"), percent("12.5")
    (30.0, 12.5)
    """
    return float(text.strip().removesuffix("%"))


def device_of(name: str | None) -> str:
    """The device to run on; without a name, CUDA where both torch and cpfast have it. Of several
    processes each has a GPU of its own, whichever is named.

    Raises:
        UserError: the device is not there.
    """
    if name is None:
        usable = torch.cuda.is_available() and cpfast.backend() != "cpu"
        name = "cuda" if usable else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"--device must be cpu, cuda or cuda:N; got {name!r}")
    if device.type == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise UserError(f"--device {name}: {no_cuda()}; or use --device cpu")
    if cpfast.backend() == "cpu":
        raise UserError(f"--device {name}: {_backend.CUDA_MISSING}; or use --device cpu")
    index = device.index or 0
    if index >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: there is only {counted(torch.cuda.device_count(), 'CUDA device')}"
        )
    return ranks.own_device(f"cuda:{index}")


def no_cuda() -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; install one with CUDA"
    return "torch finds no CUDA device; check the driver (nvidia-smi) and CUDA_VISIBLE_DEVICES"


def counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
