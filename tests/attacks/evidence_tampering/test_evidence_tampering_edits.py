"""Evidence that was edited, spliced with other evidence, or signed by the wrong keys is refused.

Every mutant goes through agentguard and through ``examples/verify_evidence``, which shares no code
with agentguard. A mutant in what is signed, hashed or committed to is refused by both. Mutants that
touch the form alone are listed (``FORM``): the example accepts them, or the list is wrong.
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
from evidence_mutants import Log, accepted, edits, is_form, refusal, spliced, written

from agentguard import Decision, Guard
from agentguard.audit import checkpoint
from agentguard.audit.evidence import verify_evidence
from agentguard.audit.summary import Search
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical
from agentguard.signing.canonical import b64_decode, b64_encode


@pytest.fixture(scope="module")
def denied(log) -> Any:
    """The evidence of a call that was denied."""
    return log.proof(log.ids()[2])


def test_the_untampered_twins_are_accepted(log, ran, denied):
    assert refusal(written(ran), log.trust) is None
    assert refusal(written(denied), log.trust) is None
    for wanted in log.ids():
        assert refusal(written(log.proof(wanted)), log.trust) is None


NAMES = ("\U0001f600", "\uff5e")
"""They stand in one order by their code points, and in the other by UTF-16's code units."""


@pytest.mark.parametrize(
    "tables",
    [
        {"tools": {name: {} for name in (*NAMES, "read")}},
        {"redact": {name: ["/args/q"] for name in NAMES}},
    ],
)
def test_names_of_the_configuration_are_sorted_as_rfc_8785_says(tables):
    with Guard.ephemeral(lambda _call: Decision.allow(), config=tables) as guard:
        tool = guard.tool(name="read")(lambda: 1)
        guard.new_agent("reader").call(tool)
        (index,) = guard.reader().search(Search("call"))
        stored = guard.reader().entry(index)
        assert stored is not None
        assert stored.summary is not None
        data = guard.prove(str(stored.summary.invocation_id))
        assert refusal(data, guard.trust) is None


def test_whoever_else_signs_a_checkpoint_is_in_nobodys_way(log, ran):
    """A witness under another name, with the four bytes that the log's key has under its own."""
    origin = log.trust.log
    key_id = checkpoint.key_id(origin, log.signers["log"].public_key)
    for name, data in (("witness.example", key_id + bytes(64)), ("w", b"abcde")):
        line = f"\u2014 {name} {canonical.b64_encode(data)}\n"
        witnessed = deepcopy(ran)
        for item in witnessed["entries"]:
            item["proof"] += line
        assert refusal(written(witnessed), log.trust) is None


def test_under_the_logs_own_name_it_would_be(log, ran):
    """The twin."""
    origin = log.trust.log
    key_id = checkpoint.key_id(origin, log.signers["log"].public_key)
    line = f"\u2014 {origin} {canonical.b64_encode(key_id + bytes(64))}\n"
    witnessed = deepcopy(ran)
    for item in witnessed["entries"]:
        item["proof"] += line
    assert refusal(written(witnessed), log.trust) is not None


DENIED = pytest.param("denied", marks=pytest.mark.slow("hundreds of files, each verified twice"))


@pytest.mark.parametrize("which", ["ran", DENIED])
def test_every_edit_is_refused_but_for_leaving_out_what_is_beside(log, which, request):
    value = request.getfixturevalue(which)
    beside = [f"attachments: without {at}" for at in range(len(value["attachments"]))]
    assert sum(1 for _ in edits(value)) > 600
    assert accepted(value, log.trust) == beside


def test_what_was_left_out_is_not_told(log, ran):
    for at, role in enumerate(("arguments", "input", "result")):
        left = deepcopy(ran)
        assert left["attachments"].pop(at)["role"] == role
        said = verify_evidence(written(left), log.trust)
        assert sorted({*said.data, role}) == ["arguments", "input", "result"]
        assert role not in said.data


def test_every_edit_inside_an_entry_is_refused(log, ran):
    """Also in what is signed there; the entry is written in its canonical form again."""
    for at, item in enumerate(ran["entries"]):
        for what, changed in edits(json.loads(item["entry"])):
            mutant = deepcopy(ran)
            mutant["entries"][at]["entry"] = canonical.dumps(changed).decode()
            assert refusal(written(mutant), log.trust) is not None, f"{at}: {what}"


