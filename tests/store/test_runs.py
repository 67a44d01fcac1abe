"""What adapters keep of runs, on disk and in memory: the two stores say the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
from store_place import KEYS, SIGNER

from agentguard.errors import StorageError
from agentguard.identity.trust import TrustDocument
from agentguard.signing.keys import Ed25519Signer
from agentguard.store.log import StoreLog
from agentguard.store.sealed_pages import Keys, sealed
from agentguard.store.sealed_pages import runs as runs_of


@pytest.fixture
def runs(place):
    trust = TrustDocument("acme.example", "log", KEYS)
    return runs_of(StoreLog(place.open()), Keys(SIGNER, lambda: trust))


def test_what_was_written_is_read_until_it_is_removed(runs):
    assert runs.read("run") is None
    runs.write("run", b"one")
    runs.write("run", b"two")
    assert runs.read("run") == b"two"
    runs.remove("run")
    runs.remove("run")
    assert runs.read("run") is None


@pytest.mark.parametrize("data", [b"", b"1", b"call_1"])
def test_only_the_first_adds(runs, data):
    assert runs.add("owner", data) is True
    assert runs.add("owner", data) is False  # the very object, too
    assert runs.add("owner", b"another") is False
    assert runs.read("owner") == data


def test_a_name_is_any_text(runs):
    for name in ("../up", "a/b", "\udcff", "x" * 5000):
        runs.write(name, b"kept")
        assert runs.read(name) == b"kept"


def test_what_is_kept_of_a_run_is_nobodys_but_a_holder_of_the_logs_key(on_disk):
    """An edit that no person has made, and what was lent to another run, count for nothing."""
    trust = TrustDocument("acme.example", "log", KEYS)
    log = StoreLog(on_disk.open())
    runs = runs_of(log, Keys(SIGNER, lambda: trust))
    runs.write("mine", b"1")
    assert runs.add("theirs", b"2")
    mine, theirs = runs.at("mine"), runs.at("theirs")
    good, other = (on_disk.page(at) for at in (mine, theirs))
    signed = sealed(b"3", mine, Keys(Ed25519Signer.from_seed(bytes(32)), lambda: trust))
    claimed = good[:43] + signed[43:]
    for data in (other, signed, claimed, good + b"1", good[:-1], good[:20], b""):
        on_disk.put_page(mine, data)
        with pytest.raises(StorageError) as refused:
            runs.read("mine")
        assert refused.value.code == "storage.corrupt"
    on_disk.put_page(mine, good)
    assert (runs.read("mine"), runs.read("theirs")) == (b"1", b"2")


@pytest.mark.parametrize("sound", [True, False])
def test_what_a_compromised_key_has_signed_counts_no_more(on_disk, sound):
    keys = KEYS if sound else (replace(KEYS[0], compromised_since=1),)
    log = StoreLog(on_disk.open())
    good, trust = (TrustDocument("acme.example", "log", one) for one in (KEYS, keys))
    runs_of(log, Keys(SIGNER, lambda: good)).write("a", b"1")
    runs = runs_of(log, Keys(SIGNER, lambda: trust))
    if sound:
        assert runs.read("a") == b"1"
    else:
        with pytest.raises(StorageError, match="compromised"):
            runs.read("a")


def test_a_value_that_is_too_long_is_refused_and_no_other(runs):
    with pytest.raises(StorageError, match="too many"):
        runs.write("run", bytes(15 << 20))
    runs.write("run", bytes(14 << 20))
    assert runs.read("run") == bytes(14 << 20)
