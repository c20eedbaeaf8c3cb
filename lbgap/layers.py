"""Read the layers of a network from a forward pass, for all that compute layer by layer; and what layers there are."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.overrides import TorchFunctionMode

from lbgap.system.device import first_line


class Sum(nn.Module):
    """Adds two values, as residual networks do: a layer of its own here, which torch has none for."""


MEANS = (nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
OFF = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
POINTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.SiLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.Softplus),
    *(nn.Hardtanh, nn.Hardswish, nn.Mish),
)
FUNCTIONS: dict[Any, type[nn.Module]] = {  # to the module that takes the same further arguments
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_), nn.ReLU),
    **dict.fromkeys((torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_), nn.Tanh),
    **dict.fromkeys((torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_), nn.Sigmoid),
    **dict.fromkeys((torch.flatten, Tensor.flatten), nn.Flatten),
    **dict.fromkeys((torch.unflatten, Tensor.unflatten), nn.Unflatten),
    F.relu6: nn.ReLU6,
    F.leaky_relu: nn.LeakyReLU,
    F.elu: nn.ELU,
    F.selu: nn.SELU,
    F.silu: nn.SiLU,
    F.gelu: nn.GELU,
    F.softplus: nn.Softplus,
    F.hardtanh: nn.Hardtanh,
    F.hardswish: nn.Hardswish,
    F.mish: nn.Mish,
    F.max_pool1d: nn.MaxPool1d,
    F.max_pool2d: nn.MaxPool2d,
    F.avg_pool1d: nn.AvgPool1d,
    F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_avg_pool1d: nn.AdaptiveAvgPool1d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.adaptive_max_pool1d: nn.AdaptiveMaxPool1d,
    F.adaptive_max_pool2d: nn.AdaptiveMaxPool2d,
}
SUMS = (torch.add, Tensor.add, Tensor.add_)
RESHAPES = (torch.reshape, Tensor.reshape, Tensor.view)
UNCHANGED = (F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout, torch.dropout, Tensor.contiguous)  # where they are
FORMATS = {  # what is asked of a tensor without regard to its values
    *(Tensor.size, Tensor.dim, Tensor.ndimension, Tensor.numel, Tensor.nelement, Tensor.stride, Tensor.__len__),
    *(Tensor.is_floating_point, Tensor.is_complex, Tensor.is_contiguous, Tensor.get_device, Tensor.element_size),
    *(torch.numel, torch.is_floating_point, torch.is_complex),
    *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "layout", "is_cuda", "is_cpu")),
    *(getattr(Tensor, name).__get__ for name in ("requires_grad", "is_meta", "is_sparse", "is_quantized", "is_leaf")),
}
HELD = ("weight", "bias", "running_mean", "running_var")  # what layers compute with
COUNTS = (2, 3)  # samples of the passes that are read
PERIOD = 10007  # of the noise in a point some way off: a prime, so that it has no period along the rows of a matrix
FORWARD_HOOKS = ("forward_hooks", "forward_pre_hooks")
HOOKS = (*FORWARD_HOOKS, "backward_hooks", "backward_pre_hooks")


class UnknownError(Exception):
    """A network that there are no rules for; the message names what was met."""


def hooked_everywhere(kinds: Sequence[str]) -> bool:
    """Whether a hook of one of these kinds is on all modules of the process."""
    return any(getattr(global_hooks, f"_global_{kind}", None) for kind in kinds)


def is_hooked(module: nn.Module, kinds: Sequence[str]) -> bool:
    """Whether a module itself has a hook of one of these kinds, or another forward than its class."""
    return any(getattr(module, f"_{kind}", None) for kind in kinds) or "forward" in vars(module)


def check_hooks(module: nn.Module, kinds: Sequence[str]) -> None:
    """Refuse a module that does more than its layers.

    Args:
        module: With its submodules.
        kinds: Of hooks that matter, some of :data:`HOOKS`.

    Raises:
        UnknownError: It does; the message says where.
    """
    if hooked_everywhere(kinds):
        raise UnknownError("a hook on all modules")
    for name, child in module.named_modules():
        if is_hooked(child, kinds):
            raise UnknownError(f"a hook on {name or 'the model'}, or a replaced forward")


@dataclass(frozen=True)
class Layer:
    """One layer of a network, whichever way it is written.

    Attributes:
        module: The layer of the network; for a function, a method or an operator a module that does the same.
        name: Its name in the network; empty for what is no module of it.
        sources: Places of its inputs among the values: 0 is the network's input, i + 1 what layer i returns.
    """

    module: nn.Module
    name: str
    sources: tuple[int, ...]


def read_layers(module: nn.Module, inputs: Tensor, kinds: Container[type[nn.Module]]) -> list[Layer]:
    """The layers of a network in the order in which they run, without those that change nothing, such as dropout.

    They are those of a forward pass of a few samples. What the code makes of the number of samples shows in a second
    pass with another number; what else it decides, other than by values of tensors, is for the caller to try out.

    Args:
        module: In evaluation mode and without hooks.
        inputs: One sample or more, ``(batch, ...)``.
        kinds: Of layers that the caller knows.

    Raises:
        UnknownError: The code does something else than to call layers; the message says what.
    """
    if not isinstance(inputs, Tensor) or not len(inputs):
        raise UnknownError("inputs other than one tensor")
    rows = [torch.arange(count, device="cpu") % len(inputs) for count in COUNTS]
    passes = [_Pass(module, inputs[chosen], kinds).layers for chosen in rows]
    one, other = ([(layer.name, repr(layer.module), layer.sources) for layer in layers] for layers in passes)
    if one != other:
        raise UnknownError("layers that depend on the number of samples")
    return passes[0]


@dataclass
class _Value:
    """A tensor that depends on the network's input.

    Attributes:
        tensor: It itself, whose id no other can have as long as it is here.
        place: Among the values that layers return; or why it is none of them.
        version: How often it had been written to.
    """

    tensor: Tensor
    place: int | str
    version: int


class _Pass(TorchFunctionMode):
    """Notes the layers of one forward pass, in this thread alone, on a copy, for code may keep what passes through it.

    A layer of ``torch.nn`` shows by hooks on the copy, what is called outside of layers by this mode. What is no layer
    runs all the same, and matters only where a layer, or the output, depends on it.
    """

    def __init__(self, module: nn.Module, inputs: Tensor, kinds: Container[type[nn.Module]]) -> None:
        """Run it.

        Args:
            module: The network.
            inputs: A few samples.
            kinds: Of layers.

        Raises:
            UnknownError: See :func:`read_layers`.
        """
        self.layers: list[Layer] = []
        self._values: dict[int, _Value] = {}
        self._module, self._samples, self._kinds = module, len(inputs), kinds
        self._depth = 0  # of layers that are running
        self._sources: tuple[int, ...] = ()  # of the layer that is running
        self._refusal: UnknownError | None = None
        try:
            private = _copied(module, inputs)
            own = dict((*private.named_parameters(), *private.named_buffers()))
            for name, tensor in own.items():  # so that no code looks at them, or replaces them, unseen
                self._meet(tensor, f"the tensor {name!r} outside of a layer")
            self._own = {id(tensor): _version(tensor) for tensor in own.values()}
            for name, child in private.named_modules():
                self._observe(name, child)
            with torch.inference_mode(False), torch.no_grad():
                inputs = inputs.clone()
                self._meet(inputs, 0)
                with self:
                    output = private(inputs)
            written = next((name for name, x in own.items() if _version(x) != self._own[id(x)]), None)
            if written is not None:
                raise UnknownError(f"code that writes into the tensor {written!r}")
        except (UnknownError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise UnknownError(f"code that does not run on {self._samples} samples ({first_line(error)})") from error
        if self._refusal is not None:  # which the code caught
            raise self._refusal
        if not isinstance(output, Tensor) or self._source(output) != len(self.layers) or not self.layers:
            raise UnknownError("an output that is not that of the last layer")

    def _observe(self, name: str, module: nn.Module) -> None:
        """Put hooks on a module if it is a layer."""
        home = type(module).__module__
        if home.startswith(("torch._dynamo", "torch.jit")):
            raise UnknownError(f"compiled code in {name or 'the model'}")
        if home.startswith("torch.nn") and not isinstance(module, nn.Sequential):
            module.register_forward_pre_hook(functools.partial(self._enter, name), with_kwargs=True)
            module.register_forward_hook(functools.partial(self._leave, name), with_kwargs=True)

    def _enter(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._depth += 1
        if self._depth > 1:
            return
        self._sources = ()
        if any(id(tensor) in self._values for tensor in _tensors((args, kwargs))):
            if type(module) not in OFF and type(module) not in self._kinds:
                self._refuse(f"{type(module).__name__}, or some setting of it")
            if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
                self._refuse(f"further arguments of {name!r}")
            held = [x for x in (getattr(module, key, None) for key in HELD) if isinstance(x, Tensor)]
            if any(self._own.get(id(x)) != _version(x) for x in held):
                self._refuse(f"a tensor of {name!r} that the code replaces or writes into")
            self._sources = (self._source(args[0]),)

    def _leave(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._depth == 1 and self._sources:
            kind = type(module)
            if kind in OFF + NORMS and module.training:
                self._refuse(f"{kind.__name__} in training mode")
            if not isinstance(output, Tensor):
                self._refuse(f"{kind.__name__}, or some setting of it")
            if kind in OFF:
                self._meet(output, self._sources[0])
            else:
                self._note(self._module.get_submodule(name), name, self._sources, output)
        self._depth -= 1

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run what was called; outside of layers, note what it is."""
        kwargs = kwargs or {}
        tensors = [] if self._depth or func in FORMATS else list(_tensors((args, kwargs)))
        if not any(id(tensor) in self._values for tensor in tensors):
            return func(*args, **kwargs)
        places, versions = [self._place(x) for x in tensors], [_version(x) for x in tensors]
        output = func(*args, **kwargs)
        written = [x for x, version in zip(tensors, versions, strict=True) if _version(x) != version]
        layer = self._layer(func, args, kwargs, output, bool(written))
        fits = isinstance(output, Tensor) and len(tensors) == 1 + isinstance(layer, Sum)
        if isinstance(layer, str) or not fits:
            why = layer if isinstance(layer, str) else _operation(func)
            self._lose(func, next((place for place in places if isinstance(place, str)), why), output, written)
            return output
        sources = tuple(self._checked(place) for place in places)
        if isinstance(layer, nn.Identity):
            self._meet(output, sources[0])
        else:
            self._note(layer, "", sources, output)
        return output

    def _layer(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], output: Any, written: bool
    ) -> nn.Module | str:
        """The layer that a function amounts to, or what it is if it is none."""
        if not args or not isinstance(args[0], Tensor):
            return _operation(func)
        if func in UNCHANGED and not written and (output is args[0] or func is Tensor.contiguous):
            return nn.Identity()
        if func in SUMS and len(args) == 2 and not kwargs:
            return Sum()
        if func in RESHAPES:
            return self._reshape(args[0], output)
        if func not in FUNCTIONS:
            return _operation(func)
        try:
            layer = FUNCTIONS[func](*args[1:], **kwargs).eval()
        except TypeError:
            return f"the arguments of {_operation(func)}"
        if isinstance(layer, nn.Flatten) and len(args) == 1 and "start_dim" not in kwargs:
            return "flattening samples into one"  # the default differs from the module's
        return layer

    def _reshape(self, before: Tensor, after: Tensor) -> nn.Module | str:
        """What ``x.view(x.size(0), -1)`` or its like amounts to."""
        kept = all(x.dim() >= 2 and len(x) == self._samples for x in (before, after))
        if kept and after.dim() == 2:
            return nn.Flatten()
        if kept and before.dim() == 2:
            return nn.Unflatten(1, tuple(after.shape[1:]))
        return "a reshape other than to (batch, -1)"

    def _note(self, module: nn.Module, name: str, sources: tuple[int, ...], output: Tensor) -> None:
        self.layers.append(Layer(module, name, sources))
        self._meet(output, len(self.layers))

    def _meet(self, tensor: Tensor, place: int | str) -> None:
        self._values[id(tensor)] = _Value(tensor, place, _version(tensor))

    def _lose(self, func: Callable[..., Any], why: str, output: Any, written: Sequence[Tensor]) -> None:
        """Note that no layer may depend on what a function made, or wrote into."""
        made = list(_tensors(output))
        if _name(func) == "data" or (not made and func is not Tensor.__setitem__):
            self._refuse(f"code that looks at values, or at more of a tensor, by {_name(func)!r}")
        for tensor in (*made, *written):
            self._meet(tensor, why)

    def _place(self, tensor: Tensor) -> int | str:
        """The place of a tensor among the values, or why it has none."""
        value = self._values.get(id(tensor))
        if value is None:
            return "a tensor from outside of the layers"
        return value.place if value.version == _version(tensor) else "a layer that writes into what another one reads"

    def _source(self, tensor: Tensor) -> int:
        return self._checked(self._place(tensor))

    def _checked(self, place: int | str) -> int:
        if isinstance(place, str):
            self._refuse(place)
        return place

    def _refuse(self, why: str) -> NoReturn:
        self._refusal = self._refusal or UnknownError(why)
        raise self._refusal


