"""``agentguard audit list``: each filter and what it leaves out, as a table and as JSON."""

from __future__ import annotations

import base64
import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta

import click
import pytest

from agentguard import Decision, Denied, Guard
from agentguard.audit.summary import Search
from agentguard.cli.audit import lookup
from agentguard.cli.audit.filters import Filter
from agentguard.cli.audit.history import History
from agentguard.cli.terminal.times import moment
from agentguard.signing import canonical

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
A, B = "assistant", "reviewer"

# The calls of the fixture, in their order: agent, tool, task, traced, decision, outcome.
CALLS = [
    (A, "read_file", None, True, "allow", "ok"),
    (B, "get_file", "task-1", False, "allow", "ok"),
    (A, "read_file", None, True, "deny", None),
    (A, "get_file", "task-2", False, "allow", "error"),
    (B, "list_files", "task-1", False, "deny", None),
    (A, "read_file", "task-1", False, "allow", "in_doubt"),
]


@pytest.fixture
def rows(busy):
    """``rows(*ARGS)`` is what ``audit list ARGS --json`` prints, read."""

    def read(*args):
        result = busy.run("audit", "list", *args, "--json")
        assert (result.returncode, result.stderr) == (0, "")
        return [json.loads(line) for line in result.stdout.splitlines()]

    return read


@pytest.fixture
def calls(rows):
    """All calls, in their order."""
    return [row for row in rows() if row["kind"] == "call"]


def name_of(row):
    return row["agent"].split("/")[-2]


def test_the_calls_of_all_guards_are_listed_in_their_order(rows, calls):
    listed = [(name_of(c), c["tool"], c["decision"], c["outcome"]) for c in calls]
    assert listed == [(agent, tool, said, end) for agent, tool, _t, _s, said, end in CALLS]
    every = rows()
    assert [row["index"] for row in every] == list(range(len(every)))


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        (("--agent", A), [0, 2, 3, 5]),
        (("--agent", B), [1, 4]),
        (("--agent", "assist"), []),
        (("--principal", "agent:reviewer"), [1, 4]),
        (("--principal", "reviewer"), []),
        (("--tool", "read_file"), [0, 2, 5]),
        (("--tool", "read"), []),
        (("--decision", "allow"), [0, 1, 3, 5]),
        (("--decision", "deny"), [2, 4]),
        (("--decision", "approval"), []),
        (("--task", "task-1"), [1, 4, 5]),
        (("--task", "task"), []),
        (("--trace", f"{0xABC:032x}"), [0, 2]),
        (("--trace", f"{0xABC:016X}"), [0, 2]),
        (("--trace", f"{0xAB:032x}"), []),
        (("--in-doubt",), [5]),
        (("--in-doubt", "--agent", A), [5]),
        (("--in-doubt", "--agent", B), []),
        (("--agent", A, "--tool", "read_file", "--decision", "allow"), [0, 5]),
        (("--task", "task-1", "--decision", "deny"), [4]),
        (("--since", "1h"), [0, 1, 2, 3, 4, 5]),
        (("--until", "1h"), []),
        (("--tool", "get_file", "-n", "1"), [3]),
        (("--tool", "get_file", "-n", "0"), [1, 3]),
        (("--kind", "call", "-n", "2"), [4, 5]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_filter_takes_what_it_says_and_leaves_the_rest(rows, calls, filters, wanted):
    listed = [row for row in rows(*filters) if row["kind"] == "call"]
    assert listed == [calls[place] for place in wanted]


def test_one_instance_is_not_the_other_of_its_name(rows, calls):
    uris = [call["agent"] for call in calls if name_of(call) == A]
    assert len(set(uris)) == 2
    for uri in set(uris):
        assert {row["agent"] for row in rows("--agent", uri)} == {uri}
        kinds = [row["kind"] for row in rows("--agent", uri)]
        assert (kinds[0], kinds.count("call")) == ("identity", 2)


def test_a_filter_of_calls_lists_calls_and_no_outcomes(rows):
    assert {row["kind"] for row in rows("--tool", "read_file")} == {"call"}
    assert {row["kind"] for row in rows("--kind", "outcome")} == {"outcome"}
    assert len(rows("--kind", "outcome")) == 3
    assert {row["tool"] for row in rows("--kind", "outcome")} == {"read_file", "get_file"}


def test_times_bound_what_is_listed(rows, calls):
    third = calls[2]["at"]
    later = [call for call in calls if call["at"] >= third]
    kinds = ("--kind", "call")
    assert rows(*kinds, "--since", third) == later
    assert rows(*kinds, "--until", third) == calls[:2]
    moved = datetime.fromisoformat(third).astimezone().isoformat()
    assert rows(*kinds, "--since", moved) == later
    today = third[:10]
    assert rows(*kinds, "--since", today) == calls
    assert rows(*kinds, "--until", today) == []
    assert rows(*kinds, "--since", third, "--until", calls[4]["at"]) == calls[2:4]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("30m", NOW - timedelta(minutes=30)),
        ("2h", NOW - timedelta(hours=2)),
        ("7d", NOW - timedelta(days=7)),
        ("1w", NOW - timedelta(weeks=1)),
        ("1h30m10s", NOW - timedelta(hours=1, minutes=30, seconds=10)),
        ("2026-11-20", datetime(2026, 11, 20, tzinfo=UTC)),
        ("2026-11-20T08:00:00Z", datetime(2026, 11, 20, 8, tzinfo=UTC)),
        ("2026-11-20T08:00:00+02:00", datetime(2026, 11, 20, 6, tzinfo=UTC)),
        ("2026-11-20 08:00", datetime(2026, 11, 20, 8, tzinfo=UTC)),
    ],
)
def test_a_time(said, meant):
    assert moment(said, NOW) == meant


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("2026-11-20T08:00:00Z", datetime(2026, 11, 20, 8, tzinfo=UTC)),
        ("2026-11-20 08:00+02:00", datetime(2026, 11, 20, 6, tzinfo=UTC)),
        ("2026-11-20T08:00:00", None),
        ("2026-11-20", None),
        ("2h", None),
        ("yesterday", None),
    ],
)
def test_an_exact_time(said, meant):
    if meant is not None:
        assert moment(said, NOW, exact=True) == meant
        return
    with pytest.raises(click.BadParameter):
        moment(said, NOW, exact=True)


