"""Columns that lie to the administrator: nothing false is signed, and nothing is left unerased.

Somebody who can write the state, and has no key, changes what stands beside the entries for
searching. What the admin key says of a call then, and what is erased of it, is what it would have
been: the entries alone are asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from edited_logs import change

from agentguard.audit.kinds.administration import ResolutionEntry
from agentguard.domain import administration
from agentguard.domain.domain import StateDomain
from agentguard.errors import CallError

PASSPHRASE = b"correct horse battery staple"
SECRET = b"hunter2-4711"

LIES = {
    "nothing": "UPDATE entry SET at = at",
    "no ids": "UPDATE entry SET invocation_id = NULL",
    "no ids of outcomes": "UPDATE entry SET invocation_id = NULL WHERE kind = 'outcome'",
    "another call's ids": "UPDATE entry SET invocation_id = 'x' || invocation_id",
    "another kind": "UPDATE entry SET kind = 'policy' WHERE kind <> 'call'",
    "all are outcomes": "UPDATE entry SET kind = 'outcome'",
}
"""What is done to the columns; the first is the honest twin of the others."""


@dataclass
class Scene:
    """A log with one call that ran, with a secret, and one in doubt."""

    place: Any
    ran: str
    doubtful: str

    def lie(self, name: str) -> None:
        change(self.place, LIES[name])

    def resolve(self, invocation_id: str, *, ran: bool = False) -> Any:
        now = datetime.now(UTC)
        return administration.resolve(
            self.place.config, PASSPHRASE, invocation_id, ran=ran, note="n", now=now
        )

    def erase(self, invocation_id: str) -> Any:
        now = datetime.now(UTC)
        return administration.erase(self.place.config, PASSPHRASE, invocation_id, note="n", now=now)

    def entries(self) -> int:
        return len(self.place.seen().entries)

    def holds(self, needle: bytes) -> bool:
        files = [path for path in self.place.config.state.rglob("*") if path.is_file()]
        return any(needle in path.read_bytes() for path in files)


@pytest.fixture
def scene(place) -> Scene:
    guard = place.open()
    agent = guard.new_agent("reader")
    agent.call(guard.tool(name="login")(lambda password: password.upper()), SECRET.decode())
    agent.call(guard.tool(name="leave")(guard.close))  # so that its outcome is never written
    assert list(place.examine().problems) == []
    entries = place.seen().entries
    calls = [one for one in entries if one.kind == "call"]
    ran, doubtful = (str(call.invocation_id) for call in calls)
    assert place.examine().in_doubt == (doubtful,)
    return Scene(place, ran, doubtful)


@pytest.mark.parametrize("lie", LIES)
def test_a_call_that_ran_is_not_said_not_to_have_run(scene, lie):
    scene.lie(lie)
    before = scene.entries()
    with pytest.raises(CallError, match="its outcome is on record") as caught:
        scene.resolve(scene.ran)
    assert caught.value.code == "call.settled"
    assert scene.entries() == before


@pytest.mark.parametrize("lie", LIES)
def test_a_call_in_doubt_is_resolved_once(scene, lie):
    scene.lie(lie)
    scene.resolve(scene.doubtful, ran=True)
    assert scene.place.examine().in_doubt == ()
    scene.lie(lie)
    with pytest.raises(CallError, match="its resolution is on record"):
        scene.resolve(scene.doubtful, ran=False)


@pytest.mark.parametrize("lie", LIES)
def test_a_resolution_that_came_meanwhile_is_not_hidden(scene, lie, monkeypatch):
    """It is made, and its columns are changed, after the first has looked whether there is one."""
    open_log, between = StateDomain.open_log, list[bool]()

    def meanwhile(home, moment):
        log = open_log(home, moment)
        if not between:
            between.append(True)
            scene.resolve(scene.doubtful, ran=True)
            scene.lie(lie)
        return log

    with monkeypatch.context() as patched:
        patched.setattr(StateDomain, "open_log", meanwhile)
        with pytest.raises(CallError, match="its resolution is on record"):
            scene.resolve(scene.doubtful, ran=False)
    said = [one for one in scene.place.seen().entries if isinstance(one, ResolutionEntry)]
    assert [one.ran for one in said] == [True]


@pytest.mark.parametrize("lie", LIES)
def test_what_is_erased_is_erased_with_its_result(scene, lie):
    assert scene.holds(SECRET)
    assert scene.holds(SECRET.upper())
    scene.lie(lie)
    assert scene.erase(scene.ran).attachments == 3
    assert not scene.holds(SECRET)
    assert not scene.holds(SECRET.upper())


@pytest.mark.parametrize("lie", LIES)
def test_an_unknown_call_stays_one(scene, lie):
    scene.lie(lie)
    before = scene.entries()
    for unknown in ("f" * 32, "", "\ud800", scene.ran[:16], f"x{scene.ran}"):
        for act in (scene.resolve, scene.erase):
            with pytest.raises(CallError) as caught:
                act(unknown)
            assert caught.value.code == "call.unknown"
    assert scene.entries() == before
    assert scene.holds(SECRET)
