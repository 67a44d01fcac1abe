"""Names that the guard owns in the policy's input: no attribute and no fact takes one.

The cases are the rows of ``agentguard.call.vocabulary``. ``served/test_served_names.py`` has the
same of a client of a guard server, and ``unit/test_policy.py`` has the last line, at the call.
"""

from __future__ import annotations

from typing import Any

import pytest
from input_members import input_members

from agentguard import Decision, Denied, Guard
from agentguard.call.vocabulary import RESERVED
from agentguard.errors import ConfigError

NESTED = sorted({path[-1] for path, _member in input_members() if len(path) > 1} - RESERVED)
"""The names that the guard owns below another name alone."""


def allow(_call: Any) -> Decision:
    return Decision.allow()


def declared(guard: Guard, name: str, how: str) -> Any:
    """Declare a tool in code, with the name as an attribute or as a fact."""
    if how == "attribute":
        return guard.tool(name="note", attributes={name: "text"})(lambda text: text)
    look_up = guard.tool(name="note", facts=lambda _call: {name: "forged"}, gives=[name])
    return look_up(lambda text: text)


def configured(name: str, how: str) -> dict[str, Any]:
    """Return the tables of a configuration that gives a tool the name."""
    if how == "attribute":
        return {"tools": {"note": {"attributes": {name: "text"}}}}
    return {"tools": {"note": {"facts": {"look_up": "os:getenv", "gives": [name]}}}}


@pytest.mark.parametrize("how", ["attribute", "fact"])
@pytest.mark.parametrize("name", sorted(RESERVED))
def test_no_tool_takes_an_owned_name(name, how):
    with Guard.ephemeral(allow) as guard:
        with pytest.raises(ConfigError, match=f"'{name}' is reserved for agentguard"):
            declared(guard, name, how)
        declared(guard, f"{name}_", how)  # the twin
    with pytest.raises(ConfigError, match=f"'{name}' is reserved for agentguard"):
        Guard.ephemeral(allow, config=configured(name, how))
    Guard.ephemeral(allow, config=configured(f"{name}_", how)).close()


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_a_look_up_that_returns_an_owned_name_denies(ran, name):
    found = {"mine": 1}
    with Guard.ephemeral(allow) as guard:
        tool = guard.tool(name="note", facts=lambda _call: found, gives=["mine"])(ran.append)
        agent = guard.new_agent("a")
        agent.call(tool, "x")
        found[name] = 1
        with pytest.raises(Denied) as denied:
            agent.call(tool, "y")
    assert denied.value.code == "facts.conflict"
    assert ran == ["x"]


@pytest.mark.parametrize("how", ["attribute", "fact"])
@pytest.mark.parametrize("name", NESTED)
def test_a_name_that_is_owned_below_another_changes_nothing_there(name, how):
    seen: list[Any] = []

    def policy(call: Any) -> Decision:
        seen.append(call)
        return Decision.allow()

    with Guard.ephemeral(policy) as guard:
        agent = guard.new_agent("a").under(guard.delegate("user:alice", scope=["x"]))
        agent.call(guard.tool(name="note")(lambda text: text), "forged")
        agent.call(declared(guard, name, how), "forged")
    without, with_it = seen
    assert with_it.pop(name) == "forged"
    assert with_it["agent"] == without["agent"]
    assert with_it["delegation"] == without["delegation"]
    assert with_it.keys() == without.keys()
