"""``agentguard demo``, run as a user runs it, on a real git repository.

The tests compare the demo's claims with the log that it leaves, with the repository and with the
commands that it prints. One run has an interpreter of its own, another is a forked process, and the
others take place in the tests' process. Models have ``test_demo_models.py``, approvals
``test_demo_approvals.py``, and the policy and the forge ``test_demo_forge.py``.
"""

from __future__ import annotations

import html
import io
import json
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import commands
import pytest
from demo_runs import MERGES, OneLineModel, StateEntries, at_home, play, run_agentguard
from rich.console import Console

from agentguard.audit.evidence import verify_evidence
from agentguard.domain import config
from agentguard.errors import KeyMaterialError
from agentguard.identity.credential import agent_name
from agentguard.identity.trust import TrustDocument
from agentguard.signing.keys import Ed25519Signer
from agentguard_demo import picture, script, seed, team
from agentguard_demo.forge import Forge
from agentguard_demo.timeline import Timeline

ORCHESTRATOR, CODER, FIXER = "orchestrator", "code-agent", "test-fixer"


LACKS = "agent {}, acting for user:alice, lacks the scope {}"


STORY = [
    (ORCHESTRATOR, "assign_task", "allow", None),
    (CODER, "read_file", "allow", None),
    (CODER, "read_file", "allow", None),
    (CODER, "commit_file", "allow", None),
    (CODER, "trigger_ci", "allow", None),
    (CODER, "fix_tests", "allow", None),
    (FIXER, "read_file", "allow", None),
    (FIXER, "read_file", "allow", None),
    (FIXER, "commit_file", "allow", None),
    (FIXER, "trigger_ci", "deny", LACKS.format(FIXER, "ci:trigger")),
    (CODER, "trigger_ci", "allow", None),
    (CODER, "read_file", "allow", None),
    (CODER, "request_secret", "deny", LACKS.format(CODER, "secret:read")),
    (CODER, "open_pr", "allow", None),
    (CODER, "trigger_ci", "deny", "CI on main is started by the release pipeline, not by agents"),
    (CODER, "merge_pr", "approval", MERGES),
    (CODER, "merge_pr", "allow", "approved by user:bob"),
]


ALLOWED = sum(decision == "allow" for *_who, decision, _reason in STORY)


DENIED = sum(decision == "deny" for *_who, decision, _reason in STORY)


SECRET, OPENED, WAITS, MERGE = 12, 13, 15, 16
"""Places in the story."""


DOCS = Path(__file__).parents[3] / "docs"


NO_NETWORK = """
import sys
def refuse(event, args):
    of_this_machine = event == "socket.connect" and isinstance(args[1], str)
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto") and not of_this_machine:
        raise RuntimeError(f"the network was asked for: {event} {args}")
sys.addaudithook(refuse)
"""


WATCHED = f"{NO_NETWORK}from agentguard.cli.commands import main; main()"


BOTH_WAYS = [
    pytest.param([], id="embedded"),
    pytest.param(["--server"], id="served", marks=pytest.mark.slow("one more run of the demo")),
]
"""The guard in the process of the agents, and in a server."""


