"""Evidence across a key's rotation: what was proved stays proved, and what a thief made is not.

What docs/how-to/keys.md says, of files with evidence; both verifiers are asked.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agentguard.audit.evidence import verify_evidence
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import CallEntry
from agentguard.audit.prove import prove_call
from agentguard.audit.summary import Search
from agentguard.cli.audit import evidence_report
from agentguard.domain import keystore, rotation
from agentguard.domain.domain import StateDomain
from agentguard.errors import DecodeError, VerificationError
from agentguard.identity.trust import TrustDocument
from agentguard.store.reader import StoredLog
from agentguard.store.store import Store

EXAMPLE = Path(__file__).parents[2] / "examples" / "verify_evidence" / "verify_evidence.py"
PASSPHRASE = b"correct horse battery staple"
INDEPENDENT: Callable[[bytes, bytes], Any] = runpy.run_path(str(EXAMPLE))["verify"]

both_uses = pytest.mark.parametrize("use", ["issuer", "log"])


def refusal(data: bytes, trust: TrustDocument) -> str | None:
    """The code with which evidence is refused, None if it is accepted; both verifiers agree."""
    code = why = None
    try:
        verify_evidence(data, trust)
    except (DecodeError, VerificationError) as error:
        code = error.code
    try:
        INDEPENDENT(data, trust.dumps())
    except Exception as refused:  # noqa: BLE001  as its last lines do
        why = repr(refused)
    assert (code is None) is (why is None), f"agentguard: {code}, the other: {why}"
    return code


class History:
    """A domain in which time goes by, calls are made, proved, and keys rotated."""

    def __init__(self, place: Any, clock: Any) -> None:
        self.place, self.clock = place, clock
        self.calls: dict[str, str] = {}

    @property
    def trust(self) -> TrustDocument:
        return keystore.load_trust(self.place.config.state)

    def later(self) -> Any:
        self.clock.advance(hours=2)
        return self.clock.now

    def call(self, what: str) -> None:
        with self.place.open() as guard:
            guard.new_agent("reader").call(guard.tool(name="say")(lambda what: what), what)
        self.find(what)

    def find(self, what: str) -> None:
        """Give the newest call a name."""
        with closing(StoredLog.of(self.place.config.state)) as reader:
            (*_older, newest) = reader.search(Search(kind="call"))
            stored = reader.entry(newest)
        assert stored is not None
        self.calls[what] = str(parse_entry(stored.body, CallEntry).invocation_id)

    def prove(self, what: str) -> bytes:
        """Make the evidence of a call from the log as it is now, under the document of now."""
        with closing(StoredLog.of(self.place.config.state)) as reader:
            return prove_call(reader, self.trust, self.calls[what])

    def rotate(self, use: Any, **options: Any) -> None:
        rotation.rotate(self.place.config, PASSPHRASE, use, now=self.clock.now, **options)


@pytest.fixture
def history(place, clock) -> History:
    made = History(place, clock)
    made.call("before")
    return made


@both_uses
def test_what_was_proved_before_a_rotation_stays_proved(history, use):
    proof, old = history.prove("before"), history.trust
    history.later()
    history.rotate(use)
    history.clock.advance(days=400)  # long past the overlap
    history.call("after")
    new = history.trust
    assert new != old
    assert refusal(proof, old) is None
    assert refusal(proof, new) is None
    assert refusal(history.prove("before"), new) is None
    assert refusal(history.prove("after"), new) is None


@pytest.mark.parametrize(("use", "code"), [("issuer", "key.unknown"), ("log", "signature.missing")])
def test_what_a_new_key_has_signed_needs_the_new_trust_document(history, use, code):
    old = history.trust
    history.later()
    history.rotate(use)
    history.call("after")
    assert refusal(history.prove("after"), old) == code
    assert refusal(history.prove("after"), history.trust) is None


@both_uses
def test_the_old_key_counts_until_its_overlap_is_over(history, monkeypatch, use):
    """In the hands of a process that never notices, as a thief's would not."""
    monkeypatch.setattr(StateDomain, "renewed", lambda _home: None)
    monkeypatch.setattr(Store, "_is_replaced", lambda *_given: False)
    with history.place.open() as guard:
        say = guard.tool(name="say")(lambda what: what)
        history.later()
        history.rotate(use, overlap=timedelta(hours=3))
        history.later()
        guard.new_agent("reader").call(say, "in the overlap")
        history.find("in the overlap")
        during = history.prove("in the overlap")
        history.later()
        guard.new_agent("reader").call(say, "too late")
        history.find("too late")
    with pytest.raises(VerificationError) as late:
        history.prove("too late")
    assert late.value.code == "key.expired"
    assert refusal(during, history.trust) is None


# --- compromised ----------------------------------------------------------------------------------


@both_uses
def test_what_was_proved_before_a_compromise_stays_proved(history, use):
    proof, old = history.prove("before"), history.trust
    since = history.later()
    history.later()
    history.rotate(use, compromised_since=since)
    assert refusal(proof, old) is None
    assert refusal(proof, history.trust) is None
    assert refusal(history.prove("before"), history.trust) is None


@both_uses
def test_what_was_proved_since_a_compromise_is_refused_by_who_has_the_new_document(history, use):
    old, since = history.trust, history.later()
    history.clock.advance(minutes=1)
    history.call("since")
    proof = history.prove("since")
    history.later()
    history.rotate(use, compromised_since=since)
    assert refusal(proof, history.trust) == "key.compromised"
    assert refusal(proof, old) is None  # until a verifier has the new one


def test_the_new_log_key_vouches_for_what_was_logged_since(history):
    """Its next checkpoint covers all entries: whether they are true, somebody has to look."""
    since = history.later()
    history.clock.advance(minutes=1)
    history.call("since")
    history.later()
    history.rotate("log", compromised_since=since)
    assert refusal(history.prove("since"), history.trust) is None


def test_a_call_under_a_credential_of_a_stolen_issuer_is_not_proved_any_more(history):
    since = history.later()
    history.clock.advance(minutes=1)
    history.call("since")
    history.later()
    history.rotate("issuer", compromised_since=since)
    history.call("after")
    with pytest.raises(VerificationError) as stolen:
        history.prove("since")
    assert stolen.value.code == "key.compromised"
    assert refusal(history.prove("after"), history.trust) is None


def test_who_reads_a_proof_by_a_compromised_log_key_is_told(history):
    """A thief could have set the times back, before the compromise."""
    proof, since = history.prove("before"), history.later()
    history.rotate("log", compromised_since=since)
    told = list(evidence_report.limits(verify_evidence(proof, history.trust)))
    (compromised,) = [said for said in told if "was compromised at" in said]
    assert since.isoformat()[:16] in compromised
    anew = verify_evidence(history.prove("before"), history.trust)
    assert not any("was compromised at" in said for said in evidence_report.limits(anew))
