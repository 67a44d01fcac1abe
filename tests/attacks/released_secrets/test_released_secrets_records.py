"""Each release is on record before the tool has the value, and a record that lies is found.

The log never has the value or a digest of the value.
"""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from embedded_parts import runtime_of
from secret_calls import NAME, OTHER, VALUE

from agentguard import Decision, SecretError, idempotency_key, secret
from agentguard.audit.kinds.running import SecretEntry
from agentguard.call.releases import ReleaseSubject
from agentguard.errors import StorageError


def subject_of(scene) -> ReleaseSubject:
    """The newest call in the files, as its releases name it."""
    place, call = scene.newest()
    return ReleaseSubject(
        str(call.invocation_id),
        call.invocation_sha256,
        place,
        call.agent,
        call.tool,
        None,
        frozenset(),
    )


def test_the_release_is_durable_before_the_tool_has_the_value(scene):
    seen = list[Any]()

    def tool():
        assert scene.entries() == []
        value = secret(NAME)
        (entry,) = scene.entries()  # as another process reads the files
        seen.append((entry.members, idempotency_key()))
        return value

    with scene.open() as guard:
        agent = guard.new_agent("reader")
        assert agent.call(guard.tool(name="deploy")(tool)) == VALUE
    ((members, invocation_id),) = seen
    (call,) = scene.entries("call")
    assert (members["name"], members["tool"]) == (NAME, "deploy")
    assert members["invocation_id"] == invocation_id
    assert members["agent"].startswith("spiffe://acme.example/agent/reader/")
    assert members.keys() == {
        *("name", "invocation_id", "invocation_sha256", "authorization", "agent", "tool")
    }
    assert call.at <= scene.entries()[0].at <= scene.entries("outcome")[0].at
    assert scene.verify().ok


def test_without_a_record_nothing_is_released(scene, put_faults):
    got = list[object]()

    def tool(fails):
        if fails:
            faults.before = StorageError("the disk is full", code="storage.full")
        try:
            got.append(secret(NAME))
        except SecretError as error:
            got.append((error.code, "the disk is full" in str(error)))
        finally:
            faults.before = None

    with scene.open() as guard:
        faults = put_faults(guard)
        deploy, agent = guard.tool(name="deploy")(tool), guard.new_agent("reader")
        agent.call(deploy, True)
        assert got == [("secret.failed", True)]
        agent.call(deploy, False)  # the twin: the same call on a log that can be written
        assert got[1:] == [VALUE]
    assert len(scene.entries()) == 1
    assert scene.verify().ok


def test_neither_the_value_nor_a_digest_of_it_is_in_the_state(scene):
    with scene.open() as guard:
        deploy = guard.tool(name="deploy")(lambda: secret(NAME) and "done")
        guard.new_agent("reader").call(deploy)
    value = VALUE.encode()
    digests = [hashlib.new(name, value).hexdigest() for name in ("sha256", "sha1", "md5")]
    assert scene.holds(VALUE, *digests) == []
    assert scene.holds(NAME) != []  # the twin: the search finds what is there


LIES: dict[str, dict[str, Any]] = {
    "a call that is not there": {"invocation_sha256": "0" * 64},
    "another id": {"invocation_id": "0" * 32},
    "another place": {"place": 0},
    "another tool": {"tool": "read"},
    "another agent": {"agent": "spiffe://acme.example/agent/writer/x"},
}


@pytest.mark.parametrize("lie", [*LIES, "another log", "another secret", "none"])
def test_a_release_that_lies_is_found(scene, lie):
    """The holder of the log's key appends an entry while the call runs."""

    def tool():
        secret(NAME)
        ports = runtime_of(guard).current_ports()
        subject = subject_of(scene)._replace(**LIES.get(lie, {}))
        name = "OTHER" if lie == "another secret" else NAME
        at = scene.entries()[-1].at
        record = SecretEntry.new(name, subject, at=at)
        if lie == "another log":
            record = record._replace(body=record.body.replace(b'"log":0', b'"log":1'))
        ports.log.append(record)

    with scene.open() as guard:
        guard.new_agent("reader").call(guard.tool(name="deploy")(tool))
    report = scene.verify()
    assert report.ok is (lie == "none")
    assert all("release of a secret" in problem.what for problem in report.problems)
    assert len(report.problems) == (lie != "none")


def test_a_release_after_the_outcome_is_found(scene):
    with scene.open() as guard:
        guard.new_agent("reader").call(guard.tool(name="deploy")(lambda: bool(secret(NAME))))
        log = runtime_of(guard).current_ports().log
        log.flush()
        assert scene.verify().ok
        at = scene.entries("outcome")[-1].at
        log.append(SecretEntry.new(NAME, subject_of(scene), at=at))
    assert [problem.what for problem in scene.verify().problems] != []


@pytest.mark.parametrize("lent", [["deploy:write"], ["docs:read"]])
def test_a_release_beyond_the_scope_of_a_delegation_is_found(scene, lent):
    """The twin of a desk that does not look at the scope."""
    scene.scope = ("deploy:write",)

    def tool():
        log, (call,) = runtime_of(guard).current_ports().log, scene.entries("call")
        log.append(SecretEntry.new(NAME, subject_of(scene), at=call.at))

    with scene.open() as guard, guard.delegate("user:alice", scope=lent):
        guard.new_agent("writer").call(guard.tool(name="deploy")(tool))
    assert scene.verify().ok is (lent == ["deploy:write"])


def test_an_observed_call_gets_its_secret_on_record(scene):
    scene.more = {"policy": {"engine": "function", "path": "unused:unused", "mode": "observe"}}
    with scene.open(lambda _: Decision.deny("no")) as guard:
        agent = guard.new_agent("reader")
        assert agent.call(guard.tool(name="deploy")(lambda: secret(NAME))) == VALUE
    assert len(scene.entries()) == 1
    assert scene.verify().ok


def test_a_call_in_doubt_keeps_the_record_of_its_release(scene, put_faults):
    """The process dies after the release: the log says which call had the secret."""
    with scene.open() as guard:
        faults = put_faults(guard)

        def tool():
            secret(NAME)
            faults.before = StorageError("gone", code="storage.failed")

        guard.new_agent("reader").call(guard.tool(name="deploy")(tool))
        with pytest.raises(StorageError):
            guard.close()
    report = scene.verify()
    assert (report.ok, len(report.in_doubt)) == (True, 1)
    assert [entry.members["name"] for entry in scene.entries()] == [NAME]


def test_the_name_of_a_secret_is_on_record_and_a_later_value_is_not(scene):
    with scene.open() as guard:
        agent = guard.new_agent("reader")
        deploy = guard.tool(name="deploy")(lambda: secret(NAME) and None)
        agent.call(deploy)
        scene.put(OTHER)
        agent.call(deploy)
    assert scene.holds(VALUE, OTHER) == []
    assert len(scene.entries()) == 2