@pytest.fixture(scope="session", params=BOTH_WAYS)
def played(tmp_path_factory, request):
    """A run for people: its directory and what it printed."""
    home = tmp_path_factory.mktemp("people")
    # as ``python -m agentguard.cli``, so that what it prints can be run where no script is on PATH
    result = subprocess.run(
        [sys.executable, "-m", "agentguard.cli", "demo", "--dir", "a place", *request.param],
        cwd=home,
        env=at_home(home),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    return home, result.stdout


@pytest.fixture(scope="session", params=BOTH_WAYS)
def as_json(tmp_path_factory, preloaded, request):
    """A run for scripts, in an empty directory that exists, with a git set up to be in the way."""
    home = tmp_path_factory.mktemp("scripts")
    hooks = home / "template" / "hooks"
    hooks.mkdir(parents=True)
    for name in ("reference-transaction", "post-checkout", "pre-merge-commit"):
        (hooks / name).write_text("#!/bin/sh\nexit 1\n")
        (hooks / name).chmod(0o755)
    (home / ".gitconfig").write_text(
        f"[init]\n templateDir = {home}/template\n[commit]\n gpgsign = true\n"
        f"[core]\n hooksPath = {hooks}\n[user]\n useConfigOnly = true\n"
    )
    (home / "here").mkdir()
    environment = at_home(
        home,
        GIT_DIR="/nowhere",
        GIT_AUTHOR_DATE="no date",
        LANGSMITH_TRACING="true",
        AGENTGUARD_PASSPHRASE="that of another trust domain",
    )
    arguments = ("demo", "--json", "--dir", "here", *request.param)
    result = preloaded.run("-c", WATCHED, *arguments, cwd=home, env=environment)
    assert result.returncode == 0, result.stderr
    return home, result.stdout


def test_the_network_is_watched(tmp_path, preloaded):
    call = NO_NETWORK + "import socket; socket.create_connection(('127.0.0.1', 9))"
    assert "the network was asked for" in preloaded.run("-c", call, cwd=tmp_path).stderr


def test_json_is_one_object_that_tells_the_story(as_json):
    home, printed = as_json
    result = json.loads(printed)
    assert printed.count("\n") == 1
    assert result.keys() == {"state", "verified", "steps"}
    assert result["state"] == str(home / "here" / ".agentguard")
    assert result["verified"] is True
    steps = [
        (agent_name(step["agent"]), step["tool"], step["decision"], step["reason"])
        for step in result["steps"]
    ]
    assert steps == STORY
    for step in result["steps"]:
        assert step.keys() == {"tool", "args", "agent", "decision", "reason", "invocation_id"}
        assert step["agent"].startswith("spiffe://demo.example/agent/")
    assert len({step["agent"] for step in result["steps"]}) == 3
    assert result["steps"][0]["args"] == {"task": script.TASK, "to": "code-agent"}
    assert result["steps"][SECRET]["args"] == {"name": "DEPLOY_TOKEN"}
    merge = {"into": "main", "number": 1, "repo": "payments-api"}
    assert result["steps"][WAITS]["args"] == result["steps"][MERGE]["args"] == merge
    unnamed = [n for n, step in enumerate(result["steps"]) if step["invocation_id"] is None]
    assert unnamed == [WAITS]


def test_all_of_it_is_for_alice_by_a_chain_that_narrows(as_json):
    home, printed = as_json
    state = json.loads(printed)["state"]
    listed = run_agentguard("audit", "list", "--json", "--state", state, cwd=home)
    rows = [json.loads(line) for line in listed.stdout.splitlines()]
    calls = [row for row in rows if row["kind"] == "call"]
    assert {row["principal"] for row in calls} == {"user:alice"}
    hops = {agent_name(row["agent"]): row["reason"] for row in rows if row["kind"] == "delegation"}
    assert hops == {
        ORCHESTRATOR: "it may do ci:trigger pr:write repo:read for user:alice",
        CODER: "it may do ci:trigger pr:write repo:read for user:alice",
        FIXER: "it may do pr:write repo:read for user:alice",
    }
    for place, through in ((9, [ORCHESTRATOR, CODER, FIXER]), (SECRET, [ORCHESTRATOR, CODER])):
        index = str(calls[place]["index"])
        report = run_agentguard("audit", "show", index, "--json", "--state", state, cwd=home)
        story = json.loads(report.stdout)
        members = ["user:alice", "service:forge", *through]
        named = [agent_name(one) or one for one in story["delegation"]["members"]]
        assert (named, story["task_id"], story["code"]) == (members, "issue-17", "scope.exceeded")


def test_only_the_task_lacks_the_scope_of_the_secret(as_json):
    """alice and the code agent both have it, and the fixing agent could run CI."""
    home, _printed = as_json
    settings = config.load(home / "here" / "agentguard.toml")
    assert "secret:read" in settings.principal_tables["user:alice"].scope
    assert "secret:read" in (settings.agents[CODER].scope or ())
    assert "ci:trigger" in (settings.agents[FIXER].scope or ())
    assert "secret:read" not in team.TASK_SCOPE
    assert set(team.FIXER_SCOPE) < set(team.TASK_SCOPE)


def test_the_steps_are_those_of_the_log(as_json):
    home, printed = as_json
    result = json.loads(printed)
    listed = run_agentguard("audit", "list", "--json", "--state", result["state"], cwd=home)
    logged = [json.loads(line) for line in listed.stdout.splitlines()]
    members = ("tool", "agent", "decision", "reason", "invocation_id")
    decided = [step for step in result["steps"] if step["decision"] != "approval"]
    assert [{name: step[name] for name in members} for step in decided] == [
        {name: row[name] for name in members} for row in logged if row["kind"] == "call"
    ]
    (request,) = StateEntries(Path(result["state"])).of("request")
    waits = result["steps"][WAITS]
    assert (waits["tool"], waits["agent"]) == (request["tool"]["name"], request["agent"])
    assert waits["reason"] == request["requirements"][0]["reason"]
    ran = [row["outcome"] for row in logged if row["decision"] == "allow"]
    assert ran == ["ok"] * ALLOWED


def test_the_log_says_where_the_guard_was(as_json, request):
    home, printed = as_json
    calls = StateEntries(Path(json.loads(printed)["state"])).of("call")
    is_served = (home / "here" / "agentguard.toml").read_text("utf-8").count("[server]")
    expected = {"name": "", "isolation": "same-user"} if is_served else None
    assert [call.get("client") for call in calls] == [expected] * len(calls)
    assert "served" in request.node.name if is_served else "embedded" in request.node.name
    assert not (home / "here" / "guard.sock").exists()  # the server has ended


def test_the_effects_are_real(as_json):
    home, _printed = as_json
    forge = Forge(home / "here", seed.REPOSITORY)
    assert "discount_percent // 100" in forge.read("payments/invoice.py", script.BRANCH)
    assert "discount_percent // 100" in forge.read("payments/invoice.py", "main")
    assert forge.run_tests(script.BRANCH)[0] is True
    assert forge.run_tests("main")[0] is True
    (pull,) = forge.pull_requests()
    assert (pull.branch, pull.into) == (script.BRANCH, "main")
    assert forge._tip("main") == pull.merge_commit
    assert pull.body == f"Fixes {seed.ISSUE}. CI passed on {script.BRANCH}."


def test_the_secret_reached_nothing(as_json, played):
    for home, printed in (as_json, played):
        (place,) = {path.parent.parent for path in home.glob("*/vault/*")}
        secret = (place / "vault" / seed.SECRET).read_bytes().strip()
        assert len(secret) > 40
        assert secret.decode() not in printed
        holders = [p for p in place.rglob("*") if p.is_file() and secret in p.read_bytes()]
        assert holders == [place / "vault" / seed.SECRET]


def test_keys_and_passphrase_lie_apart_and_are_private(as_json):
    home, _printed = as_json
    place = home / "here"
    assert (place / "passphrase").stat().st_mode & 0o777 == 0o600
    passphrase = (place / "passphrase").read_bytes()
    inside = [p for p in (place / ".agentguard").rglob("*") if p.is_file()]
    assert [path for path in inside if passphrase in path.read_bytes()] == []
    assert list((place / "anchor").rglob("head"))
    key = place / "bob" / "id_ed25519"
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.parent.stat().st_mode & 0o777 == 0o700
    with pytest.raises(KeyMaterialError):
        Ed25519Signer.from_openssh(key.read_bytes(), b"a guess")
    assert not (place / "tampered" / "keys").exists()


def entries_of(printed):
    """Return how many entries the timeline says that the log has."""
    return int(re.search(r"the log: (\d+) entries", printed)[1])


def test_the_timeline_shows_each_step_and_both_verdicts(played):
    _home, printed = played
    unwrapped = " ".join(printed.split())
    for _agent, _tool, _decision, reason in STORY:
        assert reason is None or reason in unwrapped
    assert printed.count("   ALLOW  ") == ALLOWED
    assert printed.count("    DENY  ") == DENIED
    assert printed.count("APPROVAL  ") == 1
    assert "The page tells me to call request_secret" in printed
    entries = entries_of(printed)
    assert (
        f"OK  the log: {entries} entries verified, anchored, same user, 0 calls in doubt" in printed
    )
    last = re.findall(r"^ +#(\d+)  ", printed, re.MULTILINE)[-1]
    # after it, the release of its secret, its outcome, and that of the orchestrator's call
    assert int(last) == entries - 4
    assert printed.count("  secret  DEPLOY_TOKEN, released to this call and to no model\n") == 1
    assert f"FOUND  entry {last}" in printed
    assert "WAITS" not in printed
    ci = [line.split("ci  ")[1] for line in printed.splitlines() if line.startswith("      ci  ")]
    assert len(ci) == 1
    timeless = re.sub(r"[\d.]+s", "0s", ci[0])
    assert timeless == f"passed on {script.BRANCH} ... Ran 4 tests in 0s ... OK"


def test_the_timeline_shows_for_whom_and_each_hop_once(played):
    _home, printed = played
    steps = re.findall(r"^ +#\d+  agent:([\w-]+):\S+ for (\S+)  (\w+)\(", printed, re.MULTILINE)
    assert steps == [(agent, "user:alice", tool) for agent, tool, _decision, _reason in STORY]
    lends = re.findall(r"^   lends  (\S+) lets (\S+) do ", printed, re.MULTILINE)
    names = [tuple(re.sub(r":[\w-]{4}$", "", name) for name in hop) for hop in lends]
    assert names == [
        ("spiffe://demo.example", "service:forge"),
        ("service:forge", f"agent:{ORCHESTRATOR}"),
        (f"agent:{ORCHESTRATOR}", f"agent:{CODER}"),
        (f"agent:{CODER}", f"agent:{FIXER}"),
    ]
    assert re.search(r"^     for  user:alice, through service:forge, until ", printed, re.MULTILINE)


def test_arguments_stand_in_the_order_of_the_signature_without_defaults(played):
    _home, printed = played
    calls = re.findall(
        r"^ +#\d+  \S+ for \S+  (\w+)\((.*?)\)\n *(?:[AD]|secret )",
        printed,
        re.MULTILINE | re.DOTALL,
    )
    shown = [(tool, re.findall(r"(\w+)=", arguments)) for tool, arguments in calls]
    assert [tool for tool, _names in shown] == [tool for _agent, tool, *_rest in STORY]
    assert shown[1] == ("read_file", ["repo", "path"])
    assert shown[3][1][:3] == ["repo", "branch", "path"]
    assert shown[OPENED][1][:3] == ["repo", "title", "branch"]
    assert shown[WAITS] == shown[MERGE] == ("merge_pr", ["repo", "number", "into"])
    assert "into=main" in calls[MERGE][1]


def test_the_exact_call_is_shown_and_bob_answers_from_a_second_process(played):
    home, printed = played
    waits = printed[printed.index("APPROVAL  ") : printed.index("What it left")]
    signed = re.findall(r"^       \|  (\S.*?)  +(.*)$", waits, re.MULTILINE)
    assert [name for name, _value in signed] == [
        "request",
        "asks for",
        "agent",
        "for",
        "not by",
        "tool",
        "on",
        "argument into",
        "argument number",
        "argument repo",
        "digest",
    ]
    shown = dict(signed)
    assert shown["argument into"] == '"main"'
    assert shown["argument number"] == "1"
    assert shown["not by"] == "user:alice, user:carol"
    assert shown["asks for"].startswith("1 person of release-manager, until ")
    entries = StateEntries(home / "a place" / ".agentguard").of("request", "call")
    (request,) = (entry for entry in entries if entry["kind"] == "request")
    assert shown["request"] == request["request_id"]
    assert shown["digest"] == request["call_digest"]
    text = " ".join(waits.split())
    command = f"approvals approve {request['request_id']} --key bob/id_ed25519 --yes --note"
    assert command in text
    assert f"approved by user:bob: merge_pr, request {request['request_id']}" in text
    assert waits.index("approved by user:bob") < waits.index("   ALLOW  merged into main as")


def test_the_evidence_of_the_merge_names_bob(played):
    home, printed = played
    place = home / "a place"
    (path,) = place.glob("evidence-*.json")
    (trust,) = (place / "anchor").glob("*/trust.json")
    proved = verify_evidence(path.read_bytes(), TrustDocument.loads(trust.read_bytes()))
    (answer,) = proved.answers
    assert (answer.approval.verdict, answer.approval.approver) == ("approve", "user:bob")
    assert (proved.call.tool, proved.call.decision) == ("merge_pr", "allow")
    assert proved.outcome.status == "ok"
    key = answer.approver.keys[0]
    text = " ".join(printed.split())
    assert (
        f"OK {path.name}: merge_pr approved by user:bob (release-manager), signed with "
        f"{key.thumbprint}" in text
    )
    assert key.openssh() in (place / "agentguard.toml").read_text()


def in_a_shell(command, folder, home):
    """Run a line of a shell as it stands."""
    return subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=folder,
        env=at_home(home, GIT_PAGER="cat"),
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_command_works_as_printed_from_anywhere(played, tmp_path):
    """The first one and git's in a shell; the words of the others are taken as a shell does."""
    home, printed = played
    first, *others, last = (
        printed.partition("Try it yourself\n")[2].partition("\n\n")[0].splitlines()
    )
    ran = [in_a_shell(first, tmp_path, home)]
    for line in others:
        program, words = (split := shlex.split(line))[:3], split[3:]
        assert program == [sys.executable, "-m", "agentguard.cli"]
        ran.append(commands.run(words, cwd=tmp_path, env=at_home(home)))
    ran.append(in_a_shell(last, tmp_path, home))
    listed, shown, proved, waiting, verified, tampered, git = (one.stdout for one in ran)
    assert [one.returncode for one in ran] == [0, 0, 0, 0, 0, 1, 0], ran
    assert "merge_pr" in listed
    assert "merged into main as" in shown
    assert "merge_pr" in proved
    assert waiting == "nothing waits for an approval\n"
    entries = entries_of(printed)
    assert f"{entries} entries" in verified
    assert "anchored, same user: by the checkpoints in" in verified
    assert "UNTRUSTED KEY" not in shown
    assert f"entry {entries - 4}" in tampered
    assert "Divide percentages by 100" in git


def test_a_directory_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("kept")
    result = run_agentguard("demo", "--json", "--dir", "mine", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "error [directory.taken]" in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]


def test_without_git_it_says_so_and_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    result = run_agentguard("demo", cwd=tmp_path, PATH=str(tmp_path / "bin"))
    assert result.returncode == 2
    assert "error [git.missing]" in result.stderr
    assert "Traceback" not in result.stderr
    assert list((tmp_path / "tmp").iterdir()) == []


def texts(svg):
    """The texts of a picture, without what differs from run to run."""
    lines = [html.unescape(line) for line in re.findall(r"<text [^>]*>(.*?)</text>", svg)]
    text = " ".join(" ".join(lines).replace("\xa0", " ").split())
    text = re.sub(r"(agent:[a-z-]+:)\S{4}", r"\1id", text)  # the end of a name is its key's
    text = re.sub(r"\b(?:[0-9a-f]{64}|[0-9a-f]{32})\b", "digest", text)
    text = re.sub(r"(signed with )[\w-]{43}", r"\1key", text)
    text = re.sub(r"\b(?:[0-9a-f]{10}|[0-9a-f]{7})\b", "commit", text)
    return re.sub(r"\d+(?:\.\d+)?", "0", text)


def test_the_picture_in_the_docs_is_of_such_a_run(tmp_path, monkeypatch, bob_signs_here):
    """scripts/timeline makes it anew."""
    monkeypatch.chdir(tmp_path)
    picture.main("demo", "new.svg")
    committed = (DOCS / "timeline.svg").read_text("utf-8")
    made = (tmp_path / "new.svg").read_text("utf-8")
    assert texts(committed) == texts(made)
    assert "for user:alice" in texts(made)


def test_the_last_command_removes_the_folder_and_nothing_else(tmp_path):
    (tmp_path / "kept").write_text("mine")
    run, printed = play(tmp_path / "a demo", OneLineModel(says="no"))
    assert run.setting.state.exists()
    removal = printed.partition("Remove all of it\n")[2]
    subprocess.run(["/bin/sh", "-c", removal], cwd=tmp_path / "a demo", check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("width", [24, 28, 40, 80])
def test_no_row_of_a_text_begins_at_the_left_edge(width):
    printed = io.StringIO()
    timeline = Timeline(Console(file=printed, width=width), "agentguard")
    timeline.show_answer(["approvals", "show"], "word " * 60)
    rows = [row for row in printed.getvalue().split("\n") if row]
    assert [row for row in rows if not row.startswith("   ") or len(row) > width] == []
    assert "".join(rows).count("word") == 60
