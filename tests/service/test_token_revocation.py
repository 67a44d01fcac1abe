"""``POST /revoke`` (RFC 7009): an instance gives up an access token of its own."""

from __future__ import annotations

import asyncio
import signal
from datetime import UTC, datetime, timedelta
from unittest.mock import patch

import pytest
from commands import run
from given_up import give_up
from logout_scene import Scene, problems
from published import publish
from token_service import CHAIN, Key, claims, error_of, served

from agentguard import Denied
from agentguard.audit.state import State
from agentguard.delegation import verification
from agentguard.domain import keystore
from agentguard.errors import ServerError
from agentguard.service.client import AsyncTokenService, TokenService
from agentguard.signing.canonical import dumps, loads_object
from agentguard.storage.published_revocations import PublishedRevocations


def exchanged(service, key, credential) -> str:
    return str(service.exchange(key, credential).json()["access_token"])


def is_active(service, token) -> bool:
    return bool(service.introspect(token)["active"])


def surrenders(service) -> int:
    return [one.kind for one in service.place.entries()].count("surrender")


def test_a_token_that_was_given_up_is_inactive_and_others_are_not(service, key, credential):
    gone, kept = (exchanged(service, key, credential) for _ in range(2))
    answer = service.revoke(key, credential, gone, token_type_hint="access_token")
    assert (answer.status_code, answer.json()) == (200, {})
    assert answer.headers["cache-control"] == "no-store"
    assert not is_active(service, gone)
    assert is_active(service, kept)  # the twin
    assert service.exchange(key, credential).is_success


def test_a_token_that_counts_no_more_gets_the_same_answer_and_no_entry(service, key, credential):
    """RFC 7009, 2.2: nobody learns from the answer whether a token counts."""
    gone = exchanged(service, key, credential)
    assert service.revoke(key, credential, gone).is_success
    before = surrenders(service)
    for token in (gone, "x", "a.b.c", f"{gone[:-4]}AAAA", service.provider.token()):
        answer = service.revoke(key, credential, token)
        assert (answer.status_code, answer.json()) == (200, {})
    assert surrenders(service) == before


def test_receivers_and_the_log_know_who_has_given_up_what(service, key, credential):
    state, file = service.place.folder / "state", service.place.folder / "revocations.json"
    trust = keystore.load_trust(state)
    answer = service.exchange(key, credential).json()
    token, stored = answer["access_token"], dumps(answer[CHAIN])
    chain = verification.loads(stored, trust, at=claims(token)["iat"])
    published = PublishedRevocations(publish(state, file), trust)
    assert published.refusal(chain.names) is None
    assert service.revoke(key, credential, token).is_success
    publish(state, file)
    refused = published.refusal(chain.names)
    assert refused is not None
    assert refused[0] == "delegation.surrendered"
    (entry,) = (
        one
        for one in service.place.entries()
        if one.kind == "surrender" and one.members["hop"] == chain.hops[-1].token
    )
    assert claims(str(entry.members["proof"]))["htu"] == f"{service.url}/revoke"
    assert service.place.verify().problems == ()


def test_both_clients_give_tokens_up(service):
    user, workload = service.provider.token(), service.workload()
    with TokenService(service.url) as client:
        identity = client.register("clerk", workload_token=workload)
        got = client.exchange(identity, user)
        assert is_active(service, got.issued.token)
        client.revoke(identity, got.issued)
        assert not is_active(service, got.issued.token)
        client.revoke(identity, got.issued)  # once more is no error
        other = client.register("clerk", workload_token=workload)
        theirs = client.exchange(other, user)
        with pytest.raises(ServerError) as refused:
            client.revoke(identity, theirs.issued)
        assert refused.value.code == "service.refused"

    async def give_up() -> None:
        async with AsyncTokenService(service.url) as client:
            await client.revoke(other, theirs.issued)

    assert is_active(service, theirs.issued.token)
    asyncio.run(give_up())
    assert not is_active(service, theirs.issued.token)


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


def attempts(agent, tool) -> str:
    try:
        return str(agent.call(tool))
    except Denied as denied:
        return denied.code


def test_an_instance_acts_no_more_under_what_it_has_given_up(scene, monkeypatch):
    ahead = timedelta(0)
    monkeypatch.setattr("agentguard.guard.process.clock", lambda: datetime.now(UTC) + ahead)
    with scene.open() as guard:
        delegation = guard.delegate("user:alice", scope=["read"])
        tool = guard.tool(name="read", requires=["read"])(lambda: "ok")
        first, second = (guard.new_agent("clerk").under(delegation) for _ in range(2))
        assert [attempts(one, tool) for one in (first, second)] == ["ok", "ok"]
        give_up(guard, first)
        assert attempts(first, tool) == "delegation.surrendered"
        assert attempts(second, tool) == "ok"  # the twin
        ahead = timedelta(seconds=100)
        with patch.object(State, "refusal", lambda *_: None):
            assert attempts(second, tool) == "ok"
            assert problems(guard) == []
            assert attempts(first, tool) == "ok"  # as in a program that somebody has changed
        (problem,) = problems(guard)
        assert "given up before" in problem


def test_the_list_of_the_log_says_who_has_given_up_what(scene):
    with scene.open() as guard:
        agent = guard.new_agent("clerk").under(guard.delegate("user:alice", scope=["read"]))
        give_up(guard, agent)
    listed = run(["audit", "list", "--kind", "surrender", "--json"], env={}, cwd=scene.folder)
    (row,) = (loads_object(line.encode()) for line in listed.stdout.splitlines())
    assert row["principal"] == "user:alice"
    assert row["reason"] == "the agent has given up what it may do for user:alice"


@pytest.mark.slow("starts a server twice")
def test_what_was_given_up_stays_so_after_a_crash(programs):
    with served(programs) as service:
        key = Key()
        credential = service.credential(key)
        gone, kept = (exchanged(service, key, credential) for _ in range(2))
        assert service.revoke(key, credential, gone).is_success
        service.place.stop(signal.SIGKILL)
        service.place.start()
        assert [is_active(service, one) for one in (gone, kept)] == [False, True]
        assert error_of(service.http.post("/revoke", data={"token": kept}))[0] == 401
