"""What a guard asks of an application: a wrong answer, or an answer that is not there yet, denies.

``PORTS`` has a call that asks each function of an application. Every wrong answer is tried at every
port, and no tool runs by one. A coroutine function is refused before the first call.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from approved_calls import Place, asking
from wrong_answers import WRONG, coroutine_functions

from agentguard import AgentguardError, ConfigError, Decision, Guard, Requirement, adapters
from agentguard.adapters import Arguments, CallOptions, CallSite, Invocation
from agentguard.domain import passphrase
from agentguard.errors import KeyMaterialError
from agentguard.policy.function import FunctionEngine

MANAGER = Requirement("a manager", roles=("manager",))
WORD = {"application": True, "application_roles": ["manager"]}
ROLES = {"reader": {"scope": ["read"]}}


def allow(_document: object) -> Decision:
    return Decision.allow()


def with_facts(document: Any) -> Decision:
    return Decision.allow() if document["own"] else Decision.deny("not theirs")


class Port(NamedTuple):
    """A function of the application: ``ask`` makes a call that asks it, and returns what ran.

    ``right`` names what is no wrong answer there, ``code`` is that of the denial. ``is_async`` says
    that the function may be a coroutine function.
    """

    ask: Callable[[Any], list[str]]
    good: Any
    code: str
    right: frozenset[str] = frozenset()
    is_async: bool = False


def through(guard: Guard, **tool: Any) -> list[str]:
    """Call a tool; return what ran."""
    ran: list[str] = []
    with guard:
        guard.new_agent("clerk").call(guard.tool(name="note", **tool)(lambda: ran.append("note")))
    return ran


def ask_policy(function: Any) -> list[str]:
    return through(Guard.ephemeral(function))


def ask_engine(function: Any) -> list[str]:
    engine = FunctionEngine(allow)
    engine.evaluate = function  # type: ignore[method-assign]
    return through(Guard.ephemeral(engine))


def ask_facts(function: Any) -> list[str]:
    return through(Guard.ephemeral(with_facts), facts=function, gives=["own"])


def ask_approver_roles(function: Any) -> list[str]:
    place = Place(asking(MANAGER)).under({"approvals": WORD}, approver_roles=function)
    request = place.ask()
    place.guard.approvals.vouch(request, "approve", principal="user:dora")
    place.call()
    return [branch for (branch,) in place.ran]


def named(tables: dict[str, Any], function: Any) -> Guard:
    """Return a guard whose configuration names the function ``acme_staff:function``."""
    module = ModuleType("acme_staff")
    module.function = function  # type: ignore[attr-defined]
    sys.modules["acme_staff"] = module
    try:
        return Guard.ephemeral(allow, config=tables)
    finally:
        del sys.modules["acme_staff"]


def ask_principals(function: Any) -> list[str]:
    guard = named({"principals": "acme_staff:function", "roles": ROLES, "agents": AGENTS}, function)
    with guard.delegate("user:alice", scope=["read"]):
        return through(guard, requires=["read"])


def ask_owners(function: Any) -> list[str]:
    return through(named({"owners": "acme_staff:function", "agents": AGENTS}, function))


AGENTS = {"clerk": {"max_scope": ["read"], "authority": "own"}}

PORTS = {
    "policy": Port(ask_policy, allow, "policy.error"),
    "engine": Port(ask_engine, lambda _document: {"allow": True}, "policy.malformed"),
    "facts": Port(
        ask_facts,
        lambda _input: {"own": True},
        "facts.invalid",
        frozenset({"mapping"}),
        is_async=True,
    ),
    "approver_roles": Port(
        ask_approver_roles, lambda _name: ["manager"], "roles.failed", frozenset({"list", "none"})
    ),
    "principals": Port(
        ask_principals, lambda _name: ["reader"], "principal.failed", frozenset({"list", "none"})
    ),
    "owners": Port(ask_owners, lambda _name: "user:carol", "owner.failed", frozenset({"none"})),
}
CASES = [(port, wrong) for port in PORTS for wrong in WRONG if wrong not in PORTS[port].right]


@pytest.mark.parametrize(("name", "wrong"), CASES)
def test_a_wrong_answer_denies(name, wrong):
    port = PORTS[name]
    ran: list[str] = []
    with pytest.raises(AgentguardError) as refused:
        ran = port.ask(lambda *_given: WRONG[wrong]())
    assert ran == []
    assert isinstance(refused.value.code, str)
    assert refused.value.code.partition(".")[0] == port.code.partition(".")[0]


@pytest.mark.parametrize("name", ["approver_roles", "principals"])
def test_a_role_that_a_mapping_denies_is_no_role(name):
    role = "manager" if name == "approver_roles" else "reader"
    with pytest.raises(AgentguardError) as refused:
        PORTS[name].ask(lambda _name: {role: False})
    assert refused.value.code == PORTS[name].code
    assert PORTS[name].ask(lambda _name: {role})  # the twin: a set


@pytest.mark.parametrize("name", PORTS)
def test_a_right_answer_lets_the_tool_run(name):
    assert len(PORTS[name].ask(PORTS[name].good)) == 1


@pytest.mark.parametrize("name", [name for name in PORTS if not PORTS[name].is_async])
def test_a_coroutine_function_is_refused(name):
    port = PORTS[name]
    for function in coroutine_functions(port.good).values():
        with pytest.raises(AgentguardError) as refused:
            port.ask(function)
        assert refused.value.code in ("config.invalid", port.code)


# --- functions whose answer decides nothing, or is no answer about a call -------------------------


@pytest.mark.parametrize("wrong", ["coroutine", "awaitable"])
def test_a_request_that_nobody_is_told_of_is_an_error_in_the_program_s_log(wrong, caplog):
    place = Place(asking()).under({"approvals": WORD}, on_request=lambda _one: WRONG[wrong]())
    with caplog.at_level(logging.ERROR, "agentguard"):
        request = place.ask()
    assert "on_request failed" in caplog.text
    assert place.guard.approvals.pending() == [request]


def test_a_function_that_is_told_of_requests_is_plain(caplog):
    for function in coroutine_functions(print).values():
        with pytest.raises(ConfigError, match="on_request: expected a function"):
            Guard.ephemeral(allow, on_request=function)
    told: list[Any] = []
    place = Place(asking()).under({"approvals": WORD}, on_request=told.append)  # the twin
    assert told == [place.ask()] != []
    assert "on_request failed" not in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("wrong", [name for name in WRONG if name != "bytes"])
def test_a_passphrase_is_bytes(wrong):
    with pytest.raises(KeyMaterialError):
        passphrase.ask(WRONG[wrong])
    assert passphrase.ask(lambda: b"x").reveal() == b"x"  # the twin


class Codec:
    """Keeps a text; one of its functions answers wrongly."""

    def __init__(self, name: str = "", wrong: str = "") -> None:
        if name:
            setattr(self, name, lambda _given: WRONG[wrong]())

    def dumps(self, result: Any) -> bytes:
        return str(result).encode()

    def loads(self, data: bytes) -> Any:
        return data.decode()


def calls_of(codec: Codec) -> Callable[[], Any]:
    """Return what makes one and the same call of a framework, which asks for its result again."""
    guard = Guard.ephemeral(allow)
    agent, tool = guard.new_agent("clerk"), guard.tool(name="note")(lambda: "noted")
    site = CallSite("c", thread="t", turn="m")
    made = Invocation.bind(tool.spec, lambda: Arguments.of({}), site)
    ran: list[int] = []

    def call() -> Any:
        return adapters.run(agent, made, note, CallOptions(codec=codec))

    def note() -> str:
        ran.append(1)
        return f"noted {len(ran)}"

    return call


@pytest.mark.parametrize("wrong", [name for name in WRONG if name != "bytes"])
def test_a_result_that_a_codec_does_not_write_is_not_given_again(wrong):
    call = calls_of(Codec("dumps", wrong))
    assert call() == "noted 1"
    with pytest.raises(AgentguardError) as refused:
        call()
    assert refused.value.code == "journal.unreplayable"


@pytest.mark.parametrize("wrong", ["coroutine", "awaitable"])
def test_a_result_that_a_codec_has_not_read_yet_is_not_given_again(wrong):
    call = calls_of(Codec("loads", wrong))
    assert call() == "noted 1"
    with pytest.raises(AgentguardError) as refused:
        call()
    assert refused.value.code == "journal.unreplayable"
    again = calls_of(Codec())  # the twin
    assert [again(), again()] == ["noted 1", "noted 1"]
