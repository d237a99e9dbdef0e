"""Whether what a checkpoint holds can be the state of a training.

The parts of a training restore what they are given; some of torch's read past a tensor's end where
its shape is another, or stumble in the next epoch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cpfast.detection.detector import STATE
from cpfast.forms import Finite, Maybe, Rows, Several, Table, check, shown
from cpfast.train.loop import Training


def check_state(t: Training, own: dict[str, Any], state: dict[str, Any]) -> None:
    """
    Args:
        own: the training's own state, of the same names.

    Raises:
        ValueError: names the first place where something else is expected.
    """
    check(state, _form(t, own), "checkpoint")
    _within("epoch", state["epoch"], 0, t.config.epochs)
    epoch = state["epoch"]
    if len(state["rotations"]) != epoch:
        raise ValueError(f"rotations: {len(state['rotations'])} after epoch {epoch}")
    if len(state["diffusion"]) != epoch:
        raise ValueError(f"diffusion: {len(state['diffusion'])} after epoch {epoch}")
    for detector in (state["detector"], *state["watch"].values()):
        for measured, _ in detector["history"]:
            _within(f"history of {shown(detector['criterion'])}", measured, 1, epoch)
    _check_scaler(own["scaler"], state["scaler"])
    _check_pruner(t, own["pruner"], state["pruner"], epoch)
    _check_stream(t, state["stream"], epoch)


def _form(t: Training, own: dict[str, Any]) -> dict[str, Any]:
    samples, layers = torch.empty(t.data.train_size), torch.empty(len(t.rotation.names))
    column = Table(samples)
    stream = own["stream"]
    return {
        **own,
        "config": dict,
        "optimizer": dict,  # it looks itself
        "schedule": {"base_lrs": [Finite] * len(own["schedule"]["base_lrs"])},
        "rotation": {**own["rotation"], "latest": Maybe(layers)},
        "diffusion": Several(float),
        "actions": Maybe(Several(str)),
        "rotations": Several([Finite] * (len(layers) if t.config.detect else 0)),
        "detector": STATE,
        "watch": Table(STATE),
        "pruner": {
            **own["pruner"],
            "keep": Finite, "anneal": Maybe(Finite), "policy": str, "options": dict,
            "columns": column, "columns_then": column, "state": Table(Tensor),
        },
        "probe": {**own["probe"], "ranks": Maybe(samples.int()), "gradients": dict, "masks": dict},
        "stream": {name: Rows(tensor) for name, tensor in stream.items()},
    }  # fmt: skip


def _check_scaler(own: dict[str, Any], state: dict[str, Any]) -> None:
    for name, value in state.items():
        if name not in ("scale", "_growth_tracker") and value != own[name]:
            raise ValueError(f"scaler[{name!r}]: expected {own[name]}, got {value}")
    if state:
        check(state["scale"], Finite, "scaler['scale']")
        if state["scale"] <= 0 or state["_growth_tracker"] < 0:
            raise ValueError(f"scaler: {shown(state)}")


def _check_pruner(t: Training, own: dict[str, Any], state: dict[str, Any], epoch: int) -> None:
    for name in ("num_samples", "num_epochs", "seed"):
        if state[name] != own[name]:
            raise ValueError(f"pruner[{name!r}]: expected {own[name]}, got {state[name]}")
    planned = state["planned"]
    _within("pruner['planned']['epoch']", planned["epoch"], -1, epoch - 1)
    _within("pruner['planned']['repeats']", planned["repeats"], 1, t.passes)
    _within("pruner['planned']['period_end']", planned["period_end"], -1, epoch)
    _within("pruner['planned']['keep']", planned["keep"], 0, 1)
    for key in ("columns", "columns_then"):
        for name, column in state[key].items():
            if column.isnan().any():
                raise ValueError(f"pruner[{key!r}][{name!r}]: NaN")


def _check_stream(t: Training, state: dict[str, Tensor], epoch: int) -> None:
    left = len(state["index"])
    for name, end in (("index", t.data.train_size), ("draw", epoch * t.passes)):
        values = state[name]
        if len(values) != left or len(state["weight"]) != left:
            raise ValueError(f"stream: {len(values)} of {name}, {left} samples")
        if left:
            _within(f"stream[{name!r}]", int(values.min()), 0, end - 1)
            _within(f"stream[{name!r}]", int(values.max()), 0, end - 1)


def _within(name: str, value: float, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name}: expected {least} to {most}, got {value}")
