"""The energy of a training whose loop is somebody else's."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["Metering"]


class Metering:
    """codecarbon's meter of the first process, of which every process is told.

    Args:
        wanted: False: nothing is metered, and all methods do nothing.

    Attributes:
        wanted: as given.
        used: what was used when it was last read, as
            :meth:`cpfast.train.energy.EnergyMeter.read` has it; None before. A training that is
            resumed sets it, and goes on from there.

    Raises:
        ImportError: codecarbon is wanted and not installed.
    """

    def __init__(self, wanted: bool) -> None:
        if wanted and find_spec("codecarbon") is None:
            raise ImportError("energy: needs codecarbon: pip install 'cpfast[train]'")
        self.wanted = wanted
        self.used: dict[str, Any] | None = None
        self._meter: Any = None

    @property
    def runs(self) -> bool:
        return self._meter is not None

    def start(self, device: torch.device) -> None:
        """On top of what was used, unless it runs; on the device's machine, its GPU included."""
        if self.wanted and not self.runs and (not _joined() or dist.get_rank() == 0):
            from cpfast.train.energy import EnergyMeter  # the entrypoint's, of which this is all

            self._meter = EnergyMeter(device, self.used)

    def read(self) -> None:
        if self._meter is not None:
            self.used = self._meter.read()

    def stop(self) -> None:
        if self._meter is not None:
            self.used, self._meter = self._meter.stop(), None

    def kwh(self, device: torch.device) -> float | None:
        """What the first process has used, on every one; None where it is not known. A collective
        under torch.distributed."""
        if not self.wanted:
            return None
        self.read()
        kwh = torch.full((), torch.nan, dtype=torch.float64, device=device)
        if self.used is not None and self.used["kwh"] is not None:
            kwh.fill_(self.used["kwh"])
        if _joined():
            dist.broadcast(kwh, 0)
        return None if kwh.isnan() else float(kwh)


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()
