"""The loss of transformers' causal language models, from hidden states in place of logits."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss

from cpfast.lm_head import ScoredLMHead

__all__ = ["FusedHead", "fuse_lm_head", "is_fused", "loss_by"]

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_HALF = 2e-2


class FusedHead(ScoredLMHead):
    """Computes what it is told to from the hidden states, once, and returns no logits then."""

    loss_options: dict[str, Any]
    """What the model does to its logits, as options of scored_linear_cross_entropy."""
    told: Callable[[FusedHead, Tensor], Tensor] | None = None
    loss: Tensor | None = None

    def forward(  # type: ignore[override]
        self, hidden: Tensor, target: Tensor | None = None, **options: Any
    ) -> Any:
        if self.told is None or target is not None:
            return super().forward(hidden, target, **options)
        told, self.told = self.told, None
        self.loss = told(self, hidden)
        return hidden.new_empty(*hidden.shape[:-1], 0)


def fuse_lm_head(model: PreTrainedModel) -> PreTrainedModel:
    """From now on a causal language model's loss is computed without its logits.

    In training, a call with ``labels`` returns the loss of
    :func:`cpfast.ops.scored_linear_cross_entropy`, and None for the logits; all other calls are as
    before. In a Trainer of :mod:`cpfast.integrations.transformers` a pruner scores and weights it.
    Call it once the weights are loaded, before adapters are added, and before the model is
    wrapped or sharded. The parameters and their names stay, and so do ties.

    What the model does beside is found by trying: the loss of a few random tokens is compared with
    that of the model as it was.

    Returns:
        The model itself.

    Raises:
        TypeError: for no causal language model, or one whose last layer is no plain linear one.
        ValueError: where the losses differ, so that the model does to its logits what cannot be
            followed; it is left as it was.
        RuntimeError: for weights that are on no device yet, or sharded.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"model: expected a PreTrainedModel of transformers, got {type(model).__name__}"
        )
    if model.config.is_encoder_decoder or model.loss_function is not ForCausalLMLoss:
        raise TypeError(f"model: expected a causal language model, got {type(model).__name__}")
    before = model.get_output_embeddings()
    if isinstance(before, FusedHead):
        return model
    head: Any = FusedHead.of(before)
    if head.weight.is_meta or hasattr(head.weight, "device_mesh"):
        raise RuntimeError("model: has no weights yet, or shards of them; call this before")
    head.loss_options = _of_config(model.config)
    _compare(model, before, head)
    model.forward = types.MethodType(_forward_of(type(model)), model)
    return model


def is_fused(model: nn.Module) -> bool:
    """Whether a model, not what wraps it, has been given to :func:`fuse_lm_head`."""
    forward: Any = vars(model).get("forward")
    return hasattr(getattr(forward, "__func__", None), "_is_fused")


def loss_by(
    model: PreTrainedModel, call: Callable[[], Any], loss: Callable[[FusedHead, Tensor], Tensor]
) -> tuple[Tensor, Any]:
    """What ``loss`` makes of the head and the hidden states in the model's forward pass, and its
    outputs, whose logits are None, or empty in a tuple.

    Args:
        call: of the model, or of what wraps it, without labels.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, FusedHead):
        raise RuntimeError(
            f"model: its fused head has been replaced by a {type(head).__name__}; add adapters to "
            "other layers, or call no fuse_lm_head()"
        )
    head.told = loss
    try:
        outputs = call()
        if head.loss is None:
            raise RuntimeError("model: its forward pass has not called the fused head")
        return head.loss, outputs if isinstance(outputs, tuple) else _without_logits(outputs)
    finally:
        head.told = head.loss = None


def _compare(model: PreTrainedModel, before: nn.Module, head: FusedHead) -> None:
    """Tries the head on small and on large logits, of which a cap leaves little.

    Raises:
        ValueError: the losses differ; the model is as it was.
    """
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.get_text_config().vocab_size, (2, 8), generator=g)
    ids = ids.to(model.device)
    limit = _TOLERANCE.get(model.dtype, _HALF)
    was_training = model.training
    model.eval()
    try:
        for scale in (1.0, 64.0):  # powers of two, which cost no digits
            with torch.no_grad():
                head.weight.mul_(scale)
                try:
                    expected = model(input_ids=ids, labels=ids).loss
                    model.set_output_embeddings(head)
                    actual, _ = loss_by(
                        model, functools.partial(model, input_ids=ids), _own_loss(ids, {})
                    )
                finally:
                    head.weight.div_(scale)
                    model.set_output_embeddings(before)
            if not torch.allclose(actual.float(), expected.float(), rtol=limit, atol=limit):
                raise ValueError(
                    f"model: {type(model).__name__} does to its logits what is not known here: its "
                    f"loss of some random tokens is {float(expected):.6g}, and "
                    f"{float(actual):.6g} by the fused head"
                )
    finally:
        model.train(was_training)
    model.set_output_embeddings(head)


def _of_config(config: Any) -> dict[str, Any]:
    """What models do to their logits after the last layer, by the names that they give it."""
    config = config.get_text_config()
    options = {}
    if getattr(config, "final_logit_softcapping", None) is not None:  # Gemma 2
        options["softcap"] = config.final_logit_softcapping
    if getattr(config, "logit_scale", None) is not None:  # Cohere
        options["logit_scale"] = config.logit_scale
    if getattr(config, "logits_scaling", None) is not None:  # Granite
        options["logit_scale"] = 1 / config.logits_scaling
    return options


def _without_logits(outputs: Any, **others: Any) -> Any:
    """Made anew: an attribute that is set later comes last, and one set to None stays an item."""
    kept = {key: value for key, value in outputs.items() if key != "logits"}
    return type(outputs)(**others, **kept)


def _own_loss(labels: Tensor, options: dict[str, Any]) -> Callable[[FusedHead, Tensor], Tensor]:
    """As :func:`transformers.loss.loss_utils.ForCausalLMLoss` has it."""
    total = options.get("num_items_in_batch")
    shifted = options.get("shift_labels")
    ignore_index = options.get("ignore_index", -100)

    def loss(head: FusedHead, hidden: Tensor) -> Tensor:
        target = labels[:, 1:] if shifted is None else shifted
        scored = head(
            hidden[:, :-1] if shifted is None else hidden,
            target.to(hidden.device),
            ignore_index=ignore_index,
            reduction="mean" if total is None else "sum",
            **head.loss_options,
        )
        return scored.loss if total is None else scored.loss / total

    return loss


def _forward_of(cls: type[PreTrainedModel]) -> Callable[..., Any]:
    original = cls.forward

    @functools.wraps(original)  # a Trainer looks at its arguments
    def forward(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        labels = kwargs.get("labels")
        if labels is None or not (self.training and torch.is_grad_enabled()):
            return original(self, *args, **kwargs)
        names = ("num_items_in_batch", "shift_labels", "ignore_index")
        options = {name: kwargs.pop(name) for name in names if name in kwargs}
        del kwargs["labels"]
        returns_tuple = kwargs.get("return_dict", self.config.return_dict) is False
        kwargs["return_dict"] = True
        call = functools.partial(original, self, *args, **kwargs)
        loss, outputs = loss_by(self, call, _own_loss(labels, options))
        outputs = _without_logits(outputs, loss=loss)
        return outputs.to_tuple() if returns_tuple else outputs

    forward._is_fused = True  # type: ignore[attr-defined]
    return forward
