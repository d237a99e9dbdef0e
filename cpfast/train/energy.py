"""Energy of a run by codecarbon, offline; each component says whether it was measured.

codecarbon reads counters where it can (RAPL for the CPU, NVML for the GPU) and otherwise models:
the CPU's share of its rated power by load, and memory by its size. A model is marked "estimated".
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch

from cpfast.train.errors import require

COMPONENTS = ("cpu", "gpu", "ram")
# codecarbon's modes of the CPU that read a counter; the others are models of its load.
_CPU_COUNTERS = ("intel_rapl", "windows_emi", "intel_power_gadget")


class EnergyMeter:
    """Adds up energy from its making on, on top of what a run used before it was resumed.

    Args:
        device: the accelerator whose GPU is counted; on the CPU no GPU is.
        before: what `stop` (or the last `read`) returned then.

    Raises:
        UserError: codecarbon is not installed.
    """

    def __init__(self, device: torch.device, before: dict[str, Any] | None = None) -> None:
        codecarbon = require("codecarbon", "measuring energy", ", or pass --no-energy")
        output = require("codecarbon.output_methods.base_output", "measuring energy")

        class Keep(output.BaseOutput):  # type: ignore[name-defined]
            """Takes the totals that `flush` hands out."""

            totals: Any = None

            def out(self, total: Any, delta: Any) -> None:
                self.totals = total

        # Importing it sets the level to INFO.
        logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
        self._before = before
        self._device = device
        self._keep = Keep()
        with warnings.catch_warnings():
            # The newer name of save_to_file is unknown to older versions.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._tracker = codecarbon.OfflineEmissionsTracker(
                country_iso_code="USA",  # sets only the emission factor, which is not used
                tracking_mode="process",
                gpu_ids=_gpu_ids(device),
                save_to_file=False,
                output_handlers=[self._keep],
                log_level="critical",
                measure_power_secs=5,
                api_call_interval=-1,
                allow_multiple_runs=True,
            )
        self._tracker.start()

    def read(self) -> dict[str, Any]:
        """Energy so far: `kwh`, `seconds`, and by component `kwh` and `source`."""
        self._tracker.flush()
        return self._sum(self._keep.totals)

    def stop(self) -> dict[str, Any]:
        """The last `read`; the meter cannot be used after it."""
        self._tracker.stop()
        return self._sum(getattr(self._tracker, "final_emissions_data", self._keep.totals))

    def _sum(self, totals: Any) -> dict[str, Any]:
        before = self._before or {"seconds": 0.0, "components": {}}
        components = {}
        for name in COMPONENTS:
            source = self._source(name)
            used = 0.0 if source == "none" else getattr(totals, f"{name}_energy", 0.0)
            earlier = before["components"].get(name, {"kwh": 0.0, "source": source})
            if earlier["source"] != source:
                # A sum is measured only if all of it is.
                source = "estimated"
            components[name] = {"kwh": earlier["kwh"] + used, "source": source}
        return {
            "kwh": sum(c["kwh"] for c in components.values()),
            "seconds": before["seconds"] + getattr(totals, "duration", 0.0),
            "components": components,
            "tool": f"codecarbon {getattr(totals, 'codecarbon_version', 'unknown')}",
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


def _gpu_ids(device: torch.device) -> list[str] | None:
    """The GPU by its UUID: torch's index counts visible devices, codecarbon's all."""
    if device.type != "cuda":
        return None
    return [f"GPU-{torch.cuda.get_device_properties(device).uuid}"]
