"""``agentguard doctor``: what is weak is named, with what to do; what is sound is not alarmed."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from agentguard.signing.keys import Ed25519Signer, PublicKey


def status_of(report: dict, check: str) -> set[str]:
    return {entry["status"] for entry in report["checks"] if entry["check"] == check}


def edit(project, old: str, new: str) -> None:
    toml = project.folder / "agentguard.toml"
    text = toml.read_text()
    assert old in text
    toml.write_text(text.replace(old, new))


def test_a_sound_set_up(told):
    report = told.json("doctor")
    assert report["ok"] is True
    assert all(list(entry) == ["status", "check", "what"] for entry in report["checks"])
    checks = {entry["check"] for entry in report["checks"]}
    assert checks >= {
        "platform",
        "configuration",
        "policy",
        "state",
        "passphrase",
        "keys",
        "anchor",
        "agent assistant",
        "log",
    }
    # one call of this log is in doubt, and the tools' scopes stand in the code alone
    (anchor,) = [c["what"] for c in report["checks"] if c["check"] == "anchor"]
    assert "whoever can write the state can change it" in anchor
    doubt, *tools = [c["what"] for c in report["checks"] if c["status"] != "ok"]
    (doubtful,) = told.json("audit", "verify")["in_doubt"]
    assert doubt.startswith("1 call in doubt: ")
    assert doubt.endswith(f"agentguard audit show {doubtful}")
    assert ["has no table for it" in what for what in tools] == [True, True]
    shown = told.run("doctor")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "assistant" in shown.stdout


@pytest.mark.parametrize(
    ("old", "new", "check", "status"),
    [
        ('authority = "own"', 'authority = "delegated"', "agent assistant", "ok"),
        ('max_scope = ["files:read"]', "max_scope = []", "agent assistant", "warn"),
        ('anchor = "~/.local/state/agentguard"', 'anchor = ""', "anchor", "warn"),
        ('anchor = "~/.local', 'anchor = ".agentguard/.local', "configuration", "fail"),
        ("trust_domain", "trust_domian", "configuration", "fail"),
        ("trust_domain =", "# trust_domain =", "state", "fail"),
        ("policies/authz.rego", "policies/other.rego", "policy", "fail"),
        ("policies/authz.rego", "~nosuchuser/authz.rego", "policy", "fail"),
        ("~/.config/agentguard/", "~/nowhere/", "keys", "fail"),
        ("~/.config/agentguard/", "~/nowhere/", "passphrase", "fail"),
        ('state = ".agentguard"', 'state = "elsewhere"', "state", "fail"),
        ("# [tools.read_file]", "[tools.read_fiel]", "tool read_fiel", "warn"),
        ("# [tools.read_file]", "[tools.read_file]", "tool read_file", "ok"),
        (
            "# [tools.read_file]",
            '[tools.read_file]\nfacts = { look_up = "nowhere:at_all", gives = ["x"] }',
            "tool read_file",
            "warn",
        ),
    ],
)
def test_what_the_configuration_gets_wrong(changed, old, new, check, status):
    edit(changed, old, new)
    report = changed.json("doctor", code=1 if status == "fail" else 0)
    assert status in status_of(report, check), report
    assert report["ok"] is (status != "fail")


@pytest.mark.parametrize(
    ("table", "name", "said"),
    [
        ("[tools.read_fiel]", "tool read_fiel", "did you mean read_file?"),
        (
            '[redact]\nread_fiel = ["/args/path"]',
            "redact read_fiel",
            "did you mean read_file?; until then nothing of it is redacted",
        ),
        (
            '[secrets.A]\nenv = "PATH"\ntools = ["read_fiel", "read_file", "merge"]',
            "secret A",
            "did you mean read_file?",
        ),
        ('[redact]\nread_file = ["/args/path"]', "redact read_file", None),
        ('[redact]\n"*" = ["/args/path"]', "redact *", None),
        ('[redact]\nmerge = ["/args/x"]\n[tools.merge]', "redact merge", None),
    ],
)
def test_a_name_that_no_call_has(changed, table, name, said):
    edit(changed, "# [tools.read_file]", table)
    checks = changed.json("doctor")["checks"]
    found = [c for c in checks if c["check"] == name and "has a value" not in c["what"]]
    assert [check["status"] for check in found] == ([] if said is None else ["warn"])
    assert all(check["what"].endswith(f"matches no tool so far: {said}") for check in found)


def test_the_functions_that_hear_of_requests_are_imported(changed):
    names = 'on_request = "builtins:print"\non_expiring = "os:getpid"\non_expired = "os:nothing"\n'
    edit(changed, "# [tools.read_file]", f"[approvals]\n{names}")
    checks = changed.json("doctor")["checks"]
    found = [(c["status"], c["what"]) for c in checks if c["check"] == "approvals"]
    assert ("ok", "on_request calls builtins:print") in found
    assert ("ok", "on_expiring calls os:getpid") in found
    assert any(status == "warn" and "approvals.on_expired" in what for status, what in found)


def test_a_tool_that_was_not_called_so_far_is_no_mistake(changed):
    edit(changed, "# [tools.read_file]", "[tools.merge]")
    (found,) = [c for c in changed.json("doctor")["checks"] if c["check"] == "tool merge"]
    said = "the log has no call of it so far"
    assert found == {"status": "ok", "check": "tool merge", "what": said}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("", ["[telemetry] and OTEL_EXPORTER_OTLP_ENDPOINT name no endpoint"]),
        (
            'endpoint = "http://localhost:4318"',
            ["traces are sent to http://localhost:4318"],
        ),
        (
            (
                'endpoint = "http://t:4318"\nmetrics = true\nhash_users = true\n'
                "results = true\nreasons = true"
            ),
            [
                "traces and metrics are sent to http://t:4318, with the digests of people",
                "results, reasons of calls",
            ],
        ),
    ],
)
def test_where_traces_go_and_what_they_hold(changed, table, said):
    edit(changed, "[policy]", f"[telemetry]\n{table}\n\n[policy]")
    found = [c for c in changed.json("doctor")["checks"] if c["check"] == "telemetry"]
    assert len(found) == len(said)
    assert all(what in one["what"] for one, what in zip(found, said, strict=True))
    assert [one["status"] for one in found] == ["ok", "warn"][: len(said)]


@pytest.mark.parametrize(
    ("table", "variables", "status", "said"),
    [
        (False, {}, "ok", "traces are sent to http://t:4318, with the names of people"),
        (False, {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "warn", "ask for OTLP over grpc"),
        (True, {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "fail", "ask for OTLP over grpc"),
        (True, {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "ok", "sent to http://t:4318"),
        (True, {"OTEL_SDK_DISABLED": " True"}, "ok", "OTEL_SDK_DISABLED disables the SDK"),
        (False, {"OTEL_SDK_DISABLED": "true"}, "ok", "OpenTelemetry: nothing is sent to http://t"),
        (
            True,
            {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "fail",
            "ask for OTLP over grpc",
        ),
        (False, {"OTEL_SDK_DISABLED": "1"}, "ok", "sent to http://t:4318"),
        (False, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, "ok", "not configured, in [telemetry]"),
        (True, {"OTEL_TRACES_EXPORTER": "none"}, "ok", "no traces are sent over OTLP"),
    ],
)
def test_where_variables_have_traces_go(changed, table, variables, status, said):
    if table:
        edit(changed, "[policy]", "[telemetry]\n\n[policy]")
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://t:4318", **variables}
    done = changed.run("doctor", "--json", env=variables)
    assert done.returncode == (status == "fail")
    (found,) = (c for c in json.loads(done.stdout)["checks"] if c["check"] == "telemetry")
    assert found["status"] == status
    assert said in found["what"]


@pytest.mark.parametrize("package", ["opentelemetry.exporter", "opentelemetry.sdk"])
def test_traces_without_the_extra(changed, package):
    edit(changed, "[policy]", "[telemetry]\nendpoint = 'http://127.0.0.1:1'\n\n[policy]")
    program = f"import sys; sys.modules[{package!r}] = None\n"
    program += "from agentguard.cli.commands import main\nmain()"
    done = changed.interpreter("-c", program, "doctor", "--json")
    assert (done.returncode, done.stderr) == (1, "")
    (found,) = (c for c in json.loads(done.stdout)["checks"] if c["check"] == "telemetry")
    assert found["status"] == "fail"
    assert "from your clone: pip install '.[otlp]'" in found["what"]


def test_scopes_that_no_call_can_meet(changed):
    edit(changed, "# [tools.read_file]", '[tools.read_file]\nrequires = ["files:read", "x:y"]')
    said = [c["what"] for c in changed.json("doctor")["checks"] if c["check"] == "tool read_file"]
    assert any("requires x:y, which no agent has" in what for what in said)
    assert not any("files:read" in what or "no requires" in what for what in said)


def test_a_role_gives_scope(changed):
    roles = 'max_scope = []\nroles = ["reader"]\n[roles.reader]\nscope = ["files:read", "x:y"]\n'
    edit(changed, 'max_scope = ["files:read"]', roles)
    edit(changed, "# [tools.read_file]", '[tools.read_file]\nrequires = ["files:read", "x:y"]')
    edit(changed, 'authority = "own"', 'authority = "delegated"')
    said = {check["what"]: check["status"] for check in changed.json("doctor")["checks"]}
    assert said["it acts only under a delegation, with a scope of at most files:read x:y"] == "ok"
    assert not any("which no agent has" in what for what in said)


def test_without_a_configuration(project):
    report = project.json("doctor", code=1)
    assert status_of(report, "configuration") == {"fail"}
    assert "agentguard init" in project.run("doctor").stdout


def test_rights_and_places(changed):
    changed.state.chmod(0o755)
    (passphrase,) = (changed.home / ".config" / "agentguard").iterdir()
    shutil.copy(passphrase, changed.state / "passphrase")
    edit(changed, f"~/.config/agentguard/{passphrase.name}", ".agentguard/passphrase")
    report = changed.json("doctor", code=1)
    assert status_of(report, "state") == {"fail"}
    assert status_of(report, "passphrase") == {"fail"}
    assert status_of(report, "keys") == {"ok"}


@pytest.mark.parametrize(
    ("place", "check"),
    [
        (".agentguard", "state"),
        (".agentguard/log.sqlite", "state"),
        (".agentguard/log.sqlite-lock", "state"),
        ("anchor", "anchor"),
        ("anchor/head", "anchor"),
    ],
)
def test_what_can_not_be_written_is_found(changed, without_root_rights, place, check):
    (anchors,) = changed.anchor.iterdir()
    first, _slash, rest = place.partition("/")
    path = anchors / rest if first == "anchor" else changed.folder / place
    before = path.stat().st_mode
    path.chmod(before & ~0o222)
    try:
        result = changed.process("doctor", "--json", preexec_fn=without_root_rights)
    finally:
        path.chmod(before)
    report = json.loads(result.stdout)
    assert (result.returncode, status_of(report, check)) == (1, {"fail"})
    (what,) = [entry["what"] for entry in report["checks"] if entry["status"] == "fail"]
    assert what.startswith(f"{path} is not writable, and every call is denied")
    assert changed.json("doctor")["ok"] is True


def test_a_wrong_passphrase(told):
    result = told.run("doctor", "--json", env={"AGENTGUARD_PASSPHRASE": "wrong"})
    assert result.returncode == 1
    assert status_of(json.loads(result.stdout), "keys") == {"fail"}


def test_a_rotated_log_key_without_the_secret_that_names_journalled_calls(changed):
    """Every journalled call is refused without the secret."""
    assert changed.run("keys", "rotate", "log").returncode == 0
    assert status_of(changed.json("doctor"), "keys") == {"ok"}
    (changed.state / "names").rename(changed.home / "names")
    report = changed.json("doctor", code=1)
    (said,) = [entry["what"] for entry in report["checks"] if entry["status"] == "fail"]
    assert said.startswith(f"there is no {changed.state / 'names'}/")
    assert said.endswith("Restore it from a backup of the state")


def test_a_log_that_was_changed(changed):
    with closing(sqlite3.connect(changed.state / "log.sqlite")) as connection:
        connection.execute("DELETE FROM entry WHERE idx > 9")
        connection.commit()
    report = changed.json("doctor", code=1)
    assert "fail" in status_of(report, "log")


# --- approvals ----------------------------------------------------------------------------------

KEYS = [Ed25519Signer.from_seed(bytes([n]) * 32).public_key.openssh() for n in (1, 2, 3)]


def on_the_roster(name: str, key: str, more: str = "") -> str:
    return f'[approvers.{name}]\nkeys = ["{key}"]\n{more}\n'


def approvals_of(project, rule: str, *tables: str) -> dict[str, str]:
    """What doctor says of approvals, by status, with this rule in the policy."""
    policy = project.folder / "policies" / "authz.rego"
    policy.write_text(f"{policy.read_text()}\n{rule}\n")
    toml = project.folder / "agentguard.toml"
    toml.write_text("\n".join((toml.read_text(), *tables)))
    checks = json.loads(project.run("doctor", "--json").stdout)["checks"]
    about = ("approvals", "requests", "agent assistant")
    return {
        check["what"]: check["status"]
        for check in checks
        if check["check"] in about or check["check"].startswith("approver")
    }


ASKS = 'approval := {"reason": "r", %s} if input.action == "merge"'


def test_the_roster_is_listed(changed):
    bob = on_the_roster("bob", KEYS[0], 'roles = ["release-manager"]')
    said = approvals_of(changed, ASKS % '"roles": ["release-manager"]', bob)
    fingerprint = PublicKey.from_openssh(KEYS[0]).fingerprint
    assert said[f"user:bob, with 1 key, in the roles release-manager: {fingerprint}"] == "ok"
    assert "warn" not in said.values()


@pytest.mark.parametrize(
    ("rule", "tables", "warned"),
    [
        (ASKS % '"quorum": 1', (), "there are no approvers"),
        ('approval if input.action == "merge"', (), "there are no approvers"),
        ('approval contains {"reason": "r"} if input.action == "x"', (), "there are no approvers"),
        ('# approval := {"reason": "r"}', (), None),
        (ASKS % '"quorum": 2', ("bob",), "it takes 2 people, and 1 could approve"),
        (ASKS % '"quorum": 2', ("bob", "ann"), None),
        (ASKS % '"roles": ["cfo", "boss"]', ("bob",), "in the role cfo or boss, and nobody could"),
        (ASKS % '"approvers": ["ann"]', ("bob",), "it takes 1 person by ann, and nobody could"),
        (ASKS % '"approvers": ["bob", "bobb"]', ("bob",), "did you mean bob?"),
        (ASKS % '"approvers": ["bob"]', ("bob",), None),
    ],
)
def test_what_nobody_can_approve(changed, rule, tables, warned):
    people = [on_the_roster(name, key) for name, key in zip(tables, KEYS, strict=False)]
    said = approvals_of(changed, rule, *people)
    found = [what for what, status in said.items() if status != "ok"]
    if warned is None:
        assert found == []
    else:
        assert any(warned in what for what in found), said


@pytest.mark.parametrize("asked", ['"roles": ["menager"]', '"approvers": ["bobb"]'])
def test_a_name_that_nobody_has_is_one_finding(changed, asked):
    said = approvals_of(changed, ASKS % asked, on_the_roster("bob", KEYS[0], 'roles = ["manager"]'))
    ((what, status),) = [one for one in said.items() if one[1] != "ok"]
    assert (status, "did you mean" in what) == ("fail", True)


def test_one_person_under_two_names_is_one_person(changed):
    both = [
        on_the_roster(name, key, 'principal = "user:bob"')
        for name, key in zip(("bob", "bobby"), KEYS, strict=False)
    ]
    said = approvals_of(changed, ASKS % '"quorum": 2', *both)
    assert any("it takes 2 people, and 1 could approve" in what for what in said)


def test_the_only_approver_owns_the_agent(changed):
    edit(changed, "[agents.assistant]", '[agents.assistant]\nowner = "user:bob"')
    said = approvals_of(changed, "", on_the_roster("bob", KEYS[0]))
    assert any(what.startswith("its owner user:bob is the only approver") for what in said)


def test_the_applications_word_is_a_note(changed):
    said = approvals_of(changed, "", "[approvals]\napplication = true")
    assert any(
        what.startswith("application = true") and status == "ok" for what, status in said.items()
    )


def test_a_module_that_can_not_be_imported_is_said_once(changed):
    edit(changed, "# The name of this trust domain", 'principals = "acme.people:roles_of"\n#')
    edit(changed, 'engine = "rego"', 'engine = "function"')
    edit(changed, '"policies/authz.rego"', '"acme.policy:decide"')
    edit(
        changed,
        "# [tools.read_file]",
        '[tools.read_file]\nfacts = { look_up = "acme.files:look", gives = ["owner"] }',
    )
    checks = changed.json("doctor", code=1)["checks"]
    (said,) = [one for one in checks if "No module named 'acme'" in one["what"]]
    assert (said["status"], said["check"]) == ("fail", "policy")
    assert said["what"].endswith("it is named for tool read_file, principals as well")


@pytest.mark.parametrize(
    ("unlisted", "table", "warned"),
    [
        ("allow", "", True),
        ("allow", "[tools.read_file]", False),
        ("allow", '[tools.read_file]\nrequires = ["files:read"]', False),
        ("deny", "", False),  # each call is denied
    ],
)
def test_the_warning_of_a_tool_without_scopes_goes_away(changed, unlisted, table, warned):
    edit(changed, 'unlisted = "allow"', f'unlisted = "{unlisted}"')
    edit(changed, "# [tools.read_file]", table)
    checks = changed.json("doctor")["checks"]
    found = [one["status"] for one in checks if one["check"] == "tool read_file"]
    assert ("warn" in found) is warned


def test_a_table_is_not_meant_for_a_tool_that_has_its_own(changed):
    edit(changed, "# [tools.read_file]", "[tools.read_files]\n[tools.read_file]")
    checks = changed.json("doctor")["checks"]
    (found,) = [one for one in checks if one["check"] == "tool read_files"]
    assert (found["status"], found["what"]) == ("ok", "the log has no call of it so far")


CLICKS = "[approvals]\napplication = true\n"
ANN = '[approvers.ann]\nroles = ["manager"]\n'


@pytest.mark.parametrize(
    ("tables", "warned"),
    [
        ((CLICKS, ANN), "counts for none of these roles"),
        ((f'{CLICKS}roles = "os.path:split"',), "counts for none of these roles"),
        ((f'{CLICKS}application_roles = ["manager"]',), "add them to [approvers]"),
        ((f'{CLICKS}application_roles = ["manager"]', ANN), None),
        ((f'{CLICKS}application_roles = ["manager"]\nroles = "os.path:split"',), None),
        ((CLICKS, on_the_roster("ann", KEYS[0], 'roles = ["manager"]')), None),
    ],
)
def test_a_role_that_no_click_can_meet(changed, tables, warned):
    said = approvals_of(changed, ASKS % '"roles": ["manager"]', *tables)
    failed = [what for what, status in said.items() if status == "fail"]
    assert len(failed) == (0 if warned is None else 1)
    assert warned is None or warned in failed[0]


ASK = """
from agentguard import ApprovalPending, Guard
from agentguard.adapters import CallSite
with Guard.open("agentguard.toml") as guard:
    @guard.tool
    def merge(branch: str) -> str: ...
    try:
        guard.new_agent("assistant").call(merge, "main")
    except ApprovalPending:
        pass
