"""What is erased of a call is erased of all its attempts.

A framework that goes on with a run makes the same call again. The entry of each attempt keeps a
copy of the arguments and of the policy's input, whether the attempt got the first result again or
was refused.
"""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any

import pytest
from private_calls import CLEAR, PASSPHRASE, SECRET, allow, erase, spellings

from agentguard import AgentguardError, Decision, Denied, adapters
from agentguard.adapters import Arguments, CallOptions, CallSite, Invocation
from agentguard.audit.evidence import verify_evidence
from agentguard.audit.prove import prove_call
from agentguard.domain import domain, keystore
from agentguard.guard.embedded import Embedded
from agentguard.guard.guard import Guard
from agentguard.policy.document import Evaluated
from agentguard.policy.function import FunctionEngine
from agentguard.signing import canonical
from agentguard.store.reader import StoredLog


class Codec:
    """Writes results as JSON; one that is ``broken`` reads none."""

    def __init__(self, *, broken: bool = False) -> None:
        self.broken = broken

    def dumps(self, result: Any) -> bytes:
        return json.dumps(result).encode()

    def loads(self, data: bytes) -> Any:
        if self.broken:
            raise ValueError
        return json.loads(data)


def attempt(
    guard: Any, password: str = SECRET, *, run: str = "run-1", broken: bool = False, **options: Any
) -> Any:
    """Make the call as a framework makes it: at one place of a run."""
    agent = guard.new_agent("reader")
    spec = guard.tool(name="login")(lambda user, password: None).spec
    arguments = {"user": CLEAR, "password": password}
    invocation = Invocation.bind(
        spec, lambda: Arguments.of(arguments), CallSite("1", run, None, "turn")
    )
    codec = Codec(broken=broken)
    function = options.pop("function", lambda: {"token": password})
    return adapters.run(agent, invocation, function, CallOptions(codec=codec, **options))


def refused(guard: Any, **options: Any) -> str:
    with pytest.raises(AgentguardError) as caught:
        attempt(guard, **options)
    return caught.value.code


def ids(scene: Any) -> list[str]:
    return [str(call.invocation_id) for _index, call in scene.calls()]


@pytest.fixture
def repeated(scene):
    """A call that ran, got its result again, and was refused three times, for three reasons."""
    allowed = [True]
    policy = lambda _call: Decision.allow() if allowed[0] else Decision.deny("not any more")  # noqa: E731
    with scene.open(policy) as guard:
        assert attempt(guard) == attempt(guard) == {"token": SECRET}
        assert refused(guard, broken=True) == "journal.unreplayable"
        allowed[0] = False
        assert refused(guard) == "policy.denied"
    return scene


@pytest.mark.parametrize("named", range(4))
def test_all_attempts_are_erased_whichever_is_named(repeated, named):
    attempts = ids(repeated)
    done = erase(repeated, attempts[named])
    assert done.call.invocation_id == attempts[named]
    others = [one for one in attempts if one != attempts[named]]
    assert [place.invocation_id for place in done.repeats] == others
    assert done.attachments == 4 * 2 + 1  # arguments and input of each, and the result of the first
    assert repeated.holds(SECRET, CLEAR) == []
    report = repeated.verify()
    assert (report.ok, report.problems, report.in_doubt) == (True, (), ())
    again = erase(repeated, attempts[named])
    assert (again.attachments, again.repeats) == (0, done.repeats)
    assert repeated.verify().ok


def test_the_proofs_of_all_attempts_hold_before_and_after(repeated):
    trust = keystore.load_trust(repeated.settings.state)

    def proofs() -> list[bytes]:
        with closing(StoredLog.of(repeated.settings.state)) as reader:
            return [prove_call(reader, trust, one) for one in ids(repeated)]

    before = proofs()
    erase(repeated, ids(repeated)[0])
    after = proofs()
    for data in (*before, *after):
        verify_evidence(data, trust)
    secret = spellings(SECRET.encode())
    assert all(any(form in data for form in secret) for data in before)
    assert not any(form in data for form in secret for data in after)


def test_the_result_is_not_handed_out_after_the_erasure_of_a_repetition(repeated):
    erase(repeated, ids(repeated)[1])
    with repeated.open() as guard:
        assert refused(guard) == "journal.unreplayable"
    assert repeated.holds(SECRET) == ["log.sqlite"]  # the arguments of the new attempt, until again
    assert len(erase(repeated, ids(repeated)[0]).repeats) == 4
    assert repeated.holds(SECRET) == []
    assert repeated.verify().ok


