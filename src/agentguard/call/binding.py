"""Which values a call of a plain Python function has, by its parameters' names.

The names are those of the code that runs. ``functools.wraps`` makes a decorator's wrapper look like
what it wraps, so the wrapper's own parameters count, or a ``__signature__`` that it states itself:
a wrapper that puts an argument in front would otherwise be decided on under other names than it
runs with. A wrapper that takes anything (``*args, **kwargs``) is taken to pass on what it gets by
name, as those that log or retry do; what it gets by position has no name, and is refused.

How the values are written stands in ``arguments.py``; the binder of a framework's tools in its
adapter.
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
"""Python's own wrappers, which pass on all that they get as they get it."""


@dataclass(frozen=True, slots=True)
class Binder:
    """Binds positional and keyword arguments to a function's ``parameters``, by name.

    ``declared`` are the names that the code has, that of ``**kwargs`` aside.
    """

    parameters: Mapping[str, Parameter]
    declared: frozenset[str]
    bind: _Bind

    def __call__(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> dict[str, object]:
        """Return the values by name; raises ``ArgumentsError`` where Python would ``TypeError``.

        The code is ``arguments.invalid``.
        """
        return self.bind(args, kwargs)


def binder(function: _Function) -> Binder:
    """Return the binder for ``function``.

    Defaults are filled in, ``**kwargs`` flattened, ``*args`` kept under its name. ``inspect``
    runs here, once, and not at each call. Raises ``ConfigError`` (``tool.invalid``) for a decorator
    with which arguments have no names, or other ones than what it wraps has.
    """
    name = getattr(function, "__name__", "the tool")  # and no more of it: a closure can be read
    signature = inspect.signature(_bare(function), follow_wrapped=False)
    wrapped = _wrapped(function)
    kinds = {p.kind for p in signature.parameters.values()}
    if wrapped is None or kinds.isdisjoint(_VARIADIC):
        return _of_signature(signature, name)
    inner = binder(wrapped)
    _require_names(signature, name, inner)
    return _of_wrapper(signature, name, inner)


def _require_names(signature: Signature, name: str, inner: Binder) -> None:
    """Raise ``ConfigError`` for a wrapper whose arguments are not, by name, those of ``inner``."""
    parameters = signature.parameters.values()
    strange = [p for p in parameters if p.kind in _POSITIONAL and p.name not in inner.declared]
    if strange or not any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
        empty = Parameter.empty  # a default may hold a secret
        takes = ", ".join(str(p.replace(default=empty, annotation=empty)) for p in parameters)
        message = (
            f"{name} is behind a decorator that takes ({takes}), and what that is to {name} can't "
            "be told; let it take (*args, **kwargs) and pass them on, or state its parameters, "
            "each by its name"
        )
        raise ConfigError(message, code="tool.invalid")


# --- what a decorator leaves of a signature -----------------------------------------------------


def _called(function: Any) -> Any:
    """Return what a call of ``function`` runs with the very arguments that it was given."""
    while isinstance(function, _TRANSPARENT):
        function = function.__wrapped__
    call = _call(function)
    return function if call is None or hasattr(function, _WRAPPED) else MethodType(call, function)


def _call(function: Any) -> FunctionType | None:
    """Return the ``__call__`` of a callable object, where it is written in Python."""
    call = inspect.getattr_static(type(function), "__call__", None)
    return call if type(call) is FunctionType and not inspect.isclass(function) else None


def _wrapped(function: Any) -> _Function | None:
    """Return what a decorator put ``function`` around, with what is bound to it already."""
    function = _called(function)
    if isinstance(function, functools.partial):
        inner = _wrapped(function.func)
        return inner and functools.partial(inner, *function.args, **function.keywords)
    if type(function) is MethodType:
        inner = _wrapped(function.__func__)
        return inner and MethodType(inner, function.__self__)
    wrapped = getattr(function, _WRAPPED, None)
    return wrapped if callable(wrapped) else None


def _bare(function: Any) -> Any:
    """Return something with the parameters that ``function`` has itself, whatever it wraps."""
    function = _called(function)
    if isinstance(function, functools.partial):
        return functools.partial(_bare(function.func), *function.args, **function.keywords)
    if type(function) is MethodType:
        return MethodType(_bare(function.__func__), function.__self__)
    wrapped = _wrapped(function)
    if wrapped is None:
        return function
    if type(function) is not FunctionType:
        call = _call(function)
        # one that is written in C, as wrapt's, says nothing of its own parameters
        return _anything if call is None else MethodType(_bare(call), function)
    stated = function.__dict__.get("__signature__")
    if stated is not None and stated is not getattr(wrapped, "__signature__", None):
        return function  # functools.wraps would have copied that of what is wrapped
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
    """Stand for a wrapper of which nothing more is known."""


# --- binding ------------------------------------------------------------------------------------


def _of_signature(signature: Signature, name: str) -> Binder:
    parameters = signature.parameters.values()
    plain = all(p.kind is Parameter.POSITIONAL_OR_KEYWORD for p in parameters)
    flattened = [p.name for p in parameters if p.kind is Parameter.VAR_KEYWORD]
    names = tuple(signature.parameters)
    accepted = frozenset(names)
    defaults = {p.name: p.default for p in parameters if p.default is not Parameter.empty}

    def bind_fast(args: tuple[object, ...], kwargs: Mapping[str, object]) -> dict[str, object]:
        # the usual call: all by name, or all by position; what is unusual is bound exactly
        if (args and kwargs) or len(args) > len(names) or not accepted.issuperset(kwargs):
            return bind_exactly(args, kwargs)
        bound = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
        return bound if len(bound) == len(names) else bind_exactly(args, kwargs)

    def bind_exactly(args: tuple[object, ...], kwargs: Mapping[str, object]) -> dict[str, object]:
        unexpected = 0 if flattened else len(kwargs.keys() - accepted)
        if unexpected:  # whoever made them up may have put data into their names
            noun = "argument" if unexpected == 1 else "arguments"
            takes = ", ".join(names) or "none"
            raise _misfit(name, f"{unexpected} unexpected {noun}; it takes {takes}")
        bound = _bound(signature, name, args, kwargs)
        bound.apply_defaults()
        return _flatten(bound, signature)

    declared = accepted.difference(flattened)
    return Binder(signature.parameters, declared, bind_fast if plain else bind_exactly)


def _of_wrapper(signature: Signature, name: str, inner: Binder) -> Binder:
    """Bind to a wrapper that takes anything: its own parameters, and by name those of ``inner``.

    What ``inner`` can't take is refused: then the wrapper does not pass on what it gets.
    """
    own = {n: p for n, p in signature.parameters.items() if p.kind not in _VARIADIC}
    defaults = {n: p.default for n, p in own.items() if p.default is not Parameter.empty}
    rest, more = (
        next((p.name for p in signature.parameters.values() if p.kind is kind), "")
        for kind in _VARIADIC
    )

    def bind(args: tuple[object, ...], kwargs: Mapping[str, object]) -> dict[str, object]:
        given = _bound(signature, name, args, kwargs).arguments
        if given.pop(rest, ()):
            what = "pass them by name: it is decorated, and what is passed by position has no name"
            raise _misfit(name, what)
        passed: dict[str, object] = dict(given.pop(more, {}))
        _refuse_repeated(passed, given)
        passed.update({n: value for n, value in given.items() if n in inner.declared})
        try:
            values = inner((), passed)
        except ArgumentsError as error:
            message = str(error).removesuffix(_HINT) + _HINT
            raise ArgumentsError(message, code=error.code) from error
        return {**values, **defaults, **given}

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


def _misfit(name: str, what: str) -> ArgumentsError:
    return ArgumentsError(f"the arguments do not fit {name}: {what}", code="arguments.invalid")


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