@pytest.mark.parametrize(
    "said", ["", "7", "h", "-2h", "2 h", "yesterday", "999999999w", "2026-13-01", "9999999999d"]
)
def test_no_time(said):
    with pytest.raises(click.BadParameter, match="is not a time"):
        moment(said, NOW)


@pytest.mark.parametrize(
    "wrong",
    [
        ("--since", "yesterday"),
        ("--decision", "maybe"),
        ("--kind", "nothing"),
        ("--trace", "foo"),
        ("--trace", "a" * 33),
        ("--tool", "read_file", "--kind", "outcome"),
        ("--last", "-1"),
    ],
)
def test_a_wrong_filter_is_a_usage_error(busy, wrong):
    result = busy.run("audit", "list", *wrong)
    assert (result.returncode, result.stdout) == (2, "")
    assert "Invalid value" in result.stderr
    assert "Value error" not in result.stderr


def test_the_table(busy, calls):
    shown = busy.run("audit", "list", "--kind", "call").stdout.splitlines()
    lines = [line.split() for line in shown if line.split()[0].isdigit()]
    assert [line[0] for line in lines] == [str(c["index"]) for c in calls]
    assert [line[3] for line in lines] == [call["decision"] for call in calls]
    doubtful = busy.run("audit", "list", "--in-doubt").stdout
    assert f"agentguard resolve {calls[5]['invocation_id']} --ran|--not-ran" in doubtful
    assert calls[0]["invocation_id"] not in doubtful


def test_nothing_found_is_said(busy, rows):
    shown = busy.run("audit", "list", "--tool", "nope", "--decision", "deny")
    assert shown.stdout == "nothing in the log matches: tool nope, decision deny\n"
    assert rows("--tool", "nope") == []
    assert busy.run("audit", "list", "--tool", "get_file").stdout.count("get_file") == 2


def test_the_newest_are_listed_and_that_there_are_more(busy, rows):
    every = rows()
    assert rows("-n", "4") == every[-4:]
    cut = busy.run("audit", "list", "-n", "2", "--kind", "call").stdout
    assert "these are the newest 2; --last 0 lists them all" in cut
    whole = busy.run("audit", "list", "-n", "6", "--kind", "call").stdout
    assert "newest" not in whole


