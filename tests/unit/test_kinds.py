"""A kind of entry is one declaration: the log, the verifier, later calls and the list follow."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from embedded_parts import runtime_of

from agentguard import Decision, Guard
from agentguard.audit.contents import ContentsVerifier
from agentguard.audit.entry import KINDS, Content, Entry, Here, mismatch
from agentguard.audit.kinds import parse_entry
from agentguard.audit.state import State
from agentguard.audit.summary import Summary
from agentguard.call.invocation import timestamp
from agentguard.cli.audit import log_row
from agentguard.errors import DecodeError
from agentguard.signing.canonical import dumps
from agentguard.signing.declared import ABSENT, Absent, Count

ROOT = Path(__file__).parents[2]
AT = "2026-11-25T12:00:00.000000Z"


@pytest.fixture
def retirement() -> Iterator[type[Entry]]:
    """The declaration of a kind that agentguard does not have."""

    class RetirementEntry(Entry):
        """An agent has retired."""

        kind: ClassVar[str] = "retirement"
        agent: str
        calls: Count
        note: str | Absent = ABSENT

        @property
        def summary(self) -> Summary:
            return Summary(self.kind, self.at, agent=self.agent)

        @property
        def words(self) -> str:
            return f"it has retired after {self.calls} calls"

        def check(self, log: ContentsVerifier, here: Here) -> Content:
            if self.calls > here.index:
                raise mismatch("it has made more calls than there are entries")
            return super().check(log, here)

        def change(self, state: State) -> None:
            state.revoke(self.agent)

    yield RetirementEntry
    del KINDS["retirement"]


@pytest.mark.parametrize(("calls", "problems"), [(1, []), (99, ["it has made more calls"])])
def test_a_new_kind_is_one_declaration(retirement, calls, problems):
    record = retirement(at=AT, agent="spiffe://acme.example/agent/a/x", calls=calls).record()
    entry = parse_entry(record.body, retirement)
    assert dumps({"kind": "retirement", **entry.as_json()}) == record.body
    row = log_row.of_entry(7, entry)
    assert (row.kind, row.agent, row.reason) == ("retirement", entry.agent, entry.words)
    with Guard.ephemeral(lambda _document: Decision.allow()) as guard:
        log = runtime_of(guard).current_ports().log
        at = timestamp(log.last_at)
        log.append(retirement(at=at, agent=entry.agent, calls=calls).record())
        found = [problem.what for problem in guard.verify().problems]
        refused = log.refusal({entry.agent})
    assert len(found) == len(problems)
    assert all(part in what for part, what in zip(problems, found, strict=True))
    assert refused is not None
    assert refused[0] == "delegation.revoked"


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"agent": "a"},
        {"agent": "a", "calls": -1},
        {"agent": "a", "calls": True},
        {"agent": "a", "calls": 1, "note": None},
        {"agent": "a", "calls": 1, "more": 1},
    ],
)
def test_an_entry_with_other_members_is_none_of_the_kind(retirement, members):
    del retirement
    with pytest.raises(DecodeError) as refused:
        parse_entry(dumps({"kind": "retirement", "at": AT, **members}))
    assert refused.value.code == "entry.malformed"
    good = {"kind": "retirement", "at": AT, "agent": "a", "calls": 1, "note": "n"}
    assert dumps({"kind": "retirement", **parse_entry(dumps(good)).as_json()}) == dumps(good)
    with pytest.raises(DecodeError, match="same key twice") as refused:
        parse_entry(dumps(good)[:-1] + b',"calls":1}')
    assert refused.value.code == "json.duplicate_key"


def test_a_kind_is_declared_once(retirement):
    del retirement
    with pytest.raises(TypeError, match="two declarations of the kind retirement"):

        class Again(Entry):
            kind: ClassVar[str] = "retirement"


def test_the_table_of_the_page_is_made_from_the_declarations():
    page = subprocess.run([sys.executable, ROOT / "tools" / "kinds.py", "--check"], check=False)
    assert page.returncode == 0
