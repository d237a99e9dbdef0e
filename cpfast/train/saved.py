"""The model of a run, for use afterwards: model.json, model.safetensors, best.safetensors.

`model.safetensors` has the weights after the last epoch, `best.safetensors` those of the evaluation
of the best test accuracy, where that is another. `model.json` says what network they belong to,
what it takes, and of each file its epoch, its accuracy and its checksum. The three need nothing
else of the run's folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from torch import Tensor, nn

import cpfast
from cpfast.forms import Finite, Maybe, Open, Plain, Several, Table, check
from cpfast.train import inputs, models
from cpfast.train import own as own_functions
from cpfast.train.errors import UserError, first_line
from cpfast.train.files import read_json, write_atomically, write_json
from cpfast.train.inputs import PREFIX, Input
from cpfast.train.loop import Training
from cpfast.train.runfolder import RunFolder

FORMAT = "cpfast-model-1"
DESCRIPTION = "model.json"
LAST, BEST = "model.safetensors", "best.safetensors"

_WEIGHTS = Maybe(
    Open({"file": str, "epoch": int, "test_accuracy": Maybe(Finite), "sha256": str})
)  # fmt: skip
_FORM = Open(
    {
        "architecture": {"name": str, "shape": Several(int), "outputs": int},
        "input": Open({"kind": str}),
        "classes": Several(str),
        "last": _WEIGHTS,
        "best": _WEIGHTS,
    },
    {"data": {"name": str, "fingerprint": str}, "cpfast": str},
)


def store(training: Training, folder: RunFolder, lines: list[str]) -> None:
    """After an epoch: keep its weights if it is the last, or if none was evaluated better.

    Args:
        lines: of metrics, that of the epoch among them.
    """
    t = training
    accuracy = json.loads(lines[-1])["test_accuracy"]
    is_last = t.epoch == t.config.epochs
    if accuracy is None and not is_last:
        return
    path = folder.path
    # An epoch may be done again: what was kept of it, or of later ones, is of another training.
    kept = [entry for entry in _kept(path) if entry["epoch"] < t.epoch]
    last = next((entry for entry in kept if entry["file"] == LAST), None)
    rivals = [entry for entry in kept if accuracy is None or entry["test_accuracy"] > accuracy]
    best = max(rivals, key=lambda entry: entry["test_accuracy"], default=None)
    if best is not None and not is_last:
        return
    if best is not None and best["file"] == LAST:  # of a run that was finished, and went on
        os.replace(path / LAST, path / BEST)
        best = {**best, "file": BEST}
    file = LAST if is_last else BEST
    kind, taken = inputs.of(t.data)
    content = _packed(t.average.model(), taken)
    write_atomically(path / file, lambda stream: stream.write(content))
    own = {
        "file": file,
        "epoch": t.epoch,
        "test_accuracy": accuracy,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    write_json(
        path / DESCRIPTION,
        {
            "format": FORMAT,
            "cpfast": cpfast.__version__,
            "architecture": {
                "name": t.config.model,
                "shape": list(t.data.shape),
                "outputs": t.data.outputs,
            },
            "dtype": "float32",
            "input": {"kind": kind, **taken.options()},
            "classes": list(taken.classes),
            "data": {"name": t.data.name, "fingerprint": t.fingerprint},
            "last": own if is_last else last,
            "best": best if is_last else own,
        },
    )
    if is_last and best is None:
        (path / BEST).unlink(missing_ok=True)


def copy(source: Path, target: Path) -> None:
    """Have the folder of one run hold the model that another's holds; none, if that has none."""
    files = [path for name in (LAST, BEST) if (path := source / name).exists()]
    for path in files:
        write_atomically(target / path.name, partial(_write, content=path.read_bytes()))
    for name in {LAST, BEST} - {path.name for path in files}:
        (target / name).unlink(missing_ok=True)
    if (source / DESCRIPTION).exists():
        write_json(target / DESCRIPTION, read_json(source / DESCRIPTION))
    else:
        (target / DESCRIPTION).unlink(missing_ok=True)


def _write(stream: IO[bytes], content: bytes) -> None:
    stream.write(content)


def _kept(path: Path) -> list[dict[str, Any]]:
    """What a description that can be read says of files that are there."""
    try:
        description = describe(path)
    except UserError:
        return []
    entries = [description["last"], description["best"]]
    return [
        entry
        for entry in entries
        if entry and entry["test_accuracy"] is not None and (path / entry["file"]).exists()
    ]


