"""Resolutions that do not fit their calls are found: of a denied call, of another log, of another
form.
"""

from __future__ import annotations

import shutil
from datetime import UTC, datetime

import pytest
from calls_in_doubt import (
    PASSPHRASE,
    admin_of,
    append,
    found,
    in_doubt,
    now,
    place_of,
    report,
    resolve,
    settings_in,
)

from agentguard import Decision, Denied, Guard, StorageError
from agentguard.audit.entry import CallPlace, Record
from agentguard.audit.kinds.administration import ErasureEntry, ResolutionEntry
from agentguard.audit.summary import Summary
from agentguard.domain import administration, domain, keystore
from agentguard.errors import CallError, EncodeError, KeyMaterialError
from agentguard.guard.embedded import Embedded
from agentguard.policy.function import FunctionEngine
from agentguard.signing import canonical, dsse


def say(settings, where, *, ran=True, kind="resolution"):
    """Append what the admin key says without asking what stands in the log; return its place."""
    admin = admin_of(settings)
    if kind == "erasure":
        return append(settings, ErasureEntry.new(admin, where, note="n", at=now()))
    return append(settings, ResolutionEntry.new(admin, where, ran=ran, note="n", at=now()))


def test_a_resolution_of_a_denied_call_is_found(settings):
    home = domain.take_up(settings, PASSPHRASE)
    with Guard(Embedded(settings, FunctionEngine(lambda _d: Decision.deny("no")), home)) as guard:
        tool = guard.tool(name="work")(lambda what: what)
        with pytest.raises(Denied):
            guard.new_agent("a").call(tool, "denied")
    place = say(settings, place_of(settings, "denied"))
    assert found(settings) == [(place.index, "it resolves a call that was denied")]


def test_a_resolution_of_a_call_that_has_an_outcome_is_found(settings):
    place = say(settings, place_of(settings, "done"))
    what = "it resolves a call whose outcome stands before it"
    assert found(settings) == [(place.index, what)]


def test_the_twin_an_erasure_of_any_call_is_none(settings):
    """And the call in doubt may be resolved."""
    say(settings, place_of(settings, "done"), kind="erasure")
    say(settings, place_of(settings, "die"), kind="erasure")
    assert found(settings) == []
    say(settings, place_of(settings, "die"))
    assert found(settings) == []
    assert report(settings).in_doubt == ()


@pytest.mark.parametrize("first", [True, False])
def test_resolutions_that_contradict_each_other_are_found(settings, first):
    where = place_of(settings, "die")
    say(settings, where, ran=first)
    say(settings, where, ran=first)  # once more the same: true, if it is true
    assert found(settings) == []
    place = say(settings, where, ran=not first)
    what = "it contradicts another resolution of the same call"
    assert found(settings) == [(place.index, what)]


def elsewhere(settings, **changes):
    where = place_of(settings)
    fields = {
        "index": where.index,
        "invocation_id": where.invocation_id,
        "invocation_sha256": where.invocation_sha256,
    }
    return CallPlace(**{**fields, **changes})


NOWHERE = {
    "no such index": {"index": 9999},
    "a negative index": {"index": -1},
    "another kind of entry": {"index": 0},
    "an index past SQLite's": {"index": 2**53 - 1},
}


@pytest.mark.parametrize("kind", ["resolution", "erasure"])
@pytest.mark.parametrize("changes", NOWHERE.values(), ids=NOWHERE)
def test_a_statement_of_a_call_that_is_not_there_is_found(settings, kind, changes):
    """Signed by the admin key itself: of a call that was removed, or never was."""
    doubtful, where = in_doubt(settings), elsewhere(settings, **changes)
    admin = admin_of(settings)
    record = (
        ResolutionEntry.new(admin, where, ran=True, note="n", at=now())
        if kind == "resolution"
        else ErasureEntry.new(admin, where, note="n", at=now())
    )
    place = append(settings, record)
    found = report(settings)
    assert [problem.index for problem in found.problems] == [place.index]
    assert found.in_doubt == (doubtful,)


def test_a_resolution_from_another_log_is_refused(settings, tmp_path_factory):
    """Another trust domain's admin key, about a call with the same place."""
    folder = tmp_path_factory.mktemp("other")
    theirs = settings_in(folder)
    domain.found(theirs, PASSPHRASE, now=datetime.now(UTC))
    admin = keystore.load_key(theirs.state, "admin", PASSPHRASE)
    doubtful = in_doubt(settings)
    record = ResolutionEntry.new(admin, place_of(settings), ran=True, note="n", at=now())
    place = append(settings, record)
    found = report(settings)
    assert [problem.index for problem in found.problems] == [place.index]
    assert "no admin key" in found.problems[0].what
    assert found.in_doubt == (doubtful,)


@pytest.mark.parametrize(
    "predicate",
    [
        {"ran": None},
        {"ran": 1},
        {"ran": "true"},
        {"ran": ...},
        {"note": None},
        {"note": ...},
        {"authorization": None},
        {"authorization": {"log": "0", "index": 1}},
        {"authorization": {"log": 0}},
        {"authorization": {"log": True, "index": 1}},
        {"invocation_id": None},
        {"more": 1},
    ],
    ids=str,
)
def test_a_resolution_of_another_form_is_malformed(settings, predicate):
    where = place_of(settings)
    said = {
        "invocation_id": where.invocation_id,
        "authorization": {"log": 0, "index": where.index},
        "ran": True,
        "note": "n",
        **predicate,
    }
    said = {name: value for name, value in said.items() if value is not ...}
    statement = dsse.statement("resolution", where.invocation_sha256, "invocation", said)
    at = now()
    sealed = dsse.seal(statement, admin_of(settings)).as_json()
    body = canonical.dumps({"kind": "resolution", "at": at, "statement": sealed})
    place = append(settings, Record(body, Summary("resolution", at, where.invocation_id)))
    found = report(settings)
    assert [problem.index for problem in found.problems] == [place.index]
    assert len(found.in_doubt) == 1


@pytest.mark.parametrize("use", ["issuer", "log"])
def test_another_key_in_the_admins_place_is_refused(settings, use):
    doubtful, entries = in_doubt(settings), report(settings).entries
    keys = settings.state / "keys"
    shutil.copy(keys / use, keys / "admin")
    with pytest.raises(KeyMaterialError) as caught:
        resolve(settings, doubtful)
    assert caught.value.code == "key.mismatch"
    assert report(settings).entries == entries


def test_a_wrong_passphrase_and_a_missing_state_are_refused(settings):
    doubtful = in_doubt(settings)
    with pytest.raises(KeyMaterialError):
        administration.resolve(
            settings, b"wrong", doubtful, ran=True, note="n", now=datetime.now(UTC)
        )
    shutil.rmtree(settings.state)
    with pytest.raises(StorageError) as caught:
        resolve(settings, doubtful)
    assert caught.value.code == "storage.missing"


def test_the_log_is_free_again_afterwards(settings):
    """Also after a refusal."""
    doubtful = in_doubt(settings)
    resolve(settings, doubtful)
    with pytest.raises(CallError):
        resolve(settings, doubtful)
    with pytest.raises(EncodeError):
        administration.erase(settings, PASSPHRASE, doubtful, note="\ud800", now=datetime.now(UTC))
    administration.erase(settings, PASSPHRASE, doubtful, note="n", now=datetime.now(UTC))
    assert report(settings).ok
