"""The examples run as a reader runs them, offline, and the log of each says what it should.

Each runs in a process of its own, with a home of its own. Beside it stands its twin: the same
example with another policy or configuration, in which what it does does not happen. One of each
is begun as a reader begins it, the others are forks of a process that has imported CrewAI.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import commands
import pytest
from denial_lines import without_denials

from agentguard import Guard, TrustDocument, VerificationError, verify_evidence

pytestmark = pytest.mark.slow(
    "an example is a process, and so is each command in it: CrewAI's import"
)

EXAMPLES = Path(__file__).parents[3] / "examples"
IDENTITIES = EXAMPLES / "crew_identities"
HIERARCHY = EXAMPLES / "crew_hierarchy"
FLOW = EXAMPLES / "crew_flow_approval.py"
WARNINGS = ("-W", "error", "-W", "ignore::ImportWarning", "-W", "ignore::DeprecationWarning")
"""Errors, but for those that CrewAI's own imports give."""

ALICE = ("user:alice", "crew:newsroom")


WAITS = (
    "publish_report waits for approval (what is published stays published): nobody has answered yet"
)
"""What is said while bob is asked, before the request that it names."""


def told_of(ran):
    """What an example has said on stderr, without refused calls and the requests that it names."""
    return [
        line.partition("; see agentguard approvals show ")[0]
        for line in without_denials(ran.stderr).splitlines()
    ]


