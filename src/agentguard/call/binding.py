"""Binds the arguments of a call of a plain Python function to the names of its parameters.

The names are those of the code that runs. ``functools.wraps`` makes a decorator's wrapper look like
the wrapped function, so this module reads the wrapper's own parameters, or a ``__signature__`` that
the wrapper itself states. Otherwise a policy could decide on other names than the code gets, where
a wrapper adds an argument in front. A wrapper with ``*args, **kwargs``, as for logs or retries, is
taken to pass keyword arguments on. Its positional arguments have no names, and are refused.

``arguments.py`` encodes the values. The adapters bind the arguments of framework tools.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import Parameter, Signature
from types import FunctionType, MethodType
from typing import Any, Final

from agentguard.errors import ArgumentsError, ConfigError

_Function = Callable[..., object]
_Bind = Callable[[tuple[object, ...], Mapping[str, object]], dict[str, object]]
_POSITIONAL: Final = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC: Final = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
_WRAPPED: Final = "__wrapped__"
_HINT: Final = "; a decorator that changes arguments needs a signature of its own"
_TRANSPARENT: Final = (staticmethod, type(functools.lru_cache(int)))
"""Python's own wrappers, which pass all arguments on unchanged."""

# Since Python 3.14, an annotation is evaluated when somebody asks for it, and may have names that
# stand for nothing yet (PEP 649). As text it holds no reference to the function, either.
AS_TEXT: Final[dict[str, Any]] = {}
AS_FAR_AS_DEFINED: Final[dict[str, Any]] = {}
"""Options of ``inspect.signature``, with which undefined names in annotations are no error."""

try:
    from annotationlib import Format  # type: ignore[import-not-found]
except ModuleNotFoundError:  # an older Python
    pass
else:
    AS_TEXT["annotation_format"] = Format.STRING
    AS_FAR_AS_DEFINED["annotation_format"] = Format.FORWARDREF


