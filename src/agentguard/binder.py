"""Which values a call of a plain Python function has, by its parameters' names.

How they are written stands in ``arguments.py``; the binder of a framework's tools in its adapter.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agentguard.errors import ArgumentsError

_Bind = Callable[[tuple[object, ...], Mapping[str, object]], dict[str, object]]


@dataclass(frozen=True, slots=True)
class Binder:
    """Binds positional and keyword arguments to a function's parameters, ``declared`` by name."""

    declared: frozenset[str]
    bind: _Bind

    def __call__(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> dict[str, object]:
        """Return the values by name; raises ``ArgumentsError`` where Python would ``TypeError``.

        The code is ``arguments.invalid``.
        """
        return self.bind(args, kwargs)


def binder(function: Callable[..., object]) -> Binder:
    """Return the binder for ``function``.

    Defaults are filled in, ``**kwargs`` flattened, ``*args`` kept under its name. ``inspect``
    runs here, once, and not at each call.
    """
    signature = inspect.signature(function)
    name = getattr(function, "__name__", "the tool")  # and no more of it: a closure can be read
    parameters = signature.parameters.values()
    plain = all(p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for p in parameters)
    flattened = [p.name for p in parameters if p.kind is inspect.Parameter.VAR_KEYWORD]
    names = tuple(signature.parameters)
    accepted = frozenset(names)
    empty = inspect.Parameter.empty
    defaults = {p.name: p.default for p in parameters if p.default is not empty}

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
            message = (
                f"the arguments do not fit {name}: {unexpected} unexpected {noun}; it takes {takes}"
            )
            raise ArgumentsError(message, code="arguments.invalid")
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            message = f"the arguments do not fit {name}: {error}"
            raise ArgumentsError(message, code="arguments.invalid") from error
        bound.apply_defaults()
        return _flatten(bound, signature)

    declared = accepted.difference(flattened)
    return Binder(declared, bind_fast if plain else bind_exactly)


def _flatten(bound: inspect.BoundArguments, signature: inspect.Signature) -> dict[str, object]:
    values = dict(bound.arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            extra = values.pop(parameter.name, {})
            repeated = set(extra) & set(values)
            if repeated:
                message = f"argument {min(repeated)!r} is given twice"
                raise ArgumentsError(message, code="arguments.invalid")
            values.update(extra)
    return values
