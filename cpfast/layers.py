"""The layers of a model whose rotation says something, and the weights that they compute with."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from cpfast.arguments import typed

__all__ = ["Layer", "is_weight", "kernels", "layers_of", "unwrapped", "weight_of"]

# Modules whose parameter "weight" is a kernel.
_KERNELS = (
    nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag,
)  # fmt: skip
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_NORMALISATIONS = (
    nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm,
)  # fmt: skip
# Parameters of two or more dimensions that are no kernels: added to the input, or scales of it.
_OTHERS = re.compile(
    r"(^|_)(pos(ition(s|al)?)?|tokens?|bias(es)?|registers?|prompts?|gamma|scales?|a_log)(_|$)",
    re.IGNORECASE,
)
# What wrappers put into the names of what they wrap.
_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
_ROOT_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


@typed
def is_weight(name: str, parameter: Tensor, module: nn.Module | None = None) -> bool:
    """Whether a parameter is the kernel of a convolution, dense layer or embedding.

    Where the type of its module is known, that decides: the ``weight`` of a convolution, a linear
    or bilinear layer, an embedding; the ``weight_*`` of recurrent ones; the projections of
    attention; nothing of a normalisation layer, LayerNorm over [C, H, W] among them. Otherwise it
    has two or more dimensions, and the last part of its name does not tell that it is added to the
    input, or a scale: ``pos_embed``, ``class_token``, ``registers``, ``prompts``, ``layer_scale``,
    ``logit_scale``, ``A_log``, tables of biases.

    Token embeddings count: the weight of one is the kernel of a dense layer on one-hot input.

    These are the layers over which arXiv 2506.15954 averages.
    """
    last = name.rpartition(".")[2]
    if parameter.dim() < 2 or isinstance(module, _NORMALISATIONS):
        return False
    if isinstance(module, _KERNELS):
        return last == "weight"
    if isinstance(module, _RECURRENT):
        return last.startswith("weight")
    if isinstance(module, nn.MultiheadAttention):
        return last.endswith("proj_weight")
    return not _OTHERS.search(last)


class Layer(NamedTuple):
    """Where a weight is to be found in a model."""

    name: str
    """As the model has it without wrappers."""
    path: tuple[str, ...]
    """Of the module that it belongs to."""
    attribute: str
    adapter: str | None = None
    """Whose change it is, where adapters are measured by themselves."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DataParallel, DistributedDataParallel and torch.compile."""
    while True:
        if isinstance(model, _ROOT_WRAPPERS):
            model = model.module
        elif isinstance(inner := model._modules.get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


def layers_of(
    model: nn.Module,
    include: Callable[[str, Tensor], bool] | None = None,
    *,
    trainable_only: bool = False,
    adapters: str = "merged",
) -> list[Layer]:
    """The layers of an unwrapped model, in the order of its parameters; shared weights once.

    Args:
        include: ``include(name, weight)`` chooses; None: :func:`is_weight`, with the module.
        trainable_only: leave out those without a gradient.
        adapters: "each": the changes of PEFT's adapters in place of what they change, a layer for
            each adapter.

    Raises:
        ValueError: an adapter does not add a change, and each is to be measured.
    """
    chosen, seen = [], set()
    for path, module, attribute in _weights(model):
        each = adapters_of(module) if adapters == "each" and is_adapter(module) else [None]
        for adapter in each:
            layer = Layer(".".join((*path, adapter or attribute)), path, attribute, adapter)
            tensor, has_gradient = measured(module, layer)
            key = id(module._parameters.get(attribute, module)), attribute, adapter
            if key in seen or (trainable_only and not has_gradient):
                continue
            if (
                is_weight(layer.name, tensor, _innermost(module))
                if include is None
                else include(layer.name, tensor)
            ):
                seen.add(key)
                chosen.append(layer)
    return chosen


def kernels(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that :func:`is_weight` knows as kernels, such as weight decay is for."""
    return [
        parameter
        for prefix, module in model.named_modules()
        for name, parameter in module.named_parameters(prefix, recurse=False)
        if is_weight(name, parameter, module)
    ]


def find(model: nn.Module, layer: Layer) -> nn.Module:
    """The module of a layer, by its name, as the model is now.

    Raises:
        RuntimeError: the model has no such layer any more.
    """
    module = model
    for part in layer.path:
        while part not in module._modules:
            if is_adapter(module):
                raise _not_one_weight(module)
            inner = _inside(module)
            if not isinstance(inner, nn.Module):
                raise RuntimeError(
                    f"model: layer {layer.name!r} is gone ({type(module).__name__} has no "
                    f"{part!r}); make a LayerRotation of the model as it is now"
                )
            module = inner
        child = module._modules[part]
        assert child is not None
        module = child
    while (inner := _inside(module)) is not None:
        module = inner
    return module


def measured(module: nn.Module, layer: Layer) -> tuple[Tensor, bool]:
    """What is measured of a layer's module, as that is now, and whether it has a gradient.

    Raises:
        RuntimeError: the module has no such weight, or no such adapter, any more.
        ValueError: an adapter does not add a change.
    """
    if layer.adapter is None:
        return weight_of(module, layer.attribute)
    if not is_adapter(module) or layer.adapter not in adapters_of(module):
        raise RuntimeError(
            f"model: the adapter of {layer.name!r} is gone; make a LayerRotation of the model as it"
            " is now"
        )
    return _change_of(module, layer.adapter)


def weight_of(module: nn.Module, attribute: str) -> tuple[Tensor, bool]:
    """The weight that a module computes with, and whether it has a gradient.

    Of a parametrised module (``torch.nn.utils.parametrize``, or the older weight_norm and
    spectral_norm), and of one with adapters of PEFT, that is computed from several.

    Raises:
        RuntimeError: the module has no such weight any more.
    """
    if is_adapter(module):
        return _adapted(module, attribute)
    parametrized = module._modules.get("parametrizations")
    if parametrized is not None and attribute in parametrized._modules:
        originals = parametrized._modules[attribute]
        assert originals is not None
        has_gradient = any(p.requires_grad for p in originals.parameters())
        return getattr(module, attribute).detach(), has_gradient
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name == attribute:
            direction = getattr(module, f"{attribute}_v")
            return hook.compute_weight(module).detach(), direction.requires_grad
        if isinstance(hook, SpectralNorm) and hook.name == attribute:
            computed = hook.compute_weight(module, do_power_iteration=False)
            return computed.detach(), getattr(module, f"{attribute}_orig").requires_grad
    weight: Any = module._parameters.get(attribute)
    if weight is None:
        weight = getattr(module, attribute, None)
    if not isinstance(weight, Tensor):
        raise RuntimeError(
            f"model: {type(module).__name__} has no {attribute!r} any more; make a LayerRotation "
            "of the model as it is now"
        )
    return weight, weight.requires_grad


def is_adapter(module: nn.Module) -> bool:
    """Whether it is a layer of PEFT's, around the one that it adapts."""
    kind = type(module)
    return "base_layer" in module._modules and (
        hasattr(kind, "get_delta_weight") or hasattr(kind, "adapter_layer_names")
    )


def adapters_of(module: Any) -> list[str]:
    """The names of a layer's adapters, in use or not."""
    tables = [getattr(module, name, {}) for name in _tables(module)]
    return list(dict.fromkeys(adapter for table in tables for adapter in table))


def _tables(module: Any) -> tuple[str, ...]:
    """The attributes that hold the parameters of adapters, by the adapters' names."""
    return getattr(module, "adapter_layer_names", ("lora_A", "lora_B"))


def _adds(module: Any, adapter: str) -> bool:
    """Whether an adapter computes with W0 + s B A: LoRA and AdaLoRA do, DoRA and others do not."""
    return hasattr(module, "lora_A") and adapter not in getattr(module, "lora_variant", {})


def _not_one_weight(module: nn.Module) -> RuntimeError:
    return RuntimeError(
        f"model: adapters of a {type(_innermost(module)).__name__}, which has not one weight, are "
        "not measured"
    )


def _adapted(module: Any, attribute: str) -> tuple[Tensor, bool]:
    """The adapted layer's weight, as peft merges it."""
    if not hasattr(_innermost(module), "weight"):
        raise _not_one_weight(module)
    weight, has_gradient = weight_of(module.base_layer, attribute)
    has_gradient = has_gradient or any(p.requires_grad for p in module.parameters())
    if module.merged or module.disable_adapters:
        return weight, has_gradient
    used = [adapter for adapter in module.active_adapters if adapter in adapters_of(module)]
    if all(_adds(module, adapter) for adapter in used):
        for adapter in used:
            # in the precision that the two are added with in the forward pass, or a better one
            wide = torch.promote_types(weight.dtype, torch.float32)
            weight = weight.to(wide) + module.get_delta_weight(adapter).to(wide)
        return weight.detach(), has_gradient
    merged = copy.deepcopy(module).float()
    merged.merge(adapter_names=used)
    return weight_of(merged.base_layer, attribute)[0].detach(), has_gradient


def _change_of(module: Any, adapter: str) -> tuple[Tensor, bool]:
    """s B A of one adapter."""
    if not _adds(module, adapter):
        raise ValueError(
            f"adapters: 'each', but {type(module).__name__}'s {adapter!r} is none that adds a "
            "change to a weight; measure them merged"
        )
    tables = [getattr(module, name, {}) for name in _tables(module)]
    parts = [table[adapter] for table in tables if adapter in table]
    has_gradient = any(
        p.requires_grad
        for part in parts
        for p in (part.parameters() if isinstance(part, nn.Module) else [part])
    )
    return module.get_delta_weight(adapter).detach(), has_gradient


def _weights(model: nn.Module) -> Iterator[tuple[tuple[str, ...], nn.Module, str]]:
    """Path without wrappers, module and attribute of what may be a layer."""
    for path, module in _modules(model, (), set()):
        if is_adapter(module):
            yield path, module, "weight"
            continue
        parametrized = module._modules.get("parametrizations")
        if parametrized is not None:
            for attribute in parametrized._modules:
                yield path, module, attribute
        hooked = [
            hook.name
            for hook in module._forward_pre_hooks.values()
            if isinstance(hook, (WeightNorm, SpectralNorm))
        ]
        for attribute in hooked:
            yield path, module, attribute
        own = {f"{name}_{part}" for name in hooked for part in ("g", "v", "orig")}
        for attribute, parameter in module._parameters.items():
            if parameter is not None and attribute not in own:
                yield path, module, attribute


def _modules(
    module: nn.Module, path: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], nn.Module]]:
    """Each module once, the outer first, with its path without wrappers; of an adapter the whole,
    and of what PEFT keeps beside the original that which computes."""
    if id(module) in seen:
        return
    seen.add(id(module))
    inside = _inside(module)
    if inside is not None and not any(name in module._modules for name in _WRAPPERS):
        yield from _modules(inside, path, seen)
        return
    yield path, module
    if is_adapter(module):
        return
    for name, child in module._modules.items():
        if child is not None and name != "parametrizations":
            yield from _modules(child, path if name in _WRAPPERS else (*path, name), seen)