@dataclass(frozen=True, slots=True)
class Binder:
    """Binds positional and keyword arguments to a function's ``parameters``, by name.

    ``declared`` are the parameters' names, without the name of ``**kwargs``.
    """

    parameters: Mapping[str, Parameter]
    declared: frozenset[str]
    bind: _Bind

    def __call__(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> dict[str, object]:
        """Return the values by name.

        Raises ``ArgumentsError`` (``arguments.invalid``) where Python would raise ``TypeError``.
        """
        return self.bind(args, kwargs)


def binder(function: _Function) -> Binder:
    """Return the binder for ``function``.

    The binder fills in defaults, flattens ``**kwargs``, and keeps ``*args`` under its name.
    ``inspect`` runs here, once, and not at each call. Raises ``ConfigError`` (``tool.invalid``) for
    a decorator whose parameters have no names, or other names than the wrapped function's.
    """
    # The binder keeps the name alone: a closure over the function would make it reachable.
    name = getattr(function, "__name__", "the tool")
    signature = inspect.signature(_bare(function), follow_wrapped=False, **AS_TEXT)
    wrapped = _wrapped(function)
    kinds = {p.kind for p in signature.parameters.values()}
    if wrapped is None or kinds.isdisjoint(_VARIADIC):
        return _of_signature(signature, name)
    inner = binder(wrapped)
    _require_names(signature, name, inner)
    return _of_wrapper(signature, name, inner)


def _require_names(signature: Signature, name: str, inner: Binder) -> None:
    """Raise ``ConfigError`` unless a wrapper's arguments have the names of ``inner``."""
    parameters = signature.parameters.values()
    unknown = [p for p in parameters if p.kind in _POSITIONAL and p.name not in inner.declared]
    if unknown or not any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
        empty = Parameter.empty  # a default may hold a secret
        takes = ", ".join(str(p.replace(default=empty, annotation=empty)) for p in parameters)
        message = (
            f"{name} is behind a decorator that takes ({takes}), and what that is to {name} can't "
            "be told; let it take (*args, **kwargs) and pass them on, or state its parameters, "
            "each by its name"
        )
        raise ConfigError(message, code="tool.invalid")


# --- a decorator's own signature ----------------------------------------------------------------


def _target(function: Any) -> Any:
    """Return the function that a call of ``function`` runs with the same arguments."""
    while isinstance(function, _TRANSPARENT):
        function = function.__wrapped__
    call = _call(function)
    return function if call is None or hasattr(function, _WRAPPED) else MethodType(call, function)


def _call(function: Any) -> FunctionType | None:
    """Return the ``__call__`` of a callable object, if it is written in Python."""
    call = inspect.getattr_static(type(function), "__call__", None)
    return call if type(call) is FunctionType and not inspect.isclass(function) else None


def _wrapped(function: Any) -> _Function | None:
    """Return the function that a decorator has wrapped, with its bound arguments, or None."""
    function = _target(function)
    if isinstance(function, functools.partial):
        inner = _wrapped(function.func)
        return inner and functools.partial(inner, *function.args, **function.keywords)
    if type(function) is MethodType:
        inner = _wrapped(function.__func__)
        return inner and MethodType(inner, function.__self__)
    wrapped = getattr(function, _WRAPPED, None)
    return wrapped if callable(wrapped) else None


def _bare(function: Any) -> Any:
    """Return a callable with the parameters of ``function`` itself, not of the wrapped function."""
    function = _target(function)
    if isinstance(function, functools.partial):
        return functools.partial(_bare(function.func), *function.args, **function.keywords)
    if type(function) is MethodType:
        return MethodType(_bare(function.__func__), function.__self__)
    wrapped = _wrapped(function)
    if wrapped is None:
        return function
    if type(function) is not FunctionType:
        call = _call(function)
        # a ``__call__`` in C, such as wrapt's, does not show its parameters
        return _anything if call is None else MethodType(_bare(call), function)
    stated = function.__dict__.get("__signature__")
    if stated is not None and stated is not getattr(wrapped, "__signature__", None):
        return function  # functools.wraps would have copied the wrapped function's signature
    bare = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    bare.__kwdefaults__ = function.__kwdefaults__
    return bare


def _anything(*args: object, **kwargs: object) -> None:
    """Stand in for a wrapper whose parameters can't be read."""


# --- binding ------------------------------------------------------------------------------------


def _of_signature(signature: Signature, name: str) -> Binder:
    parameters = signature.parameters.values()
    plain = all(p.kind is Parameter.POSITIONAL_OR_KEYWORD for p in parameters)
    flattened = [p.name for p in parameters if p.kind is Parameter.VAR_KEYWORD]
    names = tuple(signature.parameters)
    accepted = frozenset(names)
    defaults = {p.name: p.default for p in parameters if p.default is not Parameter.empty}

    def bind_fast(args: tuple[object, ...], kwargs: Mapping[str, object]) -> dict[str, object]:
        # the usual call: all arguments by name, or all by position
        if (args and kwargs) or len(args) > len(names) or not accepted.issuperset(kwargs):
            return bind_exactly(args, kwargs)
        given = dict(zip(names, args, strict=False)) if args else kwargs
        bound = {**defaults, **given}
        return bound if len(bound) == len(names) else bind_exactly(args, kwargs)

    def bind_exactly(args: tuple[object, ...], kwargs: Mapping[str, object]) -> dict[str, object]:
        unexpected = 0 if flattened else len(kwargs.keys() - accepted)
        if unexpected:  # the message leaves their names out, which may be data
            noun = "argument" if unexpected == 1 else "arguments"
            takes = ", ".join(names) or "none"
            raise _misfit(name, f"{unexpected} unexpected {noun}; it takes {takes}")
        bound = _bound(signature, name, args, kwargs)
        bound.apply_defaults()
        return _flatten(bound, signature)

    declared = accepted.difference(flattened)
    return Binder(signature.parameters, declared, bind_fast if plain else bind_exactly)


def _of_wrapper(signature: Signature, name: str, inner: Binder) -> Binder:
    """Return the binder of a wrapper with ``*args, **kwargs`` around a function with ``inner``.

    The binder binds the wrapper's own parameters, and by name those of ``inner``. It refuses an
    argument that ``inner`` refuses, since the wrapper can't be passing its arguments on then.
    """
    own = {n: p for n, p in signature.parameters.items() if p.kind not in _VARIADIC}
    defaults = {n: p.default for n, p in own.items() if p.default is not Parameter.empty}
    var_positional, var_keyword = (
        next((p.name for p in signature.parameters.values() if p.kind is kind), "")
        for kind in _VARIADIC
    )

    def bind(args: tuple[object, ...], kwargs: Mapping[str, object]) -> dict[str, object]:
        own_values = _bound(signature, name, args, kwargs).arguments
        if own_values.pop(var_positional, ()):
            problem = (
                "pass them by name: it is decorated, and what is passed by position has no name"
            )
            raise _misfit(name, problem)
        inner_values: dict[str, object] = dict(own_values.pop(var_keyword, {}))
        _refuse_repeated(inner_values, own_values)
        inner_values.update({n: v for n, v in own_values.items() if n in inner.declared})
        try:
            values = inner((), inner_values)
        except ArgumentsError as error:
            message = str(error).removesuffix(_HINT) + _HINT
            raise ArgumentsError(message, code=error.code) from error
        return {**values, **defaults, **own_values}

    by_name = {
        n: p if p.kind in _VARIADIC else p.replace(kind=Parameter.KEYWORD_ONLY)
        for n, p in inner.parameters.items()
    }
    return Binder({**by_name, **own}, inner.declared.union(own), bind)


def _bound(
    signature: Signature, name: str, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> inspect.BoundArguments:
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        raise _misfit(name, str(error)) from error


def _misfit(name: str, problem: str) -> ArgumentsError:
    return ArgumentsError(f"the arguments do not fit {name}: {problem}", code="arguments.invalid")


def _flatten(bound: inspect.BoundArguments, signature: Signature) -> dict[str, object]:
    values = dict(bound.arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is Parameter.VAR_KEYWORD:
            extra = values.pop(parameter.name, {})
            _refuse_repeated(extra, values)
            values.update(extra)
    return values


def _refuse_repeated(extra: Mapping[str, object], named: Mapping[str, object]) -> None:
    repeated = extra.keys() & named.keys()
    if repeated:
        message = f"argument {min(repeated)!r} is given twice"
        raise ArgumentsError(message, code="arguments.invalid")
