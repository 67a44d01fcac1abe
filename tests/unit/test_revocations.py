"""What was revoked, and how that is kept (``storage/revocations.py``).

What a running guard makes of it is in tests/attacks/revocation.
"""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agentguard.audit.entry import Entry, Record
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.administration import FreezeEntry, RevocationEntry
from agentguard.audit.kinds.announcements import ConfigEntry
from agentguard.audit.restrictions import Restrictions
from agentguard.call.invocation import timestamp
from agentguard.domain import config, domain, keystore
from agentguard.domain.domain import StateDomain
from agentguard.errors import StorageError
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical
from agentguard.storage import files, restrictions_file
from agentguard.storage.anchor import log_folder
from agentguard.storage.restrictions_file import FILE
from agentguard.store import ledger

PASSPHRASE = b"correct horse"


def refused(call, *args) -> str:
    with pytest.raises(StorageError) as caught:
        call(*args)
    return caught.value.code


# --- what counts ----------------------------------------------------------------------------------


def test_a_name_that_is_revoked_denies_all_that_go_by_it():
    restrictions = Restrictions().with_revoked("user:alice").with_revoked("agent:x")
    assert restrictions.refusal(frozenset({"user:bob", "agent:y"})) is None
    assert restrictions.refusal(frozenset()) is None
    for names in ({"user:alice"}, {"user:bob", "agent:x"}):
        found = restrictions.refusal(names)
        assert found is not None
        code, reason = found
        assert code == "delegation.revoked"
        assert min(names & restrictions.revoked) in reason


def test_of_the_word_of_a_compromised_key_nothing_counts_that_lets_a_call_run():
    own = Restrictions(sequence=3, frozen=True, newest="2026")
    thawed = own.with_freeze(4, frozen=False)
    thief = Restrictions(sequence=9, newest="9999")
    # a process may know the thaw, under which nothing is frozen: the freeze has a number above it
    assert own.with_refusals(thief) == own._replace(sequence=10)
    frozen = Restrictions(sequence=2**53 - 1, frozen=True, revoked=frozenset({"agent:x"}))
    joined = thawed.with_refusals(frozen)
    assert joined.revoked == {"agent:x"}
    assert (joined.frozen, joined.sequence) == (True, 5)
    assert not thawed.with_refusals(own).frozen  # the twin: the log has a thaw after that freeze


@pytest.mark.parametrize("name", ["user:alic", "user:alice2", "USER:ALICE", "alice", ""])
def test_names_are_compared_whole(name):
    assert Restrictions().with_revoked("user:alice").refusal({name}) is None


def test_a_freeze_denies_everybody_until_a_thaw_with_a_higher_number():
    frozen = Restrictions().with_freeze(1, frozen=True)
    assert frozen.refusal(frozenset()) == (
        "domain.frozen",
        "all calls are frozen: run agentguard thaw once the reason of the freeze is over",
    )
    assert frozen.with_freeze(1, frozen=False).frozen
    assert frozen.with_freeze(0, frozen=False).frozen
    assert not frozen.with_freeze(2, frozen=False).frozen
    assert not frozen.with_freeze(2, frozen=False).with_freeze(1, frozen=True).frozen


def test_joined_is_all_that_either_says():
    one = Restrictions().with_revoked("a").with_freeze(2, frozen=False)
    two = Restrictions().with_revoked("b").with_freeze(1, frozen=True)
    for joined in (one.joined(two), two.joined(one)):
        assert joined.revoked == {"a", "b"}
        assert (joined.sequence, joined.frozen) == (2, False)


# --- a state --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def founded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("founded")
    domain.found(settings_of(folder), PASSPHRASE, now=datetime.now(UTC))
    return folder


def settings_of(folder):
    tables = {"trust_domain": "acme.example", "state": "state", "anchor": "anchor"}
    return config.parse(tables, source="agentguard.toml", base=folder)


