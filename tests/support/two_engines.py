"""What the embedded engine and an OPA server say of one input, so that it can be compared.

Two differences are no concern of a comparison: the last digits of fractions, and the order in which
a set is written.
"""

from __future__ import annotations

import json
from typing import Any

import regorus  # type: ignore[import-untyped]  # the binding has no annotations

from agentguard import PolicyError
from agentguard.policy.document import UNDEFINED, Evaluated
from agentguard.policy.engine import Engine

FAILED = "policy.error"


def answer(engine: Engine, document: bytes) -> tuple[str, Any]:
    """What an engine says: an error's code, nothing, or a value whose numbers compare."""
    try:
        found = engine.evaluate(document)
    except PolicyError as error:
        return FAILED if error.code == "policy.panic" else error.code, None
    value = found.document if isinstance(found, Evaluated) else found
    return ("undefined", None) if value is UNDEFINED else ("value", plain(value))


def plain(value: Any) -> Any:
    """The strict decoder reads integers beyond 2^53-1 as floats; 1 and true stay two values.

    Of what is computed with fractions the last digits differ: OPA has more of them.
    """
    match value:
        case bool() | None | str():
            return repr(value)
        case int() | float():
            return float(f"{value:.12g}")
        case list():
            return [plain(one) for one in value]
        case _:
            return {name: plain(one) for name, one in value.items()}


def unordered(value: Any) -> Any:
    """The value with its lists sorted: as a list a set is written, in an order of the engine's."""
    match value:
        case list():
            return sorted(map(unordered, value), key=repr)
        case dict():
            return {name: unordered(one) for name, one in value.items()}
    return value


class Ungated:
    """The embedded engine itself, with a policy that may be refused at load."""

    def __init__(self, *sources: str, package: str = "agent.authz", data: Any = None) -> None:
        self._sources = sources
        self._data = json.dumps(data or {})
        self._query = f"data.{package}"
        self._engine: Any = None

    def answer(self, document: bytes) -> tuple[str, Any]:
        """What it says, in the form of ``answer``."""
        try:
            engine, self._engine = self._engine or self._made(), None
            engine.set_input_json(document.decode())
            found = json.loads(engine.eval_query_as_json(self._query))
        except BaseException:  # noqa: BLE001  the binding has no class of its own, for a panic neither
            return FAILED, None
        self._engine = engine  # an evaluation that failed may leave anything in it
        return "value", plain(found["result"][0]["expressions"][0]["value"])

    def _made(self) -> Any:
        engine = regorus.Engine()
        for number, source in enumerate(self._sources):
            engine.add_policy(f"{number}.rego", source)
        engine.add_data_json(self._data)
        return engine


def ungated(source: str, document: bytes) -> tuple[str, Any]:
    """What the embedded engine itself says of one input."""
    return Ungated(source).answer(document)
