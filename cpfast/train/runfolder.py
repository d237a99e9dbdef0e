"""A run's folder: config.json, metrics.jsonl, energy.json, last.pt.

Every file is replaced whole (written beside, then renamed) except metrics.jsonl, which grows by
a line an epoch and is cut back to the checkpoint when a run is resumed. So a stop at any moment
loses the epoch under way and nothing else.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from cpfast.train.config import Config
from cpfast.train.errors import UserError
from cpfast.train.metrics import EpochMetrics

FORMAT = "cpfast-run-1"
CONFIG, METRICS, ENERGY, CHECKPOINT, LOCK = (
    "config.json", "metrics.jsonl", "energy.json", "last.pt", ".lock"
)  # fmt: skip


TEMPORARY = ".writing"


class RunFolder:
    """Reads and writes the files of one run; holds no other state."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    # --- opening ----------------------------------------------------------------------------

    @property
    def begun(self) -> bool:
        """Whether it holds a run."""
        return (self.path / CONFIG).exists()

    def check_free(self) -> None:
        """Leave the folder as it is.

        Raises:
            UserError: it holds a run already, or files of something else.
        """
        if self.begun:
            with self.locked():  # a run under way is the more telling reason
                pass
        self._refuse_used()

    def create(self, config: Config) -> None:
        """Start a new run here; locked by the caller, who may have checked long ago.

        Raises:
            UserError: as `check_free`.
        """
        self._refuse_used()
        self._write_config(config)

    def _refuse_used(self) -> None:
        if self.begun:
            raise UserError(
                f"--out {self.path}: holds a run already; continue it with --resume, "
                "or choose another folder"
            )
        foreign = _foreign_files(self.path)
        if foreign:
            raise UserError(f"--out {self.path}: not empty (holds {foreign[0]}), and not a run")

    def _write_config(self, config: Config) -> None:
        write_json(self.path / CONFIG, {"format": FORMAT, **config.to_dict()})

    def config(self) -> Config:
        """The stored configuration.

        Raises:
            UserError: there is none, or it is not one of this version.
        """
        source = self.path / CONFIG
        if not self.begun:
            raise UserError(f"{self.path}: no run here (no {CONFIG})")
        values = read_json(source)
        if values.pop("format", None) != FORMAT:
            raise UserError(f"{source}: not the configuration of a cpfast run of this version")
        return Config.from_dict(values, source)

    # --- while it runs ----------------------------------------------------------------------

    def append_metrics(self, line: EpochMetrics) -> None:
        path = self.path / METRICS
        with _naming(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())  # as the checkpoint, which comes after it

    def metrics(self) -> list[dict[str, Any]]:
        """One dict an epoch. A last line cut short by a stop is left out.

        Raises:
            UserError: another line is damaged.
        """
        source = self.path / METRICS
        if not source.exists():
            return []
        lines = source.read_text(encoding="utf-8", errors="replace").splitlines()
        metrics = []
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                if entry["epoch"] != number:
                    raise UserError(f"{source}, line {number}: epoch {entry['epoch']} out of order")
                metrics.append(entry)
            except (ValueError, KeyError, TypeError) as error:
                if number < len(lines):
                    raise UserError(f"{source}, line {number}: damaged ({error})") from error
        return metrics

    def cut_metrics(self, epochs: int) -> None:
        """Keep the first `epochs` lines: those of a later epoch have no checkpoint.

        Raises:
            UserError: there are fewer.
        """
        metrics = self.metrics()
        if len(metrics) < epochs:
            raise UserError(
                f"{self.path / METRICS}: {len(metrics)} epochs, but {CHECKPOINT} is after "
                f"epoch {epochs}: the files do not belong together"
            )
        text = "".join(json.dumps(line) + "\n" for line in metrics[:epochs])
        write_atomically(self.path / METRICS, lambda file: file.write(text.encode()))

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        # Not straight into the file: torch.save would replace an error of writing by its own.
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, **state}, buffer)
        write_atomically(self.path / CHECKPOINT, lambda file: file.write(buffer.getbuffer()))

    def checkpoint(self) -> dict[str, Any] | None:
        """What `save_checkpoint` stored, on the CPU; None before the first.

        Raises:
            UserError: the file is truncated, or is not a checkpoint of cpfast.
        """
        source = self.path / CHECKPOINT
        if not source.exists():
            return None
        with open(source, "rb"):
            pass  # what the file system refuses is an OSError; all below is the content's fault
        try:
            state = torch.load(source, map_location="cpu", weights_only=True)
        # zipfile, pickle and torch each have errors of their own for it
        except Exception as error:
            raise UserError(f"{source}: truncated, or not a checkpoint") from error
        if (
            not isinstance(state, dict)
            or state.pop("format", None) != FORMAT
            or not isinstance(state.get("epoch"), int)
        ):
            raise UserError(f"{source}: not a checkpoint of a cpfast run of this version")
        return state

    def epochs(self) -> int:
        """Epochs that a resumed run need not do again: those of the checkpoint.

        Raises:
            UserError: as `checkpoint`.
        """
        state = self.checkpoint()
        return 0 if state is None else state["epoch"]

    def save_energy(self, energy: dict[str, Any]) -> None:
        write_json(self.path / ENERGY, energy)

    def energy(self) -> dict[str, Any] | None:
        """What `save_energy` stored, of this version or an earlier one, without CO2e and cost.

        Raises:
            UserError: the file is damaged.
        """
        source = self.path / ENERGY
        if not source.exists():
            return None
        energy = read_json(source)
        components = energy.get("components")
        parts = components.values() if isinstance(components, dict) else [None]
        if not {"kwh", "seconds"} <= energy.keys() or not all(
            isinstance(part, dict) and {"kwh", "source"} <= part.keys() for part in parts
        ):
            raise UserError(f"{source}: damaged, or not the energy of a cpfast run")
        return energy

    def fork(self, into: RunFolder, config: Config) -> None:
        """Copy what was done so far into another folder, to be continued with `config`.

        config.json comes last: a folder without it is no run, and is written anew.
        """
        state = self.checkpoint()
        if state is None:
            raise ValueError(f"{self.path}: nothing to fork, no {CHECKPOINT}")
        lines = self.metrics()[: state["epoch"]]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_atomically(into.path / METRICS, lambda file: file.write(text.encode()))
        energy = self.energy()
        if energy is not None:
            into.save_energy(energy)
        into.save_checkpoint({**state, "config": config.to_dict()})
        into._write_config(config)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process.

        The kernel drops the lock with the process that holds it, however that ends: a stale lock
        cannot be.

        Raises:
            UserError: another process holds it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise UserError(f"--out {self.path}: a file, not a folder") from error
        with open(self.path / LOCK, "a+", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                file.seek(0)
                owner = file.read().strip()
                raise UserError(f"{self.path}: in use by process {owner or '(unknown)'}") from error
            file.seek(0)
            file.truncate()
            with _naming(self.path / LOCK):
                os.write(file.fileno(), str(os.getpid()).encode())  # past a buffer to be closed
            for unfinished in self.path.glob(f".*{TEMPORARY}"):
                unfinished.unlink(missing_ok=True)  # of a process that was killed
            yield


def new_folder(parent: Path, name: str) -> Path:
    """Make and return parent/name-1, or the first number that is free."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = parent / f"{name}-{number}"
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Replace `path` by what `write(file)` writes, or leave it as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", suffix=TEMPORARY, dir=path.parent)
    try:
        with _naming(path), os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of writing, such as that of a full disk, come without the file's name: add it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from `path`.

    Raises:
        UserError: the file holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: a JSON object is expected")
    return value


def _foreign_files(path: Path) -> list[str]:
    """What a new run would have to share its folder with; hidden files do not count."""
    if not path.is_dir():
        return []
    return sorted(p.name for p in path.iterdir() if not p.name.startswith("."))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