class Place:
    """A state with keys, and its log, in which a test writes what it wants."""

    def __init__(self, folder: Path) -> None:
        self.home: StateDomain = domain.take_up(settings_of(folder), PASSPHRASE)
        self.state = folder / "state"
        self.admin = keystore.load_key(self.state, "admin", PASSPHRASE)

    @property
    def trust(self) -> TrustDocument:
        return self.home.trust

    def write(self, *records: Record) -> None:
        with closing(self.home.open_log(datetime.now(UTC))) as log:
            for record in records:
                log.append(record)

    def revoke(self, *names: str, by: Any = None) -> None:
        signer = by or self.admin
        self.write(*(RevocationEntry.new(signer, n, note="n", at=now()) for n in names))

    def freeze(self, sequence: int, *, frozen: bool, by: Any = None, of: str = "acme.example"):
        signer = by or self.admin
        self.write(
            FreezeEntry.new(signer, of, frozen=frozen, sequence=sequence, note="n", at=now())
        )

    def rebuilt(self) -> Restrictions:
        return self.home.ledger().keep()

    def current(self) -> Restrictions:
        return self.home.ledger().read_on()

    @property
    def file(self) -> Path:
        return self.state / FILE

    def edit(self, **changes: Any) -> None:
        """Change what is kept, as somebody who can write the file does."""
        document: Any = canonical.loads(self.file.read_bytes())
        document["restrictions"] |= changes
        files.replace(self.file, canonical.dumps(document))

    def saved(self) -> Restrictions:
        """Return what the file in the state has, verified."""
        return restrictions_file.load(self.state).verify(self.trust).restrictions

    def sign_again(self) -> None:
        """Sign what is kept, whatever it is, with the log's key."""
        document: Any = canonical.loads(self.file.read_bytes())
        encoded = canonical.dumps(document["restrictions"])
        signature = self.home.log_key.sign(restrictions_file._signed(self.trust.log, encoded))
        document["sig"] = canonical.b64_encode(signature)
        files.replace(self.file, canonical.dumps(document))

    def sign(self, kept: Restrictions, signer: Any = None, log: str | None = None) -> None:
        for folder in (self.state, log_folder(self.state.parent / "anchor", self.trust.log)):
            restrictions_file.save(folder, log or self.trust.log, kept, signer or self.home.log_key)


def now() -> str:
    return timestamp(datetime.now(UTC))


@pytest.fixture
def place(founded, tmp_path):
    shutil.copytree(founded, tmp_path, dirs_exist_ok=True)
    return Place(tmp_path)


def test_it_is_made_from_the_log(place):
    assert place.current().revoked == frozenset()
    assert not place.file.exists()  # to look writes nothing
    place.revoke("user:alice", "jti-00000001")
    place.freeze(1, frozen=True)
    rebuilt = place.rebuilt()
    assert rebuilt.revoked == {"user:alice", "jti-00000001"}
    assert (rebuilt.sequence, rebuilt.frozen) == (1, True)
    assert restrictions_file.load(place.state).verify(place.trust).with_names() == rebuilt
    assert place.current() == rebuilt


def test_it_goes_on_where_it_ended(place, monkeypatch):
    place.revoke("user:alice")
    place.rebuilt()
    place.revoke("user:bob")
    read: list[bytes] = []

    def counted(body: bytes) -> Entry:
        read.append(body)
        return parse_entry(body)

    monkeypatch.setattr("agentguard.audit.later_calls.parse_entry", counted)
    assert place.current().revoked == {"user:alice", "user:bob"}
    assert len(read) == 1  # the new one


def test_nothing_new_is_not_written_again(place):
    place.rebuilt()
    before = place.file.stat().st_ino  # a file that is replaced is another one
    place.write(ConfigEntry.new(b"{}", at=now()))
    place.rebuilt()
    assert place.file.stat().st_ino == before
    place.revoke("user:alice")
    place.rebuilt()
    assert place.file.stat().st_ino != before


