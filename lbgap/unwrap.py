"""What a user wraps a network in, and the network itself: parallel and compiled modules, averages, Lightning modules.

Wrappers are known by the names of their classes, so that no library is imported to find out that it is not used.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from lbgap.replica import REGISTERED, copied, held_tensors
from lbgap.system.device import first_line

# Name of a class and the package that it is of, to the attribute that holds the module. Nothing is computed besides.
WRAPPERS = {
    ("OptimizedModule", "torch"): "_orig_mod",
    ("DistributedDataParallel", "torch"): "module",
    ("DataParallel", "torch"): "module",
    ("CheckpointWrapper", "torch"): "_checkpoint_wrapped_module",
    ("_FabricModule", "lightning"): "_original_module",
    ("_FabricModule", "lightning_fabric"): "_original_module",
}
AVERAGES = {("AveragedModel", "torch"): "module", ("ModelEmaV2", "timm"): "module", ("ModelEmaV3", "timm"): "module"}
LIGHTNING = (("LightningModule", "lightning"), ("LightningModule", "pytorch_lightning"))
METRICS = (("Metric", "torchmetrics"), ("MetricCollection", "torchmetrics"))
ATTACHED = ("_trainer", "_fabric")  # what a Lightning module refers to and does not own
ORIGINAL = "_torchdynamo_orig_callable"  # of a function that torch.compile made
QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")
WHOLE = (
    "gather it in a plain module: model.load_state_dict(get_model_state_dict(sharded, options=StateDictOptions("
    "full_state_dict=True))) of torch.distributed.checkpoint.state_dict"
)


def unwrapped(model: nn.Module, name: str = "model", *, inside: bool = True) -> nn.Module:
    """The network inside of its wrappers, which shares all tensors with it.

    Taken off are ``torch.compile``, ``DistributedDataParallel``, ``DataParallel``, averages of weights and Fabric, in
    any order; a Lightning module without a ``forward`` of its own stands for the one module inside of it. Where a
    network has wrappers or compiled functions inside, or a trainer attached, the same network without them is made,
    of the same tensors. Parameters have the names of the plain network.

    Args:
        model: Whatever the user passes; never changed.
        name: What it is called in messages.
        inside: Whether a Lightning module without a ``forward`` stands for the module inside; not where a function of
            the user's calls it.

    Returns:
        The module itself if there is nothing to take off.

    Raises:
        TypeError: It is not a module; the message says what to pass.
        ValueError: See :func:`check_cache`; it is sharded, scripted or quantised, a wrapper has a ``forward`` or hooks
            of its own, a Lightning module has neither ``forward`` nor one module inside that has all parameters and
            buffers, but for those of losses and metrics, or it cannot be copied without its wrappers.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, got {_kind(model)}")
    _check_whole(model)
    plain = _peeled(model, inside)
    check_cache(plain)
    stand_ins, methods = dict(_stand_ins(plain)), _compiled_methods(plain)
    return _mirror(plain, stand_ins, methods) if stand_ins or methods else plain


def check_cache(model: nn.Module) -> None:
    """Refuse to compute with weights that ``torch.nn.utils.parametrize.cached`` keeps: they would not move.

    Raises:
        ValueError: Such a block is entered, and the model has parametrisations.
    """
    if parametrize._cache_enabled and any(map(parametrize.is_parametrized, model.modules())):
        raise ValueError(
            "inside torch.nn.utils.parametrize.cached() the parametrised weights of the model are kept as they were "
            "first, so that they would not move: leave parametrize.cached()"
        )


def left_out(model: nn.Module) -> str | None:
    """A sentence on what :func:`unwrapped` leaves aside of a Lightning module without a ``forward``, if there is such.

    Args:
        model: Whatever the user passes, once :func:`unwrapped` takes it.
    """
    outer = _peeled(model, inside=False)
    inner = _inside(outer)
    if inner is outer:
        return None
    children = dict(outer.named_children())
    measured = next(name for name, child in children.items() if child is inner)
    others = [repr(name) for name, child in children.items() if child is not inner]
    aside = f"; {', '.join(others)} {'is' if len(others) == 1 else 'are'} left out" if others else ""
    return f"measured {measured!r} of {type(outer).__name__}, which has no forward of its own{aside}"


def _kind(model: object) -> str:
    """What something is that is no module, and what to pass in its place."""
    if isinstance(model, type):
        return f"the class {model.__name__}: pass an instance of it"
    kind = type(model).__name__
    if kind == "ExportedProgram":
        return f"{kind}: pass its .module()"
    if callable(model) and not hasattr(model, "loss_and_gradient"):
        return f"{kind}: wrap it in an nn.Module that holds its parameters as nn.Parameter"
    return kind


