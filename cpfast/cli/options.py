"""The parser, and the options that several commands have."""

from __future__ import annotations

import argparse
import difflib
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


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Those of every command that trains. None means not given: the default depends on the data."""
    data, model, training, period, machine, energy = (
        parser.add_argument_group(name).add_argument
        for name in (
            "data", "model", "training", "critical period", "machine and output", "energy and cost"
        )
    )  # fmt: skip
    data(
        "--data",
        metavar="NAME|PATH|MODULE:FUNCTION",
        help=f"{', '.join(datasets)}; a folder or file of images, text, a table or time series; or "
        "a function of your own that returns them; default: digits",
    )
    data("--download", action="store_true", help="fetch --data if it is missing")
    data(
        "--image-size",
        metavar="N|HxW",
        help="pixels that the images of a folder are resized and cropped to; default: as they are "
        "where all are of one size up to 96, else 64, or their median shorter side where less",
    )
    data(
        "--label",
        metavar="COLUMN",
        help="of a table: the column that holds the classes; default: one named label, class, "
        "target or y, else the last",
    )
    data("--limit", type=int, help="train on so many samples, those with classes stratified")
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
        help="begin from a .safetensors file, where names and sizes fit",
    )
    data(
        "--class-weight",
        choices=CLASS_WEIGHTS,
        help="balanced: each class counts alike in the loss, however many samples it has; "
        "default: none",
    )
    training(
        "--preset",
        choices=tuple(PRESETS),
        help="what is not given: fast: cosine after a warm-up, batch and epochs by the data's "
        "size; paper: as arXiv 2506.15954 trains. Default: fast for train, but with --method "
        "paper; else paper",
    )
    training(
        "--epochs",
        type=int,
        help="default: fast: by the data's size; paper: 200, digits 120, mnist 20, text 10, "
        "tables 60, series 100",
    )
    training(
        "--repeats",
        type=int,
        help="augmented passes an epoch in the period (k), of methods that have it, which fast has "
        "not; default: 3, of text, tables and series with --preset paper 1",
    )
    training(
        "--batch-size",
        type=int,
        help="default: fast: by the data's size, 16 to 128; paper: 128, and 32 for digits, text, "
        "tables and series",
    )
    training(
        "--optimizer",
        choices=OPTIMIZERS,
        help="default: fast: by the model; paper: sgd, for text, tables and series adamw",
    )
    training(
        "--lr",
        type=float,
        help="default of sgd: fast: 0.2 x the root of batch size / 32; paper: 0.01 x batch size / "
        "32 (cnn: 0.1); fixed for the others",
    )
    training("--momentum", type=float, help="of sgd, Nesterov's; default: 0.9")
    training(
        "--weight-decay",
        type=float,
        help="of kernels only; default: fast: 5e-4, of adamw 0.05; paper: 2e-4; text 0.1",
    )
    training(
        "--schedule",
        choices=SCHEDULES,
        help="of the learning rate; default: fast: cosine; paper: step, for text, tables and "
        "series cosine",
    )
    training(
        "--warmup",
        type=float,
        help="share of the training in which the learning rate rises; default: fast 0.1, paper 0",
    )
    training(
        "--clip",
        type=float,
        help="largest norm of the gradients; default: fast with adamw 1, else none",
    )
    training(
        "--label-smoothing",
        type=float,
        help="of the training's loss; default: fast on images 0.1, else 0",
    )
    training(
        "--bn-momentum",
        type=float,
        help="of BatchNorm's running statistics; default: fast 0.1, paper the model's own",
    )
    period("--criterion", choices=tuple(criteria), help="of the period's end; default: slope45")
    data("--labels", choices=LABELS, help="random: a control with nothing to learn; default: true")
    data(
        "--flip",
        action=argparse.BooleanOptionalAction,
        help="mirror images; default: not for digits, mnist and other idx files by path, nor where "
        "class folders are named as characters, or after left and right",
    )
    training("--seed", type=int, help="default: 0")
    training("--eval-every", type=int, help="epochs between evaluations; default: a tenth of all")
    machine("--device", help="cpu, cuda or cuda:N; default: cuda if there is one")
    training("--precision", choices=PRECISIONS, help="default: fp32 on the CPU, else bf16")
    training(
        "--step",
        choices=STEPS,
        help="how a training step is executed; default: eager on the CPU, else graph",
    )
    machine(
        "--threads", type=int, help="of the CPU; default: 1 for cnn, else half of the processors"
    )
    energy("--no-energy", dest="energy", action="store_const", const=False,
        help="by default it is metered where codecarbon is installed")  # fmt: skip
    energy("--country", help="whose electricity makes the CO2e, as BRA; default: the world's mean")
    energy("--price-kwh", type=float, help="of the cost, in any currency; evaluation is included")
    energy("--price-hour", type=float, help="of the machine; the cost is the sum of both prices")
    machine("--no-plot", dest="plot", action="store_const", const=False)


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
