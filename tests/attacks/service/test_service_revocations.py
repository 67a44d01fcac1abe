"""Who tries to end what somebody else holds, by ``POST /revoke``, beside who gives up their own."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
from embedded_parts import instance_of, runtime_of
from given_up import give_up
from logout_scene import Scene, problems
from token_service import CHAIN, Key, error_of

from agentguard import Denied
from agentguard.audit.kinds import identities, parse_entry
from agentguard.audit.kinds.identities import SurrenderEntry
from agentguard.call.invocation import timestamp
from agentguard.delegation.grant import TYPE
from agentguard.delegation.grant import read as read_grant
from agentguard.errors import DecodeError
from agentguard.service.answers import RefusedError
from agentguard.service.reading import FORM, Request
from agentguard.service.revocation import revoke
from agentguard.signing import jws
from agentguard.signing.canonical import b64url_encode, dumps, loads_object
from agentguard.signing.keys import Ed25519Signer


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


def hops_of(issued) -> list[str]:
    """Return the hops of the chain of an access token."""
    hops = loads_object(issued.chain)["hops"]
    assert isinstance(hops, list)
    return [str(hop) for hop in hops]


@pytest.fixture
def token(service, key, credential) -> str:
    return str(service.exchange(key, credential).json()["access_token"])


def is_active(service, token) -> bool:
    return bool(service.introspect(token)["active"])


def test_an_instance_gives_up_no_token_of_another(service, key, credential, token):
    """Also one of the same agent, which the thief may have seen."""
    thief = Key()
    stolen = service.revoke(thief, service.credential(thief), token)
    assert error_of(stolen) == (400, "unauthorized_client")
    other = service.revoke(thief, service.credential(thief, "helper", "batch-1"), token)
    assert error_of(other) == (400, "unauthorized_client")
    assert is_active(service, token)
    assert service.revoke(key, credential, token).is_success  # the twin
    assert not is_active(service, token)


def test_a_credential_without_its_key_gives_nothing_up(service, key, credential, token):
    thief = Key()
    assert error_of(service.revoke(thief, credential, token)) == (401, "invalid_client")
    without = service.http.post("/revoke", data={"token": token})
    assert error_of(without) == (401, "invalid_client")
    workload = {"Authorization": f"Bearer {service.workload()}"}
    client = service.http.post("/revoke", data={"token": token}, headers=workload)
    assert error_of(client) == (401, "invalid_client")
    assert is_active(service, token)
    assert service.revoke(key, credential, token).is_success  # the twin


def test_a_proof_of_another_request_gives_nothing_up(service, key, credential, token):
    url = f"{service.url}/revoke"
    other = str(service.exchange(key, credential).json()["access_token"])
    used = key.proof(url, "another token")
    service.revoke(key, credential, "another token", {"DPoP": used})
    wrong = (
        key.proof(url),  # without the token
        key.proof(url, other),
        key.proof(f"{service.url}/token", token),
        key.proof(url, token, htm="GET"),
        key.proof(url, token, iat=int(time.time()) - 600),
        used,
    )
    for proof in wrong:
        answer = service.revoke(key, credential, token, {"DPoP": proof})
        assert error_of(answer) == (400, "invalid_dpop_proof")
    assert is_active(service, token)
    again = key.proof(url, token)
    assert service.revoke(key, credential, token, {"DPoP": again}).is_success  # the twin
    assert error_of(service.revoke(key, credential, token, {"DPoP": again}))[0] == 400


def test_a_log_with_a_surrender_of_somebody_else_does_not_verify(service, key, credential, token):
    """Whoever has the log's key could write the entry, and lacks the holder's proof."""
    assert service.revoke(key, credential, token).is_success
    entry = [one for one in service.place.entries() if one.kind == "surrender"][-1]
    hop, proof = str(entry.members["hop"]), str(entry.members["proof"])
    at = "2026-11-29T12:00:00.000000Z"
    stranger, url = Key(), f"{service.url}/revoke"
    issued_at = read_grant(hop).issued_at
    head, claims, signature = proof.split(".")
    forged: list[Any] = [
        stranger.proof(url, token),
        key.proof(f"{service.url}/token", token),
        key.proof(url),
        f"{head}.{claims}.{signature[:-8]}AAAAAAAA",
        f"{head}.{claims}",
        "",
        key.proof(url, token, iat=issued_at - identities.WINDOW - 1),  # of an earlier surrender
    ]
    for wrong in forged:
        body = dumps({"kind": "surrender", "at": at, "hop": hop, "proof": wrong})
        with pytest.raises(DecodeError) as refused:
            parse_entry(body)
        assert refused.value.code == "entry.malformed"
    late = key.proof(url, token, iat=issued_at - identities.WINDOW)  # the clocks differ
    for right in (proof, late):  # the twins
        good = parse_entry(SurrenderEntry(at=at, hop=hop, proof=right).record().body)
        assert good.summary.principal == "user:alice"


def test_a_surrender_by_the_logs_key_alone_is_found(scene):
    """A thief of the log's key makes a hop with the victim's id, and proves it with his own key.

    Whoever has the log's key vouches for what denies calls, and a denial is safe until then.
    """
    with scene.open() as guard:
        agent = guard.new_agent("clerk").under(guard.delegate("user:alice", scope=["read"]))
        issued = agent.access_token()
        victim = read_grant(hops_of(issued)[-1])
        tool = guard.tool(name="read", requires=["read"])(lambda: "ok")
        thief = Key()
        header = {"typ": TYPE, "alg": "EdDSA", "kid": thief.signer.key_id}
        claims = jws.parse(hops_of(issued)[-1]).claims()
        forged = {**claims, "cnf": {"jkt": thief.signer.key_id}}
        signed = ".".join(b64url_encode(dumps(part)) for part in (header, forged))
        hop = f"{signed}.{b64url_encode(thief.signer.sign(signed.encode()))}"
        assert read_grant(hop).jti == victim.jti
        ports = runtime_of(guard).current_ports()
        at = timestamp(ports.log.last_at)
        proof = thief.proof("https://agents.example/revoke", "a token")
        ports.log.append(SurrenderEntry(at=at, hop=hop, proof=proof).record())
        with pytest.raises(Denied) as denied:
            agent.call(tool)
        assert denied.value.code == "delegation.surrendered"
        (problem,) = problems(guard)
        assert "is no issuer key" in problem
        other = guard.new_agent("clerk").under(guard.delegate("user:alice", scope=["read"]))
        assert other.call(tool) == "ok"
        give_up(guard, other)  # the twin
        assert problems(guard) == [problem]


def test_an_entry_that_is_moved_to_a_later_place_hides_no_call(scene, monkeypatch):
    """The holder's proof has a time of its own, which nobody without the holder's key can set."""
    ahead = timedelta(0)
    monkeypatch.setattr("agentguard.guard.process.clock", lambda: datetime.now(UTC) + ahead)
    with scene.open() as guard:
        tool = guard.tool(name="read", requires=["read"])(lambda: "ok")
        delegation = guard.delegate("user:alice", scope=["read"])
        honest, moved = (guard.new_agent("clerk").under(delegation) for _ in range(2))
        assert [one.call(tool) for one in (honest, moved)] == ["ok", "ok"]
        ahead = timedelta(seconds=50)  # the proof is as old as a proof may be
        assert honest.call(tool) == "ok"
        give_up(guard, honest)
        assert problems(guard) == []  # the twin
        ahead = timedelta(seconds=250)
        assert moved.call(tool) == "ok"
        ahead = timedelta(seconds=260)
        give_up(guard, moved)
        (problem,) = problems(guard)
        assert "given up before" in problem


def test_a_delegation_that_an_agent_has_handed_on_is_not_given_up(scene):
    """The agent that signs a hop chooses its id, which may be the id of somebody else's hop."""
    with scene.open() as guard:
        parts = scene.parts(guard)
        answers: list[int | str] = []

        def give_up_by_request(agent) -> None:
            issued, holder = agent.access_token(), instance_of(agent).holder(datetime.now(UTC))
            assert isinstance(holder.signer, Ed25519Signer)
            assert holder.credential is not None
            key = Key(holder.signer)
            sent = {"token": issued.token, CHAIN: issued.chain.decode()}
            headers = {
                "content-type": FORM,
                "workload-identity-token": holder.credential.token,
                "dpop": key.proof(parts.url("/revoke"), issued.token),
            }
            request = Request("POST", "/revoke", headers, urlencode(sent).encode())
            try:
                answers.append(revoke(parts, request).status)
            except RefusedError as refused:
                answers.append(refused.error)

        outer = guard.new_agent("clerk").under(guard.delegate("user:alice", scope=["read"]))
        hand_on = guard.tool(name="read", requires=["read"])(
            lambda: give_up_by_request(guard.new_agent("clerk"))
        )
        outer.call(hand_on)
        assert answers == ["unsupported_token_type"]
        give_up_by_request(outer)  # the twin
        assert answers[1:] == [200]
        assert problems(guard) == []
