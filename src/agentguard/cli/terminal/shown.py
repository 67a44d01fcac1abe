"""The arguments of a call that the lists show, by ``[tools.NAME] show`` of the configuration.

A value is an argument in its JSON form, without the parts that are redacted: when the call was
logged, or by ``[redact]`` now. Where the log does not hold the arguments, as after an erasure, the
value says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from rich.text import Text

from agentguard.call import redaction
from agentguard.domain.config import Config
from agentguard.errors import DecodeError
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON
from agentguard.visible import shortened_text, visible_json, visible_text

_MISSING: Final[JSON] = {"$missing": True}
"""Stands for an argument that the log does not hold; no argument looks like this (arguments.py)."""


class Shown(NamedTuple):
    """Chooses the arguments that are shown; without a configuration, none are."""

    settings: Config | None = None

    def names(self, tool: str | None) -> tuple[str, ...]:
        """Return the names of the arguments that are shown of a tool's calls."""
        table = None if self.settings is None else self.settings.tools.tables.get(tool or "")
        return () if table is None else table.show

    def of(self, tool: str, arguments: bytes | None) -> dict[str, JSON] | None:
        """Return the arguments of a call that are shown, by name; None where none are to be.

        ``arguments`` is their canonical JSON, None where the log does not hold it. An argument that
        the call does not have is left out.
        """
        names, settings = self.names(tool), self.settings
        if not names or settings is None:
            return None
        if arguments is None:
            return dict.fromkeys(names, _MISSING)
        pointers = settings.redact.get("*", ()) + settings.redact.get(tool, ())
        pointers = redaction.with_attributes(pointers, settings.tools.tables[tool].attributes or {})
        try:
            kept = redaction.redact("args", arguments, pointers)
            values = canonical.loads(kept, limit=len(kept))
        except DecodeError:
            return dict.fromkeys(names, _MISSING)
        if not isinstance(values, Mapping):  # all of them are redacted
            return dict.fromkeys(names, redaction.mark())
        return {name: values[name] for name in names if name in values}


def note(shown: Mapping[str, JSON] | None, further: str) -> str | Text:
    """Return the note of a row: the arguments, each escaped and shortened, and a further text."""
    if not shown:
        return further
    parts = [f"{visible_text(name)}: {_value(value)}" for name, value in shown.items()]
    return Text("; ".join(filter(None, (", ".join(parts), shortened_text(visible_text(further))))))


def _value(value: JSON) -> str:
    if value == _MISSING:
        return "not in the log"
    if value == redaction.mark():
        return "redacted"
    return shortened_text(visible_json(value))
