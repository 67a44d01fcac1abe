"""Who has the log's key as well, and appends what no honest process would, with valid checkpoints.

He can't make anything up that an agent signs, so he says again what one has signed once; and what a
stolen admin key signs he dates back. The entries around it tell on him.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

import pytest

from agentguard.audit.entry import Record
from agentguard.audit.find import find_call
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.administration import ResolutionEntry
from agentguard.audit.kinds.announcements import KeyEntry
from agentguard.call.invocation import timestamp
from agentguard.domain import keystore, rotation
from agentguard.store.reader import StoredLog

PASSPHRASE = b"correct horse battery staple"

CALL = ("config", "policy", "identity", "call")
"""The kinds of entries that a call takes."""


def call(place) -> None:
    with place.open() as guard:
        guard.new_agent("reader").call(guard.tool(lambda: None, name="pay"))


@pytest.mark.parametrize("kinds", [CALL[:3], CALL])
def test_a_call_stands_in_the_log_once(place, kinds):
    call(place)
    reader = StoredLog.of(place.config.state)
    stored = list(reader.stored())
    reader.close()
    log = place.take_up().open_log(datetime.now(UTC))
    copied = [s for s in stored if parse_entry(s.body).kind in kinds]
    for one in copied:
        assert one.summary is not None
        log.append(Record(one.body, one.summary, tuple(one.attachments)))
    log.close()
    found = [p.what for p in place.examine().problems]
    again = ["the same invocation stands in the log before"]
    assert found == (again if "call" in kinds else [])


@pytest.mark.parametrize("back", [timedelta(seconds=20), timedelta(0)])
def test_what_a_stolen_key_signs_is_not_older_than_what_stands_before_it(place, back):
    if (child := os.fork()) == 0:
        guard = place.open()
        guard.new_agent("reader").call(guard.tool(os._exit, name="die"), 0)
    os.waitpid(child, 0)
    (doubted,) = place.examine().in_doubt
    stolen = keystore.load_key(place.config.state, "admin", PASSPHRASE)
    since = datetime.now(UTC) + timedelta(seconds=10)
    at = since + timedelta(seconds=10)  # of an honest entry, long after
    log = place.take_up().open_log(at)
    reader = StoredLog.of(place.config.state)
    said = find_call(reader, doubted)
    reader.close()
    assert said is not None
    issuer, (key, *_others) = place.take_up().issuer, keystore.load_trust(place.config.state).keys
    log.append(KeyEntry.new(issuer, key.as_json(), at=timestamp(at)))
    log.append(
        ResolutionEntry.new(stolen, said.place, ran=False, note="thief", at=timestamp(at - back))
    )
    log.close()
    assert place.examine().in_doubt == ()  # nobody knows yet that it is stolen
    rotation.rotate(
        place.config, PASSPHRASE, "admin", now=at + timedelta(minutes=1), compromised_since=since
    )
    report = place.examine()
    assert [p.what for p in report.problems] == [
        f"the admin key {stolen.key_id} was compromised by then"
    ]
    assert report.in_doubt == (doubted,)
