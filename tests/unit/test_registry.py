"""The registry of a log's shards: the issuer's word, strictly read; and its file."""

from __future__ import annotations

import dataclasses
import os
import threading
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard import AgentguardError, StorageError, VerificationError
from agentguard.audit import registry
from agentguard.audit.registry import seal_registry, verify_registry
from agentguard.errors import DecodeError
from agentguard.identity.trust import TrustDocument, TrustedKey, seconds
from agentguard.signing import canonical
from agentguard.signing.dsse import PAYLOAD_TYPE, Envelope, seal, statement
from agentguard.signing.keys import Ed25519Signer
from agentguard.storage import registry_file

AT = "2026-11-25T12:00:00.000000Z"
NOW = seconds(datetime(2026, 11, 25, 12, tzinfo=UTC))
LOG = "acme.example/log/4711"
ISSUER = Ed25519Signer.from_seed(os.urandom(32))
TRUST = TrustDocument("acme.example", LOG, (TrustedKey("issuer", ISSUER.public_key, NOW - 100),))

GOOD = {"trust_domain": "acme.example", "log": LOG, "shards": [0, 1, 5], "at": AT}


def sealed(predicate, *, kind="registry", signer=ISSUER):
    """A registry with whatever predicate, under a good signature."""
    subject = canonical.sha256_hex(LOG.encode())
    return canonical.dumps(seal(statement(kind, subject, "log", predicate), signer).as_json())


def test_what_was_sealed_is_read_again():
    data = seal_registry(ISSUER, TRUST, {5, 0, 1}, at=AT)
    assert verify_registry(data, TRUST) == registry.Registry(frozenset({0, 1, 5}), AT)
    assert data == sealed(GOOD)


@given(st.frozensets(st.integers(0, 2**53 - 1), max_size=20))
def test_every_set_of_shards_comes_back(shards):
    assert verify_registry(seal_registry(ISSUER, TRUST, shards, at=AT), TRUST).shards == shards


@pytest.mark.parametrize(
    ("data", "raised", "code"),
    [
        (b"{", DecodeError, "json.malformed"),
        (b"{}", DecodeError, "dsse.malformed"),
        (sealed(GOOD, signer=Ed25519Signer.from_seed(bytes(32))), VerificationError, "key.unknown"),
    ],
    ids=["not JSON", "no envelope", "a stranger's"],
)
def test_a_file_that_does_not_verify_is_named_and_what_to_do(tmp_path, data, raised, code):
    assert registry_file.shards(tmp_path, TRUST) == frozenset()
    registry_file.write(tmp_path, sealed(GOOD))
    assert registry_file.shards(tmp_path, TRUST) == frozenset({0, 1, 5})
    registry_file.write(tmp_path, data)
    with pytest.raises(raised, match=r"registry\.json does not verify .*: .* restore it") as caught:
        registry_file.shards(tmp_path, TRUST)
    assert (caught.value.code, str(tmp_path) in str(caught.value)) == (code, True)


@pytest.mark.parametrize(
    "change",
    [
        {"shards": [1, 0]},
        {"shards": [0, 0]},
        {"shards": [-1, 0]},
        {"shards": [True]},
        {"shards": [0, None]},
        {"shards": ["0"]},
        {"shards": [[0]]},
        {"shards": {"0": 0}},
        {"shards": "0"},
        {"shards": None},
        {"shards": ...},
        {"at": "yesterday"},
        {"at": ""},
        {"at": None},
        {"at": 1},
        {"at": "9999-99-99T00:00:00Z"},
        {"at": "2026-11-25"},  # of no zone: elsewhere it would be another time
        {"at": "2026-11-25T12:00:00.000000"},
        {"at": "2026-11-25T13:00:00.000000+01:00"},
        {"at": ...},
        {"log": None},
        {"log": ...},
        {"trust_domain": 1},
        {"more": 1},
    ],
    ids=str,
)
def test_what_is_no_registry_is_refused(change):
    predicate = {name: value for name, value in {**GOOD, **change}.items() if value is not ...}
    with pytest.raises(DecodeError) as caught:
        verify_registry(sealed(predicate), TRUST)
    assert caught.value.code == "registry.malformed"


def test_another_logs_registry_is_refused():
    with pytest.raises(VerificationError) as caught:
        verify_registry(sealed({**GOOD, "log": "acme.example/log/other"}), TRUST)
    assert caught.value.code == "registry.log"


def test_another_kind_of_statement_by_the_issuer_is_no_registry():
    with pytest.raises(AgentguardError) as caught:
        verify_registry(sealed(GOOD, kind="shard"), TRUST)
    assert caught.value.code == "statement.malformed"