def _check_whole(model: nn.Module) -> None:
    """Refuse modules whose parameters are not all here as plain tensors."""
    for place, module in model.named_modules():
        where = f"its module {place!r}" if place else "it"
        if _is_one_of(module, {("FullyShardedDataParallel", "torch"): ""}) is not None:
            raise ValueError(f"the model is sharded by FSDP ({where}): {WHOLE}")
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"the model is scripted ({where} is a {type(module).__name__}), and the parameters of a copy of it "
                "cannot be moved: pass the module that torch.jit was given"
            )
        if type(module).__module__.startswith(QUANTISED):
            raise ValueError(
                f"the model is quantised ({where} is a {type(module).__module__}.{type(module).__name__}), and its "
                "weights are integers that cannot move: pass the model as it was before"
            )
    for place, buffer in model.named_buffers():
        if is_lazy(buffer):
            raise ValueError(f"buffer {place!r} has no shape yet: run one batch through the model first")
    for place, parameter in model.named_parameters():
        kinds = {kind.__name__ for kind in type(parameter).__mro__}
        if "DTensor" in kinds:
            raise ValueError(f"parameter {place!r} is a DTensor, sharded over processes: {WHOLE}")
        if torch.utils._python_dispatch.is_traceable_wrapper_subclass(parameter) or parameter.is_quantized:
            raise ValueError(
                f"parameter {place!r} is a {type(parameter).__name__}, no plain tensor: pass the model as it was "
                "before its weights were converted"
            )


def _is_one_of(module: nn.Module, names: dict[tuple[str, str], str]) -> str | None:
    """What a table of class names says of a module; None if it is of no such class, or computes otherwise."""
    for kind in type(module).__mro__:
        key = (kind.__name__, kind.__module__.partition(".")[0])
        if key in names:
            same = all(getattr(type(module), one) is getattr(kind, one) for one in ("forward", "__call__"))
            return names[key] if same else None
    return None


def _peeled(model: nn.Module, inside: bool) -> nn.Module:
    """What is inside of the outermost wrappers, and of Lightning modules without a ``forward``."""
    while True:
        attribute = _is_one_of(model, {**WRAPPERS, **AVERAGES})
        if attribute is None and not inside:
            return model
        inner = _inside(model) if attribute is None else _taken_out(model, attribute)
        if inner is model:
            return model
        model = inner


def _taken_out(wrapper: nn.Module, attribute: str) -> nn.Module:
    held = vars(wrapper)
    own = held.get("forward")
    if own is not None and not (_is_compiled(own) or type(wrapper).__name__ == "OptimizedModule"):
        raise ValueError(
            f"the forward of the {type(wrapper).__name__} around the model was replaced, and would be lost: replace "
            f"that of the module inside, its .{attribute}, or pass a module whose forward does the same"
        )
    if held.get("_forward_hooks") or held.get("_forward_pre_hooks"):
        raise ValueError(
            f"hooks are registered on the {type(wrapper).__name__} around the model: register them on the module "
            f"inside, its .{attribute}"
        )
    inner: nn.Module = getattr(wrapper, attribute)
    return inner


def _is_lightning(module: nn.Module) -> type[nn.Module] | None:
    """The Lightning class that a module is of, by its name; None if there is none."""
    for kind in type(module).__mro__:
        if issubclass(kind, nn.Module) and (kind.__name__, kind.__module__.partition(".")[0]) in LIGHTNING:
            return kind
    return None


def _inside(model: nn.Module) -> nn.Module:
    """The one module that a Lightning module without a ``forward`` trains; any other module itself."""
    lightning = _is_lightning(model)
    if lightning is None or "forward" in vars(model) or type(model).forward is not lightning.forward:
        return model
    owners = [(name, child) for name, child in model.named_children() if next(child.parameters(), None) is not None]
    if len(owners) != 1 or next(model.parameters(recurse=False), None) is not None:
        found = ", ".join(repr(name) for name, _ in owners) or "none"
        raise ValueError(
            f"{type(model).__name__} has no forward of its own, and not one module inside that has all its parameters "
            f"(there are: {found}): give it a forward, or pass the module that is measured"
        )
    name, inner = owners[0]
    held = [f"its buffer {key!r}" for key, _ in model.named_buffers(recurse=False)]
    held += [f"{key!r}" for key, child in model.named_children() if child is not inner and _may_compute(child)]
    if held:
        raise ValueError(
            f"{type(model).__name__} has no forward of its own, and {held[0]} beside {name!r} may enter the output "
            "(buffers, as of a normalisation): give it a forward, pass the module that is measured, or call="
        )
    return inner


def _may_compute(module: nn.Module) -> bool:
    """Whether a module holds buffers that are not those of a loss or a metric."""
    names = {(kind.__name__, kind.__module__.partition(".")[0]) for kind in type(module).__mro__}
    if isinstance(module, nn.modules.loss._Loss) or not names.isdisjoint(METRICS):
        return False
    return next(module.buffers(recurse=False), None) is not None or any(map(_may_compute, module.children()))


