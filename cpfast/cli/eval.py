"""`cpfast eval`: what the model of a run is worth, on its own test set or on other data."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cpfast.cli.options import device_of
from cpfast.cli.start import can_draw, note
from cpfast.train import data, evaluation, own, process
from cpfast.train.data import Data
from cpfast.train.errors import UserError
from cpfast.train.runfolder import RunFolder
from cpfast.train.trained import TrainedModel, load

EXAMPLE = """\
example:
  cpfast train --out runs/digits
  cpfast eval runs/digits
  cpfast eval runs/photos --data new-photos --split all --json
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "eval",
        help="score the model of a run: accuracy, each class, confusion, calibration",
        description="Score the model of a finished run, on its own test set or on other data.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run)
    parser.add_argument("folder", metavar="RUN", help="folder of the run")
    what = parser.add_argument_group("what is scored")
    what.add_argument(
        "--data",
        metavar="NAME|PATH|MODULE:FUNCTION",
        help="other data, as cpfast train takes; classes are matched by name; default: the run's",
    )
    what.add_argument("--download", action="store_true", help="fetch --data if it is missing")
    what.add_argument(
        "--split", choices=("test", "train", "all"), default="test",
        help="which samples of the data; default: test",
    )  # fmt: skip
    add_model_options(what)
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="all numbers as JSON, in place of text")
    output.add_argument(
        "--out",
        metavar="FOLDER",
        help="where the pictures go; default: eval-DATA in the run's folder",
    )
    output.add_argument(
        "--no-plot", dest="plot", action="store_const", const=False, help="draw no pictures"
    )


def add_model_options(group: Any) -> None:
    """Those of every command that takes a trained model."""
    group.add_argument(
        "--best",
        action="store_true",
        help="take the weights of the evaluation with the best test accuracy, which promises too "
        "much, as the test set chose it; default: those of the last epoch",
    )
    group.add_argument(
        "--model",
        metavar="MODULE:FUNCTION",
        help="where the run trained a network of your own: the function that makes it",
    )
    group.add_argument(
        "--device", metavar="NAME", help="cpu, cuda or cuda:N; default: cuda if there is one"
    )


def open_model(options: dict[str, Any]) -> TrainedModel:
    """The model that the options name, on their device."""
    process.keep_memory()
    which = "best" if options["best"] else "last"
    if options["model"] is not None:
        own.function("--model", options["model"])
    return load(options["folder"], which, device_of(options["device"]))


def _run(options: dict[str, Any], arguments: list[str]) -> None:
    model = open_model(options)
    dataset = find_data(options, model)
    result, scores = evaluation.evaluate(model, dataset, options["split"])
    pictures: list[Path] = []
    if options["plot"] is not False and can_draw():
        kind = f"eval-{dataset.name}" + "-best" * options["best"]
        folder = Path(options["out"] or Path(options["folder"]) / kind)
        title = f"{model.description['architecture']['name']} on {dataset.name}"
        pictures = scores.draw(result, folder, title)
    about = {
        "run": options["folder"],
        "data": dataset.name,
        "split": options["split"],
        "epoch": model.epoch,
    }
    if options["json"]:
        shown = [str(path) for path in pictures]
        print(json.dumps({**about, **result, "pictures": shown}, indent=2))
        return
    split = _samples(options["split"])
    title = f"{options['folder']}, epoch {model.epoch}, on {dataset.name} ({split})"
    print("\n".join([title, "-" * len(title), scores.table(result)]))
    if pictures:
        print(f"\npictures  {', '.join(map(str, pictures))}")


def _samples(split: str) -> str:
    return "training and test samples" if split == "all" else f"{split} samples"


def find_data(options: dict[str, Any], model: TrainedModel) -> Data:
    """The data that is asked for, or the run's own."""
    if options["data"] is None:
        config = RunFolder(options["folder"]).config()
        if own.is_own(config.data):  # not to be called because a file says so
            raise UserError(f"--data: needed, as the run's is a function: --data {config.data}")
        found = data.load(config.data, config.limit, True, options["download"], **config.reading)
        stored = model.description.get("data")
        if stored is not None and stored["fingerprint"] != found.fingerprint():
            note(f"--data {config.data}: changed since the run was trained on it")
        return found
    source = options["data"]
    size = model.input.shape[:2] if data.resizes(source) else None
    return data.load(source, None, True, options["download"], image_size=size)