def _inside(module: Any) -> nn.Module | None:
    """What a wrapper wraps; of PEFT's ``modules_to_save`` the one in use."""
    for name in _WRAPPERS:
        inner = module._modules.get(name)
        if inner is not None:
            return inner
    if "base_layer" in module._modules or not hasattr(type(module), "adapter_layer_names"):
        return None
    if "token_adapter" in module._modules:
        return module._modules["token_adapter"]
    saved = module._modules.get("modules_to_save")
    if saved is None:
        return None
    used = [adapter for adapter in module.active_adapters if adapter in saved]
    return saved[used[0]] if used and not module.disable_adapters else module.original_module


def _innermost(module: nn.Module) -> nn.Module:
    """What an adapter adapts, for its type."""
    inner = getattr(module, "base_layer", None)
    return _innermost(inner) if isinstance(inner, nn.Module) else module


def check_materialised(name: str, weight: Tensor) -> None:
    """
    Raises:
        RuntimeError: the weight has no values.
    """
    if weight.device.type == "meta":
        raise RuntimeError(
            f"model: {name} is on the meta device and has no values yet; give it some first "
            "(model.to_empty(device=...) and an initialisation, or load_state_dict(assign=True))"
        )


def plain_names(names: list[str]) -> list[str]:
    """Without what wrappers put into them, so that states fit with and without."""
    parts = [[part for part in name.split(".") if part not in _WRAPPERS] for name in names]
    while parts and all(len(one) > 1 and one[0] == "module" for one in parts):
        parts = [one[1:] for one in parts]
    while parts and all(one[:2] == ["base_model", "model"] for one in parts):  # PEFT's
        parts = [one[2:] for one in parts]
    return [".".join(one) for one in parts]


