"""The order of what a network makes of its inputs, along a training.

The paper (arXiv 2504.01737) speaks of disordered representations that become ordered, and of an
order parameter. Its definition could not be had; what is measured here is this project's own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cpfast.recipes import Action
from cpfast.studies import normalisation
from cpfast.train import loop
from cpfast.train.config import Config
from cpfast.train.data import ImageData
from cpfast.train.loop import EVALUATION_BATCH, Training

NAMES = ("epoch", "order", "accuracy")  # columns of a trace
LOW, HIGH = 0.1, 0.9  # of the way from the order at the beginning to that at the end
APART = 2**0.25  # the quotient of two steps between which nothing is measured


def order(outputs: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The share of the outputs' variance that lies between the classes.

    Corrected for what a finite number of samples shows of order where there is none: its mean is 0
    then (Kelley's epsilon squared, of all outputs together). 1: a class has one output.

    Args:
        outputs: [N, D] floating.
        labels: [N] int64, in 0 .. classes - 1; more samples than classes.
        classes: those without a sample do not count.

    Returns:
        [] float64; 0 where all outputs are the same.
    """
    x = outputs.double() - outputs.double().mean(0)  # [N, D]
    members = (labels[:, None] == torch.arange(classes, device=labels.device)).double()  # [N, C]
    counts = members.sum(0)
    between = ((members.T @ x).square().sum(1) / counts.clamp_min(1)).sum()
    total, size = x.square().sum(), len(x)
    within = 1 - between / total.clamp_min(torch.finfo(total.dtype).tiny)
    corrected = 1 - (size - 1) / (size - (counts > 0).sum()) * within
    return torch.where(total > 0, corrected, 0.0)


def trace(config: Config, data: ImageData, actions: Sequence[Action]) -> dict[str, Any]:
    """A run, repeated and looked at: before each of the first steps, then ever more rarely, and at
    the end.

    Of the test data, in evaluation mode, by running statistics that are measured anew each time;
    nothing of the run is changed by it.

    Args:
        config, actions: of the run.

    Returns:
        "chance", the accuracy of guessing, and a list for each of `NAMES`; epochs count from 0, in
        fractions.
    """
    # The hook is called where steps are calls, and not in the replay of a graph.
    config = config.replace(step="eager", eval_every=config.epochs)
    training = Training(config, data.to(torch.device(config.device)), actions)
    epochs: list[float] = []
    measured: list[Tensor] = []
    step = due = 0

    def record(*_: object) -> None:
        nonlocal step, due
        if step == due:
            due = max(step + 1, math.ceil(step * APART))
            epochs.append(step * config.batch_size / (training.passes * data.train_size))
            measured.append(_look(training))
        step += 1

    handle = training.optimizer.register_step_pre_hook(record)
    while training.epoch < config.epochs:
        loop.train_epoch(training)
    handle.remove()
    epochs.append(float(config.epochs))
    measured.append(_look(training))
    columns = [epochs, *torch.stack(measured).T.tolist()]
    return {
        "chance": 1 / data.outputs,
        **{
            name: [float(f"{value:.6g}") for value in column]
            for name, column in zip(NAMES, columns, strict=True)
        },
    }


@torch.no_grad()
def _look(training: Training) -> Tensor:
    """[2] float64: order and accuracy."""
    model, data = training.model, training.data
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    normalisation.measure(training)
    model.eval()
    outputs, labels = [], []
    for index in torch.arange(data.test_size, device=training.device).split(EVALUATION_BATCH):
        images, targets = training.batches.test(index)
        with training.autocast():
            outputs.append(model(images).float())
        labels.append(targets)
    for name, buffer in model.named_buffers():
        buffer.copy_(kept[name])
    model.train()
    logits, target = torch.cat(outputs), torch.cat(labels)
    accuracy = (logits.argmax(1) == target).double().mean()
    return torch.stack([order(logits, target, data.outputs), accuracy])


class Milestones(NamedTuple):
    """When a trace gets where, in epochs; None: never.

    Attributes:
        ordering: the order has gone `LOW` of its way from the beginning to the end: before, the
            outputs count as disordered.
        ordered: it has gone `HIGH` of it.
        steepest: the middle of the stretch in which the order rises fastest.
        half: the accuracy is 50 %.
        half_way: it is half way from chance to 100 %.
    """

    ordering: float | None
    ordered: float | None
    steepest: float | None
    half: float | None
    half_way: float | None


def milestones(found: Mapping[str, Any]) -> Milestones:
    """Of a trace; between two of its places by a straight line."""
    epochs, orders = found["epoch"], found["order"]
    first, last = orders[0], orders[-1]
    half, half_way = (
        reached(epochs, found["accuracy"], least) for least in (0.5, (1 + found["chance"]) / 2)
    )
    if last <= first:  # nothing has been ordered
        return Milestones(None, None, None, half, half_way)
    ordering, ordered = (
        reached(epochs, orders, first + share * (last - first)) for share in (LOW, HIGH)
    )
    points = itertools.pairwise(zip(epochs, orders, strict=True))
    rises = {(x + y) / 2: (b - a) / (y - x) for (x, a), (y, b) in points}
    return Milestones(ordering, ordered, max(rises, key=rises.__getitem__), half, half_way)


def reached(places: Sequence[float], values: Sequence[float], least: float) -> float | None:
    """Where the values are at `least` for the first time."""
    for number, value in enumerate(values):
        if value >= least:
            if number == 0:
                return places[0]
            before, place = values[number - 1], places[number - 1]
            return place + (least - before) / (value - before) * (places[number] - place)
    return None
