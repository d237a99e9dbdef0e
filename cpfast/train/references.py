"""Files of a trained model's losses: what `cpfast score` writes, and `cpfast train --reference`
reads."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

import cpfast
from cpfast.forms import Open, check
from cpfast.train.data import Data, TextData
from cpfast.train.errors import UserError, first_line
from cpfast.train.files import write_atomically

__all__ = ["FORMAT", "TOKEN_LOSS", "load", "write"]

FORMAT = "cpfast-scores-1"
TOKEN_LOSS = "token_loss"
_ROWS = 1024  # that are looked at at once
_ABOUT = Open({"data": str, "split": str, "samples": str, "tokens": str, "vocabulary": str})


def write(path: Path, scores: dict[str, Tensor], data: Data, split: str, **about: str) -> None:
    """As safetensors, whose metadata name the data, cpfast's version, and what else is said."""
    metadata = {
        "format": FORMAT,
        "cpfast": cpfast.__version__,
        "data": data.name,
        "split": split,
        "samples": _checksum(data, split),
        "tokens": str(data.shape[0]) if isinstance(data, TextData) else "",
        "vocabulary": data.vocabulary if isinstance(data, TextData) else "",
        **about,
    }
    content = safetensors.torch.save(scores, metadata)
    write_atomically(path, lambda file: file.write(content))


def load(path: str, data: TextData) -> Tensor:
    """The losses of the training data's tokens, [N, T], which lie in the file until they are read.

    Raises:
        UserError: it cannot be read, has none, or they are those of other data; in one line.
    """
    where = f"--reference {path}"
    about, found = _read(Path(path), where)
    if about["split"] != "train":
        raise UserError(
            f"{where}: scores of the {about['split']} split; cpfast score --split train"
        )
    if about["tokens"] == "":
        raise UserError(f"{where}: scores of {about['data']}, which has no tokens")
    if about["vocabulary"] != data.vocabulary:
        raise UserError(
            f"{where}: of {about['data']}, whose {len(about['vocabulary'])} characters are not the "
            f"{len(data.vocabulary)} of {data.name}"
        )
    expected = [data.train_size, *data.shape]
    if found is None or list(found.shape) != expected or not found.is_floating_point():
        shown = "none" if found is None else f"{list(found.shape)} {found.dtype}"
        raise UserError(
            f"{where}: losses of {shown}; {data.name} has {expected[0]} training sequences of "
            f"{expected[1]} tokens"
        )
    if about["samples"] != _checksum(data, "train"):
        raise UserError(f"{where}: of {about['data']}, whose text is not that of {data.name}")
    for number, losses in enumerate(found.split(_ROWS)):
        if not bool(losses.isfinite().all()):
            row, token = (~losses.isfinite()).nonzero()[0].tolist()
            raise UserError(
                f"{where}: expected finite losses, got {float(losses[row, token])} of token "
                f"{token} of sequence {number * _ROWS + row}"
            )
    return found


def _read(path: Path, where: str) -> tuple[dict[str, Any], Tensor | None]:
    if not path.is_file():
        raise UserError(f"{where}: no such file")
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                raise UserError(f"{where}: not what cpfast score of this version writes")
            found = file.get_tensor(TOKEN_LOSS) if TOKEN_LOSS in file.keys() else None  # noqa: SIM118
    except OSError as error:
        raise UserError(f"{where}: {error.strerror or first_line(error)}") from error
    except safetensors.SafetensorError as error:
        raise UserError(f"{where}: no safetensors file ({first_line(error)})") from error
    try:
        check(about, _ABOUT, "metadata")
    except ValueError as error:
        raise UserError(f"{where}: damaged ({error})") from error
    return about, found


def _checksum(data: Data, split: str) -> str:
    """Of one split's inputs and targets, in their order."""
    checksum = 0
    for name, value in sorted(vars(data).items()):
        if name.startswith(f"{split}_"):
            array = value.contiguous().cpu().numpy()
            checksum = zlib.crc32(array.data, zlib.crc32(str(array.shape).encode(), checksum))
    return f"{checksum:08x}"