def is_sharded(weight: Tensor) -> bool:
    """Whether it is a DTensor."""
    return hasattr(weight, "to_local") and hasattr(weight, "device_mesh")


def spread_of(name: str, weight: Tensor) -> Spread | None:
    """How a weight is spread over processes; None of a plain tensor.

    Raises:
        RuntimeError: this process holds an addend of it, not a part.
    """
    if not is_sharded(weight):
        return None
    mesh, placements = weight.device_mesh, weight.placements  # type: ignore[attr-defined]
    for placement in placements:
        if placement.is_partial():
            raise RuntimeError(
                f"model: {name}: a DTensor of placement {placement} has no parts to measure; "
                "redistribute it, or measure full_tensor()"
            )
    return Spread(mesh, tuple(placements), weight.shape, weight.stride())


class Spread(NamedTuple):
    """How a DTensor lies on its processes: of it each holds a part, or a copy."""

    mesh: Any
    placements: tuple[Any, ...]
    shape: torch.Size
    stride: tuple[int, ...]

    def groups(self) -> tuple[dist.ProcessGroup, ...]:
        """Those over which it is sharded."""
        # of strided shards (FSDP over tensor parallelism) is_shard() is False
        dims = [d for d, placement in enumerate(self.placements) if not placement.is_replicate()]
        return tuple(self.mesh.get_group(dim) for dim in dims)

    def whole(self, part: Tensor) -> Tensor:
        """The DTensor of which this process holds ``part``."""
        from torch.distributed.tensor import DTensor

        return DTensor.from_local(
            part, self.mesh, self.placements, run_check=False, shape=self.shape, stride=self.stride
        )

    def part(self, whole: Tensor) -> Tensor:
        """What this process holds of a plain tensor that all have: nothing is sent."""
        from torch.distributed.tensor import distribute_tensor

        # laid out along the mesh first, and strided shards from there
        spread = distribute_tensor(whole, self.mesh, self.placements, src_data_rank=None)
        return spread.to_local()


def local(weight: Tensor) -> Tensor:
    """What this rank holds."""
    return weight.detach().to_local() if is_sharded(weight) else weight  # type: ignore[attr-defined]
