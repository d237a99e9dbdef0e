"""Energy, CO2e and cost of a run; each says whether it was measured.

codecarbon, offline, reads counters where it can (RAPL for the CPU, NVML for the GPU) and otherwise
models: the CPU's share of its rated power by load, and memory by its size. A model is marked
"estimated", and so is a sum that contains one. CO2e is always estimated: it is the energy times
a yearly mean of a country's electricity. Prices are given, and time is measured.

All three are of the same time, all of the run from the start of its loop on: with evaluation and
checkpoints, without loading the data, and without compiling and capturing the step, which the
first run of a process pays for all that follow. The energy of training alone cannot be told apart
by counters that are read every few seconds.
"""

from __future__ import annotations

import inspect
import logging
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from cpfast.train import ranks
from cpfast.train.config import Config
from cpfast.train.errors import UserError, require
from cpfast.train.runfolder import RunFolder

COMPONENTS = ("cpu", "gpu", "ram")
# Of codecarbon's trackers: what is left out comes from a person's own settings file or environment.
# These are its defaults, but that nothing is written, sent or logged.
_SETTINGS: dict[str, Any] = {
    "allow_multiple_runs": True,
    "api_call_interval": -1,
    "api_endpoint": "",
    "api_key": "",
    "cloud_provider": None,
    "cloud_region": None,
    "co2_signal_api_token": "",
    "country_2letter_iso_code": None,
    "country_iso_code": "USA",  # of its own CO2e, which is not used
    "electricitymaps_api_token": "",
    "emissions_endpoint": None,
    "experiment_id": "",
    "experiment_name": "",
    "force_carbon_intensity_g_co2e_kwh": None,
    "force_cpu_power": None,
    "force_mode_cpu_load": False,
    "force_ram_power": None,
    "log_level": "critical",
    "logger_preamble": "",
    "logging_logger": None,
    "measure_power_secs": 5,
    "metadata": None,
    "on_csv_write": "append",
    "output_dir": ".",
    "output_file": "emissions.csv",
    "output_methods": [],
    "project_name": "cpfast",
    "prometheus_url": "",
    "pue": 1.0,
    "rapl_include_dram": False,
    "rapl_prefer_psys": False,
    "region": None,
    "save_to_api": False,
    "save_to_file": False,
    "save_to_logfire": False,
    "save_to_logger": False,
    "save_to_prometheus": False,
    "tracking_mode": "process",
    "wue": 0.0,
}
# codecarbon's modes of the CPU that read a counter; the others are models of its load.
_CPU_COUNTERS = ("intel_rapl", "windows_emi", "intel_power_gadget")


def start(config: Config, folder: RunFolder) -> EnergyMeter:
    """The meter of a run: on top of what energy.json says that it used before it was resumed.

    Raises:
        UserError: as `EnergyMeter`, or energy.json is damaged.
    """
    return EnergyMeter(
        torch.device(config.device),
        folder.energy(),
        measure=config.energy,
        country=config.country,
        price_kwh=config.price_kwh,
        price_hour=config.price_hour,
    )


def source_of_sum(sources: Iterable[str]) -> str:
    """A sum is measured only if all of it is; "none" of it counts for nothing."""
    used = set(sources) - {"none"}
    if not used:
        return "none"
    return used.pop() if len(used) == 1 else "estimated"


def grams_per_kwh(country: str | None) -> float:
    """CO2e of a country's electricity, from codecarbon's data (of 213 countries in version 3.3).

    Without a country that of the world's mean: 475 g/kWh in version 3.3 (IEA, 2019).

    Raises:
        UserError: there is no data for it. (codecarbon itself would take the world's mean.)
        MissingLibrary: codecarbon is not installed.
    """
    require("codecarbon", "measuring energy", ", or pass --no-energy")
    tables = require("codecarbon.input", "counting CO2e").DataSource()
    if country is None:
        return tables.get_carbon_intensity_per_source_data()["world_average"]
    grams = tables.get_global_energy_mix_data().get(country, {}).get("carbon_intensity")
    if grams is None:
        raise UserError(
            f"--country {country}: codecarbon has no data for it; give a country's three letters "
            "of ISO 3166-1, such as BRA or DEU, or leave it out for the world's mean"
        )
    return grams