def run(place, start, program, *arguments, **environment):
    """Run an example in an empty folder, which is as empty afterwards, with an empty home."""
    folders = {name: place / name for name in ("HOME", "TMPDIR", "cwd")}
    for folder in folders.values():
        folder.mkdir()
    own = ("AGENTGUARD_", "CREWAI_", "XDG_", "OPENAI_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    where = {name: str(folders[name]) for name in ("HOME", "TMPDIR")}
    ran = start(
        program,
        *map(str, arguments),
        cwd=folders["cwd"],
        env={**kept, **where, "COLUMNS": "160", **environment},
    )
    left = [path for folder in folders.values() for path in folder.rglob("*") if path.is_file()]
    assert [path for path in left if "crewai" not in str(path.relative_to(place))] == []
    return ran


def python(*words, **options):
    """Run Python as a reader does."""
    command = [sys.executable, *WARNINGS, *map(str, words)]
    streams = {"capture_output": True, "text": True}
    return subprocess.run(command, **options, **streams, timeout=600, check=False)


@pytest.fixture
def fork(preloaded):
    """Runs Python in a process that has imported CrewAI."""
    return functools.partial(preloaded.run, *WARNINGS)


def calls_of(signed, folder):
    """Read the calls in the log that an example has left, each verified; so is the whole log."""
    with Guard.open(folder / "agentguard.toml") as guard:
        assert guard.verify().ok
        return signed(guard), [
            verify_evidence(guard.prove(one), guard.trust) for one in ids(folder)
        ]


def ids(folder):
    command = ("audit", "list", "--kind", "call", "--last", "0", "--json")
    listed = commands.run(command, env=os.environ, cwd=folder)
    return [json.loads(line)["invocation_id"] for line in listed.stdout.splitlines()]


def told(calls):
    """Return of each call who made it, which, under which chain, why not, and what came of it."""
    return [(one.agent, one.tool, one.chain, one.code, one.outcome) for one in calls]


# crew_identities: two members, a delegation, a denial, an approval.


@pytest.fixture(scope="module")
def newsroom(tmp_path_factory):
    """The folder in which crew_identities has worked, and what it printed."""
    place = tmp_path_factory.mktemp("newsroom")
    ran = run(place, python, IDENTITIES / "main.py", "--state", place / "kept")
    assert (ran.returncode, told_of(ran)) == (0, [WAITS])
    return place / "kept", ran.stdout


def test_each_member_of_the_crew_acts_with_a_key_of_its_own_for_alice(newsroom, signed):
    folder, _ = newsroom
    calls, _ = calls_of(signed, folder)
    own, handed = (*ALICE, "researcher"), (*ALICE, "researcher", "writer")
    assert told(calls) == [
        ("researcher", "search_notes", own, "", "ok"),
        ("researcher", "read_note", own, "", "ok"),
        ("researcher", "delegate_work_to_coworker", own, "", "ok"),
        ("writer", "write_report", handed, "", "ok"),
        ("writer", "publish_report", handed, "scope.exceeded", None),
        ("writer", "publish_report", (*ALICE, "writer"), "", "ok"),
    ]
    assert len({one.instance for one in calls}) == 2
    assert [one.scope for one in calls[2:]] == [
        ("notes:read", "report:write"),
        ("report:write",),
        ("report:write",),
        ("report:publish", "report:write"),
    ]


def test_bob_has_approved_the_one_call_that_published(newsroom, signed):
    folder, _ = newsroom
    _, proved = calls_of(signed, folder)
    assert [[one.approval.approver for one in call.answers] for call in proved] == [
        *([[]] * 5),
        ["user:bob"],
    ]
    assert (folder / "published" / "heat-pumps.md").read_text() == "Heat pumps save 31 %.\n"
    assert list((folder / "drafts").iterdir()) == []


def test_the_evidence_that_it_leaves_proves_that_call_and_no_other(newsroom):
    folder, _ = newsroom
    trust = TrustDocument.loads((folder / "trust.json").read_bytes())
    data = (folder / "evidence.json").read_bytes()
    proved = verify_evidence(data, trust)
    assert (proved.call.tool, proved.data["arguments"]) == (
        "publish_report",
        {"name": "heat-pumps"},
    )
    assert proved.chain.actors == ["crew:newsroom", "agent:writer"]
    with pytest.raises(VerificationError):
        verify_evidence(data.replace(b"heat-pumps", b"heat-pumpz"), trust)


def test_it_prints_who_did_what_for_whom_and_what_came_of_it(newsroom):
    _, printed = newsroom
    rows = [re.split(r" {2,}", line.strip()) for line in printed.splitlines()]
    row = re.compile(r"(researcher|writer) [A-Za-z0-9_-]{4}\Z")
    assert [[row.sub(r"\1", cells[0]), *cells[1:]] for cells in rows if row.match(cells[0])] == [
        ["researcher", "search_notes", "user:alice", "crew:newsroom", "ok"],
        ["researcher", "read_note", "user:alice", "crew:newsroom", "ok"],
        ["researcher", "delegate_work_to_coworker", "user:alice", "crew:newsroom", "ok"],
        ["writer", "write_report", "user:alice", "crew:newsroom > researcher", "ok"],
        [
            "writer",
            "publish_report",
            "user:alice",
            "crew:newsroom > researcher",
            "denied, scope.exceeded",
        ],
        ["writer", "publish_report", "user:alice", "crew:newsroom", "ok, approved by user:bob"],
    ]
    assert "lacks the scope report:publish." in printed
    assert "The log verifies: True." in printed
    assert "\nproved, under the keys of newsroom.example:\n" in printed
    assert "\napproved by | user:bob, " in printed
    assert printed.index("waits for bob") < printed.index("bob: $ agentguard approvals approve")


def test_without_a_folder_of_its_own_it_leaves_nothing(tmp_path, fork):
    ran = run(tmp_path, fork, IDENTITIES / "main.py")
    assert (ran.returncode, told_of(ran)) == (0, [WAITS])
    assert "ok, approved by user:bob" in ran.stdout


@pytest.fixture
def changed(tmp_path):
    """Return a copy of crew_identities in which one text of a file is another."""

    def change(file, text, by):
        copied = shutil.copytree(IDENTITIES, tmp_path / "copy")
        before = (copied / file).read_text("utf-8")
        assert before.count(text) == 1
        (copied / file).write_text(before.replace(text, by), "utf-8")
        return copied / "main.py"

    return change


def test_where_the_policy_does_not_let_anybody_publish_nothing_is_published(
    changed, tmp_path, fork, signed
):
    program = changed("authz.rego", 'input.action == "publish_report"\n', "false\n")
    ran = run(tmp_path, fork, program, "--state", tmp_path / "kept")
    assert (ran.returncode, without_denials(ran.stderr)) == (0, "")
    calls, _ = calls_of(signed, tmp_path / "kept")
    assert told(calls)[-2:] == [
        (
            "writer",
            "publish_report",
            (*ALICE, "researcher", "writer"),
            "scope.exceeded",
            None,
        ),
        ("writer", "publish_report", (*ALICE, "writer"), "policy.denied", None),
    ]
    assert (tmp_path / "kept" / "drafts" / "heat-pumps.md").exists()
    assert not (tmp_path / "kept" / "published").exists()
    assert "waits for bob" not in ran.stdout


def test_where_the_researcher_may_not_hand_work_on_the_writer_does_nothing_for_it(
    changed, tmp_path, fork, signed
):
    program = changed("agentguard.toml", 'researcher = ["writer"]', "researcher = []")
    ran = run(tmp_path, fork, program, "--state", tmp_path / "kept")
    assert (ran.returncode, told_of(ran)) == (0, [WAITS])
    calls, _ = calls_of(signed, tmp_path / "kept")
    assert told(calls)[2] == (
        "researcher",
        "delegate_work_to_coworker",
        (*ALICE, "researcher"),
        "delegation.delegatee",
        None,
    )
    assert {one.chain for one in calls if one.agent == "writer"} == {(*ALICE, "writer")}


def test_an_identity_that_the_configuration_does_not_have_is_an_error(changed, tmp_path, fork):
    program = changed("config/agents.yaml", "identity: writer ", "identity: wirter ")
    ran = run(tmp_path, fork, program)
    assert ran.returncode == 1
    assert "there is no [agents.wirter]; known agents: researcher, writer" in ran.stderr
    assert "search_notes" not in ran.stdout


# crew_hierarchy: a manager and two coworkers.

HANDED = ("user:alice", "crew:office", "manager")
OFFICE = [
    ("manager", "delegate_work_to_coworker", HANDED, "", "ok"),
    ("reader", "read_invoice", (*HANDED, "reader"), "", "ok"),
    ("manager", "delegate_work_to_coworker", HANDED, "", "ok"),
    ("bookkeeper", "note_invoice", (*HANDED, "bookkeeper"), "", "ok"),
]


def test_a_manager_hands_work_on_and_a_coworker_has_no_more_than_the_manager(
    tmp_path, fork, signed
):
    ran = run(tmp_path, fork, HIERARCHY / "main.py", "--state", tmp_path / "kept")
    assert ran.returncode == 0, ran.stderr
    page = (HIERARCHY / "README.md").read_text("utf-8")
    (printed,) = re.findall(r"^```text\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert ran.stdout == printed
    calls, _ = calls_of(signed, tmp_path / "kept")
    denied = ("bookkeeper", "pay_invoice", (*HANDED, "bookkeeper"), "scope.exceeded", None)
    assert told(calls) == [*OFFICE, denied]
    assert len({one.instance for one in calls}) == 3


def test_where_the_manager_may_have_it_paid_the_bookkeeper_pays(tmp_path, fork, signed):
    """The twin: one scope more for the manager."""
    copied = shutil.copytree(HIERARCHY, tmp_path / "copy")
    table = copied / "agentguard.toml"
    before, mine = table.read_text("utf-8"), 'max_scope = ["invoice:read", "invoice:note"]'
    assert before.count(mine) == 1
    table.write_text(before.replace(mine, f'{mine[:-1]}, "invoice:pay"]'), "utf-8")
    ran = run(tmp_path, fork, copied / "main.py", "--state", tmp_path / "kept")
    assert (ran.returncode, without_denials(ran.stderr)) == (0, "")
    calls, _ = calls_of(signed, tmp_path / "kept")
    assert told(calls) == [
        *OFFICE,
        ("bookkeeper", "pay_invoice", (*HANDED, "bookkeeper"), "", "ok"),
    ]


# With a real model, as far as that is possible without one: its API, answered by the test.


class OpenAI(BaseHTTPRequestHandler):
    """Answers chat completions: whoever may search does so once, and then all are done."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        tools = [one["function"]["name"] for one in asked.get("tools", ())]
        message = {"role": "assistant", "content": "Nothing to report.", "tool_calls": None}
        if "search_notes" in tools and asked["messages"][-1]["role"] != "tool":
            function = {"name": "search_notes", "arguments": '{"words": "parking"}'}
            message["tool_calls"] = [{"id": "call_1", "type": "function", "function": function}]
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        answer = {
            "id": "c1",
            "object": "chat.completion",
            "created": 0,
            "model": asked["model"],
            "choices": [choice],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args):
        pass


@pytest.fixture
def openai():
    """The address of an API that answers as OpenAI's."""
    with ThreadingHTTPServer(("127.0.0.1", 0), OpenAI) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def test_a_real_model_is_taken_by_the_name_that_crewai_has_for_it(openai, tmp_path, fork, signed):
    ran = run(
        *(tmp_path, fork, IDENTITIES / "main.py", "--state", tmp_path / "kept"),
        *("--model", "openai/gpt-test"),
        OPENAI_BASE_URL=openai,
        OPENAI_API_KEY="of nobody",
        NO_PROXY="127.0.0.1",
    )
    assert ran.returncode == 0, ran.stderr
    calls, _ = calls_of(signed, tmp_path / "kept")
    assert told(calls) == [("researcher", "search_notes", (*ALICE, "researcher"), "", "ok")]
    assert calls[0].arguments == {"words": "parking"}
    assert "the crew says: Nothing to report." in ran.stdout


# crew_flow_approval: three processes.

AGENT = ("user:alice", "crew:trip", "travel-agent")


def test_a_flow_that_has_paused_goes_on_in_another_process(tmp_path, signed):
    ran = run(tmp_path, python, FLOW, "--state", tmp_path / "kept")
    assert (ran.returncode, without_denials(ran.stderr)) == (0, "")
    assert (tmp_path / "kept" / "deeds.txt").read_text() == (
        "booked a seat in ICE 1507\npaid 59.90\n"
    )
    calls, proved = calls_of(signed, tmp_path / "kept")
    assert [(one.agent, one.tool, one.chain, one.decision, one.outcome) for one in calls] == [
        ("travel-agent", "book_seat", AGENT, "allow", "ok"),
        ("travel-agent", "book_seat", AGENT, "allow", "not_run"),  # its result was handed out
        ("travel-agent", "pay", AGENT, "allow", "ok"),
    ]
    begun, again, paid = calls
    assert begun.instance != again.instance == paid.instance  # two processes, two keys
    assert begun.site == again.site
    assert [[one.approval.approver for one in call.answers] for call in proved] == [
        *([[]] * 2),
        ["user:bob"],
    ]
    steps = [ran.stdout.index(text) for text in ("\n  the tool runs: booked", "the flow pauses")]
    steps += [ran.stdout.index(text) for text in ("approved by user:bob", "the tool runs: paid")]
    assert steps == sorted(steps)
    assert ran.stdout.count("the tool runs: booked") == 1
    assert "the crew says: It is booked." in ran.stdout


def test_without_a_key_for_a_real_model_a_flow_ends_with_one_sentence(tmp_path, fork):
    ran = run(tmp_path, fork, FLOW, "--model", "openai/gpt-test")
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    assert ran.stderr.splitlines()[-1].startswith("--model openai/gpt-test failed: ValueError: ")


@pytest.fixture
def flow(tmp_path):
    """Return a copy of crew_flow_approval in which one text is another."""

    def change(text, by):
        before = FLOW.read_text("utf-8")
        assert before.count(text) == 1
        (tmp_path / FLOW.name).write_text(before.replace(text, by), "utf-8")
        return tmp_path / FLOW.name

    return change


def test_where_the_policy_denies_the_payment_nothing_is_paid_and_nobody_asked(
    flow, tmp_path, fork, signed
):
    program = flow(' if input.action == "pay"', " if false")
    ran = run(tmp_path, fork, program, "--state", tmp_path / "kept")
    assert ran.returncode == 1
    assert "it did not pause: It is booked." in ran.stderr
    assert (tmp_path / "kept" / "deeds.txt").read_text() == "booked a seat in ICE 1507\n"
    calls, _ = calls_of(signed, tmp_path / "kept")
    assert [(one.tool, one.code) for one in calls] == [
        ("book_seat", ""),
        ("pay", "policy.denied"),
    ]


def test_what_bob_rejects_is_not_paid_by_the_process_that_goes_on(flow, tmp_path, fork, signed):
    program = flow('("approvals", "approve", request, ', '("approvals", "reject", request, ')
    ran = run(tmp_path, fork, program, "--state", tmp_path / "kept")
    assert (ran.returncode, without_denials(ran.stderr)) == (0, "")
    assert (tmp_path / "kept" / "deeds.txt").read_text() == "booked a seat in ICE 1507\n"
    calls, proved = calls_of(signed, tmp_path / "kept")
    assert [(one.tool, one.code, one.outcome) for one in calls][2:] == [
        ("pay", "approval.rejected", None)
    ]
    assert [one.approval.approver for one in proved[-1].answers] == ["user:bob"]