def test_only_the_admin_key_revokes(place, stranger):
    for signer in (stranger, place.home.issuer, place.home.log_key):
        place.revoke("user:alice", by=signer)
        place.freeze(5, frozen=True, by=signer)
    assert place.rebuilt() == place.current()
    assert place.current()[:3] == Restrictions()[:3]
    place.revoke("user:bob")
    assert place.rebuilt().revoked == {"user:bob"}


def test_a_freeze_of_another_domain_counts_for_nothing(place):
    place.freeze(1, frozen=True, of="other.example")
    assert not place.rebuilt().frozen
    place.freeze(1, frozen=True)
    assert place.rebuilt().frozen


SPOILT: dict[str, Any] = {
    "nothing": b"",
    "no JSON": b"{",
    "no object": b"[]",
    "another object": b"{}",
    "twice": b'{"keyid":"x","keyid":"x","restrictions":{},"sig":""}',
    "not UTF-8": b"\xff",
    "too deep": b"[" * 100_000,
}


@pytest.mark.parametrize("data", SPOILT.values(), ids=SPOILT)
def test_a_damaged_file_is_made_anew_from_the_log(place, data):
    place.revoke("user:alice")
    place.rebuilt()
    place.file.write_bytes(data)
    assert refused(restrictions_file.load, place.state) == "storage.corrupt"
    assert place.rebuilt().revoked == {"user:alice"}
    assert place.saved().revoked == {"user:alice"}


EDITS: dict[str, dict[str, Any]] = {
    "a name less": {"revoked": []},
    "another name": {"revoked": ["user:bob"]},
    "thawed": {"frozen": False, "sequence": 99},
    "read further": {"read": [10**6, ""], "revoked": []},
    "nothing read": {"read": [0, ""], "revoked": []},
}


@pytest.mark.parametrize("change", EDITS.values(), ids=EDITS)
def test_an_edited_file_is_made_anew_from_the_log(place, change):
    place.revoke("user:alice")
    place.freeze(1, frozen=True)
    kept = place.rebuilt()
    place.edit(**change)
    assert refused(restrictions_file.load(place.state).verify, place.trust) == "storage.corrupt"
    assert place.current() == kept
    assert place.rebuilt() == kept


MALFORMED: list[dict[str, Any]] = [
    {"revoked": "user:alice"},
    {"sequence": True},
    {"sequence": 1.5},
    {"frozen": 0},
    {"frozen": None},
    {"read": {}},
    {"read": [5]},
    {"read": [True, ""]},
    {"read": [0, 1]},
    {"read": [0, "", ""]},
    {"used": {"a": [1]}},
    {"used": {"a": [1, "2"]}},
    {"requests": {"a": [1, 2]}},
    {"chains": {"a": [["b"]]}},
    {"unsettled": {"a": ["b", None, 1]}},
    {"erased": [1]},
    {"newest": None},
    {"names": None},
    {"more": 1},
]


@pytest.mark.parametrize("change", MALFORMED, ids=str)
def test_what_has_not_its_form_is_damaged(place, change):
    place.rebuilt()
    assert place.saved().revoked == frozenset()
    place.edit(**change)
    place.sign_again()
    assert refused(restrictions_file.load(place.state).verify, place.trust) == "storage.corrupt"


def test_it_is_believed_if_a_key_of_this_log_has_signed_it(place, stranger):
    mine = Restrictions(frozenset({"kept"}), 3, frozen=False)
    place.sign(mine)
    assert place.saved() == mine
    for forged in (
        lambda: place.sign(mine, stranger),
        lambda: place.sign(mine, place.admin),
        lambda: place.sign(mine, place.home.issuer),
        lambda: place.sign(mine, log="acme.example/log/other"),
    ):
        forged()
        assert refused(restrictions_file.load(place.state).verify, place.trust) == "storage.corrupt"