"""


@pytest.fixture
def an_hour_later(monkeypatch):
    """Puts the clock of the commands forward by an hour, whenever it is called."""

    def put_forward() -> None:
        later = datetime.now(UTC) + timedelta(hours=1)
        monkeypatch.setattr("agentguard.cli.terminal.times.now", lambda: later)

    return put_forward


def test_requests_that_wait_and_that_have_expired(changed, an_hour_later):
    bob = on_the_roster("bob", KEYS[0])
    said = approvals_of(changed, ASKS % '"ttl": 1200', bob)
    assert not any("request" in what for what in said)
    asked = changed.python("-c", ASK)
    assert (asked.returncode, asked.stderr) == (0, "")
    an_hour_later()
    said = approvals_of(changed, "")
    assert [status for what, status in said.items() if "1 request has expired" in what] == ["warn"]


def test_an_approval_that_nobody_took_up(changed, an_hour_later):
    word = "[approvals]\napplication = true"
    approvals_of(changed, ASKS % '"ttl": 1200', on_the_roster("bob", KEYS[0]), word)
    approving = ASK.replace(
        "pass\n",
        'guard.approvals.vouch(guard.approvals.pending()[0], "approve", principal="user:bob")\n',
    )
    asked = changed.python("-c", approving)
    assert (asked.returncode, asked.stderr) == (0, "")
    an_hour_later()
    found = approvals_of(changed, "")
    assert not any("has expired" in what for what in found)  # said once
    said = [what for what in found if "the approval expired unused" in what]
    assert [what.partition(" did not make the call of ")[2][:5] for what in said] == ["merge"]
    listed = changed.run("approvals", "list")
    assert "nobody took the approval up in time" in " ".join(listed.stderr.split())


def test_a_request_that_waits(changed):
    approvals_of(changed, ASKS % '"quorum": 1', on_the_roster("bob", KEYS[0]))
    assert changed.python("-c", ASK).returncode == 0
    said = approvals_of(changed, "")
    assert [status for what, status in said.items() if "1 request waits for approvers" in what] == [
        "ok"
    ]


# --- a graph ------------------------------------------------------------------------------------

GRAPH = """
from langchain_core.language_models import FakeListChatModel
from langchain.agents import create_agent
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import CachePolicy
from agentguard import Guard
from agentguard_langchain import GuardMiddleware

