"""What a run costs, in floating-point operations, samples and seconds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cpfast.pruning import policies
from cpfast.studies.store import Entry
from cpfast.train import planned
from cpfast.train.config import Config

CURRENCIES = ("flops", "samples", "seconds")


def samples(entry: Mapping[str, Any]) -> float:
    """Trained on; one that was only scored counts a third, for it goes forward alone."""
    trained, scored = entry["backward_samples"], entry["forward_samples"]
    return float(trained + (scored - trained) / 3)


def main_currency(entries: Sequence[Entry]) -> str:
    """In which budgets are met: operations where they are known of every run."""
    known = all(entry.get("flops") for entry in entries if entry["diverged"] is None)
    return "flops" if known else "samples"


def cost(entry: Entry, currency: str) -> float:
    """
    Args:
        currency: one of `CURRENCIES`.
    """
    return samples(entry) if currency == "samples" else float(entry[currency])


def steady_seconds(entries: Mapping[Any, Entry]) -> dict[Any, float]:
    """Of runs of one kind: the samples of each, at the median over them of what one took, for a
    machine that was busy during one run is not the method's doing."""
    rates = [e["seconds"] / samples(e) for e in entries.values() if samples(e)]
    rate = statistics.median(rates) if rates else math.nan
    return {key: rate * samples(entry) for key, entry in entries.items()}


def guess(config: Config) -> float:
    """Of an epoch, against one pass over the data, before any was trained."""
    keep = None  # where tokens are selected each sample goes through the whole network
    if not policies.make(config.policy).needs_tokens:
        keep = 0.5 if config.keep is None else config.keep
    return planned.of_an_epoch(config.recipe(), config.epochs, keep)
