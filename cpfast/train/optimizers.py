"""The optimizers of the entrypoint: torch's, with weight decay on kernels only, as in the paper.

What `weight_decay` means:

sgd, rmsprop, adagrad  L2: weight_decay x weight is added to the gradient, and so passes through
                       the momentum, or is divided by the root of the squared gradients
adamw                  decoupled (1711.05101): each step shrinks the weight by lr x weight_decay

Other settings are torch's own, but for sgd's momentum, which is Nesterov's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from cpfast import schedules
from cpfast.forms import Finite, Open, check, shown
from cpfast.layers import kernels
from cpfast.schedules import Schedule
from cpfast.train.config import Config

_CLASSES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}
# What each keeps of a parameter: "step", a number, and the rest of the parameter's shape.
_KEPT: dict[type, tuple[str, ...]] = {
    torch.optim.SGD: ("momentum_buffer",),
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
    torch.optim.RMSprop: ("step", "square_avg"),
    torch.optim.Adagrad: ("step", "sum"),
}
# How a step is executed: not part of a run's state.
_EXECUTION = ("foreach", "fused", "capturable")


def build(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of `config` over the parameters of `model`, which is on its device already.

    For a step that is captured in a CUDA graph its learning rates are tensors on the device, which
    a replay reads; write them in place, as `cpfast.schedules.FractionSchedule` does. They remain
    the same tensors when a state is loaded, and the step remains executed as it is here, whatever
    device the state is of.
    """
    device, graph = next(model.parameters()).device, "graph" in config.step
    execution = _execution(config.optimizer, device, graph)
    captured = graph and (execution.get("fused") or execution.get("capturable"))
    lr = torch.tensor(config.lr, device=device) if captured else config.lr
    optimizer = _CLASSES[config.optimizer](
        _parameter_groups(model, config.weight_decay), lr=lr, **_own(config), **execution
    )
    if config.optimizer == "sgd" and config.momentum > 0:
        # As its first step would make them, but defined where fp16's scaling skips that step.
        for parameter in model.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    _keep_execution(optimizer)
    return optimizer


def _own(config: Config) -> dict[str, Any]:
    """Settings that only one of them has."""
    if config.optimizer != "sgd":
        return {}
    return {"momentum": config.momentum, "nesterov": config.momentum > 0}


def schedule(config: Config) -> Schedule:
    """Of the learning rate, by the fraction of training done."""
    factory = getattr(schedules, config.schedule)
    given = {"warmup": config.warmup, "power": config.decay_power}
    usual = {"warmup": 0.0, "power": 1.0}  # which step does not have
    return factory(**{name: value for name, value in given.items() if value != usual[name]})


def clip_gradients(config: Config, optimizer: torch.optim.Optimizer, scaler: GradScaler) -> None:
    """Scales all gradients down to the norm that is allowed, without asking the host."""
    if config.clip is None:
        return
    scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(parameters, config.clip)


@contextmanager
def decayed(optimizer: torch.optim.Optimizer, factor: float) -> Iterator[None]:
    """The weight decay times `factor`, for as long as it lasts: no state holds it."""
    settings = [group["weight_decay"] for group in optimizer.param_groups]
    for group, weight_decay in zip(optimizer.param_groups, settings, strict=True):
        group["weight_decay"] = weight_decay * factor
    try:
        yield
    finally:
        for group, weight_decay in zip(optimizer.param_groups, settings, strict=True):
            group["weight_decay"] = weight_decay


def can_capture(optimizer: torch.optim.Optimizer, *, scaled: bool = False) -> bool:
    """Whether a step of what `build` made can be captured in a CUDA graph, once one was taken:
    the first makes the state.

    All can on CUDA where torch has a fused adagrad for it, as 2.13 does. 2.11 has it for the CPU
    alone, and its other steps count on the host, which no replay repeats.

    Args:
        scaled: by a GradScaler, as fp16 needs it. Then rmsprop cannot: it leaves it to the host
            to skip a step.
    """
    on_device = all(
        isinstance(group["lr"], Tensor) and group["lr"].is_cuda for group in optimizer.param_groups
    )
    return on_device and (not scaled or getattr(optimizer, "_step_supports_amp_scaling", False))


