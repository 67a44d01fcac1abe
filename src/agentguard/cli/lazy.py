"""Commands that are imported when they are called, so that a help page imports no other command.

An option with an empty text is refused, for all commands alike: a shell passes one for a variable
that is not set, and what grants, limits or names somebody would be as if it were not there.

The help page of a group lists such a command with the summary in the group's ``places``. The help
of the command begins with the same sentence; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any, ClassVar, Final

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

PLAIN: Final[Mapping[str, Any]] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
}
"""The settings of each ``typer.Typer`` that is not part of another one."""


MAY_BE_EMPTY: Final = frozenset({"anchor", "note"})
"""The options of which an empty text says something: no anchor, and no note."""


class Deferred(TyperCommand):
    """A command that is not imported yet: ``resolve`` imports the command at its first use.

    ``load`` returns a function, or the ``typer.Typer`` of a group. A function may have an attribute
    ``command_class``: the class of its command, a subclass of ``TyperCommand``.
    """

    def __init__(self, name: str, summary: str, load: Callable[[], object]) -> None:
        super().__init__(name, help=summary, rich_markup_mode=None)
        self._load = load

    def resolve(self) -> Any:
        """Import and return the command."""
        name, command, outer = str(self.name), self._load(), typer.Typer(**PLAIN)
        if isinstance(command, typer.Typer):
            outer.add_typer(command, name=name, help=self.help)
        else:
            command_class = getattr(command, "command_class", TyperCommand)
            outer.command(name, cls=command_class)(command)  # type: ignore[type-var]  # a function
        return _refusing(get_group(outer).commands[name])


class Group(TyperGroup):
    """A group of commands that imports only the command that is called."""

    places: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """By name of a command: ``module:attribute``, relative to this package, and the summary."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for command in self.commands.values():
            _refusing(command)
        for name, (place, summary) in self.places.items():
            self.add_command(Deferred(name, summary, _loader(place)))

    def get_help_option(self, ctx: Any) -> Any:
        """Return ``--help`` with the default False: typer imports pydantic to convert None."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.default = False
        return option

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that was typed, and import the command."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.resolve() if isinstance(command, Deferred) else command, rest


def _refusing(command: Any) -> Any:
    """Return a command, each of whose options refuses an empty text."""
    for parameter in command.params:
        if parameter.param_type_name == "option" and parameter.name not in MAY_BE_EMPTY:
            parameter.callback = partial(_not_empty, parameter.callback)
    return command


def _not_empty(further: Callable[..., Any] | None, ctx: Any, option: Any, value: Any) -> Any:
    given = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(one, str) and not one for one in given):
        message = "an empty text names nothing: give a value, or leave the option out"
        raise typer.BadParameter(message, ctx=ctx, param=option)
    return value if further is None else further(ctx, option, value)


def _loader(place: str) -> Callable[[], object]:
    def load() -> object:
        module, _, attribute = place.partition(":")
        return getattr(import_module(f"{__package__}.{module}"), attribute)

    return load
