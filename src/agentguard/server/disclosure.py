"""What an answer tells a client of the server's own trouble: the code, and a fixed text.

A client passes errors and reasons on to its users, and the text of such an error may name the
server's files and its agents. Who looks after the server finds the whole text in its log.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

_LOGGER = logging.getLogger("agentguard")

_NOUNS: Final = frozenset(("anchor", "clock", "config", "entropy", "key", "storage", "trust"))
_TEXTS: Final = {"agent.unknown": "the guard server has no such agent: correct the name"}
_ANSWERS: Final = ("error", "decision", "reports")


def disclosed(header: Mapping[str, Any], *, may_log: bool) -> dict[str, Any]:
    """Return an answer's header with a fixed text for each code that is the server's own matter."""
    return {
        key: _disclosed(value, may_log=may_log) if key in _ANSWERS else value
        for key, value in header.items()
    }


def _disclosed(value: Any, *, may_log: bool) -> Any:
    if isinstance(value, list | tuple):
        return [_disclosed(one, may_log=may_log) for one in value]
    if not isinstance(value, Mapping):
        return value
    text = _text_for(value.get("code"))
    for key in ("message", "reasons"):
        if text is not None and key in value:
            if may_log:
                _LOGGER.warning("a client was told of %s: %s", value["code"], value[key])
            return {**value, key: text if key == "message" else [text]}
    return value


def _text_for(code: object) -> str | None:
    """Return what a client is told instead; None where the text is the client's matter."""
    if not isinstance(code, str):
        return None
    noun = code.partition(".")[0]
    fixed = f"the guard server does not tell its clients why ({noun}): its log has the whole text"
    return _TEXTS.get(code, fixed if noun in _NOUNS else None)
