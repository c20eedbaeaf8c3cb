"""A private copy of a module, in which nothing refers to the original any more: functions that it keeps are rebound."""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lbgap.system.device import first_line

REGISTERED = ("_parameters", "_buffers", "_modules")
DEPTH = 8  # of containers and objects within each other, so far as they are searched
CONTAINERS = (dict, list, tuple, set, frozenset, deque)
CALLABLES = (types.FunctionType, types.MethodType, types.BuiltinMethodType, functools.partial, weakref.ref)
FORMATS = ("__get__", "size", "dim", "numel", "stride", "__len__", "is_floating_point", "is_contiguous")  # no values
OUTSIDE = (
    "the model reaches its own {name!r} by another way than as an attribute (a global name, a class attribute, a "
    "function that it does not keep?), so that a copy of it computes with the original's: reach it by self"
)
OPAQUE = (type, types.ModuleType, str, bytes, int, float, complex, torch.dtype, torch.device, torch.Generator)


def replicate(
    model: nn.Module,
    copies: Mapping[int, Tensor] | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Copy a module.

    Functions that modules keep (as attributes, in containers, as hooks) and that reach what belongs to the module, by a
    closure, a default or ``functools.partial``, are copied too, and reach the copy.

    Args:
        model: Neither changed nor evaluated.
        copies: Id of a tensor of the module to what takes its place; the others are copied. With it, the copy has no
            other parameters.
        dtype: Of tensors that are neither parameters nor buffers, but of a parameter's dtype; their own by default.
        device: Of tensors that are neither parameters nor buffers; their own by default.

    Returns:
        The copy; and what stands in it for tensors that the module keeps and that were made of parameters, or are views
        of them, by name: they do not follow when the copy's parameters move.

    Raises:
        ValueError: It cannot be copied; the message says why.
    """
    memo: dict[int, Any] = dict(copies or {})
    kept: dict[str, Tensor] = {}
    computing = {parameter.dtype for parameter in model.parameters()}
    places = {_memory(parameter) for parameter in model.parameters()} - {0}
    for owner, key, tensor in held_tensors(model):
        placed = tensor.to(device=device, dtype=dtype if tensor.dtype in computing else None)
        if tensor.grad_fn is not None or _memory(tensor) in places:
            memo[id(tensor)] = kept[_free(f"{owner}.{key}".lstrip("."), kept)] = placed.detach().clone()
        elif placed is not tensor:
            memo[id(tensor)] = placed.detach().requires_grad_(tensor.requires_grad)
    for name, buffer in model.named_buffers():
        if _memory(buffer) in places:  # a view of a parameter
            value = buffer.detach().to(device=device, dtype=dtype if buffer.dtype in computing else None, copy=True)
            memo[id(buffer)] = kept[_free(name, kept)] = value
    try:
        replica = copied(model, memo)
    except Exception as error:
        raise ValueError(
            f"the model cannot be copied ({first_line(error)}): lbgap works on a private replica, so make "
            f"copy.deepcopy({type(model).__name__}) work"
        ) from error
    originals = {id(part) for part in (*model.modules(), *model.parameters())} - {id(view) for view in memo.values()}
    views = {id(view) for view in (copies or {}).values()}
    if any(id(module) in originals for module in replica.modules()) or any(
        id(parameter) in originals or (copies is not None and id(parameter) not in views)
        for parameter in replica.parameters()
    ):
        raise ValueError(
            f"{type(model).__name__} makes new parameters when copied, or keeps parts of the original (a __deepcopy__ "
            "that ignores its memo): lbgap cannot make a private replica of it"
        )
    return replica, kept


def copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copy a module, and the functions that it keeps and that reach what belongs to it.

    Args:
        model: Not changed.
        memo: Id of a part to what takes its place; noted there is what is copied, as ``copy.deepcopy`` does.

    Raises:
        Exception: Whatever its ``__deepcopy__`` raises.
    """
    begun = dict(memo)
    replica = copy.deepcopy(model, memo)
    try:
        _Rebinding(memo).visit(replica)
    except Exception:  # of what a function holds: it goes on reaching the original, for whoever watches it to see
        return copy.deepcopy(model, begun)
    return replica


def _free(name: str, names: Collection[str]) -> str:
    """A name, numbered if there are such names already."""
    number = sum(other == name or other.startswith(f"{name}[") for other in names)
    return f"{name}[{number}]" if number else name


def set_mode(module: nn.Module, training: bool) -> None:
    """Call the module's own ``train``, whatever that returns.

    Raises:
        ValueError: It raises an error.
    """
    try:
        module.train(training)
    except Exception as error:
        raise ValueError(
            f"{type(module).__name__}.train({training}) raises {type(error).__name__} ({first_line(error)}): lbgap "
            "puts its copy into that mode by it, so mend it"
        ) from error


def pin_mode(module: nn.Module) -> None:
    """Make a module stay in the mode that it is in, its submodules too as far as ``train`` of this one reaches them."""
    object.__setattr__(module, "train", functools.partial(_stay, module))


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def held_tensors(model: nn.Module, without: Collection[int] = ()) -> Iterator[tuple[str, str, Tensor]]:
    """Tensors that modules keep as attributes or in containers there; parameters and buffers are none of them.

    Args:
        model: Any module.
        without: Ids of objects that are not searched.

    Yields:
        The name of the module, that of the attribute, and a tensor.
    """
    seen = {id(part) for part in (*model.modules(), *model.parameters(), *model.buffers())} | {*without}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in REGISTERED:
                for tensor in _tensors(value, seen, DEPTH):
                    yield name, key, tensor


def _tensors(value: Any, seen: set[int], depth: int) -> Iterator[Tensor]:
    if value is None or isinstance(value, OPAQUE + CALLABLES) or id(value) in seen or not depth:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if value.layout == torch.strided and not value.is_meta:
            yield value
        return
    for part in _parts(value):
        yield from _tensors(part, seen, depth - 1)


def _parts(value: Any) -> list[Any]:
    """What a container, or an object, holds."""
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, CONTAINERS):
        return list(value)
    try:
        return list(vars(value).values())
    except TypeError:  # an object without attributes
        return []