def test_a_strangers_registry_is_refused(stranger):
    with pytest.raises(VerificationError) as caught:
        verify_registry(sealed(GOOD, signer=stranger), TRUST)
    assert caught.value.code == "key.unknown"


def test_a_key_for_another_use_is_refused():
    other = dataclasses.replace(TRUST, keys=(TrustedKey("log", ISSUER.public_key, 0),))
    with pytest.raises(VerificationError) as caught:
        verify_registry(sealed(GOOD), other)
    assert caught.value.code == "key.unknown"


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ({"not_before": NOW + 1}, "key.expired"),
        ({"not_after": NOW}, "key.expired"),
        ({"compromised_since": NOW}, "key.compromised"),
        ({"not_before": NOW, "not_after": NOW + 1, "compromised_since": NOW + 1}, None),
    ],
)
def test_the_issuers_key_must_count_at_its_time(limits, code):
    trust = dataclasses.replace(TRUST, keys=(dataclasses.replace(TRUST.keys[0], **limits),))
    if code is None:
        assert verify_registry(sealed(GOOD), trust).shards == {0, 1, 5}
        return
    with pytest.raises(VerificationError) as caught:
        verify_registry(sealed(GOOD), trust)
    assert caught.value.code == code


def test_an_unsigned_one_and_one_whose_signature_is_anothers_are_refused(stranger):
    good = Envelope.parse(canonical.loads(sealed(GOOD)))
    for signatures, code in (
        ((), "signature.missing"),
        (((ISSUER.key_id, stranger.sign(good.payload)),), "signature.invalid"),
        (((ISSUER.key_id, bytes(64)),), "signature.invalid"),
    ):
        forged = Envelope(PAYLOAD_TYPE, good.payload, signatures)
        with pytest.raises(VerificationError) as caught:
            verify_registry(canonical.dumps(forged.as_json()), TRUST)
        assert caught.value.code == code


HOSTILE = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b"\xff",
    b"{" * 70,
    b"[" * 70 + b"]" * 70,
    b'{"payload":"","payload":""}',
    b'{"payload":1e999}',
    b"x" * (canonical.MAX_BYTES + 1),
]


@pytest.mark.parametrize("data", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_bytes_are_a_typed_error(data):
    with pytest.raises(DecodeError):
        verify_registry(data, TRUST)


@given(st.binary(max_size=60), st.integers(0, 400), st.booleans())
def test_a_damaged_registry_never_verifies(noise, place, cut):
    good = sealed(GOOD)
    damaged = good[:place] + (noise if cut else noise + good[place:])
    if damaged == good:
        return
    with pytest.raises((DecodeError, VerificationError)):
        verify_registry(damaged, TRUST)


# --- the file -------------------------------------------------------------------------------------


def test_the_file_is_replaced_whole_and_private(tmp_path):
    assert registry_file.read(tmp_path) is None
    with registry_file.locked(tmp_path):
        registry_file.write(tmp_path, b"one")
        registry_file.write(tmp_path, b"two")
    assert registry_file.read(tmp_path) == b"two"
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "registry.json": 0o600,
        "registry.lock": 0o600,
    }


def test_the_next_one_waits_until_it_is_adopted(tmp_path):
    registry_file.adopt_next(tmp_path)  # there is none, and that is fine
    registry_file.write(tmp_path, b"old")
    registry_file.write_next(tmp_path, b"new")
    assert registry_file.read(tmp_path) == b"old"
    registry_file.adopt_next(tmp_path)
    assert registry_file.read(tmp_path) == b"new"
    registry_file.adopt_next(tmp_path)
    assert registry_file.read(tmp_path) == b"new"


def test_one_at_a_time(tmp_path):
    inside, order = threading.Event(), []

    def second():
        inside.wait(60)
        with registry_file.locked(tmp_path):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with registry_file.locked(tmp_path):
        inside.set()
        thread.join(0.1)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]
    with pytest.raises(ZeroDivisionError), registry_file.locked(tmp_path):
        _ = 1 / 0
    with registry_file.locked(tmp_path):  # an exception has let go of it
        pass


def test_what_can_not_be_read_or_written_is_a_storage_error(tmp_path):
    (tmp_path / "registry.json").mkdir()
    with pytest.raises(StorageError, match=r"registry\.json can't be read") as caught:
        registry_file.read(tmp_path)
    assert caught.value.code == "storage.readonly"
    with pytest.raises(StorageError, match=r"registry\.json can't be replaced"):
        registry_file.write(tmp_path, b"x")
    with pytest.raises(StorageError) as caught, registry_file.locked(tmp_path / "nowhere"):
        pass
    assert caught.value.code == "storage.readonly"