def test_the_calls_of_others_stay(scene):
    """The twin: the same arguments in another run, other arguments, and calls without a run."""
    with scene.open() as guard:
        attempt(guard)
        attempt(guard, run="run-2")
        attempt(guard, "another secret")
        plain = guard.tool(name="plain")(lambda password: None)
        guard.new_agent("reader").call(plain, SECRET)
    with scene.open() as guard:
        plain = guard.tool(name="plain")(lambda password: None)
        guard.new_agent("reader").call(plain, SECRET)  # at a call site of the same name
    attempts = ids(scene)
    for named in (0, 3):
        assert erase(scene, attempts[named]).repeats == ()
    kept = scene.rows("SELECT data FROM attachment WHERE role = 'arguments' AND data <> x''")
    texts = sorted(data.decode() for (data,) in kept)
    assert [SECRET in text for text in texts].count(True) == 2
    assert sum("another secret" in text for text in texts) == 1
    assert scene.verify().ok


def test_an_attempt_that_failed_before_is_erased_as_well(scene):
    def fail() -> None:
        raise ValueError(SECRET)

    with scene.open() as guard:
        with pytest.raises(ValueError, match="hunter2"):
            attempt(guard, function=fail)
        attempt(guard)
        attempt(guard)
    assert len(erase(scene, ids(scene)[0]).repeats) == 2
    assert scene.holds(SECRET) == []
    assert scene.verify().ok


def test_the_attempts_of_another_guard_are_erased_as_well(scene):
    with scene.open() as guard, scene.open() as resumed:
        assert attempt(guard) == attempt(resumed) == {"token": SECRET}
    assert "log.sqlite" in scene.holds(SECRET)
    first, _again = ids(scene)
    assert len(erase(scene, first).repeats) == 1
    assert scene.holds(SECRET) == []
    report = scene.verify()
    assert (report.ok, report.problems) == (True, ())


def test_a_sub_agents_call_has_no_name_in_the_log_and_is_found_all_the_same(scene):
    with scene.open() as guard:
        assert attempt(guard, reentrant=True) == attempt(guard, reentrant=True)
        with pytest.raises(Denied):
            attempt(guard, reentrant=True, broken=True)
    assert len(erase(scene, ids(scene)[1]).repeats) == 2
    assert scene.holds(SECRET) == []
    assert scene.verify().ok


OTHER = "another person's 4712"


@pytest.mark.parametrize("edited", ["replay_of", "journal"])
def test_who_edits_another_call_for_a_moment_has_no_data_of_it_erased(scene, edited):
    """The admin key would sign that they were, and once the edit is undone the log would hold."""
    with scene.open() as guard:
        attempt(guard)
        attempt(guard)
        attempt(guard, OTHER, run="run-2")
    first, _again, other = ids(scene)
    index = next(index for index, call in scene.calls() if call.invocation_id == other)
    [(body,)] = scene.rows("SELECT body FROM entry WHERE idx = ?", index)
    members = json.loads(body)
    if edited == "replay_of":
        members["replay_of"] = first
    else:
        index_of_first = scene.calls()[0][0]
        [(of_first,)] = scene.rows("SELECT body FROM entry WHERE idx = ?", index_of_first)
        members["journal"] = json.loads(of_first)["journal"]
    update = "UPDATE entry SET body = ? WHERE idx = ?"
    scene.rows(update, canonical.dumps(members), index)
    with pytest.raises(AgentguardError) as caught:
        erase(scene, first)
    assert caught.value.code == "proof.invalid"
    scene.rows(update, body, index)
    assert "log.sqlite" in scene.holds(SECRET)  # nothing was erased

    assert len(erase(scene, first).repeats) == 1
    assert scene.holds(SECRET) == []
    assert "log.sqlite" in scene.holds(OTHER)
    assert scene.verify().ok


class Bundled(FunctionEngine):
    """An engine that reports a bundle with an unlucky name."""

    def evaluate(self, document: bytes) -> object:
        revisions = {"replay_of": "1", "journal": "1"}
        details: dict[str, Any] = {"decision_id": None, "version": None, "revisions": revisions}
        return Evaluated(super().evaluate(document), details)


def test_a_name_in_the_details_of_an_evaluation_makes_no_call_an_attempt(scene):
    engine = Bundled(allow)
    with Guard(
        Embedded(scene.settings, engine, domain.take_up(scene.settings, PASSPHRASE))
    ) as guard:
        attempt(guard)
        attempt(guard)
        attempt(guard, OTHER, run="run-2")
    assert len(erase(scene, ids(scene)[0]).repeats) == 1
    assert scene.holds(SECRET) == []
    assert "log.sqlite" in scene.holds(OTHER)
