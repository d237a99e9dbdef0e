"""Mixup and CutMix of a batch, on its device, with shares that are drawn before an epoch begins."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cpfast import ops
from cpfast.arguments import check_tensors, check_type, real, typed, whole
from cpfast.forms import shown
from cpfast.pruning import DataPruner

__all__ = ["KINDS", "Mixer"]

KINDS = ("mixup", "cutmix")
_STREAM = 2  # of the draws; those within batches and those of the passes have others


class Mixer:
    """Mixes each sample of a batch with the one before it, whose order is random already.

    Call :meth:`begin` before an epoch; then, in each step, :meth:`mix` the inputs and take the
    :meth:`loss` of both labels. What is drawn follows from the seed and the epoch, lies on the
    device, and is read through a cursor there: a CUDA graph that captured a step takes draw after
    draw, and nothing needs saving. ::

        mixer = Mixer(seed=0, steps=max_steps, device="cuda")
        mixer.begin("mixup", alpha=0.2, epoch=epoch, steps=steps)
        for inputs, targets, index in batches:
            inputs, share = mixer.mix("mixup", inputs)
            loss = mixer.loss(pruner, model(inputs), targets, index, share)

    Args:
        seed: of all draws.
        steps: the most that an epoch has.
        device: of the batches.

    Raises:
        TypeError: for an argument of another type.
        ValueError: for a number out of range.

    Sources: mixup, arXiv 1710.09412; CutMix, arXiv 1905.04899, algorithm A1. One share a batch, as
    in both released codes.
    """

    @typed
    def __init__(self, seed: int, steps: int, device: torch.device | str = "cpu") -> None:
        self.seed = whole("seed", seed)
        whole("steps", steps, least=1)
        self._draws = torch.zeros(steps, 3, dtype=torch.float32, device=device)
        self._cursor = torch.zeros((), dtype=torch.int64, device=device)

    @typed
    def begin(self, kind: str | None, alpha: float, epoch: int, steps: int) -> None:
        """Draws an epoch's shares and places, by one copy to the device.

        Args:
            kind: "mixup", "cutmix", or None: nothing is drawn.
            alpha: of Beta(alpha, alpha), above 0.
            epoch: from 0.
            steps: of the epoch.

        Raises:
            ValueError: for another kind, or a number out of range.
        """
        most = len(self._draws)
        whole("epoch", epoch, least=0), whole("steps", steps, least=0, most=most)
        self._cursor.zero_()
        if kind is None:
            return
        _check_kind(kind)
        if not 0 < alpha < float("inf"):
            raise ValueError(f"alpha: expected a number above 0, got {alpha}")
        random = np.random.default_rng([self.seed % 2**64, epoch, _STREAM])
        share = random.beta(alpha, alpha, steps)
        drawn = np.column_stack([share, random.random((steps, 2))]).astype(np.float32)
        self._draws[:steps] = torch.from_numpy(drawn)

    @torch.no_grad()
    def mix(self, kind: str | None, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """The mixed batch, and the share of each sample's own label.

        Args:
            kind: as :meth:`begin` was told.
            inputs: [B, C, H, W] floating.

        Returns:
            The inputs, in their dtype and strides, and [] float32; without a kind, the inputs as
            they are and None.
        """
        check_tensors(inputs=inputs)
        if kind is None:
            return inputs, None
        _check_kind(kind)
        # not by [cursor], which asks the host
        share, row, column = self._draws.index_select(0, self._cursor.view(1))[0].unbind()
        self._cursor += 1
        others = inputs.roll(1, 0)
        if kind == "mixup":
            return torch.lerp(others, inputs, share.to(inputs.dtype)), share
        height, width = inputs.shape[-2:]
        side = (1 - share).sqrt()  # of the rectangle, as a share of the image's
        rows = _inside(row, side, height)
        columns = _inside(column, side, width)
        share = 1 - rows.float().mean() * columns.float().mean()
        return torch.where(rows[:, None] & columns, others, inputs), share

    def loss(
        self,
        pruner: DataPruner,
        logits: Tensor,
        target: Tensor,
        index: Tensor,
        share: Tensor | None,
        *,
        weight: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """share x the loss of the own labels + (1 - share) x that of the others', each with the
        weight of the sample whose label it is, so that what a policy estimates without bias stays
        so. The pruner records the loss of the own label, of the mixed input.

        Args:
            pruner, logits, target, index, weight: as of :meth:`cpfast.DataPruner.loss`.
            share: of :meth:`mix`; None: the pruner's loss.
            options: of :meth:`cpfast.DataPruner.loss`.

        Returns:
            [] float32, the mean over the batch.
        """
        check_type("pruner", pruner, DataPruner)
        if share is None:
            return pruner.loss(logits, target, index, weight=weight, **options)
        weight = pruner.weights(index) if weight is None else weight
        check_tensors(share=share, weight=weight)
        own = pruner.loss(logits, target, index, weight=weight * share, **options)
        others = ops.scored_cross_entropy(
            logits,
            target.roll(1, 0),
            weight=(weight * (1 - share)).roll(1, 0)[:, None],
            reduction="mean",
            label_smoothing=real("label_smoothing", options.get("label_smoothing", 0.0)),
        )
        return own + others.loss


def _check_kind(kind: Any) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {KINDS}, got {shown(kind)}")


def _inside(centre: Tensor, side: Tensor, size: int) -> Tensor:
    """[size] bool: the pixels between the whole numbers nearest to zero from both edges, cut off
    at the image's."""
    middle = (centre * size).floor()
    half = ((side * size).floor() / 2).floor()
    pixels = torch.arange(size, device=centre.device)
    return (pixels >= middle - half) & (pixels < middle + half)
