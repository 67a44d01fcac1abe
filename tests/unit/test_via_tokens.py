"""``guard.delegate(via_token=...)``: the service of a request shows a token of its own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from token_issuer import SUBJECT, fresh
from workloads import SPIFFE_ID, Workloads, opened, refused, table

from agentguard import ConfigError, Decision, Denied
from agentguard.delegation.verified_tokens import ViaToken
from agentguard.errors import DecodeError
from agentguard.signing import declared, jws
from agentguard.signing.canonical import loads_object


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


def test_each_kind_of_workload_token_names_its_service(guard, workloads):
    tokens = {
        "service:billing": workloads.cluster.token(**fresh()),
        "service:web": workloads.spire.token(sub=SPIFFE_ID, jti=None, **fresh()),
        "service:reports": workloads.sso.token(sub="a-uuid", azp="reports", **fresh()),
    }
    for name, token in tokens.items():
        for via in (None, name):
            lent = guard.delegate("user:alice", scope=["read"], via=via, via_token=token)
            assert (lent.via, lent.chain.root.assurance) == (name, "application")
    token = tokens["service:reports"]
    lent = guard.delegate("user:alice", scope=["read"], via_token=token)
    said = loads_object(jws.parse(lent.chain.hops[0].token).payload)["via_token"]
    assert isinstance(said, dict)
    assert (said["iss"], said["sub"], said["jti"]) == (workloads.sso.issuer, "reports", "token-1")
    web = guard.delegate("user:alice", scope=["read"], via_token=tokens["service:web"])
    known = web.chain.root.via_token
    assert (known.iss, known.sub) == ("spiffe://acme.example", SPIFFE_ID)


def test_calls_under_the_delegation_show_the_service_to_the_policy(workloads, cluster):
    seen: list[Any] = []

    def policy(document: Any) -> Decision:
        seen.append(document["delegation"].get("via_token"))
        named = seen[-1] == {"iss": cluster.issuer, "sub": SUBJECT}
        return Decision.allow() if named else Decision.deny("no service")

    with opened(workloads.tables, policy) as guard:
        agent = guard.new_agent("clerk")
        tool, atool = guard.tool(name="read")(lambda: "ok"), guard.tool(name="aread")(_later)
        token = cluster.token(**fresh())
        with guard.delegate("user:alice", scope=["read"], via_token=token):
            assert agent.call(tool) == "ok"
            assert asyncio.run(_acall(agent, atool)) == "later"
        with (
            guard.delegate("user:alice", scope=["read"], via="service:billing"),
            pytest.raises(Denied),
        ):  # the twin: the application's word
            agent.call(tool)
        assert seen[-1] is None
        log = b"".join(body for _index, body in guard.reader().entries())
        assert token.split(".")[2].encode() not in log
        assert guard.verify().problems == ()


async def _later() -> str:
    return "later"


async def _acall(agent: Any, tool: Any) -> Any:
    return await agent.acall(tool)


def test_the_token_is_of_the_service_that_the_program_names(guard, cluster):
    token = cluster.token(**fresh())
    assert refused(guard, token, via="service:web") == "principal.assurance"
    lent = guard.delegate("user:alice", scope=[], via="service:billing", via_token=token)
    assert lent.via == "service:billing"  # the twin


def test_without_services_in_the_configuration_no_token_counts(tmp_path, cluster):
    with opened({"cluster": table(tmp_path, cluster, {})}) as guard:
        assert refused(guard, cluster.token(**fresh())) == "jwt.issuer"
        lent = guard.delegate("user:alice", scope=[], via="service:billing")  # the twin
        assert lent.chain.root.via_token is None


@pytest.mark.parametrize(
    "services",
    [
        {"billing": SUBJECT},
        {"user:billing": SUBJECT},
        {"agent:clerk": SUBJECT},
        {"service:a": SUBJECT, "service:b": SUBJECT},
        {"service:a": ""},
        {"service:A": SUBJECT},
        ["service:a"],
    ],
    ids=str,
)
def test_a_mistake_in_services_is_named(tmp_path, cluster, services):
    with pytest.raises(ConfigError, match=r"issuers\.cluster\.services: "):
        opened({"cluster": table(tmp_path, cluster, services)})


@pytest.mark.parametrize(
    "change",
    [
        {"iss": 1},
        {"sub": ""},
        {"sub": "a\n"},
        {"sha256": "0"},
        {"jti": 5},
        {"more": "x"},
        {"sub": "x" * 1025},
    ],
    ids=str,
)
def test_a_claim_of_another_form_is_no_via_token(change):
    good = {"iss": "https://a.example", "sub": "b", "sha256": "0" * 64, "jti": None}
    with pytest.raises(DecodeError):
        declared.read(ViaToken, {**good, **change}, "a token", code="hop.malformed")
    read = declared.read(ViaToken, good, "a token", code="hop.malformed")  # the twin
    assert read.as_json() == good
