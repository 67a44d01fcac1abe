"""The entries of the log: each comes back as it was written, and nothing else is one."""

from __future__ import annotations

from typing import Any

import pytest

from agentguard import ApprovalRequest, Decision, Requirement
from agentguard.approvals.roster import Approver, Roster
from agentguard.audit import (
    entry,
    evaluations,
    http_requests,
    logouts,
    receipts,
    records,
    surrenders,
)
from agentguard.audit.entry import CallPlace, parse_entry, parse_time
from agentguard.audit.evaluations import Basis
from agentguard.audit.http_requests import ReceivedRequest, RefusedRequest
from agentguard.audit.records import LoggedRuling
from agentguard.audit.summary import Summary
from agentguard.call.releases import ProofRecord, ReleaseSubject, RequestRecord
from agentguard.delegation import chain_issuance
from agentguard.errors import DecodeError, EncodeError
from agentguard.identity import credential
from agentguard.identity.credential import AgentProfile
from agentguard.proof.receipt import Answer, mint
from agentguard.signing.canonical import b64_encode, dumps, loads_object
from agentguard.signing.dsse import seal, statement

AT = "2026-11-25T12:00:00.000000Z"
TERMS = chain_issuance.Terms(principal="user:alice", scope=("a",))
AGENT = "spiffe://acme.example/agent/reader/x"
PREDICATE: dict[str, Any] = {
    "invocation_id": "the-id",
    "agent": AGENT,
    "principal": "agent:reader",
    "tool": {"name": "note", "digest": "0" * 64},
    "arguments": "a" * 64,
    "task_id": "the-task",
    "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
}


SUBJECT = ReleaseSubject("the-id", "0" * 64, 1, 7, AGENT, "note", None, frozenset())
REQUEST = RequestRecord("POST", "https://a.example/pay", "1" * 64, "2" * 64)
SERVER = ("https://a.example", "https://a.example")
TOKEN = ("the-token", "4" * 64)
CALLER = (AGENT, "user:alice")


@pytest.fixture
def built(signer):
    """An entry of each kind."""
    answer = Answer("3" * 64, 200, "0" * 64, "4" * 64)
    receipt = mint(answer, signer, server="https://a.example/", at=1)
    sealed = seal(statement("invocation", "0" * 64, "call", PREDICATE), signer)
    place = CallPlace(1, 7, "the-id", "0" * 64)
    issued = credential.issue(
        signer, "acme.example", AgentProfile("reader"), signer.public_key, now=1, jti="credential-1"
    )
    bob = Approver("bob", "user:bob", (signer.public_key,), ("lead",))
    asked = ApprovalRequest(
        request_id="0" * 32,
        trust_domain="acme.example",
        call_site="0" * 64,
        agent=AGENT,
        agent_name="reader",
        principal="agent:reader",
        actors=(),
        requesters=("agent:reader",),
        tool="note",
        description="é",
        tool_digest="0" * 64,
        resource=None,
        task_id="the-task",
        thread=None,
        arguments=b"{}",
        unbound=(),
        salt=bytes(32),
        requirements=(Requirement("é"),),
        policy_sha256=None,
        traceparent=None,
        requested_at=1,
        expires_at=2,
    )
    ruling = LoggedRuling(Decision.deny("no"), None, None, None, "0" * 64)
    return {
        "shard": records.shard(
            signer,
            signer.public_key,
            trust_domain="acme.example",
            origin="acme.example/log/1/0",
            number=0,
            heads=(),
            at=AT,
        ),
        "key": records.key(signer, {"use": "log"}, at=AT),
        "policy": records.policy({"name": "rego", "version": "1"}, None, {"é.rego": "0"}, at=AT),
        "roster": records.roster(signer, "acme.example", Roster({"bob": bob}), at=AT),
        "request": records.request(asked, None, at=AT),
        "request_end": records.request_end(asked, "expired", (), "0" * 64, at=AT),
        "config": records.config(b'{"a":1}', at=AT),
        "identity": records.identity(issued, at=AT),
        "call": records.authorization(sealed, PREDICATE, ruling, at=AT),
        "secret": records.secret("TOKEN", SUBJECT, at=AT),
        "proof": http_requests.proof(
            ProofRecord(REQUEST, "request", "https://a.example", "the-proof", "3" * 64),
            SUBJECT,
            at=AT,
        ),
        "receipt": receipts.receipt("3" * 64, receipt, "key", SUBJECT, at=AT),
        "received": http_requests.received(
            ReceivedRequest(
                REQUEST, *SERVER, "the-proof", "3" * 64, "key", "request", "0" * 64, *TOKEN, *CALLER
            ),
            unrecorded=0,
            at=AT,
        ),
        "refused": http_requests.refused(
            RefusedRequest("proof.used", REQUEST, *SERVER, "3" * 64, *TOKEN, *CALLER),
            unrecorded=2,
            at=AT,
        ),
        "outcome": records.outcome(
            sealed.payload, signer, Summary("outcome", AT, status="ok"), None
        ).signed(),
        "resolution": records.resolution(signer, place, ran=True, note="é", at=AT),
        "erasure": records.erasure(signer, place, note="", at=AT),
        "delegation": records.delegation(
            chain_issuance.begin(signer, "acme.example", TERMS, now=1, jti="0" * 32), at=AT
        ),
        "revocation": records.revocation(signer, "agent:a", note="", at=AT),
        "freeze": records.freeze(signer, "acme.example", frozen=True, sequence=1, note="", at=AT),
        "logout": logouts.record("a.b.c", at=AT),
        "surrender": surrenders.record(
            chain_issuance.begin(signer, "acme.example", TERMS, now=1, jti="0" * 32).hops[0].token,
            "a.b.c",
            at=AT,
        ),
        "adoption": records.adoption(signer, "acme.example", lost=[], note="", at=AT),
        "evaluation": evaluations.evaluation(
            signer,
            {
                **PREDICATE,
                "chain_sha256": None,
                "token_jti": None,
                "tool": {**PREDICATE["tool"], "origin": "here:note"},
                "resource": None,
                "invocation_id": "0" * 32,
            },
            Decision.deny("no"),
            Basis("0" * 64, None, None, "enforce"),
            name="a",
            actors=(),
            at=AT,
        )[0],
    }


