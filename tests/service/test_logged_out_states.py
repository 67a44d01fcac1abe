"""What a log-out does to a state: in every process on it, over time, and where its disk fails."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import pytest
from commands import run
from login_provider import ISSUER
from logout_scene import Scene, attempt, lent, problems, said, sent

from agentguard import AgentguardError
from agentguard.audit.state import State
from agentguard.errors import StorageError
from agentguard.identity import login
from agentguard.signing.canonical import loads_object
from agentguard.store.log import StoreLog


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


@pytest.fixture
def clock(monkeypatch):
    """The clock of the guards; a test sets ``ahead``, in seconds."""

    class Clock:
        ahead = 0

        def __call__(self) -> datetime:
            return datetime.now(UTC) + timedelta(seconds=self.ahead)

    monkeypatch.setattr("agentguard.guard.process.clock", clock := Clock())
    return clock


def test_every_process_of_the_state_learns_of_a_log_out(scene):
    gone, kept = scene.log_in(), scene.log_in()
    with scene.open() as guard, scene.open() as other:
        first, second = lent(other, gone.token()), lent(other, kept.token())
        assert [attempt(other, one) for one in (first, second)] == ["ok", "ok"]
        assert said(sent(scene.parts(guard), gone.logout_token())) == (200, "")
        assert attempt(other, first) == "delegation.logged_out"
        assert attempt(other, second) == "ok"  # the twin
        with pytest.raises(AgentguardError) as refused:
            other.resume(first.dumps())
        assert refused.value.code == "delegation.logged_out"
        assert other.resume(second.dumps()).id == second.id
        assert problems(guard) == []
    with scene.open() as guard:  # a new process
        assert attempt(guard, guard.resume(second.dumps())) == "ok"
        with pytest.raises(AgentguardError) as refused:
            guard.resume(first.dumps())
        assert refused.value.code == "delegation.logged_out"


def test_a_log_out_without_a_session_ends_the_users_earlier_log_ins(scene):
    one, two, other = scene.log_in("alice"), scene.log_in("alice"), scene.log_in("bob")
    now = int(datetime.now(UTC).timestamp())
    with scene.open() as guard:
        earlier: dict[str, Any] = {"iat": now - 20, "auth_time": now - 20}
        before = [lent(guard, each.token(**earlier)) for each in (one, two, other)]
        logout = one.logout_token(sid=None, iat=now - 10)
        assert said(sent(scene.parts(guard), logout)) == (200, "")
        denied = "delegation.logged_out"
        assert [attempt(guard, each) for each in before] == [denied, denied, "ok"]
        refreshed = two.token(iat=now, auth_time=now - 20)
        with pytest.raises(AgentguardError) as refused:
            lent(guard, refreshed)
        assert refused.value.code == "delegation.logged_out"
        later = lent(guard, two.token(iat=now, auth_time=now))  # the twin: a new log-in
        assert attempt(guard, later) == "ok"


def test_a_log_in_without_a_session_ends_with_each_log_out_of_the_user(scene):
    """The token does not say of which session the log-in is."""
    silent, other = scene.log_in("alice", has_session=False), scene.log_in("bob", has_session=False)
    with scene.open() as guard:
        ours, theirs = lent(guard, silent.token(auth_time=None)), lent(guard, other.token())
        parts = scene.parts(guard)
        assert said(sent(parts, silent.logout_token(sub=None, sid="unknown"))) == (200, "")
        assert attempt(guard, ours) == "ok"
        assert said(sent(parts, silent.logout_token(sid="a"))) == (200, "")
        assert attempt(guard, ours) == "delegation.logged_out"
        assert attempt(guard, theirs) == "ok"  # the twin


def test_a_call_authorised_after_the_log_out_is_found(scene, clock):
    """As where somebody has replaced the program that asks for the revocations."""
    gone, kept = scene.log_in(), scene.log_in()
    with scene.open() as guard:
        first, second = lent(guard, gone.token()), lent(guard, kept.token())
        assert said(sent(scene.parts(guard), gone.logout_token())) == (200, "")
        with patch.object(State, "refusal", lambda *_: None):
            assert attempt(guard, first) == "ok"
            guard.flush()
            assert problems(guard) == []  # a call that was under way
            clock.ahead = 100
            assert attempt(guard, second) == "ok"
            guard.flush()
            assert problems(guard) == []  # the twin
            assert attempt(guard, first) == "ok"
            guard.flush()
        (problem,) = problems(guard)
        assert "the user had logged out" in problem


def test_no_delegation_and_no_token_outlasts_a_kept_log_out(scene):
    user = scene.log_in()
    now = int(datetime.now(UTC).timestamp())
    forever: dict[str, Any] = {"exp": now + 10 * login.KEPT}
    with scene.open() as guard:
        for old in ({"iat": now - login.LONGEST - 60}, {"iat": None}):
            with pytest.raises(AgentguardError) as refused:
                lent(guard, user.token(**forever, **old))
            assert refused.value.code in ("jwt.expired", "jwt.lifetime")
        long = guard.delegate(
            subject_token=user.token(**forever, iat=now - 3600),
            scope=["read"],
            expires_in=5 * login.KEPT,
        )
        assert long.expires_at.timestamp() == now - 3600 + login.LONGEST


@pytest.mark.parametrize("method", ["look", "append"])
def test_a_log_out_that_is_not_recorded_is_no_success(scene, method):
    gone = scene.log_in()
    with scene.open() as guard:
        delegation, parts, token = (
            lent(guard, gone.token()),
            scene.parts(guard),
            gone.logout_token(),
        )
        broken = patch.object(StoreLog, method, side_effect=StorageError("the disk"))
        with broken:
            assert sent(parts, token).status == 503
        assert said(sent(parts, token)) == (200, "")  # the provider tries again
        assert attempt(guard, delegation) == "delegation.logged_out"
        assert problems(guard) == []


def test_the_list_of_the_log_says_who_has_logged_out(scene):
    gone = scene.log_in()
    with scene.open() as guard:
        assert said(sent(scene.parts(guard), gone.logout_token())) == (200, "")
    listed = run(["audit", "list", "--kind", "logout", "--json"], env={}, cwd=scene.folder)
    (row,) = (loads_object(line.encode()) for line in listed.stdout.splitlines())
    assert row["reason"] == f"{ISSUER} has ended the log-in {gone.sid} of {gone.sub}"


def test_token_verify_knows_of_a_log_out(scene):
    gone, kept = scene.log_in(), scene.log_in()
    with scene.open() as guard:
        files = []
        for one in (gone, kept):
            files.append(scene.folder / f"{one.sid}.json")
            files[-1].write_bytes(lent(guard, one.token()).dumps())
        assert said(sent(scene.parts(guard), gone.logout_token())) == (200, "")
    first, second = (run(["token", "verify", file], env={}, cwd=scene.folder) for file in files)
    assert "delegation.logged_out" in first.stdout + first.stderr
    assert (first.returncode, second.returncode) == (1, 0)  # the twin
