"""The entries of the log: each comes back as it was written, and nothing else is one."""

from __future__ import annotations

import pytest

from agentguard import Decision, DecodeError, EncodeError
from agentguard.audit import entry
from agentguard.audit.entry import Ruling
from agentguard.canonical import b64_encode, dumps, loads_object
from agentguard.envelope import seal, statement

AT = "2026-11-25T12:00:00.000000Z"


@pytest.fixture
def records(signer):
    """An entry of each kind."""
    sealed = seal(statement("invocation", "0" * 64, "call", {}), signer)
    ruling = Ruling(Decision.deny("no"), None, None, None, "0" * 64)
    return {
        "shard": entry.shard(
            signer,
            signer.public_key,
            trust_domain="acme.example",
            origin="acme.example/log/1/0",
            number=0,
            at=AT,
        ),
        "key": entry.key(signer, {"use": "log"}, at=AT),
        "policy": entry.policy({"name": "rego", "version": "1"}, None, {"é.rego": "0"}, at=AT),
        "config": entry.config(b'{"a":1}', at=AT),
        "identity": entry.identity("a.b.c", at=AT),
        "authorization": entry.authorization(sealed, ruling, at=AT),
        "outcome": entry.outcome(sealed, at=AT),
    }


KINDS = ["shard", "key", "policy", "config", "identity", "authorization", "outcome"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_comes_back_as_it_was(records, kind):
    record = records[kind]
    parsed = entry.parse(record.body)
    assert (parsed.kind, parsed.at, record.at) == (kind, AT, AT)
    assert dumps({"kind": kind, "at": AT, **parsed.members}) == record.body


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", ["more", "less", "kind", "no at", "at", "spaces", "order"])
def test_what_says_more_less_or_else_is_no_entry(records, kind, change):
    value = loads_object(records[kind].body)
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
            body = records[kind].body.replace(b":", b": ", 1)
        case "order":
            body = b'{"kind":"%s",' % kind.encode() + records[kind].body[1:].replace(
                b',"kind":"%s"' % kind.encode(), b""
            )
    with pytest.raises(DecodeError):
        entry.parse(dumps(value) if body is None else body)


def test_an_entry_that_could_not_be_read_again_is_not_written():
    assert entry.config(b'{"a":"%s"}' % (b"x" * 200_000), at=AT)
    with pytest.raises(EncodeError, match="too long") as caught:
        entry.config(b'{"a":"%s"}' % (b"x" * 300_000), at=AT)
    assert caught.value.code == "entry.too_large"


def test_the_authorization_carries_the_signed_statement_whole(records, signer):
    invocation = entry.parse(records["authorization"].body).members["invocation"]
    expected = statement("invocation", "0" * 64, "call", {})
    assert isinstance(invocation, dict)
    assert invocation["payload"] == b64_encode(expected)
    assert seal(expected, signer).as_json() == invocation
