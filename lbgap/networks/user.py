"""Networks of the user's own, taken by path."""

from __future__ import annotations

import importlib
import inspect
import os
import sys

from torch import nn

from lbgap.checks import hint
from lbgap.unwrap import unwrapped


def from_path(path: str, *, inside: bool = True) -> nn.Module:
    """Take a network from the user's own code.

    The module is imported, and so run, with the current directory first on the import path; the path is
    restored before this returns. What the module or the callable raises is passed on.

    Args:
        path: ``"package.module:name"``, where ``name`` is a ``torch.nn.Module`` or a callable without
            required arguments that returns one.
        inside: Whether a Lightning module without a ``forward`` stands for the module inside.

    Returns:
        The network.

    Raises:
        ValueError: A malformed path, or a module or name that does not exist, or a callable that needs
            arguments.
        TypeError: The name, or what it returns, is not a ``torch.nn.Module``.
    """
    module_name, _, attribute = path.partition(":")
    well_formed = all(part.isidentifier() for part in [*module_name.split("."), attribute])
    if not well_formed or module_name.endswith(".py"):
        raise ValueError(f"a model must be given as 'package.module:name', got {path!r}")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        importlib.invalidate_caches()
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # A module that the user's own code lacks is that code's error, not the path's.
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise
            raise ValueError(
                f"no module {error.name!r} in {here} or installed, wanted for {path!r}: "
                "run in the directory that holds it"
            ) from error
        return unwrapped(_network(module, attribute, path), inside=inside)
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _network(module: object, attribute: str, path: str) -> nn.Module:
    if not hasattr(module, attribute):
        raise ValueError(f"no {attribute!r} in the module of {path!r}{hint(attribute, vars(module))}")
    found = getattr(module, attribute)
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise TypeError(
            f"{path!r} must be a torch.nn.Module or a callable that returns one, got {type(found).__name__}"
        )
    try:
        signature = inspect.signature(found)
    except ValueError:  # a builtin without a signature: try it
        signature = inspect.Signature()
    try:
        signature.bind()
    except TypeError as error:
        raise ValueError(
            f"{path!r} must be callable without arguments ({error}): wrap it in a function that fills them in"
        ) from error
    network = found()
    if not isinstance(network, nn.Module):
        raise TypeError(f"{path!r} must return a torch.nn.Module, got {type(network).__name__}")
    return network
