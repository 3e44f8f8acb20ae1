"""Compares what public functions take and return with the shapes and dtypes they announce."""

import functools
import importlib
import inspect
import pkgutil
import threading
import types
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from beartype import beartype
from jaxtyping import jaxtyped

import reprise.common.ops
import reprise.papers


def checked(function: types.FunctionType) -> Any:
    """The function; what it took and returned is then compared with its annotations.

    Then, not before: a function's own error for bad input must come first.
    """
    returned = threading.local()

    def give(*args: Any, **kwargs: Any) -> Any:
        return returned.value

    functools.update_wrapper(give, function, updated=())
    del give.__wrapped__
    give.__signature__ = inspect.signature(function)
    compare = jaxtyped(give, typechecker=beartype)
    on_host = "ndarray" in str(give.__signature__)
    announced = {name: p.annotation for name, p in give.__signature__.parameters.items()}

    def as_jax(x: Any) -> Any:
        return jnp.asarray(x) if isinstance(x, np.ndarray) and not on_host else x

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        out = function(*args, **kwargs)
        given = give.__signature__.bind(*args, **kwargs)
        for name, value in given.arguments.items():
            # An array without axes counts as a number, and an int as a float.
            if announced[name] in (float, int) and np.ndim(value) == 0:
                given.arguments[name] = announced[name](0)
            elif isinstance(value, int) and float in typing.get_args(announced[name]):
                given.arguments[name] = float(value)
        args, kwargs, returned.value = jax.tree.map(as_jax, (given.args, given.kwargs, out))
        compare(*args, **kwargs)
        return out

    return call


def install() -> None:
    """Wraps what `common/ops` and the papers export, before tests import it."""
    for package in (reprise.common.ops, reprise.papers):
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(found.name)
            for name, value in list(vars(module).items()):
                own = getattr(value, "__module__", "").startswith(found.name)
                if isinstance(value, types.FunctionType) and own and not name.startswith("_"):
                    setattr(module, name, checked(value))
