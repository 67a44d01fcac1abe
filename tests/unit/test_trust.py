"""The trust document: it says the same when it is read again, and nothing else is one."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from agentguard import AgentguardError, VerificationError
from agentguard.errors import DecodeError
from agentguard.identity.trust import TrustDocument, TrustedKey, seconds
from agentguard.signing.canonical import dumps, loads_object


@pytest.fixture
def document(signer, stranger):
    keys = (
        TrustedKey("issuer", signer.public_key, 100),
        TrustedKey("log", stranger.public_key, 100, not_after=200, compromised_since=150),
    )
    return TrustDocument("acme.example", "acme.example/log/1", keys)


def test_it_comes_back_as_it_was(document):
    assert TrustDocument.loads(document.dumps()) == document
    assert TrustDocument.loads(document.dumps()).dumps() == document.dumps()


@pytest.mark.parametrize(
    ("use", "at", "code"),
    [
        ("issuer", 100, None),
        ("issuer", 2**40, None),
        ("issuer", 99, "key.expired"),
        ("log", 100, None),
        ("log", 149, None),
        ("log", 150, "key.compromised"),
        ("log", 200, "key.expired"),
        ("admin", 100, "key.unknown"),
    ],
)
def test_a_key_counts_for_its_use_and_time(document, use, at, code):
    kid = document.keys[1 if use == "log" else 0].key.thumbprint
    if code is None:
        assert document.key(use, kid, at=at).thumbprint == kid
        return
    with pytest.raises(VerificationError) as caught:
        document.key(use, kid, at=at)
    assert caught.value.code == code


def test_a_key_is_found_by_its_whole_thumbprint(document):
    kid = document.keys[0].key.thumbprint
    for other in (kid[:-1], kid + "A", "", kid.swapcase()):
        with pytest.raises(VerificationError):
            document.key("issuer", other, at=100)


CHANGES = {
    "another type": lambda d: d.update(type="urn:agentguard:trust:v2"),
    "no type": lambda d: d.pop("type"),
    "no keys": lambda d: d.pop("keys"),
    "one member more": lambda d: d.update(comment="x"),
    "keys is no list": lambda d: d.update(keys={}),
    "a key is no object": lambda d: d["keys"].append(5),
    "another use": lambda d: d["keys"][0].update(use="root"),
    "another kid": lambda d: d["keys"][0].update(kid=d["keys"][1]["kid"]),
    "no kid": lambda d: d["keys"][0].pop("kid"),
    "no start": lambda d: d["keys"][0].update(not_before=None),
    "start is text": lambda d: d["keys"][0].update(not_before="100"),
    "start is true": lambda d: d["keys"][0].update(not_before=True),
    "start is a fraction": lambda d: d["keys"][0].update(not_before=100.5),
    "end is true": lambda d: d["keys"][0].update(not_after=True),
    "end is text": lambda d: d["keys"][0].update(not_after="200"),
    "compromised since false": lambda d: d["keys"][0].update(compromised_since=False),
    "a private key": lambda d: d["keys"][0]["jwk"].update(d="x"),
    "a weak key": lambda d: d["keys"][0]["jwk"].update(x="A" * 43),
    "domain is a number": lambda d: d.update(trust_domain=5),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_says_less_or_else_is_no_trust_document(document, change):
    members = loads_object(document.dumps())
    TrustDocument.loads(dumps(members))  # the twin
    change(members)
    with pytest.raises(DecodeError):
        TrustDocument.loads(dumps(members))


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"5", b"\xff", b'{"type":1,"type":2}'], ids=repr
)
def test_what_is_no_json_object_is_none_either(data):
    with pytest.raises(AgentguardError):
        TrustDocument.loads(data)


def test_a_key_that_was_rotated_out_is_revoked(document, signer):
    ended = replace(document.keys[1], compromised_since=None)
    before = replace(document, keys=(document.keys[0], ended))
    kid = ended.key.thumbprint
    after = before.revoked(kid, compromised_since=120)
    assert after.keys == (document.keys[0], replace(ended, compromised_since=120))
    assert after.key("log", kid, at=119) == ended.key
    with pytest.raises(VerificationError) as caught:
        after.key("log", kid, at=120)
    assert caught.value.code == "key.compromised"
    assert after.revoked(kid, compromised_since=110).keys[1].compromised_since == 110


@pytest.mark.parametrize("since", [150, 151])
def test_a_compromise_is_not_put_off(document, since):
    with pytest.raises(VerificationError) as caught:
        document.revoked(document.keys[1].key.thumbprint, compromised_since=since)
    assert caught.value.code == "key.compromised"
    document.revoked(document.keys[1].key.thumbprint, compromised_since=149)


def test_a_key_in_force_is_not_revoked_but_rotated(document):
    with pytest.raises(VerificationError, match="agentguard keys rotate issuer") as caught:
        document.revoked(document.keys[0].key.thumbprint, compromised_since=120)
    assert caught.value.code == "key.current"


def test_an_unknown_key_is_not_revoked(document):
    kid = document.keys[1].key.thumbprint
    for unknown in ("", kid[:-1], kid.swapcase()):
        with pytest.raises(VerificationError) as caught:
            document.revoked(unknown, compromised_since=100)
        assert caught.value.code == "key.unknown"


def test_seconds_know_the_zone():
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    assert seconds(moment) == seconds(moment.astimezone(timezone(timedelta(hours=9))))
    assert seconds(datetime(1970, 1, 1, 0, 0, 5, 999999, tzinfo=UTC)) == 5