def _packed(network: nn.Module, taken: Input) -> bytes:
    tensors = {
        **network.state_dict(),
        **{PREFIX + name: value for name, value in taken.state_dict().items()},
    }
    # Each of its own memory: tied weights would be refused.
    whole = {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
    return safetensors.torch.save(whole, {"format": "pt"})


# --- reading --------------------------------------------------------------------------------


def describe(path: Path) -> dict[str, Any]:
    """What model.json holds.

    Raises:
        UserError: there is none, it is damaged, or of another version.
    """
    source = path / DESCRIPTION
    if not source.is_file():
        raise UserError(f"{path}: no trained model here (no {DESCRIPTION}){_instead(path)}")
    description = read_json(source)
    if description.get("format") != FORMAT:
        raise UserError(f"{source}: not the model of a cpfast run of this version")
    try:
        check(description, _FORM, "model")
        own = dict(description["input"])
        check(own.pop("columns", []), Several([str, Maybe(Finite), Several(str)]), "columns")
        check(own, Table(Plain), "input")
        if len(description["classes"]) != description["architecture"]["outputs"]:
            raise ValueError("as many classes as outputs are expected")
    except ValueError as error:
        raise UserError(f"{source}: damaged ({error})") from error
    return description


def fingerprint(path: Path) -> str | None:
    """Of the data that the model was trained on; None where no description says it."""
    try:
        data = describe(path).get("data")
    except UserError:
        return None
    return None if data is None else str(data["fingerprint"])


def weights_of(description: dict[str, Any], path: Path, which: str) -> dict[str, Any]:
    """The entry of the weights that `which` names: the best are the last ones where no other
    evaluation was better.

    Raises:
        UserError: they are not there.
    """
    last, best = description["last"], description["best"]
    entry = last if which == "last" else best or last
    if entry is None:
        raise UserError(
            f"{path}: not finished, there is only its best evaluation so far (epoch "
            f"{best['epoch']}): take that by --best, in Python by which='best'; or finish it with "
            f"cpfast train --resume --out {path}"
            if best
            else f"{path / DESCRIPTION}: names no weights"
        )
    return entry


def restore(path: Path, description: dict[str, Any], entry: dict[str, Any]) -> tuple[Any, Input]:
    """The network and its input, with the weights of an entry.

    Raises:
        UserError: the file is missing or damaged, or is not of this network.
    """
    source, file = path / DESCRIPTION, path / Path(entry["file"]).name
    architecture, own = description["architecture"], dict(description["input"])
    tensors = _tensors(file, entry["sha256"])
    try:
        taken = inputs.inputs.make(own.pop("kind"), classes=description["classes"], **own)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{source}: {first_line(error)}") from error
    name = architecture["name"]
    if own_functions.is_own(name) and name.partition(":")[0] not in sys.modules:
        raise UserError(
            f"{source}: its network is made by {name}, which is only imported where you ask for "
            f"it: --model {name}, in Python import {name.partition(':')[0]} first"
        )
    if name not in models.models and not models.elsewhere.is_elsewhere(name):
        raise UserError(
            f"{source}: no architecture {architecture['name']!r} is known here; install the "
            "package that brings it"
        )
    network = models.build(
        architecture["name"], tuple(architecture["shape"]), architecture["outputs"], seed=0
    )
    of_input = {n: tensors.pop(n) for n in list(tensors) if n.startswith(PREFIX)}
    try:
        network.load_state_dict(tensors)
        taken.load_state_dict({n.removeprefix(PREFIX): v for n, v in of_input.items()})
    except RuntimeError as error:
        raise UserError(
            f"{file}: not the weights of {architecture['name']} ({_fault(error)})"
        ) from (error)
    # as it was trained, which gives the same numbers; torch's annotations leave this form out
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network, taken


def _tensors(file: Path, digest: str) -> dict[str, Tensor]:
    if not file.is_file():
        raise UserError(f"{file}: missing, though {DESCRIPTION} names it")
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise UserError(
            f"{file}: damaged, or not the file that {DESCRIPTION} describes (its checksum is "
            "another)"
        )
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise UserError(f"{file}: no safetensors file ({first_line(error)})") from error


def _fault(error: RuntimeError) -> str:
    """torch's first line names the class, the second what is wrong."""
    return " ".join(line.strip() for line in str(error).splitlines()[1:2]) or first_line(error)


def _instead(path: Path) -> str:
    """How to come to a model from what is there."""
    folder = RunFolder(path)
    if not folder.is_run():
        return ""
    epochs, done = folder.config().epochs, len(folder.metrics())
    state = "finished" if done >= epochs else f"after epoch {done} of {epochs}"
    verb = "have it written" if done >= epochs else "finish it"
    return f"; the run is {state}, {verb} with cpfast train --resume --out {path}"
