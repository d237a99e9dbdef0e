"""Measures a model for the criteria: once an epoch, or after each step, on the device."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cpfast.detection.criterion import NEEDS, Gradients, Paths
from cpfast.detection.extra import Batches, ExtraGradients, cosine
from cpfast.detection.steps import GradientSums, Hits, Walk
from cpfast.forms import Maybe, Rows, Several, Table, check
from cpfast.rotation import LayerRotation

__all__ = ["ModelProbe", "check_needs", "path_null"]


class ModelProbe:
    """Measures the layers that ``rotation`` watches, and the samples' losses.

    Call :meth:`begin` before an epoch's first step and, for a criterion that ``needs`` it,
    :meth:`after_forward` and :meth:`after_step` in each, which may be captured in a CUDA graph;
    then what an epoch showed can be asked for.

    Args:
        rotation: of the model.
        losses: returns the samples' last losses, [N] float32, such as
            ``lambda: pruner.scores``; None: there is no ``rank_stability``.
        optimizer: whose momentum :meth:`path_null`, and whose learning rates :meth:`gradients`
            take into account.
        needs: of the criteria that ask it, such as ``detector.rule.needs``. ``paths`` keep two
            copies of the weights and go over them in each step, ``gradients`` one; ``batches`` keep
            what their measurements compare, as many gradients as batches.
        batches: what :attr:`~cpfast.detection.extra.Batches` says, for ``batches``.
        seed: of the labels that :meth:`fisher_trace` draws.
        scaled: whether the gradients are those of a GradScaler, some of which overflow.

    Attributes:
        measured_samples: since :meth:`begin`.

    Raises:
        ValueError: the model has not what is needed, or there are no ``batches``.
        RuntimeError: the weights are sharded, and more than the accuracy is needed.
    """

    def __init__(
        self,
        rotation: LayerRotation,
        *,
        losses: Callable[[], Tensor] | None = None,
        optimizer: Optimizer | None = None,
        needs: Iterable[str] = (),
        batches: Batches | None = None,
        seed: int = 0,
        scaled: bool = False,
    ) -> None:
        needs = set(needs)
        check_needs(needs, rotation.model)
        whole = sorted(needs - {"accuracy"})
        if whole and rotation.is_sharded:
            raise RuntimeError(
                f"rotation: of sharded weights (DTensor), of which each process would measure "
                f"other {' and '.join(whole)}; choose a criterion that needs none of them, such as "
                "slope45"
            )
        if "batches" in needs and batches is None:
            raise ValueError(
                "batches: expected a source of them, which a criterion needs, got None"
            )
        self._rotation = rotation
        self._losses = losses
        self._optimizer = optimizer
        self._seen: dict[str, Tensor] = {}
        self._steps, self._counts = 0, False
        self._walk = Walk(rotation) if "paths" in needs else None
        self._sums = (
            GradientSums(rotation, optimizer, scaled=scaled) if "gradients" in needs else None
        )
        self._hits = Hits(rotation.device) if "accuracy" in needs else None
        self._extra = None if batches is None else ExtraGradients(rotation.model, batches, seed)
        # of an epoch ago, or of several, the newest last
        self._ranks: Tensor | None = None
        self._gradients: dict[str, list[Tensor]] = {}
        self._masks: dict[str, list[Tensor]] = {}

    @property
    def measured_samples(self) -> int:
        return 0 if self._extra is None else self._extra.samples

    @torch.no_grad()
    def begin(self, steps: int | None = None) -> None:
        """Forgets the last epoch; the next has so many steps.

        Args:
            steps: None: as many as calls of :meth:`after_step`, which a CUDA graph replays unseen.
        """
        self._seen.clear()
        self._steps, self._counts = steps or 0, steps is None
        for part in self._parts():
            part.begin()
        if self._extra is not None:
            self._extra.samples = 0

    @torch.no_grad()
    def after_forward(self, logits: Tensor, target: Tensor) -> None:
        """Measures what a step predicts, where that is needed.

        Args:
            logits: [..., C] floating.
            target: [...] int64.
        """
        if self._hits is not None:
            self._hits.add(logits, target)

    @torch.no_grad()
    def after_step(self) -> None:
        """Measures a step, where that is needed, while its gradients are there.

        Raises:
            RuntimeError: they are needed and not there.
        """
        self._steps += self._counts
        if self._walk is not None:
            self._walk.add_step()
        if self._sums is not None:
            self._sums.add_step()

    @torch.no_grad()
    def rotation(self) -> Tensor:
        """Of the layers that have a gradient: what is frozen does not turn."""
        return self._rotation.of_live(self.all_rotations())

    @torch.no_grad()
    def all_rotations(self) -> Tensor:
        """As ``rotation.names`` has them: [L] float32."""
        return self._once("rotation", self._rotation.update)

    @torch.no_grad()
    def paths(self) -> Paths:
        """
        Raises:
            RuntimeError: without the need of ``paths``.
        """
        return _needed("paths", self._walk).paths(self._steps)

    def path_null(self) -> float:
        groups = [] if self._optimizer is None else self._optimizer.param_groups
        group = groups[0] if groups else {}
        momentum = group["betas"][0] if "betas" in group else group.get("momentum", 0.0)
        return path_null(float(momentum), self._steps, nesterov=bool(group.get("nesterov")))

    @torch.no_grad()
    def gradients(self) -> Gradients:
        """
        Raises:
            RuntimeError: without the need of ``gradients``.
        """
        return _needed("gradients", self._sums).gradients(self._steps)

    @torch.no_grad()
    def accuracy(self) -> Tensor:
        """Over the samples of all processes: a collective under torch.distributed.

        Raises:
            RuntimeError: without the need of ``accuracy``.
        """
        return _needed("accuracy", self._hits).share()

    @torch.no_grad()
    def scales(self) -> Tensor:
        return torch.cat([scale.detach().float() for scale in _scales(self._rotation.model)])

    @torch.no_grad()
    def mask_distances(self, share: float, count: int) -> Tensor:
        key = f"{share:g} {count}"
        return self._once(f"masks {key}", lambda: self._mask_distances(key, share, count))

    def _mask_distances(self, key: str, share: float, count: int) -> Tensor:
        sizes = self.scales().abs()
        mask = sizes > sizes.sort().values[int(share * len(sizes))]
        past = self._masks.get(key, [])[-count:]
        distances = [(mask != other).double().mean() for other in reversed(past)]
        none = torch.full((), torch.nan, dtype=torch.float64, device=mask.device)
        self._masks[key] = [*past, mask][-count:]
        return torch.stack([*distances, *[none] * (count - len(past))])

    @torch.no_grad()
    def rank_stability(self) -> Tensor:
        """
        Raises:
            RuntimeError: without ``losses``.
        """
        return self._once("rank_stability", self._rank_stability)

    def _rank_stability(self) -> Tensor:
        if self._losses is None:
            raise RuntimeError("ModelProbe: rank_stability needs losses=")
        ranks = _ranks(self._losses())
        before, self._ranks = self._ranks, ranks
        if before is None:
            return torch.full((), torch.nan, dtype=torch.float64, device=ranks.device)
        return _correlation(before.double(), ranks.double())

    @torch.no_grad()
    def fisher_trace(self, batches: int) -> Tensor:
        """
        Raises:
            RuntimeError: without ``batches``.
        """
        extra = _needed("batches", self._extra)
        estimates = [
            self._once(f"fisher {number}", functools.partial(extra.fisher, number))
            for number in range(batches)
        ]
        return torch.stack(estimates).mean()

    @torch.no_grad()
    def gradient_similarities(self, batches: int) -> Tensor:
        """
        Raises:
            RuntimeError: without ``batches``.
        """
        gradients = [self._gradient(number) for number in range(batches)]
        return torch.stack([cosine(a, b) for a, b in itertools.combinations(gradients, 2)])

    @torch.no_grad()
    def gradient_persistence(self, batches: int) -> Tensor:
        """
        Raises:
            RuntimeError: without ``batches``.
        """
        return self._once(f"persistence {batches}", lambda: self._gradient_persistence(batches))

    def _gradient_persistence(self, batches: int) -> Tensor:
        gradients = [self._gradient(number) for number in range(batches)]
        before = self._gradients.get(str(batches), [])
        self._gradients[str(batches)] = gradients
        if len(before) != batches:
            device = gradients[0].device
            return torch.full((batches,), torch.nan, dtype=torch.float64, device=device)
        return torch.stack([cosine(a, b) for a, b in zip(before, gradients, strict=True)])

    def _gradient(self, number: int) -> Tensor:
        extra = _needed("batches", self._extra)
        return self._once(f"gradient {number}", functools.partial(extra.of_loss, number))

    def _once(self, name: str, measure: Callable[[], Tensor]) -> Tensor:
        if name not in self._seen:
            self._seen[name] = measure()
        return self._seen[name]

    def _parts(self) -> list[Walk | GradientSums | Hits]:
        return [part for part in (self._walk, self._sums, self._hits) if part is not None]

    def state_dict(self, *, within: bool = False) -> dict[str, Any]:
        """What the next epoch is compared with.

        Args:
            within: an epoch goes on: with what it has shown so far, some copies of the weights.
        """
        shown = [tensor.clone() for part in self._parts() for tensor in part.tensors()]
        return {
            **({"steps": self._steps, "shown": shown} if within else {}),
            "ranks": None if self._ranks is None else self._ranks.clone(),
            "gradients": {key: [g.clone() for g in past] for key, past in self._gradients.items()},
            "masks": {key: [mask.clone() for mask in past] for key, past in self._masks.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`, between two epochs; in one, if it was made there, which then
        goes on without :meth:`begin`.

        Raises:
            ValueError: where it is not that of a probe of such a model; nothing is changed then.
        """
        parameters = sum(p.numel() for p in self._rotation.model.parameters())
        channels = sum(scale.numel() for scale in _scales(self._rotation.model))
        form: dict[str, Any] = {
            "ranks": Maybe(Rows(torch.empty(0, dtype=torch.int32))),
            "gradients": Table(Several(torch.empty(parameters, device="meta"))),
            "masks": Table(Several(torch.empty(channels, dtype=torch.bool))),
        }
        own = [tensor for part in self._parts() for tensor in part.tensors()]
        if "steps" in state:
            form |= {"steps": int, "shown": own}
        check(state, form, "state_dict")
        if "steps" in state:
            self._steps, self._counts = state["steps"], True
            for tensor, saved in zip(own, state["shown"], strict=True):
                tensor.copy_(saved)
        ranks, device = state["ranks"], self._rotation.device
        self._ranks = None if ranks is None else ranks.to(device, copy=True)
        self._gradients, self._masks = (
            {key: [one.to(device, copy=True) for one in past] for key, past in state[name].items()}
            for name in ("gradients", "masks")
        )
        self._seen.clear()