class Model(FakeListChatModel):
    def bind_tools(self, tools, **kwargs):
        return self

def read_file(path: str) -> str:
    "Read."
    return path

def write_file(path: str) -> str:
    "Write."
    return path

bare = create_agent(Model(responses=[]), [read_file])

def cached():
    outer = StateGraph(MessagesState)
    outer.add_node("agent", make(), cache_policy=CachePolicy())
    outer.add_edge(START, "agent")
    return outer.compile()

def make():
    guard = Guard.open("agentguard.toml")
    middleware = [GuardMiddleware(guard.new_agent("assistant"))]
    return create_agent(Model(responses=[]), [read_file, write_file], middleware=middleware)

broken = 7
"""


def with_graph(project, name: str, code: int = 0):
    """What doctor says of a graph of the application."""
    (project.folder / "app.py").write_text(GRAPH)
    return project.json("doctor", "--graph", f"app:{name}", code=code)


def test_what_of_a_tool_can_be_pinned_is_printed_and_a_change_of_it_fails(changed):
    report = with_graph(changed, "make")
    origin = "app:read_file"
    (schema,) = (tool["schema"] for tool in report["tools"] if tool["origin"] == origin)
    said = {c["what"] for c in report["checks"] if c["check"] == "tool read_file"}
    assert f'not pinned: to pin it, write origin = "{origin}" under [tools.read_file]' in said
    assert f'not pinned: to pin it, write schema = "{schema}" under [tools.read_file]' in said
    pins = f'[tools.read_file]\norigin = "{origin}"\nschema = "{"0" * 64}"\n'
    edit(changed, "# [tools.read_file]", pins)
    report = with_graph(changed, "make", code=1)
    (failed,) = (c["what"] for c in report["checks"] if c["status"] == "fail")
    assert failed.endswith(f'write schema = "{schema}" under [tools.read_file]')


def test_a_guarded_tool_in_a_node_whose_results_are_cached(changed):
    report = with_graph(changed, "cached", code=1)
    assert {tool["cached"] for tool in report["tools"]} == {"agent"}
    said = [c["what"] for c in report["checks"] if c["status"] == "fail"]
    assert any("read_file runs in the node agent, whose results are cached" in one for one in said)


def test_the_tools_of_a_graph_that_nothing_guards(changed):
    edit(changed, "# [tools.read_file]", "[tools.read_fiel]\n[tools.read_file]\n[tools.pay]")
    report = with_graph(changed, "bare")
    (read_file,) = report["tools"]
    assert (read_file["tool"], read_file["where"]) == ("read_file", ["tools"])
    assert (read_file["agents"], read_file["cached"], read_file["origin"]) == ([], None, None)
    said = {c["what"]: c["status"] for c in report["checks"]}
    assert (
        said[
            "read_file in tools is not guarded: nothing checks or records its calls; guard it with "
            "guard_tools"
        ]
        == "warn"
    )
    assert said["[tools.read_fiel] names no tool of app:bare: did you mean read_file?"] == "warn"
    assert said["[tools.pay] names no tool of app:bare"] == "ok"
    shown = changed.run("doctor", "--graph", "app:bare").stdout.splitlines()
    assert shown[-2].split() == ["tool", "in", "guarded", "for"]
    assert shown[-1].split() == ["|", "read_file", "tools", "nobody"]


def test_the_tools_of_a_graph_that_a_function_makes(changed):
    report = with_graph(changed, "make")
    assert [(tool["tool"], tool["agents"]) for tool in report["tools"]] == [
        ("read_file", ["assistant"]),
        ("write_file", ["assistant"]),
    ]
    (found,) = [c for c in report["checks"] if c["check"] == "graph app:make"]
    assert (found["status"], found["what"]) == ("ok", "2 tools, all of them guarded")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("absent", "AttributeError"),
        ("broken", "expected a graph or a list of tools, got a int"),
        ("read_file", "TypeError"),
    ],
)
def test_a_graph_that_can_not_be_looked_at(changed, name, says):
    report = with_graph(changed, name, code=1)
    assert report["tools"] == []
    (found,) = [c for c in report["checks"] if c["check"] == f"graph app:{name}"]
    assert found["status"] == "fail"
    assert says in found["what"]


def test_without_an_adapter_no_graph_can_be_looked_at(changed):
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'agentguard_langchain': raise ModuleNotFoundError(name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "sys.argv = ['agentguard', 'doctor', '--graph', 'app:graph']\n"
        "from agentguard.cli.commands import main; main()"
    )
    ran = changed.interpreter("-c", code)
    assert ran.returncode == 1
    assert "doctor --graph needs agentguard-langchain, which is not installed" in ran.stdout
