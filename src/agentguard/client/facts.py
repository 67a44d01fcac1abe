"""Facts that the application has looked up, as a frame to the server has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from agentguard.errors import AgentguardError
from agentguard.signing import canonical

LONGEST_NAME: Final = 512
"""The most characters of a type's name that the server takes."""


def type_name(value: object) -> str:
    """Return the name of the type of a value, as long as the server takes names."""
    return type(value).__name__[:LONGEST_NAME]


def encoded_facts(found: object) -> tuple[dict[str, Any], list[bytes]]:
    """Return facts for the server: the types of those without a JSON form, and the others' JSON.

    ``type`` names the type of what is no mapping. The server refuses the call as it would refuse it
    with the values themselves.
    """
    if not isinstance(found, Mapping):
        return {"type": type_name(found)}, []
    facts: dict[str, Any] = {}
    types: dict[str, str] = {}
    for name, value in found.items():
        text = str(name).encode("utf-8", "backslashreplace").decode()
        try:
            facts[text] = canonical.loads(canonical.dumps(value))
        except AgentguardError:
            types[text] = type_name(value)
    return {"types": types}, [canonical.dumps(facts)]
