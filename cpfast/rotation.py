"""Layer rotation of a model: how far each layer's weights have turned from their initialisation."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cpfast import ops

__all__ = ["LayerRotation", "is_weight"]


# Parameters of two or more dimensions that multiply nothing: they are added to the input.
_ADDED = re.compile(r"(^|_)(pos(ition(s|al)?)?|tokens?|bias(es)?)(_|$)")


def is_weight(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a convolution or dense kernel: it has two or more dimensions.

    Biases and the parameters of normalisation layers have one. What has more and is told by the
    last part of its name is left out too: position embeddings (``positions``, ``pos_embed``,
    ``position_embedding``), class tokens (``class_token``, ``cls_token``), tables of biases.
    Token embeddings count, as does every ``torch.nn.Embedding``: the weight of one is the kernel
    of a dense layer on one-hot input.

    These are the layers over which arXiv 2506.15954 averages.
    """
    return parameter.dim() >= 2 and not _ADDED.search(name.rpartition(".")[2])


class LayerRotation:
    """Snapshots the weights of a model, and measures how far they rotate away from them.

    The snapshot is float32 (float64 for float64 weights), lies beside the weights on their
    device, and takes what float32 weights would, and under 1 MB besides.

    :meth:`update` looks whether the weights are where they were, and plans anew where they are
    not (:class:`cpfast.ops.LayerPlan`). :meth:`record` does not look: it is for every K steps, and
    for CUDA graphs; one that captured it must be captured again where weights have been replaced.
    A weight that has been replaced stays in memory until the next update.

    Args:
        model: any module; its weights may change dtype or storage later, not shape or device.
        include: ``include(name, parameter) -> bool`` chooses the layers, by default
            :func:`is_weight`.
        snapshot_dtype: None, or torch.bfloat16 for half the memory (a quarter less to read). That
            rounds the reference, which turns it by about 1.4e-6: measured distances are from the
            rounded one, so smaller rotations than that are lost in it.
        history: how many measurements of :meth:`record` to keep.

    Raises:
        ValueError: where ``include`` chooses no parameter, for another ``snapshot_dtype``, or for
            a negative ``history``.

    Source: arXiv 1806.01603; used as a signal in arXiv 2506.15954.
    """

    def __init__(
        self,
        model: nn.Module,
        include: Callable[[str, Tensor], bool] = is_weight,
        *,
        snapshot_dtype: torch.dtype | None = None,
        history: int = 0,
    ) -> None:
        if snapshot_dtype not in (None, torch.bfloat16):
            raise ValueError(
                f"snapshot_dtype: expected None or torch.bfloat16, got {snapshot_dtype}"
            )
        if history < 0:
            raise ValueError(f"history: expected 0 or more measurements, got {history}")
        chosen = [name for name, p in model.named_parameters() if include(name, p)]
        if not chosen:
            raise ValueError(
                f"model: include chooses none of the {len(list(model.parameters()))} parameters "
                f"of {type(model).__name__}"
            )
        self.names: list[str] = chosen
        # Owners rather than parameters, which load_state_dict(assign=True) and others replace.
        self._owners = [
            (model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2])
            for name in chosen
        ]
        self._snapshot_dtype = snapshot_dtype
        self._rows = history
        self._refs: list[Tensor] = []
        self.reset()

    @property
    def device(self) -> torch.device:
        return self._sq_norms.device

    def weights(self) -> list[Tensor]:
        """The model's weights that are measured, as :attr:`names` has them."""
        return self._params()

    def _params(self) -> list[Tensor]:
        # As nn.Module.__getattr__ finds them, in a tenth of its time: every update asks for all.
        try:
            return [module._parameters[attribute] for module, attribute in self._owners]  # type: ignore[misc]
        except KeyError:  # no longer a parameter
            return [getattr(module, attribute) for module, attribute in self._owners]

    @torch.no_grad()
    def reset(self) -> None:
        """Takes the current weights as the new reference, and forgets what was measured.

        In place, where the weights have kept their device, dtypes and strides: then what a CUDA
        graph captured stays valid.
        """
        params = self._params()
        layers, device = len(params), params[0].device
        snapshots = [_snapshot(param, self._snapshot_dtype) for param in params]
        if not self._refs or not all(
            (ref.device, ref.dtype, ref.shape, ref.stride())
            == (device, snapshot.dtype, snapshot.shape, snapshot.stride())
            for ref, snapshot in zip(self._refs, snapshots, strict=True)
        ):
            self._refs = _arena(snapshots, device)
            self._sq_norms = torch.empty(layers, dtype=torch.float64, device=device)
            self._ring = torch.zeros(self._rows, layers, dtype=torch.float32, device=device)
            self._cursor = torch.zeros((), dtype=torch.int64, device=device)
            self.refresh()
        elif not self._plan.is_current(params):
            self.refresh()
        for ref, param in zip(self._refs, params, strict=True):
            ref.copy_(param)
        self._measure_refs()
        self._ring.zero_()
        self._cursor.zero_()
        self._latest: Tensor | None = None

    def _measure_refs(self) -> None:
        for layer, ref in enumerate(self._refs):
            self._sq_norms[layer] = _square_norm(ref)

    def refresh(self) -> None:
        """Plans anew, for weights that have been replaced, recast or moved in memory.

        :meth:`update` does so by itself; :meth:`record` needs it, as does a CUDA graph that
        captured it, which then has to be captured again.

        Raises:
            RuntimeError: where a weight has changed its shape or its device.
        """
        self._plan = ops.LayerPlan(self._params(), self._refs, self._sq_norms)

    def update(self) -> Tensor:
        """Measures now: [L] float32 on the device of the weights, without synchronising.

        Raises:
            RuntimeError: where a weight has changed its shape or its device.
        """
        if not self._plan.is_current(self._params()):
            self.refresh()
        self._latest = self._plan.layer_rotation()
        return self._latest

    def record(self) -> None:
        """Measures into the history, without a check of where the weights are, and without
        synchronising: a few microseconds of host time at any number of layers.

        Raises:
            RuntimeError: where no history is kept.
        """
        self._check_history()
        self._plan.record(self._ring, self._cursor)

    def history(self) -> Tensor:
        """What :meth:`record` measured: [k, L] float32, the oldest of the last k first, with k up
        to the ``history`` given at the start. Synchronises.

        Raises:
            RuntimeError: where no history is kept.
        """
        self._check_history()
        recorded = int(self._cursor)
        if recorded <= self._rows:
            return self._ring[:recorded].clone()
        return self._ring.roll(-(recorded % self._rows), 0)

    def _check_history(self) -> None:
        if self._rows == 0:
            raise RuntimeError(
                "LayerRotation: no history is kept: give it history=R, for the last R measurements"
            )

    def _measured(self) -> Tensor:
        return self.update() if self._latest is None else self._latest

    def mean(self) -> Tensor:
        """Unweighted mean over the layers at the last :meth:`update`: [] float32, on the device."""
        return self._measured().mean()

    def compute(self) -> dict[str, float]:
        """Cosine distance per layer at the last :meth:`update`. Synchronises."""
        return dict(zip(self.names, self._measured().tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The names, the snapshot, the last measurement, and the history where one is kept."""
        return {
            "names": list(self.names),
            "refs": [r.clone() for r in self._refs],
            "latest": None if self._latest is None else self._latest.clone(),
            "history": self.history() if self._rows else None,
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`. A state without a history empties that of this object.

        Raises:
            ValueError: where the snapshot is of other layers, or of a dtype that this one would
                round; where the history is longer than the one kept. Nothing is changed then.
        """
        if list(state["names"]) != self.names:
            raise ValueError(
                f"state_dict['names']: a snapshot of {len(state['names'])} layers "
                f"{list(state['names'])[:3]}... does not fit the model's {len(self.names)} "
                f"layers {self.names[:3]}..."
            )
        if len(state["refs"]) != len(self._refs):
            raise ValueError(
                f"state_dict['refs']: expected {len(self._refs)} tensors, got {len(state['refs'])}"
            )
        for name, saved, ref in zip(self.names, state["refs"], self._refs, strict=True):
            if saved.shape != ref.shape:
                raise ValueError(
                    f"state_dict['refs']: {name}: expected shape {tuple(ref.shape)}, "
                    f"got {tuple(saved.shape)}"
                )
            if torch.promote_types(saved.dtype, ref.dtype) != ref.dtype:
                raise ValueError(
                    f"state_dict['refs']: {name}: expected {ref.dtype}, or what it holds exactly, "
                    f"got {saved.dtype}"
                )
        latest, history = state["latest"], state.get("history")
        layers = len(self.names)
        if latest is not None and latest.shape != (layers,):
            raise ValueError(
                f"state_dict['latest']: expected shape {(layers,)}, got {tuple(latest.shape)}"
            )
        if history is not None and (
            history.dim() != 2 or history.shape[1] != layers or len(history) > self._rows
        ):
            raise ValueError(
                f"state_dict['history']: expected at most {self._rows} rows of {layers} layers, "
                f"got shape {tuple(history.shape)}"
            )
        # In place: the plan, and CUDA graphs that captured it, stay valid.
        for saved, ref in zip(state["refs"], self._refs, strict=True):
            ref.copy_(saved)
        self._measure_refs()
        if latest is not None:
            latest = latest.to(self._sq_norms.device, copy=True)
        self._latest = latest
        self._ring.zero_()
        self._cursor.zero_()
        if history is not None:
            self._ring[: len(history)] = history
            self._cursor.fill_(len(history))


_ALIGNMENT = 128  # bytes: what a GPU reads at once


def _snapshot(param: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A snapshot without memory: on the meta device, with the strides of the parameter."""
    wide = torch.float64 if param.dtype == torch.float64 else torch.float32
    return torch.empty_like(param, device="meta", dtype=dtype or wide)


def _arena(snapshots: list[Tensor], device: torch.device) -> list[Tensor]:
    """Uninitialised tensors like the snapshots, in one allocation."""
    starts, end = [], 0
    for snapshot in snapshots:
        starts.append(end)
        end += -(-snapshot.nbytes // _ALIGNMENT) * _ALIGNMENT
    arena = torch.empty(end + _ALIGNMENT, dtype=torch.uint8, device=device)
    arena = arena[-arena.data_ptr() % _ALIGNMENT :]
    return [
        arena[start : start + snapshot.nbytes]
        .view(snapshot.dtype)
        .as_strided(snapshot.shape, snapshot.stride())
        for start, snapshot in zip(starts, snapshots, strict=True)
    ]


def _square_norm(tensor: Tensor) -> Tensor:
    """Its sum of squares, in float64 and in parts: once in a training, and of little memory."""
    dense = torch.as_strided(tensor, (tensor.numel(),), (1,))
    return torch.stack([part.double().square().sum() for part in dense.split(1 << 22)]).sum()
