"""Evidence with what the administrator and the issuer state is refused where it was forged."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from evidence_mutants import Log, accepted, is_form, refusal, spliced, written

from agentguard.audit.entry import CallPlace
from agentguard.audit.evidence import verify_evidence
from agentguard.audit.kinds import administration, parse_entry
from agentguard.audit.kinds.administration import ErasureEntry, ResolutionEntry
from agentguard.audit.kinds.announcements import KeyEntry
from agentguard.audit.prove import prove_call
from agentguard.call.invocation import timestamp
from agentguard.errors import VerificationError
from agentguard.identity.trust import TrustedKey
from agentguard.signing import canonical, dsse
from agentguard.signing.keys import Ed25519Signer

# --- what the administrator says ------------------------------------------------------------------


def settled(log: Log, call: CallPlace, *, by: str = "admin", announced: bool = True) -> Log:
    """The log with an admin key, and with a resolution and an erasure of a call."""
    admin = Ed25519Signer.from_seed(b"a" * 32)
    since = log.trust.keys[0].not_before
    trusted = TrustedKey("admin", admin.public_key, since)
    at = parse_entry(log.bodies[-1]).at
    signer = admin if by == "admin" else log.signers[by]
    more = [KeyEntry.new(log.signers["issuer"], trusted.as_json(), at=at)] if announced else []
    more.append(ResolutionEntry.new(signer, call, ran=True, note="it was seen", at=at))
    more.append(ErasureEntry.new(signer, call, note="asked for", at=at))
    trust = replace(log.trust, keys=(*log.trust.keys, trusted))
    return replace(log, trust=trust, bodies=[*log.bodies, *(record.body for record in more)])


def rfc3339(seconds: int) -> str:
    return timestamp(datetime.fromtimestamp(seconds, UTC))


def place_of(log: Log, nth: int) -> CallPlace:
    index, read = list(log.calls())[nth]
    return CallPlace(index, str(read.invocation_id), read.invocation_sha256)


@pytest.mark.slow("all edits of the largest proof; those of two smaller ones are always tried")
def test_what_the_administrator_said_of_a_call_belongs_to_its_proof(log):
    whole = settled(log, place_of(log, 0))
    value = whole.proof(log.ids()[0])
    assert refusal(written(value), whole.trust) is None
    said = verify_evidence(written(value), whole.trust).admin_statements
    assert [(s.ran, s.note) for s, _place in said] == [(True, "it was seen"), (None, "asked for")]
    assert refusal(written(value), log.trust, form=True) == "key.unknown"
    beside = [f"attachments: without {at}" for at in range(len(value["attachments"]))]
    kinds = [json.loads(item["entry"])["kind"] for item in value["entries"]]
    kept_back = [f"entries: without {kinds.index(kind)}" for kind in ("resolution", "erasure")]
    assert sorted(accepted(value, whole.trust)) == sorted(beside + kept_back)


def test_another_call_has_none_of_it(log):
    whole = settled(log, place_of(log, 0))
    first, second = (whole.proof(log.ids()[nth]) for nth in (0, 3))
    assert verify_evidence(written(second), whole.trust).admin_statements == ()
    for what, mutant in spliced(second, first):
        if mutant != second:
            form = is_form(what, mutant, second)
            assert refusal(written(mutant), whole.trust, form=form) is not None, what


@pytest.mark.parametrize("by", ["issuer", "log"])
def test_only_the_admin_key_settles(log, by):
    """What another key has signed is left out: it settles nothing, and spoils no proof."""
    other = settled(log, place_of(log, 0), by=by)
    assert verify_evidence(written(other.proof(log.ids()[0])), other.trust).admin_statements == ()
    own = settled(log, place_of(log, 0))
    proved = verify_evidence(written(own.proof(log.ids()[0])), own.trust)
    assert len(proved.admin_statements) == 2


def test_the_admin_key_is_announced_too(log):
    with pytest.raises(VerificationError) as error:
        settled(log, place_of(log, 0), announced=False).proof(log.ids()[0])
    assert error.value.code == "evidence.incomplete"


@pytest.mark.parametrize("is_compromised", [True, False])
def test_an_entry_older_than_its_call_revives_no_stolen_admin_key(
    log, places, call, is_compromised
):
    """The log's holder has the key, and writes a time from before it was compromised."""
    before = log.trust.keys[0].not_before
    whole = settled(log, place_of(log, 0))
    keys = [
        replace(one, compromised_since=before + 1) if one.use == "admin" else one
        for one in whole.trust.keys
    ]
    trust = replace(whole.trust, keys=tuple(keys)) if is_compromised else whole.trust
    long_after = log.changed(call, lambda members: members.update(at=rfc3339(before + 60)))
    announced, resolution, erasure = range(len(log.bodies), len(whole.bodies))
    bodies = [*long_after.bodies, *whole.bodies[announced:]]
    late = replace(whole, bodies=bodies, trust=trust)
    for index in (announced, resolution, erasure):
        late = late.changed(index, lambda members: members.update(at=rfc3339(before)))
    forged = late.forged([*places, announced, resolution, erasure], call)
    code = refusal(forged, trust, form=True)
    assert code == ("key.compromised" if is_compromised else None)
    reader: Any = late
    made = verify_evidence(prove_call(reader, trust, place_of(log, 0)), trust)
    assert len(made.admin_statements) == (0 if is_compromised else 2)


