"""Principals and owners from functions of the application, in the place of tables."""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from embedded_parts import instance_of

from agentguard import Decision, DelegationError, Denied, Guard
from agentguard.domain.config import file
from agentguard.domain.directory import MOST_KEPT, Directory
from agentguard.errors import ConfigError

ROLES = {"reader": {"scope": ["files:read"]}, "writer": {"scope": ["files:write"]}}
AGENTS = {"clerk": {"max_scope": ["files:read", "files:write"]}}


class People:
    """The users of an application; ``failure`` is raised in the place of an answer."""

    def __init__(self) -> None:
        self.roles: dict[str, Any] = {"user:alice": ["reader"], "user:bob": ["reader", "writer"]}
        self.owners: dict[str, Any] = {"clerk": "user:carol"}
        self.asked: list[str] = []
        self.failure: Exception | None = None

    def roles_of(self, principal: str) -> Any:
        return self._answer(self.roles, principal)

    def owner_of(self, agent: str) -> Any:
        return self._answer(self.owners, agent)

    def _answer(self, answers: dict[str, Any], name: str) -> Any:
        self.asked.append(name)
        if self.failure is not None:
            raise self.failure
        return answers.get(name)


@pytest.fixture
def people(monkeypatch) -> People:
    people, module = People(), ModuleType("acme_users")
    module.roles_of, module.owner_of = people.roles_of, people.owner_of  # type: ignore[attr-defined]

    async def later(_name: str) -> list[str]:
        return ["reader"]

    module.later = later  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "acme_users", module)
    return people


def tables(**others: Any) -> dict[str, Any]:
    return {"principals": "acme_users:roles_of", "roles": ROLES, "agents": AGENTS, **others}


def directory(clock=lambda: 0.0, **others: Any) -> Directory:
    return Directory(file.parse(tables(**others), source="t.toml", base=Path()), clock)


@pytest.fixture
def inputs() -> list[Any]:
    return []


@pytest.fixture
def guard(people, inputs):
    def policy(call):
        inputs.append(call)
        return Decision.allow()

    with Guard.ephemeral(policy, config=tables()) as guard:
        yield guard


def read_tool(guard: Guard, ran: list[str]) -> Any:
    @guard.tool(requires=["files:read"])
    def read(path: str) -> str:
        ran.append(path)
        return path

    return read


# --- what a principal can lend --------------------------------------------------------------------


def test_a_principal_lends_what_the_applications_roles_allow(guard, inputs):
    ran: list[str] = []
    read, clerk = read_tool(guard, ran), guard.new_agent("clerk")
    with guard.delegate("user:alice", scope=["files:read"]):
        assert clerk.call(read, "a") == "a"
    with guard.delegate("user:bob"):  # all that the roles allow
        assert clerk.call(read, "b") == "b"
    assert [call["delegation"]["roles"] for call in inputs] == [["reader"], ["reader", "writer"]]
    assert inputs[1]["delegation"]["scope"] == ["files:read", "files:write"]


def test_a_principal_lends_no_more_than_the_applications_roles_allow(guard):
    with pytest.raises(DelegationError, match="files:write") as caught:
        guard.delegate("user:alice", scope=["files:read", "files:write"])
    assert caught.value.code == "scope.exceeded"
    guard.delegate("user:bob", scope=["files:read", "files:write"])


def test_a_principal_whom_the_application_does_not_know_lends_nothing(guard, people):
    with pytest.raises(DelegationError, match="acme_users:roles_of does not know this") as caught:
        guard.delegate("user:mallory", scope=[])
    assert caught.value.code == "principal.unknown"
    people.roles["user:mallory"] = ["reader"]
    guard.delegate("user:mallory", scope=["files:read"])  # a new user need not wait


def test_a_known_principal_without_roles_lends_an_empty_scope_alone(guard, people):
    people.roles["user:dave"] = []
    guard.delegate("user:dave", scope=[])
    with pytest.raises(DelegationError) as caught:
        guard.delegate("user:dave", scope=["files:read"])
    assert caught.value.code == "scope.exceeded"


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "roles",
    ["reader", b"reader", 7, ["reader", 7], ["nobody"], [None], True],
    ids=repr,
)
def test_an_answer_that_is_no_list_of_roles_lends_nothing(guard, people, roles):
    people.roles["user:alice"] = roles
    with pytest.raises(DelegationError) as caught:
        guard.delegate("user:alice", scope=["files:read"])
    assert caught.value.code == "principal.failed"
    people.roles["user:alice"] = {"reader"}
    guard.delegate("user:alice", scope=["files:read"])


def test_a_function_that_raises_lends_nothing_and_its_text_stays_in_the_log(guard, people, caplog):
    people.failure = ConnectionError("postgres://app:secret@db")
    with caplog.at_level(logging.ERROR, "agentguard"), pytest.raises(DelegationError) as caught:
        guard.delegate("user:alice", scope=["files:read"])
    assert caught.value.code == "principal.failed"
    assert "ConnectionError" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "secret" in caplog.text
    people.failure = None
    guard.delegate("user:alice", scope=["files:read"])


