"""Settings beside the configured one, in which a rule that was fitted to one recipe goes wrong."""

from __future__ import annotations

from collections.abc import Callable

from cpfast.train.config import Config

# Halves and doubles what is configured; the learning rate stays.
SETTINGS: dict[str, Callable[[Config], Config]] = {
    "base": lambda c: c,
    "decay-half": lambda c: c.replace(weight_decay=c.weight_decay / 2),
    "decay-double": lambda c: c.replace(weight_decay=c.weight_decay * 2),
    "batch-half": lambda c: c.replace(batch_size=max(1, c.batch_size // 2)),
    "batch-double": lambda c: c.replace(batch_size=c.batch_size * 2),
    "epochs-half": lambda c: c.replace(epochs=max(1, c.epochs // 2)),
    "epochs-double": lambda c: c.replace(epochs=c.epochs * 2),
}
