"""The steps of a rotation: what lies beside a key counts for nothing until it is decided on."""

from __future__ import annotations

import dataclasses
import os
from datetime import UTC, datetime

import pytest

from agentguard import StorageError, VerificationError
from agentguard.domain import handover, keystore
from agentguard.errors import KeyMaterialError
from agentguard.identity.trust import TrustDocument, TrustedKey, seconds
from agentguard.signing.keys import Ed25519Signer
from agentguard.storage import anchor, files

PASSPHRASE = b"correct horse"
NOW = seconds(datetime(2026, 11, 25, 12, tzinfo=UTC))


@pytest.fixture
def keys():
    return {use: Ed25519Signer.from_seed(os.urandom(32)) for use in keystore.LONG_LIVED}


@pytest.fixture
def trust(keys):
    trusted = tuple(TrustedKey(use, key.public_key, NOW - 100) for use, key in keys.items())
    return TrustDocument("acme.example", "acme.example/log/4711", trusted)


@pytest.fixture(params=[True, False], ids=["anchored", "no anchor"])
def anchors(request, tmp_path):
    return tmp_path / "anchors" if request.param else None


@pytest.fixture
def state(tmp_path, keys, trust, anchors):
    made = tmp_path / "state"
    for use, key in keys.items():
        keystore.save_key(made, use, key, PASSPHRASE)
    files.write_new(made / "trust.json", trust.dumps())
    if anchors is not None:
        files.write_new(anchor.trust_path(anchors, trust.log), trust.dumps())
    return made


def next_of(trust, keys, use, new):
    return trust.rotated(
        keys[use].public_key, new.public_key, now=NOW, until=NOW + 7200, compromised_since=None
    )


def begun(state, anchors, trust, keys, use, signer):
    changed = next_of(trust, keys, use, signer)
    handover.begin(state, anchors, changed, use=use, new=signer, passphrase=PASSPHRASE)
    return changed


@pytest.mark.parametrize("use", keystore.LONG_LIVED)
def test_what_was_begun_is_finished(state, anchors, trust, keys, signer, use):
    assert not handover.is_due(state)
    changed = begun(state, anchors, trust, keys, use, signer)
    assert handover.is_due(state)
    assert keystore.load_key(state, use, PASSPHRASE).public_key == keys[use].public_key
    for _again in range(2):
        handover.finish(state, anchors, PASSPHRASE)
        assert keystore.load_key(state, use, PASSPHRASE).public_key == signer.public_key
        assert keystore.load_trust(state) == changed
        assert not handover.is_due(state)
    assert keystore.next_keys(state, adopted=True) == [use]  # until it is announced
    handover.require_same(state, anchors, changed)


@pytest.mark.parametrize("use", keystore.LONG_LIVED)
def test_what_was_not_decided_on_is_forgotten(state, anchors, trust, keys, signer, use):
    keystore.save_next_key(state, use, signer, PASSPHRASE)
    handover.finish(state, anchors, PASSPHRASE)
    assert keystore.load_key(state, use, PASSPHRASE).public_key == keys[use].public_key
    assert keystore.load_trust(state) == trust
    assert keystore.next_keys(state, adopted=True) == keystore.next_keys(state, adopted=False) == []


@pytest.mark.parametrize(
    "limits", [{"not_after": NOW + 7200}, {"compromised_since": NOW}, {"use": "approver"}]
)
def test_a_next_key_whose_end_is_set_or_whose_use_is_another_is_forgotten(
    state, anchors, trust, signer, limits
):
    known = dataclasses.replace(TrustedKey("log", signer.public_key, NOW), **limits)
    changed = dataclasses.replace(trust, keys=(*trust.keys, known))
    files.replace(state / "trust.json", changed.dumps())
    if anchors is not None:
        files.replace(anchor.trust_path(anchors, trust.log), changed.dumps())
    keystore.save_next_key(state, "log", signer, PASSPHRASE)
    handover.finish(state, anchors, PASSPHRASE)
    assert not handover.is_due(state)
    assert keystore.load_key(state, "log", PASSPHRASE).public_key != signer.public_key


def test_the_document_outside_decides(state, anchors, trust, keys, signer):
    """The state's alone does not, where there is one outside."""
    changed = next_of(trust, keys, "log", signer)
    keystore.save_next_key(state, "log", signer, PASSPHRASE)
    files.replace(state / "trust.json", changed.dumps())
    handover.finish(state, anchors, PASSPHRASE)
    adopted = keystore.load_key(state, "log", PASSPHRASE).public_key == signer.public_key
    assert adopted is (anchors is None)
    if anchors is not None:
        with pytest.raises(VerificationError) as caught:
            handover.require_same(state, anchors, changed)
        assert caught.value.code == "trust.changed"


def test_a_next_key_under_another_passphrase_stops_it(state, anchors, signer):
    keystore.save_next_key(state, "log", signer, b"another")
    with pytest.raises(KeyMaterialError) as caught:
        handover.finish(state, anchors, PASSPHRASE)
    assert caught.value.code == "key.passphrase"
    assert handover.is_due(state)


def test_a_key_is_replaced_whole_and_private(state, signer):
    path = state / "keys" / "log"
    (state / "keys" / "log.next.new").write_bytes(b"of somebody who died")
    keystore.save_next_key(state, "log", signer, PASSPHRASE)
    keystore.adopt_next_key(state, "log")
    keystore.drop_next_key(state, "log")
    keystore.drop_next_key(state, "log")
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(found.name for found in path.parent.iterdir()) == ["admin", "issuer", "log"]


def test_what_can_not_be_replaced_is_a_storage_error(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(StorageError) as caught:
        files.replace(tmp_path / "there", b"x")
    assert caught.value.code == "storage.readonly"


def test_current_keys_are_those_to_which_no_end_is_set(trust, keys, signer):
    assert trust.current("log") == [keys["log"].public_key]
    changed = next_of(trust, keys, "log", signer)
    assert changed.current("log") == [signer.public_key]
    assert changed.current("issuer") == [keys["issuer"].public_key]
    assert changed.current("approver") == []
    assert changed.key("log", keys["log"].key_id, at=NOW + 7199) == keys["log"].public_key
    for at, kid in ((NOW + 7200, keys["log"].key_id), (NOW - 1, signer.key_id)):
        with pytest.raises(VerificationError) as caught:
            changed.key("log", kid, at=at)
        assert caught.value.code == "key.expired"
    with pytest.raises(VerificationError) as caught:
        next_of(trust, {"log": signer}, "log", signer)  # no key of the domain
    assert caught.value.code == "key.unknown"


def test_a_document_comes_back_with_all_its_times(trust, keys, signer):
    changed = trust.rotated(
        keys["log"].public_key, signer.public_key, now=NOW, until=NOW, compromised_since=NOW - 9
    )
    assert TrustDocument.loads(changed.dumps()) == changed
