"""The long-lived keys at rest: encrypted, private, never overwritten."""

from __future__ import annotations

import subprocess

import pytest

from agentguard import StorageError
from agentguard.domain import keystore
from agentguard.errors import DecodeError, KeyMaterialError
from agentguard.storage import files

PASSPHRASE = b"correct horse"


@pytest.fixture
def kept(tmp_path, signer):
    keystore.save_key(tmp_path, "issuer", signer, PASSPHRASE)
    return tmp_path / "keys" / "issuer"


def test_a_key_comes_back_under_its_passphrase_alone(tmp_path, kept, signer):
    assert keystore.load_key(tmp_path, "issuer", PASSPHRASE).public_key == signer.public_key
    for wrong in (b"", b"wrong", PASSPHRASE + b"\n"):
        with pytest.raises(KeyMaterialError) as caught:
            keystore.load_key(tmp_path, "issuer", wrong)
        assert caught.value.code == "key.passphrase"


@pytest.mark.parametrize("there", [True, False])
def test_a_wrong_passphrase_names_the_key_and_its_sources(tmp_path, kept, monkeypatch, there):
    monkeypatch.delenv("AGENTGUARD_PASSPHRASE", raising=False)
    if there:
        monkeypatch.setenv("AGENTGUARD_PASSPHRASE", "of another domain")
    with pytest.raises(KeyMaterialError) as caught:
        keystore.load_key(tmp_path, "issuer", b"of another domain")
    said = str(caught.value)
    assert str(kept) in said
    assert f"AGENTGUARD_PASSPHRASE (which {'is set' if there else 'is not set'})" in said
    assert "[keys] passphrase_file" in said
    assert "of another domain" not in said


def test_ssh_keygen_reads_it(kept, signer):
    result = subprocess.run(
        ["ssh-keygen", "-y", "-P", PASSPHRASE.decode(), "-f", str(kept)],
        capture_output=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(b"ssh-ed25519 ")


def test_a_key_is_never_overwritten(tmp_path, kept, stranger):
    before = kept.read_bytes()
    with pytest.raises(StorageError, match="not overwritten") as caught:
        keystore.save_key(tmp_path, "issuer", stranger, PASSPHRASE)
    assert caught.value.code == "storage.exists"
    assert kept.read_bytes() == before
    assert kept.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o644])
def test_a_key_that_others_can_read_is_refused(tmp_path, kept, mode):
    kept.chmod(mode)
    with pytest.raises(KeyMaterialError, match="chmod 600") as caught:
        keystore.load_key(tmp_path, "issuer", PASSPHRASE)
    assert caught.value.code == "key.exposed"
    kept.chmod(0o400)
    keystore.load_key(tmp_path, "issuer", PASSPHRASE)


@pytest.mark.parametrize("content", [b"", b"x", None], ids=["empty", "other", "header"])
def test_a_damaged_key_is_an_error_of_ours(tmp_path, kept, content):
    header = kept.read_bytes().splitlines(keepends=True)[0]
    kept.write_bytes(header if content is None else content)
    with pytest.raises(KeyMaterialError):
        keystore.load_key(tmp_path, "issuer", PASSPHRASE)


def test_a_missing_key_or_trust_document_is_named(tmp_path):
    with pytest.raises(KeyMaterialError, match="issuer") as missing_key:
        keystore.load_key(tmp_path, "issuer", PASSPHRASE)
    assert missing_key.value.code == "key.unreadable"
    with pytest.raises(StorageError, match=r"trust\.json") as missing_trust:
        keystore.load_trust(tmp_path)
    assert missing_trust.value.code == "storage.missing"
    for content, code in ((b"{}", "trust.malformed"), (b"{", "json.malformed")):
        (tmp_path / "trust.json").write_bytes(content)
        with pytest.raises(
            DecodeError, match=r"trust\.json can't be read .*: restore it"
        ) as broken:
            keystore.load_trust(tmp_path)
        assert broken.value.code == code


def test_a_next_key_is_none_only_where_there_is_none(tmp_path, kept):
    """Whatever else keeps it from being read, it may be the one that counts."""
    assert keystore.next_keys(tmp_path, adopted=False) == []
    (kept.parent / "log.next").mkdir()
    with pytest.raises(KeyMaterialError, match=r"log\.next can't be read") as caught:
        keystore.next_keys(tmp_path, adopted=False)
    assert caught.value.code == "key.unreadable"


def test_a_file_that_can_not_be_written_is_an_error_of_ours(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(StorageError) as caught:
        files.write_new(tmp_path / "file" / "below", b"x")
    assert caught.value.code in {"storage.readonly", "storage.exists"}
    files.write_new(tmp_path / "new" / "below", b"x")
    assert (tmp_path / "new" / "below").read_bytes() == b"x"