def _copied(module: nn.Module, inputs: Tensor) -> nn.Module:
    """A copy of a network that shares its parameters."""
    shared = {id(tensor): tensor for tensor in module.parameters()}
    try:
        return copy.deepcopy(module, dict(shared))
    except RuntimeError:  # of a value with a graph, which it keeps since the last pass: from this one on it has none
        with torch.inference_mode(False), torch.no_grad():
            module(inputs.clone())
        return copy.deepcopy(module, dict(shared))


def displace(parts: Sequence[Tensor]) -> None:
    """Move parameters some way off, where a branch that counts for nothing where they are counts.

    Args:
        parts: The parameters, each written in place.
    """
    period = (
        torch.rand(PERIOD, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu") * 0.2 - 0.1
    )
    with torch.no_grad():
        for number, part in enumerate(parts):
            size = part.square().mean().sqrt()
            noise = period.roll(number).to(part).repeat(-(-part.numel() // PERIOD))[: part.numel()]
            part.addcmul_(noise.view_as(part), torch.where(size > 0, size, 1))


@contextmanager
def displaced(parts: Sequence[Tensor]) -> Iterator[None]:
    """Parameters some way off, the same each time, and afterwards back where they were, to the bit."""
    kept = [part.detach().clone() for part in parts]
    try:
        displace(parts)
        yield
    finally:
        with torch.no_grad():
            for part, value in zip(parts, kept, strict=True):
                part.copy_(value)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in arguments or in what a function returns."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _name(func: Callable[..., Any]) -> str:
    """The name of a function, or of a property, which is called by its ``__get__`` or ``__set__``."""
    name = getattr(func, "__name__", str(func))
    return getattr(getattr(func, "__self__", None), "__name__", name) if name in ("__get__", "__set__") else name


def _operation(func: Callable[..., Any]) -> str:
    return f"the operation {_name(func)!r}"