def test_what_a_window_hides_is_counted_and_said_to_be_of_it(busy, rows):
    def hidden(*args):
        return busy.run("audit", "list", *args).stdout.splitlines()[-1]

    shown = rows()
    background = ("key", "config", "policy", "outcome")
    newest = [row for row in shown if row["kind"] not in background][-4]
    place = shown.index(newest)
    since = sum(row["kind"] in background for row in shown[place:])
    assert since
    said = " of outcomes, keys, configuration and policy"
    assert hidden("-n", "4").startswith(f"and {since} entr")
    assert hidden("-n", "4").endswith(f"{said} since the first of these: --all")
    total = sum(row["kind"] in background for row in shown)
    for args in ((), ("-n", "0"), ("-n", "99")):
        assert hidden(*args) == f"and {total} entries{said}: --all"


def test_a_name_that_is_no_principals_is_explained(busy):
    shown = busy.run("audit", "list", "--principal", "assistant").stdout
    assert "as in user:assistant or agent:assistant" in shown
    assert "as in" not in busy.run("audit", "list", "--principal", "agent:nobody").stdout
    assert "as in" not in busy.run("audit", "list", "--principal", "agent:assistant").stdout


@pytest.mark.parametrize("prefix", ["", "agent:"])
def test_an_instance_has_the_short_name_that_tables_print(busy, calls, rows, prefix):
    table = busy.run("audit", "list", "--kind", "call").stdout
    for uri in {call["agent"] for call in calls}:
        short = f"{name_of({'agent': uri})}:{uri.rpartition('/')[2][:4]}"
        assert f" {short} " in table
        assert rows("--agent", f"{prefix}{short}") == rows("--agent", uri) != []
        assert rows("--agent", f"{prefix}{short[:-1]}") == []
        assert rows("--agent", f"{prefix}{short}", "--decision", "allow", "-n", "1") != []
        shown = busy.run("agents", "show", f"{prefix}{short}", "--json")
        assert [one["agent"] for one in json.loads(shown.stdout)["instances"]] == [uri]
    assert busy.run("agents", "show", f"{prefix}assistant:____").returncode == 2


def test_an_empty_log_says_so(project):
    assert project.run("init").returncode == 0
    shown = project.run("audit", "list")
    assert shown.stdout.startswith("no calls yet\n")
    assert project.run("audit", "list", "--in-doubt").stdout.startswith("nothing in the log")


INSERT = """INSERT INTO entry (log, idx, kind, at, leaf, body)
    SELECT log, max(idx) + 1, ?, at, leaf, ? FROM entry"""

# --- columns that lie ----------------------------------------------------------------------------


def change(project, statement, *parameters):
    with closing(sqlite3.connect(project.state / "log.sqlite")) as connection, connection:
        assert connection.execute(statement, parameters).rowcount == 1


def listed(project, *args):
    result = project.run("audit", "list", *args, "--json")
    assert result.returncode == 0
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize(
    ("column", "lie", "filters"),
    [
        ("tool", "innocent", ("--tool", "innocent")),
        ("decision", "deny", ("--decision", "deny")),
        ("principal", "agent:reviewer", ("--principal", "agent:reviewer")),
        ("task_id", "task-9", ("--task", "task-9")),
        ("at", "1999-01-01T00:00:00.000000Z", ("--until", "2000-01-01")),
    ],
)
def test_a_changed_column_shows_nothing_that_the_entry_does_not_say(
    reshaped, calls, column, lie, filters
):
    call = calls[0]
    before = listed(reshaped, *filters)
    change(reshaped, f"UPDATE entry SET {column} = ? WHERE idx = ?", lie, call["index"])  # noqa: S608
    assert listed(reshaped, *filters) == before
    assert call not in before
    # unfiltered, no column counts: the entry is listed, and as it is
    assert call in listed(reshaped)
    report = json.loads(reshaped.run("audit", "verify", "--json").stdout)
    problems = [problem for problem in report["problems"] if "columns" in problem["what"]]
    assert [p["index"] for p in problems] == [call["index"]]


def test_an_emptied_column_hides_no_call(reshaped, calls):
    call = calls[0]
    change(
        reshaped, "UPDATE entry SET invocation_id = NULL, tool = NULL WHERE idx = ?", call["index"]
    )
    assert call in listed(reshaped)
    told = reshaped.run("audit", "show", str(call["index"]), "--json")
    assert json.loads(told.stdout)["invocation_id"] == call["invocation_id"]
    assert reshaped.run("audit", "verify").returncode == 1


