"""A run's folder: config.json, metrics.jsonl, energy.json, last.pt.

Every file is replaced whole (written beside, then renamed) except metrics.jsonl, which grows by
a line an epoch. The checkpoint holds these lines too: they are what a resumed run goes on with. So
a stop at any moment loses the epoch under way and nothing else; with `save_every`, the epochs since
the last checkpoint, which are trained again.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cpfast.forms import Finite, Maybe, Open, Table, check
from cpfast.train import checkpoint
from cpfast.train.config import Config
from cpfast.train.errors import UserError
from cpfast.train.files import (
    TEMPORARY,
    naming,
    parsed,
    read_json,
    write_atomically,
    write_json,
)
from cpfast.train.metrics import EpochMetrics

FORMAT = "cpfast-run-1"
CONFIG, METRICS, ENERGY, CHECKPOINT, LOCK = (
    "config.json", "metrics.jsonl", "energy.json", "last.pt", ".lock"
)  # fmt: skip


# Of an earlier version: without what is optional.
_ENERGY = Open(
    {
        "seconds": Finite,
        "kwh": Maybe(Finite),
        "components": Table(Open({"kwh": Finite, "source": str})),
    },
    {
        "source": str,
        "tool": Maybe(str),
        "co2e": Maybe(
            Open({"kg": Finite, "source": str, "country": Maybe(str), "grams_per_kwh": Finite})
        ),
        "cost": Maybe(
            Open({
                "value": Finite, "source": str, "by_kwh": Maybe(Finite), "by_hour": Maybe(Finite),
                "price_kwh": Maybe(Finite), "price_hour": Maybe(Finite),
            })
        ),
    },
)  # fmt: skip


# What a fork changes in the state that it begins with: weights, or the data's fingerprint.
Change = Callable[[dict[str, Any]], dict[str, Any]]


class Fork(NamedTuple):
    """Where a run is to be copied, and how it goes on there: arguments of `RunFolder.fork`."""

    into: RunFolder
    config: Config
    change: Change | None = None


class RunFolder:
    """Reads and writes the files of one run; holds no other state."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    # --- opening ----------------------------------------------------------------------------

    def check_free(self) -> None:
        """Leave the folder as it is.

        Raises:
            UserError: it holds a run already, or files of something else.
        """
        if self.is_run():
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

    def replace_config(self, config: Config) -> None:
        """Have the run of this folder go on by other settings; locked by the caller."""
        self._write_config(config)

    def _refuse_used(self) -> None:
        if self.is_run():
            raise UserError(
                f"--out {self.path}: holds a run already; continue it with --resume, "
                "or choose another folder"
            )
        foreign = _foreign_files(self.path)
        if foreign:
            raise UserError(f"--out {self.path}: not empty (holds {foreign[0]}), and not a run")

    def _write_config(self, config: Config) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / CONFIG, {"format": FORMAT, **config.to_dict()})

    def config(self) -> Config:
        """The stored configuration.

        Raises:
            UserError: there is none, or it is not one of this version.
        """
        source = self.path / CONFIG
        if not self.is_run():
            raise UserError(f"{self.path}: no run here (no {CONFIG})")
        values = read_json(source)
        if values.pop("format", None) != FORMAT:
            raise UserError(f"{source}: not the configuration of a cpfast run of this version")
        return Config.from_dict(values, source)

    # --- while it runs ----------------------------------------------------------------------

    def is_run(self) -> bool:
        return (self.path / CONFIG).exists()

    def append_metrics(self, metrics: EpochMetrics, lines: list[str]) -> None:
        """Add an epoch to metrics.jsonl, and to `lines`, those that it holds already.

        Raises:
            UserError: the folder is gone, or the file is not what it was an epoch ago.
        """
        path, line = self.path / METRICS, json.dumps(metrics)
        if not (self.is_run() and path.exists()):
            raise UserError(
                f"{self.path}: removed, moved or emptied while the run went on; "
                f"epoch {len(lines) + 1} is not stored"
            )
        with naming(path), open(path, "a", encoding="utf-8") as file:
            held, expected = os.fstat(file.fileno()).st_size, len(_text(lines))
            if held != expected:
                raise UserError(
                    f"{path}: {held} bytes, expected {expected}: changed while the run went on; "
                    f"resumed, it is written again, and goes on after epoch {len(lines)}"
                )
            file.write(_text([line]))
            file.flush()
            os.fsync(file.fileno())  # as the checkpoint, which comes after it
        lines.append(line)

    def metrics(self) -> list[dict[str, Any]]:
        """One dict an epoch. A last line cut short by a stop is left out.

        Raises:
            UserError: another line is damaged.
        """
        source = self.path / METRICS
        if not source.exists():
            return []
        *lines, cut_short = source.read_text(encoding="utf-8", errors="replace").split("\n")
        if cut_short:
            lines.append(cut_short)
        metrics = []
        for number, line in enumerate(lines, 1):
            try:
                metrics.append(_entry(line, number))
            except ValueError as error:
                if number < len(lines) or not cut_short:
                    raise UserError(f"{source}, line {number}: damaged ({error})") from error
        return metrics

    def restore_metrics(self, lines: Sequence[str]) -> bool:
        """Have metrics.jsonl hold these lines; whether it lacked any, or had others in their place.

        Those of a later epoch, which has no checkpoint, are cut off.
        """
        path, wanted = self.path / METRICS, _text(lines).encode()
        held = path.read_bytes() if path.exists() else b""
        if held != wanted or not path.exists():
            write_atomically(path, lambda file: file.write(wanted))
        return not held.startswith(wanted)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """`state` has the number of epochs in "epoch", and the lines of metrics in "metrics"."""
        # Not straight into the file: torch.save would replace an error of writing by its own.
        data = checkpoint.pack(state)
        write_atomically(self.path / CHECKPOINT, lambda file: file.write(data))

    def checkpoint(self) -> dict[str, Any] | None:
        """What `save_checkpoint` stored, on the CPU; None before the first.

        Raises:
            UserError: the file is damaged, or is not a checkpoint of cpfast.
        """
        source = self.path / CHECKPOINT
        if not source.exists():
            return None
        state = checkpoint.unpack(source.read_bytes(), source)
        for number, line in enumerate(state["metrics"], 1):
            try:
                _entry(line, number)
            except ValueError as error:
                raise UserError(f"{source}: line {number} of metrics: {error}") from error
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
        try:
            check(energy, _ENERGY, "energy")
        except ValueError as error:
            raise UserError(
                f"{source}: damaged, or not the energy of a cpfast run ({error})"
            ) from error
        return energy

    def fork(self, into: RunFolder, config: Config, change: Change | None = None) -> None:
        """Copy what was done so far into another folder, to be continued with `config`.

        `change` makes the state that is continued from the one that is copied, as it pleases.
        config.json comes last: a folder without it is no run, and is written anew.
        """
        state = self.checkpoint()
        if state is None:
            raise ValueError(f"{self.path}: nothing to fork, no {CHECKPOINT}")
        into.path.mkdir(parents=True, exist_ok=True)
        into.restore_metrics(state["metrics"])
        energy = self.energy()
        if energy is not None:
            into.save_energy(energy)
        # its actions beyond the recipe are its own
        state = {**state, "config": config.to_dict(), "actions": None}
        into.save_checkpoint(state if change is None else change(state))
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
            with naming(self.path / LOCK):
                os.write(file.fileno(), str(os.getpid()).encode())  # past a buffer to be closed
            for unfinished in self.path.glob(f".*{TEMPORARY}"):
                unfinished.unlink(missing_ok=True)  # of a process that was killed
            yield


def _entry(line: str, number: int) -> dict[str, Any]:
    """The metrics of epoch `number`.

    Raises:
        ValueError: the line is damaged, or of another epoch.
    """
    entry = parsed(line)
    check(entry, Open({"epoch": int}), "line")
    if entry["epoch"] != number:
        raise ValueError(f"epoch {entry['epoch']} out of order")
    return entry


def _text(lines: Sequence[str]) -> str:
    """The content of metrics.jsonl: ASCII, so of as many bytes."""
    return "".join(f"{line}\n" for line in lines)


def _foreign_files(path: Path) -> list[str]:
    """What a new run would have to share its folder with; hidden files do not count."""
    if not path.is_dir():
        return []
    return sorted(p.name for p in path.iterdir() if not p.name.startswith("."))