def _execution(name: str, device: torch.device, graph: bool) -> dict[str, Any]:
    """The fastest way, and for a graph one that can be captured.

    us a step on one CPU thread, torch 2.13, default / foreach / fused: ResNet-8 with sgd
    310 / 221 / 146, adamw 752 / 568 / 272, adagrad 475 / 420 / 228, rmsprop 536 / 393.
    """
    if name == "rmsprop":
        return {"foreach": True, "capturable": graph}
    if name == "adagrad" and not torch._C._dispatch_has_kernel_for_dispatch_key(
        "aten::_fused_adagrad_", device.type.upper()
    ):
        return {"foreach": True}
    if name == "adamw":
        # It refuses to be captured unless both are set.
        return {"fused": True, "capturable": graph}
    return {"fused": True}


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    decayed = kernels(model)
    known = {id(parameter) for parameter in decayed}
    others = [parameter for parameter in model.parameters() if id(parameter) not in known]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def _keep_execution(optimizer: torch.optim.Optimizer) -> None:
    """`load_state_dict` takes over all settings of the state, and new tensors, and looks at no
    shape, though a fused step reads as many values as the parameter has; mend that."""
    rates = [group["lr"] for group in optimizer.param_groups]

    def before(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        own = optimizer.state_dict()
        check(state, {"state": dict, "param_groups": list}, "optimizer")
        if len(state["param_groups"]) != len(own["param_groups"]):
            raise ValueError(
                f"optimizer: expected {len(own['param_groups'])} groups of parameters, "
                f"got {len(state['param_groups'])}"
            )
        groups = [
            _checked_group(saved, mine)
            for saved, mine in zip(state["param_groups"], own["param_groups"], strict=True)
        ]
        return {"state": _checked_state(optimizer, state["state"]), "param_groups": groups}

    def after(optimizer: torch.optim.Optimizer) -> None:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            value = float(group["lr"])
            group["lr"] = rate.fill_(value) if isinstance(rate, Tensor) else value

    optimizer.register_load_state_dict_pre_hook(before)
    optimizer.register_load_state_dict_post_hook(after)


def _checked_group(saved: Any, own: dict[str, Any]) -> dict[str, Any]:
    """The group of a state as it is executed here; another version of torch may have other names.

    Raises:
        ValueError: other settings, of anything but the learning rate.
    """
    fixed = {key: value for key, value in own.items() if key not in ("lr", *_EXECUTION)}
    numbers = {key: Finite for key, value in fixed.items() if type(value) in (int, float)}
    needed = {"params": own["params"], "lr": object}
    check(saved, Open(needed, {**fixed, **numbers}), "optimizer's group")
    for key, value in fixed.items():
        if key in saved and saved[key] != value:
            raise ValueError(f"optimizer[{key!r}]: expected {value}, got {shown(saved[key])}")
    rate = saved["lr"]
    if isinstance(rate, Tensor) and rate.numel() == 1 and rate.is_floating_point():
        rate = rate.item()
    check(rate, Finite, "optimizer['lr']")
    return {**own, "lr": rate}


def _checked_state(
    optimizer: torch.optim.Optimizer, saved: dict[int, Any]
) -> dict[int, dict[str, Tensor]]:
    """The state of each parameter that has one, with the parameter's strides.

    Raises:
        ValueError: of other parameters, of other names, shapes or dtypes.
    """
    parameters = [p.detach() for group in optimizer.param_groups for p in group["params"]]
    keeps = any(group.get("momentum") for group in optimizer.param_groups)
    if type(optimizer) is torch.optim.SGD and keeps and len(saved) != len(parameters):
        raise ValueError(f"optimizer: momentum of {len(saved)} parameters of {len(parameters)}")
    checked = {}
    for number, values in saved.items():
        if type(number) is not int or not 0 <= number < len(parameters):
            raise ValueError(f"optimizer: state of parameter {shown(number)}, which there is not")
        likes = {
            name: torch.zeros(()) if name == "step" else parameters[number]
            for name in _KEPT[type(optimizer)]
        }
        check(values, likes, f"optimizer's state of parameter {number}")
        checked[number] = {
            name: torch.empty_like(like).copy_(values[name]) for name, like in likes.items()
        }
    return checked
