"""A module and its flat vector: a private replica whose parameters and gradients are views of two buffers."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from lbgap.problem.call import PLAIN, Call
from lbgap.problem.trees import Tree
from lbgap.replica import pin_mode, replicate, set_mode
from lbgap.unwrap import unwrapped

Selection = str | Iterable[str]


def select_parameters(model: nn.Module, parameters: Selection) -> dict[str, nn.Parameter]:
    """Choose which parameters of a model may move.

    Tied parameters count once, under their first name. Parameters with ``requires_grad=False`` never move.

    Args:
        model: Any module.
        parameters: ``"all"``: every trainable parameter; ``"weights"``: those with two or more dimensions, so
            neither biases nor the scales of normalisation layers; or one or more names: of parameters, of modules
            (all that is inside), or shell-style patterns of them such as ``"layer4.*.weight"``.

    Returns:
        Name to parameter, in the model's order.

    Raises:
        ValueError: The model has no trainable parameter, a pattern matches none, or a parameter is complex or
            not initialised yet.
        TypeError: ``parameters`` is not a string or a collection of strings.
    """
    patterns = name_patterns(parameters)
    every = dict(model.named_parameters())
    for name, parameter in every.items():
        if is_lazy(parameter):
            raise ValueError(f"parameter {name!r} has no shape yet: run one batch through the model first")
        if parameter.is_complex():
            raise ValueError(f"parameter {name!r} is complex ({parameter.dtype}): only real parameters can move")
        if parameter.is_meta:
            raise ValueError(f"parameter {name!r} is on the meta device and has no values: load them first")
    trainable = {name: p for name, p in every.items() if p.requires_grad}
    if not trainable:
        found = f"{len(every)} parameters, all frozen" if every else "no parameters"
        raise ValueError(f"the model has {found}: sharpness needs at least one with requires_grad=True")
    if parameters == "all":
        return trainable
    if parameters == "weights":
        chosen = {name: p for name, p in trainable.items() if p.dim() >= 2}
    else:
        matched = {
            pattern: [name for name in trainable if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")]
            for pattern in patterns
        }
        for pattern, names in matched.items():
            if not names:
                raise ValueError(
                    f"parameters pattern {pattern!r} matches no trainable parameter; the names are: "
                    + ", ".join(trainable)
                )
        chosen = {name: p for name, p in trainable.items() if any(name in names for names in matched.values())}
    if not chosen:
        raise ValueError(f"parameters={list(patterns)} matches no trainable parameter of: {', '.join(trainable)}")
    return chosen


def name_patterns(parameters: Selection) -> tuple[str, ...]:
    """The strings of a selection, read once.

    Raises:
        TypeError: ``parameters`` is not a string or a collection of strings.
    """
    patterns = (parameters,) if isinstance(parameters, str) or not isinstance(parameters, Iterable) else (*parameters,)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"parameters must be 'all', 'weights' or name patterns such as 'layer4.*', got {parameters!r}")
    return patterns


def _check_memory(moving: Mapping[str, nn.Parameter]) -> None:
    """Refuse two parameters that are one and the same memory, and so cannot move each for itself."""
    places = sorted(
        (parameter.data_ptr(), parameter.data_ptr() + parameter.nbytes * parameter.is_contiguous(), name)
        for name, parameter in moving.items()
        if parameter.numel() and parameter.layout == torch.strided
    )
    for (start, end, other), (begin, _, name) in itertools.pairwise(places):
        if begin < end or begin == start:
            raise ValueError(
                f"the parameters {other!r} and {name!r} share their memory, but are two: tie them by assigning one "
                "nn.Parameter to both modules"
            )


class FlatModule:
    """A replica of a module in evaluation mode; the module itself is never touched.

    Attributes:
        module: The replica. Dropout is off; batch-norm follows ``batch_norm``.
        theta: ``(n,)``, the parameters that may move; writing here changes the replica.
        gradient: ``(n,)``, where ``backward`` accumulates.
        names: Names of the parameters that may move, in the order of ``theta``.
        moving: Those parameters: views of ``theta``, their gradients views of ``gradient``.
        kept: Tensors that the module kept of an earlier pass, as the replica has them: without a graph, by name.
        selection: Which parameters were chosen.
        batch_norm: ``"eval"`` or ``"batch"``.
        call: How a batch enters the module.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        parameters: Selection = "all",
        batch_norm: str = "eval",
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        gradients: bool = True,
        call: Call = PLAIN,
    ) -> None:
        """Build the replica.

        Args:
            model: The module to copy, in wrappers or not.
            parameters: Which parameters may move; see :func:`select_parameters`.
            batch_norm: ``"eval"`` (running statistics) or ``"batch"`` (those of each evaluation batch).
            dtype: Floating-point type of the replica's parameters and buffers.
            device: Where the replica lives; the model's own device by default.
            gradients: Whether there is a place for them; without, ``gradient`` is empty.
            call: How a batch enters the module; where a function of the user's calls it, a Lightning module is taken as
                it is.

        Raises:
            ValueError: See :func:`select_parameters` and :func:`lbgap.unwrap.unwrapped`; the model cannot be copied; it
                spans several devices and none was chosen; unknown ``batch_norm``, or ``"eval"`` where a batch-norm has
                no running statistics.
            TypeError: ``model`` is not a module.
        """
        model = unwrapped(model, inside=call.function is None)
        if batch_norm not in ("eval", "batch"):
            raise ValueError(f"batch_norm must be 'eval' or 'batch', got {batch_norm!r}")
        self.selection, self.batch_norm, self.call = parameters, batch_norm, call
        moving = select_parameters(model, parameters)
        _check_memory(dict(model.named_parameters()))
        self.names = tuple(moving)
        size = sum(parameter.numel() for parameter in moving.values())
        self.theta = torch.empty(size, dtype=dtype, device=device or device_of(model))
        self.gradient = torch.zeros_like(self.theta) if gradients else self.theta.new_empty(0)
        self.replicate(model)

    def replicate(self, model: nn.Module, training: Collection[str] = ()) -> None:
        """Copy a module into this replica, in the place of what it was.

        Args:
            model: The module whose replica this is.
            training: Names of modules that stay in training mode, without those inside of them: what they cache in
                evaluation mode would not move.

        Raises:
            ValueError: See :meth:`__init__`.
        """
        moving = select_parameters(model, self.selection)
        memo = self._copies(model, moving.values())
        self.moving = tuple(memo[id(parameter)] for parameter in moving.values())
        self.module, self.kept = replicate(model, memo, dtype=self.theta.dtype, device=self.theta.device)
        if training:
            _train_alone(self.module, training)
        else:
            set_mode(self.module, False)
        for name, module in self.module.named_modules():
            if isinstance(module, nn.RNNBase):
                # On a GPU it would move the weights out of theta, and theta would have no effect any more.
                setattr(module, "flatten_parameters", lambda: None)  # noqa: B010
            if isinstance(module, _BatchNorm):
                if self.batch_norm == "batch":
                    module.running_mean = module.running_var = None
                elif module.running_mean is None:
                    raise ValueError(
                        f"batch-norm {name!r} has no running statistics, so that the loss depends on the batches: pass "
                        "batch_norm='batch'"
                    )

    def _copies(self, model: nn.Module, moving: Iterable[nn.Parameter]) -> dict[int, Tensor]:
        """What stands for the parameters of a module, and for buffers of another dtype or device, by their ids."""
        dtype, device = self.theta.dtype, self.theta.device
        memo: dict[int, Tensor] = {}
        start = 0
        for parameter in moving:
            here = slice(start, start := start + parameter.numel())
            self.theta[here].copy_(parameter.detach().reshape(-1))
            view = nn.Parameter(self.theta[here].view(parameter.shape))
            if len(self.gradient):
                view.grad = self.gradient[here].view(parameter.shape)
            memo[id(parameter)] = view
        for parameter in model.parameters():
            if id(parameter) not in memo:
                value = parameter.detach().to(device, dtype if parameter.is_floating_point() else None, copy=True)
                memo[id(parameter)] = nn.Parameter(value, requires_grad=False)
        for buffer in model.buffers():
            wanted = dtype if buffer.is_floating_point() else buffer.dtype
            if (buffer.dtype, buffer.device) != (wanted, device):
                memo[id(buffer)] = buffer.detach().to(device, wanted, copy=True)
        return memo

    def run(self, inputs: Tree) -> Any:
        """Call the replica with the inputs of a batch; what the loss takes of the output."""
        return self.call.run(self.module, inputs)

    def parts(self, vector: Tensor) -> list[Tensor]:
        """Views of a vector ``(n,)``, one for each parameter that may move and in its shape."""
        pieces = vector.split([parameter.numel() for parameter in self.moving])
        return [piece.view(parameter.shape) for piece, parameter in zip(pieces, self.moving, strict=True)]

    @property
    def has_batch_norm(self) -> bool:
        """Whether the statistics of batches or of training enter the output."""
        return any(isinstance(module, _BatchNorm) for module in self.module.modules())

    @property
    def takes_statistics(self) -> bool:
        """Whether batch-norm takes the statistics of each evaluation batch."""
        return any(isinstance(module, _BatchNorm) and module.running_mean is None for module in self.module.modules())

    def statistics(self, batches: Iterable[tuple[Tree, int | None]], *, grad: bool = False) -> dict[str, Tensor]:
        """Estimate the statistics of all batch-norms at theta: the mean of those of the batches, each by its samples.

        As ``torch.optim.swa_utils.update_bn`` does (Izmailov et al. 2018, arXiv 1803.05407); each batch-norm sees what
        those before it make with the statistics of the batch.

        Args:
            batches: Inputs of batches, two samples or more in each, and how many; None where all have as many.
            grad: Whether the passes record a graph.

        Returns:
            Name of each buffer to its value; the replica's own stay as they are.
        """
        norms = {n: m for n, m in self.module.named_modules() if isinstance(m, _BatchNorm) and m.track_running_stats}
        kept = {name: ({k: v.clone() for k, v in m.named_buffers()}, m.momentum) for name, m in norms.items()}
        found, seen = {}, 0
        try:
            for norm in norms.values():
                norm.reset_running_stats()
                norm.momentum = None  # the mean over the batches
                norm.train()
            with torch.set_grad_enabled(grad):
                for inputs, size in batches:
                    if size is not None:
                        seen += size
                        for norm in norms.values():
                            norm.momentum = size / seen
                    self.run(inputs)
            for name, norm in norms.items():
                for key in ("running_mean", "running_var"):
                    found[f"{name}.{key}".lstrip(".")] = norm.get_buffer(key).clone()
        finally:
            for name, norm in norms.items():
                norm.eval()
                norm.momentum = kept[name][1]
                for key, value in kept[name][0].items():
                    norm.get_buffer(key).copy_(value)
        return found

    def check_views(self) -> None:
        """Check that theta is still what the replica computes with.

        Raises:
            ValueError: A parameter that may move is no view any more: the model moved or replaced it, or its gradient.
        """
        home = self.theta.untyped_storage().data_ptr()
        present = {id(parameter) for parameter in self.module.parameters()}
        for name, parameter in zip(self.names, self.moving, strict=True):
            if id(parameter) not in present or parameter.grad is None or parameter.untyped_storage().data_ptr() != home:
                raise ValueError(
                    f"the model replaces its parameter {name!r}, or its gradient, when it runs, so that lbgap could "
                    "not move it: make it compute with the parameter as it is"
                )


def _train_alone(module: nn.Module, training: Collection[str]) -> None:
    """Put some modules into training mode for good, and all others into evaluation mode.

    A module's own ``train`` is called where it has one, for it may clear what it keeps; its submodules come after it.
    """
    for name, child in module.named_modules():
        if type(child).train is not nn.Module.train:
            set_mode(child, name in training)
        child.training = name in training
    for name in training:
        pin_mode(module.get_submodule(name))


def device_of(model: nn.Module) -> torch.device:
    """The device that all parameters and buffers of a model share.

    Raises:
        ValueError: There are several.
    """
    tensors = [*model.parameters(), *model.buffers()]
    devices = sorted({str(tensor.device) for tensor in tensors})
    if len(devices) > 1:
        raise ValueError(f"the model is spread over {', '.join(devices)}: move it to one, or pass device=")
    return tensors[0].device