def test_a_call_is_denied_and_on_record_where_the_roles_cannot_be_found_out(guard, people):
    ran: list[str] = []
    read, clerk = read_tool(guard, ran), guard.new_agent("clerk")
    delegation = guard.delegate("user:alice", scope=["files:read"])
    guard._parts.runtime.directory._principals._kept.clear()  # as once the time to live is over
    people.failure = TimeoutError()
    with delegation, pytest.raises(Denied) as caught:
        clerk.call(read, "a")
    assert caught.value.code == "principal.failed"
    assert ran == []
    people.failure = None
    with delegation:
        assert clerk.call(read, "a") == "a"
    stored = guard.reader().stored()
    decisions = [entry.summary.decision for entry in stored if entry.summary.tool]
    assert decisions[:2] == ["deny", "allow"]


@pytest.mark.parametrize(
    ("reference", "what"),
    [
        ("acme_users:nobody", "can't be imported"),
        ("acme_users:later", "coroutine function"),
        ("no_such_module:roles", "can't be imported"),
        ("acme_users", "can't be imported"),
    ],
)
@pytest.mark.parametrize("key", ["principals", "owners"])
def test_a_function_that_cannot_be_used_opens_no_guard(people, key, reference, what):
    with pytest.raises(ConfigError, match=what):
        Guard.ephemeral(lambda _: Decision.allow(), config=tables(**{key: reference}))


# --- the time to live -----------------------------------------------------------------------------


def test_an_answer_is_kept_for_its_time_and_no_longer(people):
    now = [0.0]
    those = directory(lambda: now[0], directory_seconds=10)
    for now[0], times in ((0.0, 1), (9.9, 1), (10.0, 2), (19.9, 2), (20.0, 3)):
        assert those.roles("user:alice") == ("reader",)
        assert len(people.asked) == times


def test_an_old_answer_never_stands_in_for_a_failure(people):
    now = [0.0]
    those = directory(lambda: now[0], directory_seconds=10)
    assert those.roles("user:bob") == ("reader", "writer")
    people.failure = OSError("gone")
    assert those.roles("user:bob") == ("reader", "writer")  # it is still fresh
    now[0] = 10.0
    for _ in range(2):
        with pytest.raises(DelegationError):
            those.roles("user:bob")
    people.failure = None
    people.roles["user:bob"] = ["reader"]
    assert those.roles("user:bob") == ("reader",)


def test_a_role_that_is_taken_away_counts_no_longer_after_the_time_to_live(people):
    now = [0.0]
    those = directory(lambda: now[0])
    assert those.roles("user:bob") == ("reader", "writer")
    people.roles["user:bob"] = None
    now[0] = 59.0
    assert those.principal("user:bob") is not None
    now[0] = 60.0
    assert those.principal("user:bob") is None


def test_unknown_names_do_not_fill_the_memory(people):
    those = directory()
    for number in range(100):
        assert those.principal(f"user:u{number}") is None
    assert those._principals is not None
    assert those._principals._kept == {}
    people.roles = {f"user:u{number}": ["reader"] for number in range(MOST_KEPT + 5)}
    for name in people.roles:
        those.principal(name)
    assert len(those._principals._kept) <= MOST_KEPT


def test_many_threads_ask_at_once(people):
    those, barrier = directory(), threading.Barrier(8)
    found: list[tuple[str, ...]] = []

    def ask() -> None:
        barrier.wait()
        found.extend(tuple(those.roles("user:alice")) for _ in range(200))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {("reader",)}
    assert len(found) == 1600


@pytest.mark.parametrize("seconds", [0, -1, True, "60", float("nan")])
def test_a_time_to_live_is_a_number_of_seconds_above_zero(people, seconds):
    with pytest.raises(ConfigError, match="directory_seconds: expected a number of seconds"):
        directory(directory_seconds=seconds)
    directory(directory_seconds=0.5)


# --- owners ---------------------------------------------------------------------------------------


def test_an_agent_has_the_owner_that_the_application_names(people):
    config = tables(owners="acme_users:owner_of", principals={})
    with Guard.ephemeral(lambda _: Decision.allow(), config=config) as guard:
        assert instance_of(guard.new_agent("clerk")).actor.owner == "user:carol"
    people.owners = {}
    with Guard.ephemeral(lambda _: Decision.allow(), config=config) as guard:
        assert instance_of(guard.new_agent("clerk")).actor.owner is None


@pytest.mark.parametrize("owner", ["carol", "agent:clerk", 7, ["user:carol"]])
def test_an_owner_who_is_no_principal_makes_no_agent(people, owner):
    people.owners["clerk"] = owner
    with Guard.ephemeral(
        lambda _: Decision.allow(), config=tables(owners="acme_users:owner_of")
    ) as guard:
        with pytest.raises(ConfigError) as caught:
            guard.new_agent("clerk")
        assert caught.value.code == "owner.failed"
        people.owners["clerk"] = "user:carol"
        guard.new_agent("clerk")


def test_owners_are_named_by_the_function_or_by_the_tables(people):
    agents = {"clerk": {"owner": "user:carol"}}
    with pytest.raises(ConfigError, match=r"agents\.clerk\.owner: expected no owner here"):
        directory(owners="acme_users:owner_of", agents=agents)
    directory(agents=agents)
    directory(owners="acme_users:owner_of")
