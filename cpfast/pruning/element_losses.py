"""Losses that are means over a sample's elements: of many labels, and of regression."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cpfast import ops
from cpfast.arguments import check_tensors
from cpfast.pruning.recorder import Recorder

__all__ = ["ElementLosses"]


class ElementLosses(Recorder):
    """:class:`Recorder` with the losses of :func:`cpfast.ops.scored_binary_cross_entropy` and
    :func:`cpfast.ops.scored_mse`."""

    def binary_loss(
        self,
        logits: Tensor,
        target: Tensor,
        index: Tensor,
        *,
        weight: Tensor | None = None,
        pos_weight: Tensor | None = None,
        reduction: str = "mean",
        gradient: str | None = None,
        training: bool | None = None,
    ) -> Tensor:
        """Binary cross-entropy, weighted, averaged over the batch; records what the policy needs.

        Args:
            logits: [B, ...], of which a sample's loss is the mean.
            target: as logits, in [0, 1]: labels, or shares of them.
            index: [B] int64, which samples of the data set these are.
            weight: [B] float32; None: ``weights(index)``, of the current plan.
            pos_weight: as in :func:`cpfast.ops.scored_binary_cross_entropy`.
            reduction, gradient, training: as in :meth:`loss`.

        Returns:
            [] float32 (float64 for float64 logits), or [B] with "none".

        Raises:
            ValueError: for an index of another shape, or a policy that selects among tokens.
        """
        return self._of_elements(
            ops.scored_binary_cross_entropy, logits, target, index, weight, training,
            {"pos_weight": pos_weight, "reduction": reduction, "gradient": gradient},
        )  # fmt: skip

    def mse_loss(
        self,
        input: Tensor,
        target: Tensor,
        index: Tensor,
        *,
        weight: Tensor | None = None,
        reduction: str = "mean",
        gradient: str | None = None,
        training: bool | None = None,
    ) -> Tensor:
        """The squared error, weighted, averaged over the batch; records what the policy needs.

        Args:
            input: [B, ...], of which a sample's loss is the mean.
            target: as input.
            index: [B] int64, which samples of the data set these are.
            weight: [B] float32; None: ``weights(index)``, of the current plan.
            reduction, gradient, training: as in :meth:`loss`.

        Returns:
            [] float32 (float64 for a float64 input), or [B] with "none".

        Raises:
            ValueError: for an index of another shape, a policy that selects among tokens, or one
                that needs margins or predictions, which regression does not have.
        """
        return self._of_elements(
            ops.scored_mse, input, target, index, weight, training,
            {"reduction": reduction, "gradient": gradient},
        )  # fmt: skip

    def _of_elements(
        self,
        op: Callable[..., Any],
        input: Tensor,
        target: Tensor,
        index: Tensor,
        weight: Tensor | None,
        training: bool | None,
        options: dict[str, Any],
    ) -> Tensor:
        named = "input" if op is ops.scored_mse else "logits"
        check_tensors(**{named: input}, target=target, index=index)
        if weight is not None:
            check_tensors(weight=weight)
        if self.rule.needs_tokens:
            raise ValueError(
                f"{named}: the policy {self.policy!r} selects among tokens, which such losses do "
                "not have"
            )
        missing = [name for name in self._columns if name not in ("loss", "el2n")]
        if missing and op is ops.scored_mse:
            raise ValueError(
                f"{named}: the policy {self.policy!r} needs {', '.join(missing)}, which regression "
                "does not have"
            )
        trains = self._trains(training, target, index)
        if options["gradient"] is None:
            late = input.dtype == torch.float16 or options["reduction"] == "none" or not trains
            options["gradient"] = "backward" if late else "forward"
        if not trains:
            loss: Tensor = op(input, target, weight=_a_column(weight), **options).loss
            return loss
        index = self._placed(input.device, index)
        if weight is None:
            weight = self._weights.index_select(0, index)
        result = op(
            input, target, weight=_a_column(weight), table=self.scores, index=index,
            score=self._first_column, **options,
        )  # fmt: skip
        self._record_others(index, result, target, 0)
        self._count(index)
        loss = result.loss
        return loss


def _a_column(weight: Tensor | None) -> Tensor | None:
    """For [B] might be one an element."""
    return weight[:, None] if weight is not None and weight.dim() == 1 else weight
