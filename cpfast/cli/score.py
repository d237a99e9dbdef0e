"""`cpfast score`: what the model of a run says of each sample."""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cpfast.cli.eval import add_model_options, find_data, open_model
from cpfast.train import references, scoring
from cpfast.train.data import Data
from cpfast.train.errors import UserError
from cpfast.train.files import write_atomically

SUFFIXES = (".safetensors", ".csv")
DESCRIPTION = """\
Score each training sample by the model of a finished run: its loss, el2n (the norm of the error of
the probabilities), margin and whether it is predicted correctly; of text also the loss of each
token, by which cpfast train --policy tokens --reference FILE chooses what it trains on.
"""
EXAMPLE = """\
example:
  cpfast train --data clean.txt --out runs/clean
  cpfast score runs/clean --data all.txt --out all.safetensors
  cpfast train --data all.txt --policy tokens --reference all.safetensors
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "score",
        help="the losses of each sample, and of each token of text, by the model of a run",
        description=DESCRIPTION,
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
        "--split", choices=("train", "test"), default="train",
        help="which samples of the data; default: train",
    )  # fmt: skip
    add_model_options(what)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out",
        metavar="FILE",
        help="FILE.safetensors, or FILE.csv without the losses of tokens; default: "
        "scores-DATA.safetensors in the run's folder",
    )
    output.add_argument(
        "--half", action="store_true",
        help="losses of tokens in float16, which take half of the space; default: float32",
    )  # fmt: skip


def _run(options: dict[str, Any], arguments: list[str]) -> None:
    out = None if options["out"] is None else Path(options["out"])
    if out is not None and out.suffix not in SUFFIXES:
        raise UserError(f"--out {out}: expected a name that ends in {' or '.join(SUFFIXES)}")
    if out is not None and not out.parent.is_dir():
        raise UserError(f"--out {out}: no folder {out.parent}")
    model = open_model(options)
    data = find_data(options, model)
    split = options["split"]
    scores = scoring.score(model, data, split)
    if options["half"] and references.TOKEN_LOSS in scores:
        scores[references.TOKEN_LOSS] = scores[references.TOKEN_LOSS].half()
    if out is None:
        kind = f"scores-{data.name}" + "-test" * (split == "test") + "-best" * options["best"]
        out = Path(options["folder"]) / f"{kind}.safetensors"
    if out.suffix == ".csv":
        content = _table(scores).encode()
        write_atomically(out, lambda file: file.write(content))
    else:
        about = {"run": str(options["folder"]), "epoch": str(model.epoch)}
        references.write(out, scores, data, split, **about)
    print(f"{_summary(scores, data, split)}\nscores  {out}")


def _table(scores: dict[str, Tensor]) -> str:
    """A row for each sample, in their order."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["sample", *scoring.COLUMNS])
    columns = [scores[name].tolist() for name in scoring.COLUMNS]
    for number, values in enumerate(zip(*columns, strict=True)):
        writer.writerow([number, *(f"{value:.6g}" for value in values)])
    return text.getvalue()


def _summary(scores: dict[str, Tensor], data: Data, split: str) -> str:
    loss = scores["loss"]
    tokens = scores.get(references.TOKEN_LOSS)
    of = "" if tokens is None else f" of {tokens.shape[1]} tokens"
    parts = loss.double().quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist()
    shown = ", ".join(f"{value:.4g}" for value in parts)
    mean = float(loss.double().mean())
    return (
        f"{data.name}: {len(loss):,} {split} samples{of}; mean loss {mean:.4f}, of a tenth, half "
        f"and nine tenths of them below {shown}"
    )