def check_needs(needs: Iterable[str], model: nn.Module) -> None:
    """Whether a model has what criteria need.

    Raises:
        ValueError: it has not, or there is no such need.
    """
    for need in needs:
        if need not in NEEDS:
            raise ValueError(f"needs: expected some of {', '.join(NEEDS)}, got {need!r}")
    if "scales" in needs and not _scales(model):
        raise ValueError(
            f"needs batch normalisation with scales, and {type(model).__name__} has none"
        )


def _scales(model: nn.Module) -> list[Tensor]:
    return [
        module.weight
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.weight is not None
    ]


Part = TypeVar("Part")


def _needed(need: str, part: Part | None) -> Part:
    if part is None:
        raise RuntimeError(f"ModelProbe: this was not measured; give it needs=({need!r},)")
    return part


@functools.cache
def path_null(momentum: float, steps: int, *, nesterov: bool = False) -> float:
    """E |w_n - w_0|^2 / E sum of |w_(t+1) - w_t|^2 over n steps of SGD on independent noise.

    A step is a sum over earlier gradients with the coefficients c_j = m^j; with Nesterov's
    momentum 1 + m, m^2, m^3 .... For n to infinity and without Nesterov it is (1 + m) / (1 - m).
    """
    if steps == 0:
        return math.nan
    if momentum == 0:
        return 1.0
    # Coefficients beyond this are below 1e-12 of the first.
    length = min(math.ceil(-12 * math.log(10) / math.log(momentum)) + 1, 100_000)
    coefficients = momentum ** np.arange(length, dtype=np.float64)
    if nesterov:
        coefficients *= momentum
        coefficients[0] = 1 + momentum
    spectrum = np.abs(np.fft.rfft(coefficients, 2 * length)) ** 2
    covariance = np.fft.irfft(spectrum, 2 * length)[: min(length, steps)]
    lags = np.arange(1, len(covariance))
    later = ((1 - lags / steps) * covariance[1:]).sum()
    return float((covariance[0] + 2 * later) / covariance[0])


def _ranks(values: Tensor) -> Tensor:
    """[N] int32, equal values in the order of their places."""
    order = values.argsort(stable=True)
    ranks = torch.empty_like(order, dtype=torch.int32)
    ranks[order] = torch.arange(len(order), dtype=torch.int32, device=order.device)
    return ranks


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / (x.square().sum() * y.square().sum()).sqrt()
