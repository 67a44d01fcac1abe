"""Options that several commands share: declared once, and given to a command as one value.

``given`` fills a command's parameter by a function whose own parameters become the command's
options. Where a log lies and whom to believe about it stands in ``place.py``; the options that
select entries are ``filters.py``'s.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from agentguard.cli import place
from agentguard.cli.place import (
    AnchorOption,
    ConfigOption,
    Place,
    StateOption,
    Trust,
    TrustOption,
)


class TrustedLog(NamedTuple):
    """Where a log lies, and whom to believe about it."""

    place: Place
    trust: Trust


def given(**makers: Callable[..., object]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Have the named parameters of a command made by functions, from options of their own."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        asked = inspect.signature(command, eval_str=True).parameters.values()
        own = {
            name: inspect.signature(maker, eval_str=True).parameters
            for name, maker in makers.items()
        }
        shown: dict[str, inspect.Parameter] = {}
        for parameter in asked:
            shown |= own.get(parameter.name, {parameter.name: parameter})

        def run(**options: Any) -> None:
            made = {
                name: maker(**{option: options.pop(option) for option in own[name]})
                for name, maker in makers.items()
            }
            command(**made, **options)

        run.__doc__ = command.__doc__
        run.__annotations__ = {name: one.annotation for name, one in shown.items()}
        keywords = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in shown.values()]
        run.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]  # typer's
        return run

    return decorate


def log(config: ConfigOption = None, state: StateOption = None) -> Place:
    """Find the log; raises as ``place.locate`` does."""
    return place.locate(config, state)


def trusted_log(
    config: ConfigOption = None,
    state: StateOption = None,
    anchor: AnchorOption = None,
    trust: TrustOption = None,
) -> TrustedLog:
    """Find the log, its anchor, and the trust document that counts; raises as ``place`` does."""
    found = place.locate(config, state, anchor)
    return TrustedLog(found, place.trust(found, trust))