def test_an_outcome_can_be_kept_back_and_nothing_says_so(log, ran):
    """What no file can tell; it is said with every proof of a call without an outcome."""
    cut = deepcopy(ran)
    kinds = [json.loads(item["entry"])["kind"] for item in cut["entries"]]
    del cut["entries"][kinds.index("outcome")]
    assert refusal(written(cut), log.trust) == "statement.mismatch"  # of the result
    cut["attachments"] = [kept for kept in cut["attachments"] if kept["role"] != "result"]
    assert refusal(written(cut), log.trust) is None
    assert verify_evidence(written(cut), log.trust).outcome is None


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_nothing_of_another_call_gets_in(log, ran, nth):
    """Of the same agent, which failed; of the same, which was denied; of another agent."""
    another = log.proof(log.ids()[nth])
    tried = 0
    for what, mutant in spliced(ran, another):
        if mutant != ran:
            tried += 1
            form = is_form(what, mutant, ran)
            assert refusal(written(mutant), log.trust, form=form) is not None, what
    assert tried > 50


def test_nothing_of_another_log_gets_in(log, other, ran):
    another = other.proof(other.ids()[0])
    assert refusal(written(another), other.trust) is None
    assert refusal(written(another), log.trust) == "checkpoint.origin"
    assert refusal(written(ran), other.trust) == "checkpoint.origin"
    elsewhere = replace(log.trust, log=other.trust.log)  # of the same keys
    assert refusal(written(ran), elsewhere) == "checkpoint.origin"
    for what, mutant in spliced(ran, another):
        assert refusal(written(mutant), log.trust) is not None, what


# --- keys ---------------------------------------------------------------------------------------


def with_keys(log: Log, of_use: str, **changes: Any) -> TrustDocument:
    keys = [replace(k, **changes) if k.use == of_use else k for k in log.trust.keys]
    return replace(log.trust, keys=tuple(keys))


@pytest.mark.parametrize("use", ["issuer", "log"])
@pytest.mark.parametrize(
    ("end", "code"), [("not_after", "key.expired"), ("compromised_since", "key.compromised")]
)
def test_what_a_key_signed_after_its_end_does_not_count(log, ran, use, end, code):
    since = log.trust.keys[0].not_before
    assert refusal(written(ran), with_keys(log, use, **{end: since + 3600})) is None
    assert refusal(written(ran), with_keys(log, use, **{end: since})) == code


def test_a_key_that_came_later_issued_nothing_and_may_have_signed_the_newest_checkpoint(log, ran):
    later = {"not_before": log.trust.keys[0].not_before + 3600}
    assert refusal(written(ran), with_keys(log, "issuer", **later), form=True) == "key.expired"
    assert refusal(written(ran), with_keys(log, "log", **later)) is None


@pytest.mark.parametrize("use", ["issuer", "log"])
def test_a_key_for_another_use_does_not_count(log, ran, use):
    assert refusal(written(ran), with_keys(log, use, use="admin")) in {
        "key.unknown",
        "signature.missing",
    }


@pytest.mark.parametrize("use", ["issuer", "log"])
def test_a_trust_document_without_the_key_believes_nothing(log, ran, stranger, use):
    strange = with_keys(log, use, key=stranger.public_key)
    assert refusal(written(ran), strange) in {"key.unknown", "signature.missing"}
    none = replace(log.trust, keys=())
    assert refusal(written(ran), none) is not None


# --- hostile files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"null\n",
        b"[]\n",
        b"{}\n",
        b"7",
        b'"urn:agentguard:evidence:v1"',
        b"\xff\xfe",
        b"\xef\xbb\xbf{}\n",
        b"NaN\n",
        b'{"type":"urn:agentguard:evidence:v1","type":"urn:agentguard:evidence:v1"}\n',
        b'{"entries":"\\ud800"}\n',
        b'{"entries":1e400}\n',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"{" + b" " * 20_000_000 + b"}",
    ],
    ids=lambda data: repr(data[:16]),
)
def test_a_hostile_file_is_refused(log, data):
    assert refusal(data, log.trust) is not None


def test_only_the_one_canonical_form_is_read(log, ran):
    data = written(ran)
    assert refusal(data, log.trust) is None
    forms = [
        data[:-1],
        data + b"\n",
        b" " + data,
        json.dumps(ran).encode(),
        json.dumps(ran, indent=2, sort_keys=True).encode(),
        data.replace("\u2014".encode(), b"\\u2014"),
        data.replace(b"{", b'{"type":"urn:agentguard:evidence:v1",', 1),
    ]
    for other in forms:
        assert refusal(other, log.trust, form=True) is not None, other[:40]
    assert refusal(data.replace(b'"size":', b'"size":0'), log.trust) == "json.malformed"


def test_base64_has_one_form(log, ran):
    for what in ("root", "salt"):
        mutant = deepcopy(ran)
        holder = mutant["consistency"] if what == "root" else mutant["attachments"][0]
        data = b64_decode(holder[what])
        *head, last, _pad = holder[what]
        assert b64_encode(data) == holder[what]
        holder[what] = "".join(head) + chr(ord(last) + 1) + "="
        assert refusal(written(mutant), log.trust, form=True) is not None, what
