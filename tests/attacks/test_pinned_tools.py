"""``[tools.NAME]`` pins the origin and the schema of a tool: another tool is refused."""

from __future__ import annotations

import pytest

from agentguard import ConfigError, Decision, Denied, Guard
from agentguard.adapters import ToolSpec
from agentguard.call.tool import function_schema

RAN: list[str] = []


def pay(to: str) -> str:
    """Pay somebody."""
    RAN.append(to)
    return f"paid {to}"


def other(to: str, cents: int = 0) -> str:
    """Pay somebody."""
    RAN.append(f"{to}, by another tool")
    return f"paid {to}"


ORIGIN = f"{__name__}:pay"
SCHEMA = ToolSpec("pay", "", function_schema(pay), ORIGIN).schema_sha256


@pytest.fixture
def guarded():
    RAN.clear()
    made = []

    def _guarded(**pins):
        config = {"tools": {"pay": pins}}
        made.append(Guard.ephemeral(policy=lambda _call: Decision.allow(), config=config))
        return made[-1]

    yield _guarded
    for guard in made:
        guard.close()


@pytest.mark.parametrize("pins", [{"origin": ORIGIN}, {"schema": SCHEMA}])
def test_another_tool_of_the_same_name_is_refused_and_on_record(guarded, pins):
    guard = guarded(**pins)
    tool = guard.tool(name="pay")(other)
    with pytest.raises(Denied) as refused:
        guard.new_agent("payer").call(tool, "ann")
    assert refused.value.code == "tool.changed"
    assert (pins.get("origin") or pins.get("schema") or "") in refused.value.reason
    assert RAN == []


@pytest.mark.parametrize("pins", [{}, {"origin": ORIGIN}, {"origin": ORIGIN, "schema": SCHEMA}])
def test_the_tool_that_is_pinned_runs(guarded, pins):
    guard = guarded(**pins)
    assert guard.new_agent("payer").call(guard.tool(pay), "ann") == "paid ann"


@pytest.mark.parametrize("schema", ["abc", SCHEMA.upper(), f"sha256:{SCHEMA}"])
def test_what_is_no_digest_is_a_mistake_in_the_configuration(guarded, schema):
    with pytest.raises(ConfigError, match="64 hex digits"):
        guarded(schema=schema)