@pytest.mark.parametrize("change", [{"index": 0}, {"invocation_id": "f" * 32}], ids=str)
def test_a_resolution_names_its_call_in_full(log, change):
    place = replace(place_of(log, 0), **change)
    with pytest.raises(VerificationError) as error:
        settled(log, place).proof(log.ids()[0])
    assert error.value.code == "evidence.mismatch"


def test_a_resolution_of_a_call_in_another_log_is_refused(log, places, call, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(administration, "LOG", 1)
        other = settled(log, place_of(log, 0))
    said = range(len(log.bodies), len(other.bodies))
    data = other.forged([*places, *said], call)
    assert refusal(data, other.trust, form=True) == "statement.mismatch"
    own = settled(log, place_of(log, 0))
    assert refusal(own.forged([*places, *said], call), own.trust) is None


# --- what the issuer says -------------------------------------------------------------------------


def test_without_columns_the_keys_are_found_all_the_same(log, monkeypatch):
    whole = log.proof(log.ids()[0])
    monkeypatch.setattr(Log, "search", lambda *_wanted, **_options: iter(()))
    assert log.proof(log.ids()[0]) == whole


def announcing(log: Log, signer: Ed25519Signer) -> Log:
    """The log in which the issuer announces one more key for checkpoints, at its end."""
    trusted = TrustedKey("log", signer.public_key, log.trust.keys[0].not_before)
    at = parse_entry(log.bodies[-1]).at
    record = KeyEntry.new(log.signers["issuer"], trusted.as_json(), at=at)
    return replace(log, bodies=[*log.bodies, record.body])


def test_a_key_is_announced_that_nobody_trusts(log, places, call, stranger):
    """The issuer's word in the log puts no key into a trust document."""
    more = announcing(log, stranger)
    data = more.forged([*places, len(log.bodies)], call)
    assert refusal(data, log.trust, form=True) == "key.unknown"
    known = TrustedKey("log", stranger.public_key, log.trust.keys[0].not_before)
    trust = replace(log.trust, keys=(*log.trust.keys, known))
    assert refusal(data, trust, form=True) == "evidence.superfluous"


def test_a_key_is_announced_as_it_is_trusted(log, places, call, stranger):
    """Its name alone is not it: the announcement has the key of the trust document."""

    def rename(members):
        payload: Any = canonical.loads(dsse.Envelope.parse(members["statement"]).payload)
        payload["predicate"]["jwk"] = stranger.public_key.jwk()
        sealed = dsse.seal(canonical.dumps(payload), log.signers["issuer"])
        members["statement"] = sealed.as_json()

    bodies = log.bodies
    index = log.index("key")
    moved = [len(bodies) if at == index else at for at in places]
    again = replace(log, bodies=[*bodies, bodies[index]])
    assert refusal(again.forged(moved, call), log.trust) is None
    other = again.changed(len(bodies), rename)
    assert refusal(other.forged(moved, call), log.trust, form=True) == "key.unknown"