def _stand_ins(model: nn.Module) -> Iterator[tuple[int, Any]]:
    """Id of each wrapper, compiled function or trainer that a model holds to what it is without; None for trainers."""
    for module in model.modules():
        attribute = _is_one_of(module, WRAPPERS)
        if attribute is not None:
            yield id(module), _taken_out(module, attribute)
            continue
        lightning = _is_lightning(module) is not None
        for key, value in vars(module).items():
            if lightning and key in ATTACHED and value is not None:
                yield id(value), None
            elif key == "forward" and _of_accelerate(value) and "_original_forward" in vars(module):
                yield id(value), _uncompiled(vars(module)["_original_forward"])
            elif key not in REGISTERED:
                yield from ((id(part), _uncompiled(part)) for part in _held(value) if _is_compiled(part))


def _held(value: Any, depth: int = 3) -> Iterator[Any]:
    """Functions that an attribute of a module is or holds."""
    if isinstance(value, types.FunctionType | types.MethodType | functools.partial):
        yield value
    elif isinstance(value, dict | list | tuple) and depth:
        for part in value.values() if isinstance(value, dict) else value:
            yield from _held(part, depth - 1)


def _uncompiled(function: Any) -> Any:
    """What torch.compile was given."""
    if isinstance(function, types.MethodType):
        return types.MethodType(_uncompiled(function.__func__), function.__self__)
    while _is_compiled(function):
        function = getattr(function, ORIGINAL)
    return function


def _is_compiled(function: Any) -> bool:
    """Whether torch.compile made a function; one that is kept out of compilation is what it was."""
    return hasattr(function, ORIGINAL) and not getattr(function, "_torchdynamo_disable", False)


def _of_accelerate(function: Any) -> bool:
    """Whether a ``forward`` is that by which accelerate computes in mixed precision."""
    return str(getattr(function, "__module__", "")).startswith("accelerate.")


def _compiled_methods(model: nn.Module) -> dict[type, dict[str, Any]]:
    """The classes of a model's modules that have compiled methods: those as they were, by name."""
    found: dict[type, dict[str, Any]] = {}
    for kind in {type(module) for module in model.modules()}:
        every = {name: part for one in reversed(kind.__mro__) for name, part in vars(one).items()}
        compiled = {
            name: _uncompiled(part)
            for name, part in every.items()
            if isinstance(part, types.FunctionType) and _is_compiled(part)
        }
        if compiled:
            found[kind] = compiled
    return found


def _mirror(model: nn.Module, stand_ins: dict[int, Any], methods: dict[type, dict[str, Any]]) -> nn.Module:
    """The same module with others in the place of some of its parts; it shares all tensors.

    Args:
        model: Not changed.
        stand_ins: Id of a part to what stands for it.
        methods: Of classes, what stands for their compiled methods.

    Raises:
        ValueError: It cannot be copied.
    """
    attached = {key for key, part in stand_ins.items() if part is None}
    memo: dict[int, Any] = {id(part): part for part in (*model.parameters(), *model.buffers())}
    memo |= {id(tensor): tensor for _, _, tensor in held_tensors(model, attached)}
    memo |= {key: part for key, part in stand_ins.items() if not isinstance(part, nn.Module)}

    def place(wrapper: nn.Module) -> None:
        """Copy what is inside of a wrapper, behind what is inside of the wrappers in there."""
        inner = _peeled_inside(wrapper)
        for part in inner.modules():
            if part is not inner and id(part) in stand_ins and id(part) not in memo:
                place(part)
        memo[id(wrapper)] = made = copy.deepcopy(inner, memo)
        if _is_one_of(wrapper, WRAPPERS) == "module" and not hasattr(made, "module"):
            object.__setattr__(made, "module", made)  # by which code around a parallel module reaches what is inside

    try:
        for part in list(model.modules()):
            if id(part) in stand_ins and id(part) not in memo:
                place(part)
        made = copied(model, memo)
    except Exception as error:
        raise ValueError(
            f"the model cannot be copied without its wrappers ({first_line(error)}): pass the plain module"
        ) from error
    for module in made.modules():
        own = vars(module).get("forward")
        if isinstance(own, types.MethodType) and own.__self__ is module and own.__func__ is type(module).forward:
            object.__delattr__(module, "forward")  # what was compiled is what the class has
        for name, function in methods.get(type(module), {}).items():
            if name not in vars(module):
                object.__setattr__(module, name, types.MethodType(function, module))
    return made


def _peeled_inside(wrapper: nn.Module) -> nn.Module:
    """What is inside of nested wrappers within a model."""
    while (attribute := _is_one_of(wrapper, WRAPPERS)) is not None:
        wrapper = _taken_out(wrapper, attribute)
    return wrapper