def test_a_log_key_that_was_rotated_vouches_still_and_a_stolen_one_does_not(place):
    mine = Restrictions(frozenset({"kept"}))
    place.sign(mine)
    old = place.trust
    ended = [replace(k, not_after=1) if k.use == "log" else k for k in old.keys]
    stolen = [replace(k, compromised_since=1) if k.use == "log" else k for k in old.keys]
    kept = restrictions_file.load(place.state)
    assert kept.verify(replace(old, keys=tuple(ended))).restrictions == mine
    assert refused(kept.verify, replace(old, keys=tuple(stolen))) == "storage.corrupt"


def test_to_deny_any_admin_key_is_enough_and_to_thaw_one_that_counts(place):
    """A compromise that is declared later brings nobody back, whatever is removed."""
    place.revoke("user:alice")
    place.freeze(1, frozen=True)
    place.freeze(2, frozen=False)
    stolen = tuple(
        replace(k, compromised_since=k.not_before) if k.use == "admin" else k
        for k in place.trust.keys
    )
    anchors = place.state.parent / "anchor"
    read = ledger.current(place.state, anchors, replace(place.trust, keys=stolen))
    assert read.revoked == {"user:alice"}
    assert (read.sequence, read.frozen) == (1, True)
    assert not ledger.current(place.state, anchors, place.trust).frozen  # the twin


# --- a running process ----------------------------------------------------------------------------


def test_it_sees_what_is_new_at_the_next_look(place):
    running = place.home.revocations()
    assert running.refusal({"user:alice"}) is None
    place.revoke("user:alice")
    assert running.refusal({"user:alice"}) is None  # it looks at the file
    place.rebuilt()
    assert running.refusal({"user:alice"})[0] == "delegation.revoked"
    assert running.refusal({"user:bob"}) is None
    place.freeze(1, frozen=True)
    place.rebuilt()
    assert running.refusal({"user:bob"})[0] == "domain.frozen"
    place.freeze(2, frozen=False)
    place.rebuilt()
    assert running.refusal({"user:bob"}) is None


def test_it_never_forgets_what_it_has_seen(place):
    place.revoke("user:alice")
    place.freeze(1, frozen=True)
    before = place.rebuilt()
    running = place.home.revocations()
    assert running.refusal(frozenset())[0] == "domain.frozen"
    place.edit(revoked=[])
    assert refused(running.refusal, {"user:alice"}) == "storage.corrupt"
    place.freeze(2, frozen=False)
    after = place.rebuilt()
    assert running.refusal(frozenset()) is None
    assert running.refusal({"user:alice"})[0] == "delegation.revoked"
    place.sign(before)  # rolled back: an old one, well signed
    assert running.refusal(frozenset()) is None
    assert running.refusal({"user:alice"})[0] == "delegation.revoked"
    place.sign(after)
    assert running.refusal({"user:bob"}) is None


def test_no_edit_of_the_file_thaws_it(place, stranger):
    place.freeze(1, frozen=True)
    running = place.home.revocations()
    assert running.refusal(frozenset())[0] == "domain.frozen"
    place.edit(frozen=False, sequence=2)
    assert refused(running.refusal, frozenset()) == "storage.corrupt"
    place.sign(Restrictions(sequence=2, frozen=False), stranger)
    assert refused(running.refusal, frozenset()) == "storage.corrupt"
    place.rebuilt()
    assert running.refusal(frozenset())[0] == "domain.frozen"
    place.freeze(2, frozen=False)
    place.rebuilt()
    assert running.refusal(frozenset()) is None


@pytest.mark.parametrize("data", SPOILT.values(), ids=SPOILT)
def test_what_it_can_not_read_denies(place, data):
    running = place.home.revocations()
    assert running.refusal(frozenset()) is None
    place.file.write_bytes(data)
    for _ in range(2):
        assert refused(running.refusal, frozenset()) == "storage.corrupt"
    place.file.unlink()
    for _ in range(2):
        assert refused(running.refusal, frozenset()) == "storage.missing"
    place.rebuilt()
    assert running.refusal(frozenset()) is None
