"""The entries of the log: each comes back as it was written, and nothing else is one."""

from __future__ import annotations

from typing import Any

import pytest

from agentguard import ApprovalRequest, Decision, Requirement
from agentguard.approvals.roster import Approver, Roster
from agentguard.audit import entry
from agentguard.audit.entry import CallPlace, LogPlace, parse_time
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.administration import (
    AdoptionEntry,
    ErasureEntry,
    FreezeEntry,
    ResolutionEntry,
    RevocationEntry,
)
from agentguard.audit.kinds.announcements import (
    ConfigEntry,
    ExpiryEntry,
    KeyEntry,
    PolicyEntry,
    RosterEntry,
)
from agentguard.audit.kinds.calls import (
    CallEntry,
    LoggedRuling,
    UnsignedOutcome,
    outcome_statement,
)
from agentguard.audit.kinds.evaluation import Basis, EvaluationEntry
from agentguard.audit.kinds.identities import (
    DelegationEntry,
    IdentityEntry,
    LogOutEntry,
    SurrenderEntry,
)
from agentguard.audit.kinds.receiver import (
    KnownRequest,
    ReceivedEntry,
    ReceivedRequest,
    RefusedEntry,
)
from agentguard.audit.kinds.requests import RequestEndEntry, RequestEntry
from agentguard.audit.kinds.running import ProofEntry, ReceiptEntry, SecretEntry
from agentguard.audit.summary import Summary
from agentguard.call.releases import ProofRecord, ReleaseSubject, RequestRecord
from agentguard.delegation import chain_issuance
from agentguard.errors import DecodeError, EncodeError
from agentguard.identity import credential
from agentguard.identity.credential import AgentProfile
from agentguard.proof import dpop
from agentguard.proof.receipt import Answer, mint
from agentguard.signing import jws
from agentguard.signing.canonical import JSON, b64_encode, dumps, loads_object
from agentguard.signing.dsse import seal, statement

AT = "2026-11-25T12:00:00.000000Z"
LOGOUT: dict[str, JSON] = {
    "iss": "https://login.example",
    "sub": "alice",
    "jti": "the-log-out",
    "iat": 1,
    "events": {"http://schemas.openid.net/event/backchannel-logout": {}},
}
TERMS = chain_issuance.Terms(principal="user:alice", scope=("a",))
AGENT = "spiffe://acme.example/agent/reader/x"
PREDICATE: dict[str, Any] = {
    "invocation_id": "1" * 32,
    "agent": AGENT,
    "principal": "agent:reader",
    "tool": {"name": "note", "digest": "0" * 64},
    "arguments": "a" * 64,
    "task_id": "the-task",
    "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
}


SUBJECT = ReleaseSubject("1" * 32, "0" * 64, 7, AGENT, "note", None, frozenset())
REQUEST = RequestRecord("POST", "https://a.example/pay", "1" * 64, "2" * 64)
SERVER = ("https://a.example", "https://a.example")
TOKEN = ("the-token", "4" * 64)
KNOWN = KnownRequest(REQUEST, *SERVER, "3" * 64, *TOKEN, AGENT, "user:alice")


@pytest.fixture
def built(signer):
    """An entry of each kind."""
    answer = Answer("3" * 64, 200, "0" * 64, "4" * 64)
    receipt = mint(answer, signer, server="https://a.example/", at=1)
    sealed = seal(statement("invocation", "0" * 64, "call", PREDICATE), signer)
    place = CallPlace(7, "1" * 32, "0" * 64)
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
    ended = outcome_statement(
        "0" * 64,
        authorization=LogPlace(0, 7),
        status="ok",
        result=None,
        result_type=None,
        error_type=None,
        started_at=AT,
        ended_at=AT,
    )
    first = chain_issuance.begin(signer, "acme.example", TERMS, now=1, jti="0" * 32)
    lent = chain_issuance.extend(first, signer, issued, by=None, scope=("a",), now=1, jti="1" * 32)
    proof = dpop.sign(
        signer,
        "POST",
        "https://agents.example/revoke",
        access_token="a.b.c",
        at=1,
        jti="j" * 22,
    )
    ruling = LoggedRuling(Decision.deny("no"), None, None, None, "0" * 64)
    return {
        "key": KeyEntry.new(signer, {"use": "log"}, at=AT),
        "policy": PolicyEntry.new({"name": "rego", "version": "1"}, None, {"é.rego": "0"}, at=AT),
        "roster": RosterEntry.new(signer, "acme.example", Roster({"bob": bob}), at=AT),
        "request": RequestEntry.new(asked, None, at=AT),
        "request_end": RequestEndEntry.new(asked, "expired", (), "0" * 64, at=AT),
        "expiry": ExpiryEntry.new([bytes(32)], at=AT),
        "config": ConfigEntry.new(b'{"a":1}', at=AT),
        "identity": IdentityEntry.new(issued, at=AT),
        "call": CallEntry.new(sealed, PREDICATE, ruling, at=AT),
        "secret": SecretEntry.new("TOKEN", SUBJECT, at=AT),
        "proof": ProofEntry.new(
            ProofRecord(REQUEST, "request", "https://a.example", "the-proof", "3" * 64),
            SUBJECT,
            at=AT,
        ),
        "receipt": ReceiptEntry.new("3" * 64, receipt, "key", SUBJECT, at=AT),
        "received": ReceivedEntry.new(
            ReceivedRequest(KNOWN, "the-proof", "key", "request", "0" * 64),
            unrecorded=0,
            at=AT,
        ),
        "refused": RefusedEntry.new(
            "proof.used",
            KNOWN,
            unrecorded=2,
            at=AT,
        ),
        "outcome": UnsignedOutcome.of(
            ended, signer, Summary("outcome", AT, status="ok"), None
        ).signed(),
        "resolution": ResolutionEntry.new(signer, place, ran=True, note="é", at=AT),
        "erasure": ErasureEntry.new(signer, place, note="", at=AT),
        "delegation": DelegationEntry.new(first, at=AT),
        "revocation": RevocationEntry.new(signer, "agent:a", note="", at=AT),
        "freeze": FreezeEntry.new(signer, "acme.example", frozen=True, sequence=1, note="", at=AT),
        "logout": LogOutEntry(at=AT, token=jws.sign(LOGOUT, signer, typ="logout+jwt")).record(),
        "surrender": SurrenderEntry(at=AT, hop=lent.hops[1].token, proof=proof).record(),
        "adoption": AdoptionEntry.new(signer, "acme.example", lost=None, note="", at=AT),
        "evaluation": EvaluationEntry.new(
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
    "key",
    "expiry",
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
    assert set(KINDS) == set(built) == set(entry.KINDS)


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
    assert ConfigEntry.new(b'{"a":"%s"}' % (b"x" * 200_000), at=AT)
    with pytest.raises(EncodeError, match="too long") as caught:
        ConfigEntry.new(b'{"a":"%s"}' % (b"x" * 300_000), at=AT)
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
        "1" * 32,
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
    assert built["resolution"].summary == Summary("resolution", AT, "1" * 32)


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