def test_an_outcome_is_of_the_call_that_it_names(reshaped, calls):
    """A column that gives another call's outcome to the one in doubt settles nothing."""
    doubtful = calls[5]["invocation_id"]
    change(
        reshaped,
        "UPDATE entry SET kind = 'outcome', invocation_id = ?, status = 'ok' WHERE idx = ?",
        doubtful,
        calls[2]["index"],
    )
    (row,) = [row for row in listed(reshaped) if row["invocation_id"] == doubtful]
    assert row["outcome"] == "in_doubt"
    told = json.loads(reshaped.run("audit", "show", doubtful, "--json").stdout)
    assert told["outcome"] is None


def test_a_story_finds_an_outcome_that_no_column_gives(reshaped, calls):
    call = calls[0]
    statement = "UPDATE entry SET invocation_id = NULL WHERE kind = 'outcome'"
    change(reshaped, f"{statement} AND invocation_id = ?", call["invocation_id"])
    told = json.loads(reshaped.run("audit", "show", call["invocation_id"], "--json").stdout)
    assert told["outcome"]["status"] == "ok"
    assert told["problems"] == []


@pytest.mark.parametrize("kind", ["call", "outcome", "resolution", "erasure"])
def test_an_entry_that_holds_no_base64_is_none_of_a_call(reshaped, calls, kind, tmp_path):
    """Neither finding a call nor telling the story of one in doubt stops at it."""
    body = f'{{"kind":"{kind}","payload":"A"}}'.encode()
    change(reshaped, INSERT, kind, body)
    proof = tmp_path / "proof.json"
    unknown = reshaped.run("evidence", "make", "f" * 32, "-o", proof)
    assert unknown.returncode == 2
    assert "[call.unknown]" in unknown.stderr
    proved = reshaped.run("evidence", "make", calls[5]["invocation_id"], "-o", proof)
    assert proved.returncode == 0, proved.stderr
    told = json.loads(reshaped.run("audit", "show", calls[5]["invocation_id"], "--json").stdout)
    assert (told["outcome"], told["resolution"], told["problems"]) == (None, None, [])


@pytest.mark.parametrize("name", ["task_id", "traceparent", "invocation_id", "tool"])
@pytest.mark.parametrize("value", [7, {"a": []}, ["x"]])
def test_a_call_that_is_not_made_as_calls_are_is_damaged(reshaped, calls, name, value):
    """Whoever has the log's key can write anything into it; readers say so, and go on."""
    call = calls[0]
    path = reshaped.state / "log.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        (body,) = connection.execute(
            "SELECT body FROM entry WHERE idx = ?", (call["index"],)
        ).fetchone()
        members = json.loads(body)
        sealed = members["invocation"]
        statement = json.loads(base64.b64decode(sealed["payload"]))
        statement["predicate"][name] = value
        sealed["payload"] = base64.b64encode(canonical.dumps(statement)).decode()
        connection.execute(
            "UPDATE entry SET body = ? WHERE idx = ?", (canonical.dumps(members), call["index"])
        )
    (row,) = [row for row in listed(reshaped) if row["index"] == call["index"]]
    assert row["kind"] == "damaged"
    for command in (("list",), ("show", str(call["index"])), ("export",), ("verify", "--json")):
        assert "Traceback" not in reshaped.run("audit", *command).stderr
    report = json.loads(reshaped.run("audit", "verify", "--json").stdout)
    assert call["index"] in {p["index"] for p in report["problems"]}


def test_a_log_in_memory_is_listed_and_looked_up_as_one_on_disk_is():
    def policy(call):
        return Decision.allow() if call["args"]["path"] == "a" else Decision.deny("only a")

    with Guard.ephemeral(policy) as guard:
        read = guard.tool(name="read_file")(lambda path: path)
        agent = guard.new_agent("assistant")
        agent.call(read, path="a")
        with pytest.raises(Denied):
            agent.call(read, path="b")
    reader = guard.reader()
    history = History(reader)
    listed = [row for row in history.rows(newest_first=True) if row.kind == "call"]
    assert [(row.decision, row.outcome) for row in listed] == [("deny", None), ("allow", "ok")]
    denied = Filter(Search(kind="call", decision="deny"))
    (row,) = history.rows(denied)
    assert (row.reason, row.tool) == ("only a", "read_file")
    assert list(history.rows(Filter(in_doubt=True))) == []
    assert lookup.find(reader, str(row.invocation_id)[:8]).index == row.index
