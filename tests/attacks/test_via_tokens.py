"""Tokens that prove nothing of a service, passed for the token of the service of a request.

And chains whose holder says more of the service than the issuer has signed. Each refusal stands
beside what is allowed.
"""

from __future__ import annotations

from typing import Any

import pytest
from token_issuer import TokenIssuer, fresh
from workloads import Workloads, opened, refused

from agentguard import AgentguardError, Guard
from agentguard.delegation import grant
from agentguard.signing import jws
from agentguard.signing.canonical import b64url_encode, dumps, loads_object
from agentguard.signing.keys import Ed25519Signer


@pytest.fixture
def workloads(tmp_path):
    return Workloads(tmp_path)


@pytest.fixture
def cluster(workloads):
    return workloads.cluster


@pytest.fixture
def guard(workloads):
    with opened(workloads.tables) as guard:
        yield guard


def via_of(guard: Guard, token: str) -> str | None:
    return guard.delegate("user:alice", scope=[], via_token=token).via


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"sub": "system:serviceaccount:prod:other"}, "jwt.subject"),
        ({"aud": "others"}, "jwt.audience"),
        ({"iss": "https://other.example"}, "jwt.issuer"),
        ({"exp": 5}, "jwt.expired"),
        ({"exp": None}, "jwt.lifetime"),
        ({"cnf": {"jkt": "x"}}, "jwt.bound"),
        ({"events": {}}, "jwt.type"),
        ({"act": {"sub": "mallory"}}, "jwt.type"),
        ({"jti": "caf\u00e9"}, "jwt.malformed"),
    ],
    ids=str,
)
def test_a_token_that_does_not_count_lends_nothing(guard, cluster, claims, code):
    assert refused(guard, cluster.token(**{**fresh(), **claims})) == code
    assert via_of(guard, cluster.token(**fresh())) == "service:billing"  # the twin


def test_a_users_token_is_no_token_of_the_program_through_which_the_user_came(guard, workloads):
    """At such a provider, ``azp`` names the program in both."""
    token = workloads.sso.token(sub="alice", azp="reports", sid="s", **fresh())
    assert refused(guard, token) == "jwt.type"
    own = workloads.sso.token(sub="a-uuid", azp="reports", **fresh())
    assert via_of(guard, own) == "service:reports"  # the twin


def test_a_signature_of_another_issuer_lends_nothing(guard, cluster):
    thief = TokenIssuer("thief", issuer=cluster.issuer)
    assert refused(guard, thief.token(**fresh())) == "jwt.signature"
    head, claims, _signature = cluster.token(**fresh()).split(".")
    assert refused(guard, f"{head}.{claims}.{'A' * 86}") == "jwt.signature"
    assert via_of(guard, cluster.token(**fresh())) == "service:billing"  # the twin


def test_nobody_changes_what_a_chain_says_of_the_service(guard, cluster):
    token = cluster.token(**fresh())
    stored = guard.delegate("user:alice", scope=["read"], via_token=token).dumps()
    chain: Any = loads_object(stored)
    (hop,) = chain["hops"]
    head, _claims, signature = hop.split(".")
    said: Any = loads_object(jws.parse(hop).payload)
    without = {name: value for name, value in said.items() if name != "via_token"}
    other = {**said, "via_token": {**said["via_token"], "sub": "another"}}
    for changed in (without, other):
        forged = f"{head}.{b64url_encode(dumps(changed))}.{signature}"
        with pytest.raises(AgentguardError) as refusal:
            guard.resume(dumps({**chain, "hops": [forged]}))
        assert refusal.value.code == "signature.invalid"
    assert guard.resume(stored).via == "service:billing"  # the twin


def test_only_a_first_hop_to_a_service_names_a_token(guard, cluster):
    """An agent that hands on could otherwise say that a service had shown a token."""
    lent = guard.delegate("user:alice", scope=["read"], via_token=cluster.token(**fresh()))
    said = lent.chain.root.claims()
    wrong: list[dict[str, Any]] = [
        {"client_id": "spiffe://acme.example"},
        {"client_id": "spiffe://acme.example/agent/clerk/x"},
        {"assurance": None, "par": "0" * 64, "depth": 2},
        {"asserted_by": None},
        {"via_token": None},
        {"via_token": {"iss": "a"}},
    ]
    key = Ed25519Signer.from_seed(bytes(32))
    for change in wrong:
        token = jws.sign({**said, **change}, key, typ=grant.TYPE, header={"kid": key.key_id})
        with pytest.raises(AgentguardError) as refusal:
            grant.read(token)
        assert refusal.value.code == "hop.malformed"
    good = jws.sign(said, key, typ=grant.TYPE, header={"kid": key.key_id})
    assert grant.read(good) == lent.chain.root  # the twin
