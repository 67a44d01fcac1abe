"""Commands that are imported when they are called, so that a help page loads no other command.

A group lists such a command by the summary that stands beside its place here. A function's own
help begins with the same sentence; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
"""The settings of each ``typer.Typer`` that runs by itself."""


class Deferred(TyperCommand):
    """Stands for a command in the list of its group, and loads the command.

    ``load`` returns a function, or the ``typer.Typer`` of a group.
    """

    def __init__(self, name: str, summary: str, load: Callable[[], object]) -> None:
        super().__init__(name, help=summary, rich_markup_mode=None)
        self._load = load

    def loaded(self) -> Any:
        """Import the command and return what runs in the place of this one."""
        name, command, outer = str(self.name), self._load(), typer.Typer(**PLAIN)
        if isinstance(command, typer.Typer):
            outer.add_typer(command, name=name, help=self.help)
        else:
            outer.command(name)(command)  # type: ignore[type-var]  # a function of a module
        return get_group(outer).commands[name]


class Group(TyperGroup):
    """A group of commands. Of those that are deferred it imports the one that is called."""

    places: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """By name: ``module:attribute`` below this package, and the summary."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, (place, summary) in self.places.items():
            self.add_command(Deferred(name, summary, _loading(place)))

    def get_help_option(self, ctx: Any) -> Any:
        """Return ``--help``, off by default: to convert None, typer would import pydantic."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.default = False
        return option

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that was typed, and import it."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.loaded() if isinstance(command, Deferred) else command, rest


def _loading(place: str) -> Callable[[], object]:
    def load() -> object:
        module, _, attribute = place.partition(":")
        return getattr(import_module(f"{__package__}.{module}"), attribute)

    return load