class EnergyMeter:
    """Adds up energy from its making on, on top of what a run used before it was resumed.

    The country and the prices are counted for all of the run, with what was used before.

    Args:
        device: the accelerator whose GPU is counted; on the CPU no GPU is.
        before: what `stop` (or the last `read`) returned then.
        measure: False for the time alone: then codecarbon is not needed.
        country: see `grams_per_kwh`.
        price_kwh, price_hour: in any currency; the cost is the sum of what is given.

    Raises:
        UserError: codecarbon is not installed, cannot read its settings file, or has no data for
            `country`.
    """

    def __init__(
        self,
        device: torch.device,
        before: dict[str, Any] | None = None,
        *,
        measure: bool = True,
        country: str | None = None,
        price_kwh: float | None = None,
        price_hour: float | None = None,
    ) -> None:
        self._device = device
        self._before = before or {"seconds": 0.0, "kwh": 0.0, "components": {}}
        self._country = country
        self._prices = (price_kwh, price_hour)
        self._paused_seconds = 0.0
        self._paused = dict.fromkeys(COMPONENTS, 0.0)
        self._tracker: Any = None
        if measure:
            self._grams = grams_per_kwh(country)
            self._start_tracker()
        self._started = time.perf_counter()

    def _start_tracker(self) -> None:
        codecarbon = require("codecarbon", "measuring energy")
        output = require("codecarbon.output_methods.base_output", "measuring energy")

        class Keep(output.BaseOutput):  # type: ignore[name-defined]
            """Takes the totals that `flush` hands out."""

            totals: Any = None

            def out(self, total: Any, delta: Any) -> None:
                self.totals = total

        # Importing it sets the level to INFO.
        logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
        self._keep = Keep()
        tracker = codecarbon.OfflineEmissionsTracker
        own = {"gpu_ids": _gpu_ids(self._device), "output_handlers": [self._keep]}
        known = _arguments(tracker)
        with warnings.catch_warnings():
            # Of two names for one thing the older is deprecated, and the newer not known to all.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._tracker = tracker(
                **{name: value for name, value in {**_SETTINGS, **own}.items() if name in known}
            )
        if not vars(self._tracker):  # it keeps its errors to itself
            raise UserError(
                "codecarbon cannot be started: mend its settings file, .codecarbon.config in your "
                "home or this folder, or pass --no-energy"
            )
        self._tracker.start()

    def read(self) -> dict[str, Any]:
        """What the run has used so far, as energy.json has it.

        Returns:
            "seconds"; "components", by name with "kwh" and "source"; their sum "kwh" with its
            "source"; "tool"; "co2e" with "kg", "source", "country", "grams_per_kwh"; "cost" with
            "value", the sum of "by_kwh" and "by_hour", its "source", and the prices. "kwh",
            "co2e" and "by_kwh" are None where a part of the run was not metered; so are prices
            that are not given, what follows from them, and "cost" where nothing does.
        """
        return self._sum(self._flush())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is used meanwhile does not count."""
        before, started = self._used(self._flush()), time.perf_counter()
        yield
        after = self._used(self._flush())
        self._paused_seconds += time.perf_counter() - started
        for name in COMPONENTS:
            self._paused[name] += after[name] - before[name]

    def _flush(self) -> Any:
        """codecarbon's totals so far; None without any."""
        if self._tracker is None:
            return None
        self._tracker.flush()
        return self._keep.totals

    def _used(self, totals: Any) -> dict[str, float]:
        """Kilowatt-hours by component, the pauses included."""
        return {
            name: 0.0 if self._source(name) == "none" else getattr(totals, f"{name}_energy", 0.0)
            for name in COMPONENTS
        }

    def stop(self) -> dict[str, Any]:
        """The last `read`; the meter cannot be used after it."""
        if self._tracker is None:
            return self._sum(None)
        self._tracker.stop()
        return self._sum(getattr(self._tracker, "final_emissions_data", self._keep.totals))

    def _sum(self, totals: Any) -> dict[str, Any]:
        before = self._before
        seconds = before["seconds"] + time.perf_counter() - self._started - self._paused_seconds
        energy: dict[str, Any] = {
            "seconds": seconds, "components": {}, "kwh": None, "source": "none", "tool": None,
            "co2e": None,
        }  # fmt: skip
        # codecarbon's errors are silent; all it does then is to give no totals.
        if totals is not None and before["kwh"] is not None:
            components = self._components(totals)
            energy["components"] = components
            energy["kwh"] = sum(c["kwh"] for c in components.values())
            energy["source"] = source_of_sum(c["source"] for c in components.values())
            energy["tool"] = f"codecarbon {getattr(totals, 'codecarbon_version', 'unknown')}"
            energy["co2e"] = {
                "kg": energy["kwh"] * self._grams / 1000,
                "source": "estimated",
                "country": self._country,
                "grams_per_kwh": self._grams,
            }
        energy["cost"] = self._cost(energy)
        return energy

    def _components(self, totals: Any) -> dict[str, dict[str, Any]]:
        components = {}
        for name, used in self._used(totals).items():
            source = self._source(name)
            earlier = self._before["components"].get(name, {"kwh": 0.0, "source": "none"})
            components[name] = {
                "kwh": earlier["kwh"] + used - self._paused[name],
                "source": source_of_sum((earlier["source"], source)),
            }
        return components

    def _cost(self, energy: dict[str, Any]) -> dict[str, Any] | None:
        price_kwh, price_hour = self._prices
        by_kwh = None if price_kwh is None or energy["kwh"] is None else price_kwh * energy["kwh"]
        by_hour = None if price_hour is None else price_hour * energy["seconds"] / 3600
        if by_kwh is None and by_hour is None:
            return None
        return {
            "value": (by_kwh or 0.0) + (by_hour or 0.0),
            "source": "measured" if by_kwh is None else energy["source"],
            "by_kwh": by_kwh,
            "by_hour": by_hour,
            "price_kwh": price_kwh,
            "price_hour": price_hour,
        }

    def _source(self, component: str) -> str:
        """ "measured", "estimated", or "none" for a component that the run does not use."""
        if component == "gpu" and self._device.type == "cpu":
            return "none"
        for hardware in getattr(self._tracker, "_hardware", ()):
            kind = type(hardware).__name__
            if kind.lower() == component:
                mode = getattr(hardware, "_mode", None)
                measured = component == "gpu" or (component == "cpu" and mode in _CPU_COUNTERS)
                return "measured" if measured else "estimated"
            if getattr(hardware, "chip_part", "").lower() == component:
                return "measured"  # Apple's and the Raspberry Pi's own sensors
        return "estimated"


def _arguments(tracker: type) -> set[str]:
    """The names of what a tracker of this version of codecarbon can be given."""
    bases = tracker.__mro__[:-1]
    names = {name for base in bases for name in inspect.signature(base).parameters}
    return names - {"args", "kwargs"}


def _gpu_ids(device: torch.device) -> list[str] | None:
    """The GPU by its UUID: torch's index counts visible devices, codecarbon's all. Those of all of
    a run's processes on this machine, of which one meters."""
    if device.type != "cuda":
        return None
    several = ranks.on_this_machine()
    devices = [device] if several == 1 else range(several)
    return [f"GPU-{torch.cuda.get_device_properties(one).uuid}" for one in devices]