KINDS = [
    "shard",
    "key",
    "policy",
    "roster",
    "request",
    "request_end",
    "config",
    "identity",
    "call",
    "secret",
    "proof",
    "receipt",
    "received",
    "refused",
    "outcome",
    "resolution",
    "erasure",
    "delegation",
    "revocation",
    "freeze",
    "logout",
    "surrender",
    "adoption",
    "evaluation",
]


def test_no_kind_is_left_out(built):
    assert KINDS == list(built) == list(entry._MEMBERS)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_comes_back_as_it_was(built, kind):
    record = built[kind]
    parsed = parse_entry(record.body)
    assert (parsed.kind, parsed.at) == (kind, AT)
    assert (record.summary.kind, record.summary.at) == (kind, AT)
    assert dumps({"kind": kind, "at": AT, **parsed.members}) == record.body


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", ["more", "less", "kind", "no at", "at", "spaces", "order"])
def test_what_says_more_less_or_else_is_no_entry(built, kind, change):
    value = loads_object(built[kind].body)
    body = None
    match change:
        case "more":
            value["comment"] = "x"
        case "less":
            del value[min(set(value) - {"kind", "at"})]
        case "kind":
            value["kind"] = "freeze-all"
        case "no at":
            del value["at"]
        case "at":
            value["at"] = 5
        case "spaces":
            body = built[kind].body.replace(b":", b": ", 1)
        case "order":
            body = b'{"kind":"%s",' % kind.encode() + built[kind].body[1:].replace(
                b',"kind":"%s"' % kind.encode(), b""
            )
    with pytest.raises(DecodeError):
        parse_entry(dumps(value) if body is None else body)


def test_an_entry_that_could_not_be_read_again_is_not_written():
    assert records.config(b'{"a":"%s"}' % (b"x" * 200_000), at=AT)
    with pytest.raises(EncodeError, match="too long") as caught:
        records.config(b'{"a":"%s"}' % (b"x" * 300_000), at=AT)
    assert caught.value.code == "entry.too_large"


def test_the_authorization_carries_the_signed_statement_whole(built, signer):
    invocation = parse_entry(built["call"].body).members["invocation"]
    expected = statement("invocation", "0" * 64, "call", PREDICATE)
    assert isinstance(invocation, dict)
    assert invocation["payload"] == b64_encode(expected)
    assert seal(expected, signer).as_json() == invocation


def test_a_call_is_found_by_what_its_summary_says(built, signer):
    assert built["call"].summary == Summary(
        "call",
        AT,
        "the-id",
        AGENT,
        "agent:reader",
        "note",
        "deny",
        None,
        "the-task",
        "a" * 32,
    )
    uri = credential.agent_uri("acme.example", "reader", signer.public_key)
    assert built["identity"].summary == Summary("identity", AT, agent=uri)
    assert built["resolution"].summary == Summary("resolution", AT, "the-id")
    assert built["shard"].summary == Summary("shard", AT)


@pytest.mark.parametrize(
    "at",
    [
        "2026-11-25",  # of no zone: elsewhere it would be another time
        "2026-11-25T12:00:00",
        "2026-11-25T12:00:00.000000",
        "yesterday",
        "",
    ],
)
def test_a_time_without_an_offset_is_none(at):
    with pytest.raises(DecodeError) as caught:
        parse_time(at)
    assert caught.value.code == "entry.malformed"


def test_a_time_with_one_is_the_same_everywhere():
    assert parse_time(AT) == parse_time("2026-11-25T14:00:00+02:00") == 1795608000
