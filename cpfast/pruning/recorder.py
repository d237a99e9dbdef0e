"""What the loss says of each sample: recorded as it is computed, weighted as the plan says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cpfast import ops
from cpfast.arguments import check_tensors, real, whole
from cpfast.forms import shown
from cpfast.lm_head import ScoredLMHead
from cpfast.ops._scored_cross_entropy import as_rows, scored_rows
from cpfast.pruning.policy import Policy, TokenFilter
from cpfast.results import ScoredLoss

__all__ = ["Recorder", "world_size"]

# An ignored sample would be recorded as one of loss 0.
_NONE_IGNORED = torch.iinfo(torch.int64).min


class Recorder:
    """The recording half of a :class:`~cpfast.DataPruner`: its losses, and what they leave in the
    columns of all samples, on one device, which the host never looks at."""

    policy: str
    rule: Policy
    num_samples: int
    planned: Any
    token_filter: Any
    _reference: Tensor | None
    _columns: dict[str, Tensor]
    _weights: Tensor
    # Samples trained on since the plan: on the device, on the host, and by all ranks until a sync.
    _recorded: Tensor
    _recorded_here: int
    _recorded_by_all: int
    # Only under torch.distributed: which scores this rank has written since the last sync.
    _touched: Tensor | None
    _unsynced: bool

    @property
    def scores(self) -> Tensor:
        """[N] float32: the first of the columns that the policy needs, the last loss for most; inf
        where a sample has not been seen."""
        return next(iter(self._columns.values()))

    @property
    def columns(self) -> dict[str, Tensor]:
        """What is recorded of the samples, by name: [N] float32 each."""
        return dict(self._columns)

    @property
    def device(self) -> torch.device:
        return self.scores.device

    def _restore_plan(self) -> None:
        raise NotImplementedError

    def _move_to(self, device: torch.device) -> None:
        raise NotImplementedError

    def weights(self, index: Tensor) -> Tensor:
        """What the losses of samples ``index`` ([B] int64) are multiplied by: [B] float32."""
        check_tensors(index=index)
        self._restore_plan()
        return self._weights.index_select(0, index.to(self.device, non_blocking=True))

    def loss(
        self,
        logits: Tensor,
        target: Tensor,
        index: Tensor,
        *,
        weight: Tensor | None = None,
        class_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        ignore_index: int = -100,
        class_dim: int = -1,
        reduction: str = "mean",
        num_tokens: int | Tensor | None = None,
        gradient: str | None = None,
        training: bool | None = None,
        reference: Tensor | None = None,
    ) -> Tensor:
        """Cross-entropy, weighted, averaged over the batch; records what the policy needs.

        Args:
            logits: [B, C]; or [B, T, C] for sequences of tokens, [B, ..., C] for other samples of
                many rows.
            target: classes, shaped as logits without C; none of [B] is ignored. Or distributions,
                shaped as logits: of mixed labels, or a teacher's.
            index: [B] int64, which samples of the data set these are.
            weight: [B] float32; None: ``weights(index)``, of the current plan. For batches that
                hold samples of an earlier plan too.
            class_weight: [C] float32. With "mean", the sum is then divided by the sum of the class
                weights of the targets, as torch has it.
            label_smoothing: in [0, 1].
            z_loss: as in :func:`cpfast.ops.scored_cross_entropy`; not recorded.
            ignore_index: of tokens. A sequence's score is the mean over the others.
            class_dim: where C is: 1 for images [B, C, H, W].
            reduction: "mean", "sum", or "none".
            num_tokens: what the sum of the losses is divided by, in place of the number of rows
                that are not ignored: of all micro-batches whose gradients are accumulated, so that
                they add up to that of one batch. Goes with "mean".
            gradient: when it is computed, as in :func:`cpfast.ops.scored_cross_entropy`; None:
                with the loss, so that there can be one backward pass (not for float16 logits,
                whose loss scale would come too late, nor with "none").
            training: whether this is a step of the training; None: whether gradients are enabled.
                Otherwise nothing is recorded, weighted or selected, and the samples may be others:
                the index is not looked at.
            reference: [B, T], of a policy that selects among tokens: losses of another model for
                these; None: those that the pruner was given for samples ``index``.

        Returns:
            [] float32 (float64 for float64 logits), the sum of weight * loss over B, or over the
            tokens that are not ignored; [B] or [B, T] with "none". Summed over an epoch, and times
            B, the mean estimates the sum over the full data: with n of N samples planned, a
            batch's value is some N / n times the full mean, as InfoBatch's is. Where k of a
            sequence's n tokens are selected, their losses are multiplied by n / k, and those of
            the others by 0: of sequences of one length the mean is that over the selected.

        Raises:
            ValueError: for an index of another shape, num_tokens without "mean", or a selection
                among tokens where there are none, with a reference of another shape, or with one
                where labels are smoothed or classes weighted.
            RuntimeError: for such a selection before an epoch was planned.
        """
        if not (
            isinstance(logits, Tensor) and isinstance(target, Tensor) and isinstance(index, Tensor)
        ):
            check_tensors(logits=logits, target=target, index=index)
        if num_tokens is not None:
            num_tokens = _number_of_tokens(num_tokens, reduction)
        ignore_index = whole("ignore_index", ignore_index)
        trains = self._trains(training, target, index)
        chosen = self._selection(trains, target, reference, label_smoothing, class_weight)
        if gradient is None:
            late = logits.dtype == torch.float16 or reduction == "none" or not trains
            gradient = "backward" if late else "forward"
        if weight is not None:
            check_tensors(weight=weight)
        ignored = _NONE_IGNORED if _is_one_row_each(logits, target) else ignore_index
        options: dict[str, Any] = {
            "class_weight": class_weight,
            "label_smoothing": label_smoothing,
            "z_loss": z_loss,
            "ignore_index": ignored,
            "class_dim": class_dim,
            "reduction": "sum" if num_tokens is not None else reduction,
            "gradient": gradient,
        }
        if not trains:
            loss, _ = scored_rows(logits, target, weight=weight, **options)
            return loss if num_tokens is None else loss / num_tokens
        index = self._placed(logits.device, index)
        recorded: dict[str, Any] = {
            "table": self.scores,
            "index": index,
            "score": self._first_column,
        }
        if chosen is not None:
            with torch.no_grad():
                alone = {**options, "reduction": "none", "gradient": "backward", "z_loss": 0.0}
                losses, scores = scored_rows(logits, target, **alone, **recorded)
            self._record_others(index, (losses, scores), target, ignored)
            tokens = self._token_weights(chosen, losses, target != ignored, index, reference)
            weight = self._weights.index_select(0, index) if weight is None else weight
            weight = as_rows(weight, target.shape) * tokens
            loss, _ = scored_rows(logits, target, weight=weight, **options)
        else:
            table = self._weights if weight is None else None
            loss, scores = scored_rows(
                logits, target, weight=weight, weight_table=table, **options, **recorded
            )
            self._record_others(index, (loss, scores), target, ignored)
        self._count(index)
        return loss if num_tokens is None else loss / num_tokens

    def linear_loss(
        self,
        hidden: Tensor,
        head: Tensor | ScoredLMHead,
        target: Tensor,
        index: Tensor,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        num_tokens: int | Tensor | None = None,
        training: bool | None = None,
        reference: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """:meth:`loss` of a last linear layer's logits, which are never held.

        Args:
            hidden: [B, D], or [B, T, D] for sequences of tokens: what that layer takes.
            head: its weight, [V, D], or a :class:`~cpfast.ScoredLMHead`, which is called: where
                FSDP shards it, that is when its weight is whole.
            target, index: as of :meth:`loss`.
            weight: [B] or as target; None: ``weights(index)``.
            ignore_index, reduction, num_tokens, training, reference: as of :meth:`loss`. Of
                tokens that are not selected the logits are formed once, and no gradient.
            options: those of :func:`cpfast.ops.scored_linear_cross_entropy`: ``bias``,
                ``class_weight``, ``label_smoothing``, ``z_loss``, ``softcap``, ``chunk``,
                ``max_rows``, ...

        Returns:
            As :meth:`loss`; differentiable in the hidden states and the layer's parameters.

        Raises:
            ValueError, RuntimeError: as :meth:`loss`.
        """
        check_tensors(hidden=hidden, target=target, index=index)
        if not isinstance(head, torch.nn.Module):
            check_tensors(head=head)
        if weight is not None:
            check_tensors(weight=weight)
        num_tokens = _number_of_tokens(num_tokens, reduction)
        ignore_index = whole("ignore_index", ignore_index)
        trains = self._trains(training, target, index)
        chosen = self._selection(
            trains,
            target,
            reference,
            options.get("label_smoothing", 0.0),
            options.get("class_weight"),
        )
        if trains:
            index = self._placed(hidden.device, index)
            weight = self._weights.index_select(0, index) if weight is None else weight
        ignored = ignore_index if hidden.dim() == 3 else _NONE_IGNORED

        def scored(target: Tensor, weight: Tensor | None, **given: Any) -> ScoredLoss:
            given = {**options, "sample_weight": weight, "ignore_index": ignored, **given}
            if isinstance(head, torch.nn.Module):
                result: ScoredLoss = head(hidden, target, **given)
                return result
            return ops.scored_linear_cross_entropy(hidden, head, target, **given)

        count: Tensor | None = None
        if num_tokens is not None:
            reduction = "sum"
        if chosen is not None:
            late = {"reduction": "none", "gradient": None, "z_loss": 0.0}
            with torch.no_grad():
                losses = self._recording(
                    lambda **table: scored(target, None, **late, **table), index, target, ignored
                )
            counts = target != ignored
            tokens = self._token_weights(chosen, losses, counts, index, reference)
            weight = tokens if weight is None else as_rows(weight, target.shape) * tokens
            goal = target
            # What is not selected costs nothing more, as what is ignored does not: on CUDA because
            # the host knows a bound.
            target = target.masked_fill(tokens == 0, ignored)
            most = len(target) * chosen.most(target.shape[1])
            options["max_rows"] = max(1, min(most, options.get("max_rows") or most))
            if reduction == "mean":
                reduction, count = "sum", _counted(options.get("class_weight"), goal, counts)
        loss = self._recording(
            lambda **table: scored(target, weight, reduction=reduction, **table),
            index if trains and chosen is None else None,
            target,
            ignored,
        )
        if trains:
            self._count(index)
        loss = loss if count is None else loss / count
        return loss if num_tokens is None else loss / num_tokens

    def _selection(
        self,
        trains: bool,
        target: Tensor,
        reference: Any,
        label_smoothing: Any,
        class_weight: Tensor | None,
    ) -> TokenFilter | None:
        """Among the tokens of the current epoch; None where all are trained on."""
        if reference is not None:
            check_tensors(reference=reference)
            if not self.rule.needs_tokens:
                raise ValueError(
                    f"reference: the policy {self.policy!r} does not look at tokens, got "
                    f"{shown(reference)}"
                )
        if not (trains and self.rule.needs_tokens):
            return None
        if target.dim() != 2 or target.is_floating_point():
            raise ValueError(
                f"target: the policy {self.policy!r} selects among the tokens of sequences, and "
                f"expects classes [B, T], got {list(target.shape)}"
            )
        if self.planned is None:
            raise RuntimeError(
                f"DataPruner: the policy {self.policy!r} selects tokens as the epoch's plan says, "
                "and none was made; call plan(epoch) before the epoch"
            )
        chosen: TokenFilter | None = self.token_filter
        given = self._reference if reference is None else reference
        if chosen is None or given is None:
            return chosen
        expected = target.shape[1:] if reference is None else target.shape
        if given.shape[given.dim() - len(expected) :] != expected or given.dim() != 2:
            raise ValueError(
                f"reference: expected losses of the {target.shape[1]} tokens of each sample, got "
                f"{shown(given)}"
            )
        if real("label_smoothing", label_smoothing) > 0:
            raise ValueError(
                "label_smoothing: expected 0, for the losses of a reference are those of the "
                f"labels, got {label_smoothing}"
            )
        if class_weight is not None:
            raise ValueError(
                "class_weight: expected None, for the losses of a reference have none, got "
                f"{shown(class_weight)}"
            )
        return chosen

    def _token_weights(
        self,
        chosen: TokenFilter,
        losses: Tensor,
        counts: Tensor,
        index: Tensor,
        reference: Tensor | None,
    ) -> Tensor:
        """[B, T]: 0, or n / k where k of a sequence's n tokens that count are selected. So the
        mean over all that count is that over the selected, sequences have the weight that they
        have without a selection, and the gradients of parts of a batch add up to its own."""
        if reference is None and self._reference is not None:
            reference = self._reference.index_select(0, index)
        if reference is not None:
            reference = reference.to(losses.device, losses.dtype)
        selected = chosen.choose(losses, counts, reference)
        share = counts.sum(1, keepdim=True) / selected.sum(1, keepdim=True).to(losses.dtype)
        return torch.where(selected, share, 0.0)

    def _trains(self, training: bool | None, target: Tensor, index: Tensor) -> bool:
        trains = torch.is_grad_enabled() if training is None else training
        if trains and index.shape != target.shape[:1]:
            raise ValueError(
                f"index: expected shape {tuple(target.shape[:1])} as target, "
                f"got {tuple(index.shape)}"
            )
        return trains

    def _placed(self, device: torch.device, index: Tensor) -> Tensor:
        """The index beside the columns, which are where the logits are, and the plan's weights."""
        own = self.device
        if device != own:
            self._move_to(device)
            own = self.device
        self._restore_plan()
        return index if index.device == own else index.to(own, non_blocking=True)

    def _count(self, index: Tensor) -> None:
        # What is compiled or captured is run again without this line.
        if index.device.type == "cpu" and not torch.compiler.is_compiling():
            self._recorded_here += index.shape[0]
        else:
            self._recorded += index.shape[0]

    def _recorded_at_all(self) -> int:
        return self._recorded_by_all + self._recorded_here + int(self._recorded)

    def score(
        self,
        logits: Tensor,
        target: Tensor,
        index: Tensor,
        *,
        ignore_index: int = -100,
        class_dim: int = -1,
    ) -> None:
        """Records what the policy needs of samples that are only looked at: ``plan.rescored``.

        They do not count as trained on. Arguments as those of :meth:`loss`.
        """
        check_tensors(logits=logits, target=target, index=index)
        ignore_index = whole("ignore_index", ignore_index)
        self._move_to(logits.device)
        with torch.no_grad():
            ignored = _NONE_IGNORED if _is_one_row_each(logits, target) else ignore_index
            index = index.to(self.device, non_blocking=True)
            loss, scores = scored_rows(
                logits, target, ignore_index=ignored, class_dim=class_dim,
                table=self.scores, index=index, score=self._first_column,
            )  # fmt: skip
            self._record_others(index, (loss, scores), target, ignored)

    def _recording(
        self, scored: Callable[..., ScoredLoss], index: Tensor | None, target: Tensor, ignored: int
    ) -> Tensor:
        """The loss; with an index, the columns are recorded.

        Args:
            scored: takes table, index and score of ops.scored_cross_entropy.
            ignored: the target of tokens that do not count.
        """
        if index is None:
            return scored().loss
        result = scored(table=self.scores, index=index, score=self._first_column)
        self._record_others(index, result, target, ignored)
        return result.loss

    @property
    def _first_column(self) -> str:
        return next(iter(self._columns))

    def _record_others(
        self, index: Tensor, result: tuple[Any, ...], target: Tensor, ignored: int
    ) -> None:
        """The columns but the first, which the loss's own pass has recorded.

        Args:
            result: what an op gives, or the two tensors of scored_rows.
        """
        if len(self._columns) > 1:
            named = result if hasattr(result, "_asdict") else ScoredLoss(result[0], *result[1])
            for name, column in list(self._columns.items())[1:]:
                values = getattr(named, name)
                if values.dim() > 1:
                    counts = torch.ones_like(values)
                    if not target.is_floating_point():
                        counts = target != ignored
                    values = _mean_over_tokens(values, counts)
                ops.record_scores(column, index, values)
        self._touch(index)

    def weighted(self, losses: Tensor, index: Tensor) -> Tensor:
        """The weighted mean of losses of any kind; records them.

        Args:
            losses: [B] or [B, ...] floating, one or several of each sample, whose mean is its loss.
            index: [B] int64, which samples of the data set these are.

        Returns:
            [], differentiable in ``losses``.

        Raises:
            ValueError: for an index of another shape, or a policy that needs more than losses, or
                selects among tokens.
        """
        check_tensors(losses=losses, index=index)
        if index.shape != losses.shape[:1]:
            raise ValueError(
                f"index: expected shape {tuple(losses.shape[:1])}, one a sample of losses "
                f"{tuple(losses.shape)}, got {tuple(index.shape)}"
            )
        if self.rule.needs_tokens:
            raise ValueError(
                f"losses: the policy {self.policy!r} selects among tokens in loss and linear_loss, "
                f"which know what is ignored; got {shown(losses)}"
            )
        each = losses.flatten(1).mean(1) if losses.dim() > 1 else losses
        if not torch.is_grad_enabled():
            return each.mean()
        self._move_to(losses.device)
        index = index.to(self.device, non_blocking=True)
        weight = self.weights(index).to(each.dtype)
        self.update(index, each.detach().float())
        return (each * weight).mean()

    @torch.no_grad()
    def update(self, index: Tensor, score: Tensor, **columns: Tensor) -> None:
        """Records scores of the user's own making, such as unweighted losses.

        Of a sample that stands in the batch twice, the later score is kept. NaN is recorded, and
        reported by the next :meth:`plan`.

        Args:
            index: [B] int64 in [0, N).
            score: [B] floating: the first column that the policy needs, its loss for most.
            columns: [B] floating each: the others, by name.

        Raises:
            ValueError: where one of the policy's columns is missing.
        """
        check_tensors(index=index, score=score, **columns)
        first, *others = self._columns
        if set(columns) != set(others):
            raise ValueError(
                f"columns: the policy {self.policy!r} needs {', '.join(self._columns)}; "
                f"got score and {', '.join(columns) or 'no other'}"
            )
        index = index.to(self.device, non_blocking=True)
        for name, value in ((first, score), *columns.items()):
            ops.record_scores(self._columns[name], index, value.to(self.device))
        self._count(index)
        self._touch(index)

    def _touch(self, index: Tensor) -> None:
        if world_size() > 1:
            if self._touched is None:
                self._touched = torch.zeros_like(self.scores, dtype=torch.bool)
            self._touched[index] = True
            self._unsynced = True

    @torch.no_grad()
    def sync(self) -> int:
        """Merges the scores of all ranks, in one collective; call it once an epoch on each rank.

        A sample that several ranks have scored gets the mean. Does nothing outside
        torch.distributed.

        Returns:
            The bytes that this rank gave to the collective: 4 a sample for each column, 4 more to
            say which it has scored, and 8.
        """
        given = 0
        if world_size() > 1:
            if self._touched is None:
                self._touched = torch.zeros_like(self.scores, dtype=torch.bool)
            # As two floats, which hold more than one does exactly.
            recorded = self._recorded + self._recorded_here
            count = torch.stack([recorded >> 20, recorded & 0xFFFFF]).float()
            merged = torch.cat(
                [
                    *(torch.where(self._touched, c, 0.0) for c in self._columns.values()),
                    self._touched.float(),
                    count,
                ]
            )
            dist.all_reduce(merged)
            given = merged.nbytes
            *totals, ranks = merged[:-2].view(-1, self.num_samples)
            for name, total in zip(self._columns, totals, strict=True):
                self._columns[name].copy_(
                    torch.where(ranks > 0, total / ranks, self._columns[name])
                )
            high, low = merged[-2:].tolist()
            self._recorded_by_all += (int(high) << 20) + int(low)
            self._recorded.zero_()
            self._recorded_here = 0
            self._touched.zero_()
        self._unsynced = False
        return given


def _number_of_tokens(num_tokens: int | Tensor | None, reduction: str) -> int | Tensor | None:
    if num_tokens is not None and not isinstance(num_tokens, Tensor):
        num_tokens = whole("num_tokens", num_tokens, least=1)
    if num_tokens is not None and reduction != "mean":
        raise ValueError(f"num_tokens: goes with reduction='mean', got {reduction!r}")
    return num_tokens


def _counted(class_weight: Tensor | None, target: Tensor, counts: Tensor) -> Tensor:
    if class_weight is None:
        return counts.sum()
    return torch.where(counts, class_weight[torch.where(counts, target, 0).long()], 0.0).sum()


def _mean_over_tokens(values: Tensor, counts: Tensor) -> Tensor:
    """Of a sample's scores, [B, ...], those of its rows that are not ignored."""
    values, counts = values.flatten(1), counts.flatten(1)
    return (values * counts).sum(1) / counts.sum(1)


def _is_one_row_each(logits: Tensor, target: Tensor) -> bool:
    """Or distributions, of which no row is ignored either."""
    return logits.dim() == 2 or target.is_floating_point()


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