class _Rebinding:
    """Walks through a copy, and puts functions that reach the copy in the place of those that reach the original.

    ``copy.deepcopy`` copies objects, but no functions.
    """

    def __init__(self, memo: dict[int, Any]) -> None:
        """Begin.

        Args:
            memo: Of the copy: id of what is in the original to what stands for it.
        """
        self._memo = memo
        self._made = {id(made) for key, made in memo.items() if key != id(memo)}
        self._seen: set[int] = set()
        self._functions: dict[int, Any] = {}
        self._cells: dict[int, types.CellType] = {}

    def visit(self, value: Any, depth: int = DEPTH) -> None:
        """Rebind whatever an object of the copy holds, in place."""
        if id(value) not in self._made or isinstance(value, Tensor) or id(value) in self._seen or not depth:
            return
        self._seen.add(id(value))
        if isinstance(value, nn.Module):
            self._visit_dict(vars(value), DEPTH)
        elif isinstance(value, dict):
            self._visit_dict(value, depth)
        elif isinstance(value, list | deque):
            for place, part in enumerate(value):
                value[place] = self._kept(part, depth)
        elif not isinstance(value, (*CONTAINERS, *CALLABLES)):
            attributes = getattr(value, "__dict__", None)
            if isinstance(attributes, dict):
                self._visit_dict(attributes, depth)

    def _visit_dict(self, held: dict[Any, Any], depth: int) -> None:
        for key, part in list(held.items()):
            if part is None or isinstance(part, (*OPAQUE, Tensor)):
                continue
            now = self._kept(part, depth)
            if now is not part:
                held[key] = now

    def _kept(self, part: Any, depth: int) -> Any:
        """What stands in the copy for something that it holds."""
        if isinstance(part, CALLABLES):
            return self._rebound(part) if self._reaches(part, set(), DEPTH) else part
        if isinstance(part, tuple | set | frozenset):
            parts = [self._kept(one, depth - 1) for one in part] if depth else [*part]
            same = all(one is other for one, other in zip(part, parts, strict=True))
            return part if same else _like(part, parts)
        self.visit(part, depth - 1)
        return part

    def _reaches(self, value: Any, seen: set[int], depth: int) -> bool:
        """Whether something that is not copied leads to something of the original that is."""
        if value is None or isinstance(value, OPAQUE) or id(value) in seen or not depth:
            return False
        seen.add(id(value))
        if id(value) in self._memo and not isinstance(value, CALLABLES):
            return True
        if isinstance(value, types.FunctionType):
            parts = [*_contents(value.__closure__), *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
            parts += _globals(value).values()
        elif isinstance(value, types.MethodType):
            parts = [value.__func__, value.__self__]
        elif isinstance(value, types.BuiltinMethodType):
            parts = [value.__self__]
        elif isinstance(value, functools.partial):
            parts = [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, weakref.ref):
            parts = [value()]
        elif isinstance(value, Tensor) or id(value) in self._made:
            return False
        else:
            parts = [*value.modules()][1:] if isinstance(value, nn.Module) else _parts(value)
        return any(self._reaches(part, seen, depth - 1) for part in parts)

    def _rebound(self, value: Any) -> Any:
        """What reaches the copy where ``value`` reaches the original."""
        if isinstance(value, CALLABLES):
            if id(value) not in self._functions:
                if not self._reaches(value, set(), DEPTH):
                    return value
                if isinstance(value, types.FunctionType):
                    return self._function(value)
                self._functions[id(value)] = self._callable(value)
            return self._functions[id(value)]
        if id(value) in self._memo:
            return self._memo[id(value)]
        if not self._reaches(value, set(), DEPTH):
            return value
        if isinstance(value, tuple | set | frozenset):
            return _like(value, [self._rebound(part) for part in value])
        try:
            made = copy.deepcopy(value, self._memo)
        except Exception:
            return value  # so that the copy goes on reaching the original, for whoever watches it to see
        self._made |= {id(one) for key, one in self._memo.items() if key != id(self._memo)}
        self.visit(made)
        return made

    def _callable(self, value: Any) -> Any:
        if isinstance(value, types.MethodType):
            return types.MethodType(self._rebound(value.__func__), self._rebound(value.__self__))
        if isinstance(value, types.BuiltinMethodType):
            return getattr(self._rebound(value.__self__), value.__name__)
        if isinstance(value, weakref.ref):
            return weakref.ref(self._rebound(value()))
        keywords = {key: self._rebound(part) for key, part in value.keywords.items()}
        return functools.partial(self._rebound(value.func), *map(self._rebound, value.args), **keywords)

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        """A copy of a function with other cells and defaults; functions that share a cell go on sharing one."""
        cells = tuple(self._cells.setdefault(id(cell), types.CellType()) for cell in function.__closure__ or ())
        names = {name: part for name, part in _globals(function).items() if self._reaches(part, set(), DEPTH)}
        known = dict(function.__globals__) if names else function.__globals__
        made = types.FunctionType(function.__code__, known, function.__name__, None, cells or None)
        self._functions[id(function)] = made  # before the cells are filled: one of them may hold the function itself
        known.update({name: self._rebound(part) for name, part in names.items()})
        for cell, old in zip(cells, function.__closure__ or (), strict=True):
            for content in _contents((old,)):
                cell.cell_contents = self._rebound(content)
        made.__defaults__ = function.__defaults__ and tuple(map(self._rebound, function.__defaults__))
        if function.__kwdefaults__:
            made.__kwdefaults__ = {key: self._rebound(part) for key, part in function.__kwdefaults__.items()}
        made.__dict__.update(function.__dict__)
        made.__qualname__, made.__doc__ = function.__qualname__, function.__doc__
        return made


def _like(value: Any, parts: list[Any]) -> Any:
    """A tuple or a set of the same kind, named or not."""
    return type(value)._make(parts) if hasattr(value, "_make") else type(value)(parts)


def _globals(function: types.FunctionType) -> dict[str, Any]:
    """The global names that a function of the user's uses, with what they stand for."""
    if (function.__module__ or "").partition(".")[0] == "torch":
        return {}
    names, codes = set(), [function.__code__]
    for code in codes:  # which grows by those of functions inside of it
        names |= set(code.co_names)
        codes += [part for part in code.co_consts if isinstance(part, types.CodeType)]
    known = function.__globals__
    return {
        name: known[name] for name in names if isinstance(known.get(name), (nn.Module, Tensor, *CALLABLES, *CONTAINERS))
    }


def _contents(cells: Sequence[types.CellType] | None) -> list[Any]:
    """What cells hold; one that is not filled yet holds nothing."""
    found = []
    for cell in cells or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:
            continue
    return found


class Arguments(TorchFunctionMode):
    """While it is entered, notes the tensors that functions of torch are called with in this thread."""

    def __init__(self, note: Callable[[Tensor], object]) -> None:
        """Begin.

        Args:
            note: Is given every tensor, as often as it is met.
        """
        super().__init__()
        self._note = note

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Note what a function is called with, and call it."""
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor) or getattr(func, "__name__", "") not in FORMATS:
            for part in tree_leaves((args, kwargs)):
                if isinstance(part, Tensor):
                    self._note(part)
        return output


class Watch(Arguments):
    """While it is entered, notes which of some tensors this thread computes with, be it by a view of their memory.

    Attributes:
        found: Their names, in the order in which they were met.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Begin.

        Args:
            tensors: Name to tensor.
        """
        super().__init__(self._compare)
        self.found: dict[str, None] = {}
        self._names = {_memory(tensor): name for name, tensor in tensors.items()}
        self._names.pop(0, None)

    def _compare(self, tensor: Tensor) -> None:
        name = self._names.get(_memory(tensor))
        if name is not None:
            self.found[name] = None


def _memory(tensor: Tensor) -> int:
    """Where the values of a tensor begin; 0 where there are none, or none in memory."""
    try:
        with torch._C.DisableTorchFunction():
            return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def originals(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers of a module, by name: what a private copy of it must not compute with."""
    return dict((*model.named_parameters(), *model.named_buffers()))
