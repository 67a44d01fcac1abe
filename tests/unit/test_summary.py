"""Summaries: what an entry is searched by, alike in memory and in a file."""

from __future__ import annotations

from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_place import Place

from agentguard.audit import summary
from agentguard.audit.entry import Record
from agentguard.audit.summary import Search, Summary
from agentguard.store.reader import StoredLog
from agentguard.store.sqlite import FileEngine

ALICE = "spiffe://acme.example/agent/alice/aaaa"
BOB = "spiffe://acme.example/agent/bob/bbbb"
LOOKALIKE = "spiffe://acme.example/agent/alice2/alice"

ONE = Summary(
    "call",
    "2026-11-25T12:00:00.000000Z",
    "0" * 32,
    ALICE,
    "agent:alice",
    "read_file",
    "allow",
    None,
    "task-1",
    "a" * 32,
)


@pytest.mark.parametrize(
    ("search", "found"),
    [
        (Search(), True),
        (Search(kind="call"), True),
        (Search(kind="outcome"), False),
        (Search(invocation_id="0" * 32), True),
        (Search(invocation_id="0" * 31), False),
        (Search(agent="alice"), True),
        (Search(agent=ALICE), True),
        (Search(agent="ali"), False),
        (Search(agent="bob"), False),
        (Search(agent="agent/alice"), False),
        (Search(agent="aaaa"), False),
        (Search(agent=ALICE[:-1]), False),
        (Search(agent="%"), False),
        (Search(principal="agent:alice"), True),
        (Search(principal="agent:alic_"), False),
        (Search(tool="read_file"), True),
        (Search(tool="READ_FILE"), False),
        (Search(decision="allow"), True),
        (Search(decision="deny"), False),
        (Search(task_id="task-1"), True),
        (Search(task_id="task-2"), False),
        (Search(trace_id="a" * 32), True),
        (Search(trace_id="b" * 32), False),
        (Search(since=ONE.at), True),
        (Search(since="2026-11-25T12:00:00.000001Z"), False),
        (Search(until=ONE.at), False),
        (Search(until="2026-11-25T12:00:00.000001Z"), True),
        (Search(tool="read_file", decision="allow", agent="alice"), True),
        (Search(tool="read_file", decision="deny", agent="alice"), False),
    ],
    ids=str,
)
def test_a_search_matches_what_it_asks_for_and_nothing_else(search, found, log):
    assert search.matches(ONE) is found
    log.append(Record(b"{}", ONE))
    assert log.search(search) == ([0] if found else [])


class Log:
    """A log in a file, in which summaries stand beside bodies that nobody parses."""

    def __init__(self, folder):
        self.place = Place(folder)
        self.store = self.place.open()

    def append(self, *records):
        self.store.run(lambda tx: [tx.append(record) for record in records])

    def search(self, search, **options):
        with closing(StoredLog(FileEngine(self.place.path, writes=False))) as reader:
            return list(reader.search(search, **options))


@pytest.fixture
def log(tmp_path):
    made = Log(tmp_path)
    yield made
    made.store.close()


def test_without_a_member_nothing_matches_a_search_for_it():
    bare = Summary("policy", ONE.at)
    for name in Search._fields:
        if name not in ("kind", "since", "until"):
            assert not Search(**{name: "x"}).matches(bare)
            assert not Search(**{name: ""}).matches(bare)
            assert not Search(**{name: "None"}).matches(bare)


values = st.sampled_from([None, "", "x", "y", "%", "_", "x'", 'x"', "\u20ac", "x\0y"])
agents = st.sampled_from([None, ALICE, BOB, LOOKALIKE, "alice", "spiffe://acme.example/user/alice"])
times = st.sampled_from([f"2026-11-25T12:00:00.00000{n}Z" for n in range(4)])
summaries = st.builds(
    Summary,
    st.sampled_from(["call", "outcome", "policy"]),
    times,
    values,
    agents,
    values,
    values,
    values,
    values,
    values,
    values,
)
searches = st.builds(
    Search,
    kind=st.sampled_from([None, "call", "outcome"]),
    invocation_id=values,
    agent=st.sampled_from([None, "alice", "alice2", "bob", ALICE, LOOKALIKE, "", "%", "x'"]),
    principal=values,
    tool=values,
    decision=values,
    task_id=values,
    trace_id=values,
    since=st.none() | times,
    until=st.none() | times,
)


@settings(max_examples=40)
@given(
    st.lists(summaries, max_size=12),
    st.lists(searches, min_size=1, max_size=12),
    st.integers(-1, 8),
)
def test_a_file_is_searched_as_memory_is(tmp_path_factory, found, asked, after):
    log = Log(tmp_path_factory.mktemp("log"))
    log.append(*(Record(b"{}", one) for one in found))
    for search in asked:
        expected = [i for i, one in enumerate(found) if search.matches(one) and i > after]
        assert log.search(search, after=after) == expected
    log.store.close()


@pytest.mark.parametrize(
    ("traceparent", "expected"),
    [
        (None, None),
        ("", None),
        ("00", None),
        (f"00-{'a' * 32}-{'b' * 16}-01", "a" * 32),
        ("x-y", "y"),
    ],
)
def test_the_trace_is_taken_from_the_traceparent(traceparent, expected):
    assert summary.trace_id(traceparent) == expected
