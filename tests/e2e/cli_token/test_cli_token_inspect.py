"""``token``, ``revoke``, ``freeze`` and ``thaw``, as they are typed."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agentguard.cli.agents import delegations
from agentguard.cli.terminal import times
from agentguard.delegation import access_token, grant
from agentguard.delegation.chain import CHAIN_TYPE
from agentguard.identity.credential import agent_alias
from agentguard.signing import canonical, jws
from agentguard.signing.canonical import b64url_encode
from agentguard.signing.keys import Ed25519Signer

LENT = """
import sys
from agentguard import Denied, Guard

with Guard.open("agentguard.toml") as guard:
    coder, tester = guard.new_agent("coder"), guard.new_agent("tester")

    @guard.tool(requires=["files:read"])
    def read_file() -> None: ...

    @guard.tool
    def check() -> None:
        tester.call(read_file)
        open("token", "w").write(tester.access_token() + "\\n")

    lent = guard.delegate(
        "user:alice",
        scope=["files:read", "files:write"],
        via="service:chat",
        task_id="issue-17",
        max_calls=9,
        expires_in=3600,
    )
    open("task.json", "wb").write(lent.dumps())
    with lent:
        coder.call(check)
"""
CALLS = """
import sys
from agentguard import Denied, DelegationError, Guard

with Guard.open("agentguard.toml") as guard:
    tool = guard.tool(name="read_file", requires=["files:read"])(lambda: "ok")
    for name in sys.argv[1:]:
        try:
            lent = guard.resume(open("task.json", "rb").read())
            print(guard.new_agent(name).under(lent).call(tool))
        except (Denied, DelegationError) as refused:
            print(refused.code)
"""
AGENTS = """
[agents.coder]
type = "assistant"
max_scope = ["files:read", "files:write"]
[agents.tester]
type = "assistant"
roles = ["reader"]
[roles.reader]
scope = ["files:read"]
"""


@pytest.fixture(scope="module")
def lent(tmp_path_factory, told):
    """A project in which alice lends to the coder, and the coder to the tester. Not to be changed.

    ``token`` is the tester's access token, ``chain.json`` its chain, ``task.json`` what alice lent.
    """
    made = told.copy(tmp_path_factory.mktemp("lent") / "place")
    with (made.folder / "agentguard.toml").open("a") as file:
        file.write(AGENTS)
    policy = "package agent.authz\nallow if true\n"
    (made.folder / "policies" / "authz.rego").write_text(policy)
    called = made.python("-c", LENT)
    assert (called.returncode, called.stderr) == (0, "")
    carried: Any = claims_of(made)[access_token.CHAIN_CLAIM]
    write(made, "chain.json", {"type": CHAIN_TYPE, **carried})
    assert made.run("trust", "export", "-o", "trust.json").returncode == 0
    return made


@pytest.fixture(autouse=True)
def _while_the_token_lives(lent, monkeypatch):
    """Set the clock of the commands: the tests may outlast the token, which lives five minutes."""
    issued = datetime.fromtimestamp(claims_of(lent)["iat"], UTC)
    monkeypatch.setattr(times, "now", lambda: issued + timedelta(seconds=1))


@pytest.fixture
def other(lent, tmp_path):
    """A copy for a test that changes it."""
    return lent.copy(tmp_path / "place")


def claims_of(project) -> dict[str, Any]:
    return jws.parse((project.folder / "token").read_text().strip()).claims()


def write(project, name: str, document: Any) -> str:
    (project.folder / name).write_bytes(canonical.dumps(document))
    return name


def words(result) -> str:
    return " ".join(result.stdout.replace("| ", "").split())


def told_as_json(result, code: int = 0) -> Any:
    assert (result.returncode, result.stderr) == (code, "")
    return json.loads(result.stdout)


def refused(result, code: str) -> None:
    """A mistake of whoever has typed it: one line, and exit code 2."""
    assert (result.returncode, result.stdout) == (2, "")
    assert f"[{code}]" in result.stderr
    assert "Traceback" not in result.stderr


# --- inspect --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["token", "chain.json"])
def test_a_token_is_explained(lent, name):
    """Who, for whom, through whom, what, and until when."""
    result = lent.run("token", "inspect", name)
    assert (result.returncode, result.stderr) == (0, "")
    said = words(result)
    assert re.search(r"who agent:tester:\S{4}", said)
    assert "for user:alice (assurance: application)" in said
    assert re.search(r"through service:chat, then agent:coder:\S{4}", said)
    assert "may files:read towards spiffe://project.internal" in said
    assert "task issue-17" in said
    assert re.search(r"until 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC", said)
    assert "calls 9 (hop 1)" in said
    assert "hop 1 spiffe://project.internal lets service:chat: files:read files:write;" in said
    assert re.search(r"hop 2 service:chat lets agent:coder:\S{4}: files:read files:write;", said)
    assert re.search(r"hop 3 agent:coder:\S{4} lets agent:tester:\S{4}: files:read;", said)
    assert "it holds: every signature, link and limit" in said
    assert "token verify says whether it was revoked" in said  # nobody has asked that here


def test_what_alice_lent_is_explained(lent):
    said = words(lent.run("token", "inspect", "task.json"))
    assert "who service:chat" in said
    assert "through nobody" in said
    assert "may files:read files:write" in said


def test_without_a_service_it_is_the_application(other):
    """Not the trust domain, which seems to let itself do something."""
    program = (
        "from agentguard import Guard\n"
        "with Guard.open('agentguard.toml') as guard:\n"
        "    coder = guard.new_agent('coder')\n"
        "    with guard.delegate('user:alice', scope=['files:read']):\n"
        "        open('token', 'w').write(coder.access_token())\n"
    )
    assert other.python("-c", program).returncode == 0
    said = words(other.run("token", "inspect", "token"))
    assert "through the application may" in said
    assert "lets the application: files:read" in said
    assert "hop 2 the application lets agent:coder:" in said


def test_inspected_as_json(lent):
    found = told_as_json(lent.run("token", "inspect", "token", "--json"))
    assert (found["holds"], found["problem"]) == (True, None)
    assert found["claims"]["sub"] == "user:alice"
    assert access_token.CHAIN_CLAIM not in found["claims"]  # it is taken apart below
    assert [hop["depth"] for hop in found["hops"]] == [1, 2, 3]
    assert [hop["scope"] for hop in found["hops"]][1:] == ["files:read files:write", "files:read"]
    found = told_as_json(lent.run("token", "inspect", "chain.json", "--json"))
    assert found["claims"] is None
    assert len(found["hops"]) == 3


@pytest.mark.parametrize("name", ["token", "task.json", "chain.json"])
def test_from_stdin(lent, name):
    given = (lent.folder / name).read_text()
    result = lent.run("token", "inspect", "-", input=given)
    assert result.returncode == 0, result.stderr
    assert "user:alice" in result.stdout
    assert lent.run("token", "verify", "-", input=given).returncode == 0


def spoilt(project, number: int, hop: str) -> str:
    """The chain with another token in the place of one hop."""
    document: Any = canonical.loads_object((project.folder / "chain.json").read_bytes())
    document["hops"][number - 1] = hop
    return write(project, f"spoilt-{number}.json", document)


def hop_of(project, number: int) -> str:
    document: Any = canonical.loads_object((project.folder / "chain.json").read_bytes())
    return str(document["hops"][number - 1])


def flipped(hop: str) -> str:
    head, _dot, signature = hop.rpartition(".")
    return f"{head}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_wrong_hop_is_named(other, number):
    name = spoilt(other, number, flipped(hop_of(other, number)))
    result = other.run("token", "inspect", name)
    assert result.returncode == 1
    said = words(result)
    assert f"it does not hold [signature.invalid]: hop {number}: the signature" in said
    assert all(f"hop {n} " in said for n in (1, 2, 3))  # and what can be read is shown
    found = told_as_json(other.run("token", "inspect", name, "--json"), 1)
    assert found["holds"] is False
    assert found["problem"]["code"] == "signature.invalid"
    assert found["problem"]["what"].startswith(f"hop {number}: ")
    for command in (["token", "verify", name], ["token", "verify", name, "--json"]):
        result = other.run(*command)
        assert result.returncode == 1
        assert f"hop {number}: " in result.stdout


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "wider": ({"scope": "files:read files:write secrets:read"}, "hop.scope", "secrets:read"),
    "longer": ({"exp": 4_000_000_000}, "hop.expiry", "it lives longer than the one before"),
    "for bob": ({"sub": "user:bob"}, "hop.subject", "it is for another principal"),
    "for another task": ({"txn": "issue-18"}, "hop.task", "it is for another task"),
    "with more calls": ({"max_calls": 10}, "hop.calls", "it allows more calls"),
}


@pytest.mark.parametrize("how", WRONG)
def test_it_says_why_a_hop_is_wrong(other, how):
    """Hop 2, which somebody with the issuer's key has signed."""
    change, code, why = WRONG[how]
    parsed = jws.parse(hop_of(other, 2))
    issuer = issuer_of(other)
    hop = jws.sign({**parsed.claims(), **change}, issuer, typ=grant.TYPE, header=kid_of(issuer))
    result = other.run("token", "inspect", spoilt(other, 2, hop))
    assert result.returncode == 1
    assert f"it does not hold [{code}]: hop 2: " in words(result)
    assert why in words(result)


def issuer_of(project) -> Ed25519Signer:
    key = (project.state / "keys" / "issuer").read_bytes()
    return Ed25519Signer.from_openssh(key, passphrase_of(project))


def passphrase_of(project) -> bytes:
    settings = tomllib.loads((project.folder / "agentguard.toml").read_text())
    path = settings["keys"]["passphrase_file"].replace("~", str(project.home))
    return (project.folder / path).read_bytes().strip()


def kid_of(signer: Ed25519Signer) -> dict[str, Any]:
    return {"kid": signer.key_id}


def test_a_hop_that_can_not_be_read_is_shown_as_such(other):
    for number, hop in ((2, "x"), (3, "e30.e30.AA"), (1, "a.b.c")):
        name = spoilt(other, number, hop)
        result = other.run("token", "inspect", name)
        assert result.returncode == 1
        assert f"hop {number} can't be read [" in words(result)
        found = told_as_json(other.run("token", "inspect", name, "--json"), 1)
        assert found["hops"][number - 1].keys() == {"error", "code"}


def test_at_another_time(lent):
    now = datetime.now(UTC)
    for later, command, code in (
        (timedelta(minutes=6), ["token"], "token.expired"),
        (timedelta(hours=2), ["task.json"], "hop.expired"),
        (timedelta(days=-1), ["task.json"], "hop.not_yet_valid"),
    ):
        at = (now + later).strftime("%Y-%m-%dT%H:%M:%SZ")
        result = lent.run("token", "inspect", *command, "--at", at)
        assert (result.returncode, f"[{code}]" in result.stdout) == (1, True)
        found = told_as_json(lent.run("token", "verify", *command, "--at", at, "--json"), 1)
        assert (found["ok"], found["code"]) == (False, code)
    at = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert lent.run("token", "verify", "task.json", "--at", at).returncode == 0
    assert lent.run("token", "verify", "task.json", "--at", "yesterday").returncode == 2


def test_for_somebody_else(lent):
    for command in ("inspect", "verify"):
        result = lent.run("token", command, "token", "--audience", "https://other.example")
        assert result.returncode == 1
        assert "it is for spiffe://project.internal, not for https://other.example" in result.stdout
        named = lent.run("token", command, "token", "--audience", "spiffe://project.internal")
        assert named.returncode == 0


# --- whom to believe ------------------------------------------------------------------------------


def test_elsewhere_with_the_trust_document_alone(lent, project):
    for name in ("token", "task.json", "trust.json"):
        shutil.copy(lent.folder / name, project.folder)
    for name in ("token", "task.json"):
        for command in ("inspect", "verify"):
            assert project.run("token", command, name, "--trust", "trust.json").returncode == 0
    state = lent.state
    assert project.run("token", "verify", "token", "--state", state, "--anchor", "").returncode == 0


def test_without_one_it_is_explained_and_said_not_to_be_checked(lent, project):
    shutil.copy(lent.folder / "token", project.folder)
    result = project.run("token", "inspect", "token")
    assert result.returncode == 0
    assert "NOT CHECKED: no trust document" in result.stdout
    assert "it holds" not in result.stdout
    assert told_as_json(project.run("token", "inspect", "token", "--json"))["holds"] is None
    refused(project.run("token", "verify", "token"), "config.missing")
    refused(project.run("token", "inspect", "token", "--state", "nowhere"), "storage.missing")


def test_another_domain_believes_nothing_of_it(lent, project):
    assert project.run("init", "--trust-domain", "other.example").returncode == 0
    for name in ("token", "task.json"):
        shutil.copy(lent.folder / name, project.folder)
        for command in ("inspect", "verify"):
            result = project.run("token", command, name)
            assert (result.returncode, "[key.unknown]" in result.stdout) == (1, True)


# --- what is no token -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("", "jws.malformed"),
        ("x", "jws.malformed"),
        ("a.b.c", "base64.malformed"),
        ("{}", "chain.malformed"),
        ("{", "json.malformed"),
        ('{"hops":5}', "chain.malformed"),
        ('{"hops":[],"hops":[]}', "json.duplicate_key"),
        ("[" * 1000, "jws.malformed"),
        ('{"x":' * 1000, "json.depth"),
        ('{"x":"' + "y" * 300_000 + '"}', "json.size"),
        ("x" * 300_000, "jws.malformed"),
    ],
)
def test_what_is_no_token(lent, project, content, code):
    (project.folder / "given").write_text(content)
    trust = ["--trust", lent.folder / "trust.json"]
    for command in ("inspect", "verify"):
        refused(project.run("token", command, "given", *trust), code)


def test_a_file_that_is_not_there(lent):
    for command in ("inspect", "verify"):
        result = lent.run("token", command, "nothing")
        assert result.returncode == 2
        assert "nothing" in result.stderr


def test_a_hop_alone_is_read_and_shows_nothing(other):
    (other.folder / "hop").write_text(hop_of(other, 2))
    result = other.run("token", "inspect", "hop")
    assert result.returncode == 1
    assert "[chain.malformed]: a hop by itself shows nothing" in words(result)
    assert "may files:read files:write" in words(result)


def unsigned(claims: dict[str, Any], typ: str = access_token.TYPE) -> str:
    header = b64url_encode(canonical.dumps({"alg": "EdDSA", "kid": "x", "typ": typ}))
    return f"{header}.{b64url_encode(canonical.dumps(claims))}.AAAA"


HOSTILE = "\x1b[2J\x1b]0;owned\x07[bold red]\u202e\r\n\x9b1m"


def test_what_a_token_says_is_no_command_to_a_terminal(other):
    claims = claims_of(other)
    hops: Any = claims[access_token.CHAIN_CLAIM]
    grant_claims = jws.parse(hops["hops"][2]).claims()
    hops["hops"][2] = unsigned({**grant_claims, "txn": HOSTILE}, grant.TYPE)
    for change in ({"jti": HOSTILE}, {"sub": HOSTILE}, {"exp": 10**15}, {"exp": HOSTILE}, {}):
        (other.folder / "hostile").write_text(unsigned({**claims, **change}))
        result = other.run("token", "inspect", "hostile")
        assert result.returncode == 1
        shown = result.stdout
        assert not any(ord(c) < 32 and c != "\n" for c in shown)
        assert not {"\x7f", "\x9b", "\u202e"} & set(shown)
        assert other.run("token", "inspect", "hostile", "--json").returncode == 1


def test_a_thousand_hops_are_no_problem(other):
    document: Any = canonical.loads_object((other.folder / "chain.json").read_bytes())
    document["hops"] = ["a.b.c"] * 1000
    result = other.run("token", "inspect", write(other, "many.json", document))
    assert result.returncode == 1
    assert "[chain.malformed]" in result.stdout


def test_the_entry_of_a_delegation_is_told_in_words(lent):
    index = [row["index"] for row in lent.lines("audit", "list") if row["kind"] == "delegation"][-1]
    said = words(lent.run("audit", "show", str(index)))
    for number, whom in enumerate(("service:chat", "agent:coder:", "agent:tester:"), start=1):
        assert f"lets {whom}" in said
        assert f"hop {number} " in said
    assert "eyJ" not in said
    assert "checked no signature" in said
    assert "eyJ" in json.dumps(lent.json("audit", "show", str(index))["chain"])


# --- verify, and revoke ---------------------------------------------------------------------------


def test_verified(lent):
    for name in ("token", "task.json", "chain.json"):
        result = lent.run("token", "verify", name)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout == "it holds: every signature, link and limit\n"
        found = told_as_json(lent.run("token", "verify", name, "--json"))
        assert found == {"ok": True, "code": None, "problem": None}


def calls(project, *agents: str) -> list[str]:
    called = project.python("-c", CALLS, *agents)
    assert called.returncode == 0, called.stderr
    return called.stdout.split()


def codes(project, *names: str) -> list[str | None]:
    found = []
    for name in names:
        result = project.run("token", "verify", name, "--json")
        told = json.loads(result.stdout)
        assert result.returncode == (0 if told["ok"] else 1)
        found.append(told["code"])
    return found


GIVEN = ["token", "chain.json", "task.json"]
REVOKED = "delegation.revoked"


@pytest.mark.parametrize(
    ("what", "becomes", "acts"),
    [
        ("task.json", [REVOKED] * 3, [REVOKED, REVOKED]),  # and all that came of it
        ("token", [REVOKED, REVOKED, None], ["ok", "ok"]),
        ("user:alice", [REVOKED] * 3, [REVOKED, REVOKED]),
        ("service:chat", [REVOKED] * 3, [REVOKED, REVOKED]),
        ("agent:coder", [REVOKED, REVOKED, None], [REVOKED, "ok"]),
        ("agent:tester", [REVOKED, REVOKED, None], ["ok", REVOKED]),
        ("user:bob", [None] * 3, ["ok", "ok"]),
        ("user:alice@mail.acme.example", [None] * 3, ["ok", "ok"]),  # two dots, and no token
    ],
)
def test_revoked(other, what, becomes, acts):
    assert codes(other, *GIVEN) == [None] * 3
    if acts == ["ok", "ok"] and what != "token":  # nobody has this name so far
        refused(other.run("revoke", what, "--note", "it leaked"), "revocation.unknown")
        assert codes(other, *GIVEN) == [None] * 3
        what_is_given = [what, "--in-advance"]
    else:
        what_is_given = [what]
    result = other.run("revoke", *what_is_given, "--note", "it leaked")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(r"revoked: \S+ \(entry \d+ in shard \d+\)\n", result.stdout)
    assert codes(other, *GIVEN) == becomes
    assert calls(other, "coder", "tester") == acts
    assert other.run("audit", "verify").returncode == 0


def revocations(project) -> list[str]:
    return [row["reason"] for row in project.lines("audit", "list") if row["kind"] == "revocation"]


def test_a_name_that_nobody_has_is_revoked_in_advance_alone(other):
    """A revocation can't be undone, and a mistyped name would deny nothing."""
    claims = claims_of(other)
    uri = claims["client_id"]
    known = [uri, uri.rpartition("/")[2], claims["jti"], "agent:assistant"]
    for name in known:
        result = other.run("revoke", name, "--note", "n")
        assert (result.returncode, result.stderr) == (0, "")
    before = revocations(other)
    unknown = ("user:alicia", uri[:-1], "agent:codre", "codre-the-second")
    for name in (*unknown, "alice", "task.jsn"):
        result = other.run("revoke", name, "--note", "n")
        refused(result, "revocation.unknown")
        assert f"is called {name} (the agents are assistant, coder, tester):" in result.stderr
        assert ("write agent:" in result.stderr) == (
            name in ("codre-the-second", "alice", "task.jsn")
        )
    assert revocations(other) == before
    for name in unknown:
        result = other.run("revoke", name, "--in-advance", "--note", "n")
        assert (result.returncode, result.stderr) == (0, "")
    assert len(revocations(other)) == len(before) + len(unknown)


def test_what_can_be_nobodys_name_is_revoked_neither_way(other):
    refused(other.run("revoke", "user:Alice", "--note", "n"), "revocation.name")
    for name in ("task.jsn", "alice", "user:Alice", "tester:AAAA"):
        refused(other.run("revoke", name, "--in-advance", "--note", "n"), "revocation.name")
    assert revocations(other) == []


def test_a_revocation_in_advance_does_not_read_the_log(other, monkeypatch):
    """It works where entries can't be read, and waits for no search."""
    monkeypatch.setattr(delegations, "is_known", None)
    result = other.run("revoke", "user:alice", "--in-advance", "--note", "n")
    assert (result.returncode, result.stderr) == (0, "")
    assert codes(other, *GIVEN) == [REVOKED] * 3


def test_a_name_that_means_two_things_is_refused(other):
    (other.folder / "coder").write_text((other.folder / "token").read_text())
    result = other.run("revoke", "coder", "--note", "n")
    refused(result, "revocation.ambiguous")
    assert "write agent:coder or ./coder" in result.stderr
    assert revocations(other) == []
    assert other.run("revoke", "./coder", "--note", "n").returncode == 0
    assert calls(other, "coder") == ["ok"]
    assert other.run("revoke", "agent:coder", "--note", "n").returncode == 0
    assert calls(other, "coder") == [REVOKED]


def test_an_agent_may_have_the_name_of_a_delegations_id(other, monkeypatch):
    monkeypatch.setattr(delegations, "is_known", lambda _reader, name: "in-the-log" in name)
    result = other.run("revoke", "in-the-log", "--note", "n")
    refused(result, "revocation.ambiguous")
    assert "write agent:in-the-log for the agent" in result.stderr
    for given, name in (
        (["agent:in-the-log"], "agent:in-the-log"),
        (["in-the-log", "--in-advance"], "in-the-log"),
    ):
        told = told_as_json(other.run("revoke", *given, "--note", "n", "--json"))
        assert told["revoked"] == name


@pytest.mark.parametrize(
    "name", ["tsak.json", "./task", "tokens/alice", "/nowhere/tsak.json", ".json"]
)
def test_a_file_that_is_not_there_is_no_name(other, name):
    result = other.run("revoke", name, "--note", "n")
    refused(result, "revocation.name")
    assert f"there is no file {name}" in result.stderr
    assert not [row for row in other.lines("audit", "list") if row["kind"] == "revocation"]


def test_a_name_may_look_like_a_files(other):
    with (other.folder / "agentguard.toml").open("a") as file:
        file.write('[principals."user:team/alice.json"]\n')
    result = other.run("revoke", "user:team/alice.json", "--note", "n")
    assert (result.returncode, result.stderr) == (0, "")


def test_revoked_as_json_and_by_the_token_itself(other):
    given = (other.folder / "token").read_text().strip()
    chain_of: Any = claims_of(other)[access_token.CHAIN_CLAIM]
    last = jws.parse(chain_of["hops"][-1]).claims()["jti"]
    found = told_as_json(other.run("revoke", given, "--note", "n", "--json"))
    assert found.keys() == {"revoked", "shard", "index"}
    assert found["revoked"] == last
    assert other.run("revoke", "-", "--note", "n", input=given).returncode == 0
    assert codes(other, *GIVEN) == [REVOKED, REVOKED, None]


def test_revoked_by_the_delegation_itself(other):
    """A short one is printable and has no spaces: it is no name for all that."""
    given = (other.folder / "task.json").read_text().strip()
    found = told_as_json(other.run("revoke", given, "--note", "n", "--json"))
    assert found["revoked"] == jws.parse(json.loads(given)["hops"][-1]).claims()["jti"]
    assert codes(other, *GIVEN) == [REVOKED] * 3
    refused(other.run("revoke", "{}", "--note", "n"), "chain.malformed")


DASHED = ["-Zq3xabcdefg", "-" + "Z" * 42, "--" + "Z" * 41, "-note-abc", "-" * 12]


@pytest.mark.parametrize("name", DASHED)
@pytest.mark.parametrize("place", ["before", "between", "after", "behind --"])
def test_a_name_may_begin_with_a_dash(other, name, place):
    """One thumbprint in 64 does."""
    if place != "behind --" and name == "-" * 12:
        name = "-" + "_" * 12
    words = {
        "before": [name, "--note", "-reason-why", "--json"],
        "between": ["--note", "-reason-why", name, "--json"],
        "after": ["--json", "--note=-reason-why", name],
        "behind --": ["--json", "--note", "-reason-why", "--", name],
    }
    result = other.run("revoke", "--in-advance", *words[place])
    assert result.returncode == 0
    assert json.loads(result.stdout)["revoked"] == name
    (row,) = [row for row in other.lines("audit", "list") if row["kind"] == "revocation"]
    assert row["reason"] == f"{name} is revoked: -reason-why"


@pytest.mark.parametrize("option", ["--noet", "--not-an-option", "-n", "-note", "-config", "--"])
def test_an_option_that_is_misspelt_is_no_name(other, option):
    result = other.run("revoke", "user:alice", option, "it leaked")
    assert result.returncode == 2
    if option == "--":  # what stands behind it are arguments
        assert "Got unexpected extra argument(s) (it leaked)" in result.stderr
    else:
        assert "No such option" in result.stderr
    assert not [row for row in other.lines("audit", "list") if row["kind"] == "revocation"]


def test_what_is_revoked_and_why_is_in_the_log(other):
    assert other.run("revoke", "user:alice", "--note", "it leaked").returncode == 0
    (row,) = [row for row in other.lines("audit", "list") if row["kind"] == "revocation"]
    assert row["reason"] == "user:alice is revoked: it leaked"


def test_what_can_not_be_revoked(other):
    before = len(other.lines("audit", "list"))
    refused(other.run("revoke", "a name", "--note", "n"), "revocation.name")
    refused(other.run("revoke", "", "--note", "n"), "revocation.name")
    (other.folder / "given").write_text("no token")
    refused(other.run("revoke", "given", "--note", "n"), "jws.malformed")
    without = other.run("revoke", "user:alice")
    assert without.returncode == 2
    assert "--note" in without.stderr
    assert len(other.lines("audit", "list")) == before
    assert codes(other, *GIVEN) == [None] * 3


def test_without_the_passphrase_nobody_is_revoked(other):
    environment = {"AGENTGUARD_PASSPHRASE": "wrong"}
    for command in (
        ["revoke", "user:alice"],
        ["revoke", "coder"],
        ["freeze"],
        ["thaw"],
    ):
        result = other.run(*command, "--note", "n", env=environment)
        refused(result, "key.passphrase")
    assert calls(other, "coder") == ["ok"]


def test_what_roles_allow_is_shown_as_an_agents_scope(lent):
    assert "scope: files:read (roles: reader)" in lent.run("agents", "list").stdout
    shown = words(lent.run("agents", "show", "tester"))
    assert "max_scope none roles reader scope files:read" in shown


# --- an agent is revoked; freeze, thaw ------------------------------------------------------------


@pytest.mark.parametrize("name", ["coder", "agent:coder"])
def test_an_agent_is_revoked(other, name):
    result = other.run("revoke", name, "--note", "it misbehaves")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("revoked: agent:coder (entry ")
    assert calls(other, "coder", "tester") == [REVOKED, "ok"]
    assert codes(other, "token", "task.json") == [REVOKED, None]  # it goes through the coder


def test_one_instance_is_revoked(other):
    uri = claims_of(other)["client_id"]
    found = told_as_json(other.run("revoke", uri, "--note", "n", "--json"))
    assert found.keys() == {"revoked", "shard", "index"}
    assert found["revoked"] == uri
    assert codes(other, "token") == [REVOKED]
    assert calls(other, "tester") == ["ok"]  # the next instance


def test_one_instance_is_revoked_by_its_short_name(other):
    """Which stands for its URI: nobody goes by a short name."""
    uri = claims_of(other)["client_id"]
    for short in (agent_alias(uri), agent_alias(uri).removeprefix("agent:")):
        found = told_as_json(other.run("revoke", short, "--note", "n", "--json"))
        assert found["revoked"] == uri
    assert codes(other, "token") == [REVOKED]
    assert calls(other, "tester") == ["ok"]  # the next instance


def test_an_agent_that_nobody_knows_is_not_revoked(other):
    unknown = "spiffe://acme.example/agent/tester/" + "A" * 43
    for name in ("codre", "agent:codre", "tester:AAAA", unknown):
        result = other.run("revoke", name, "--note", "n")
        refused(result, "revocation.unknown")
        assert "coder" in result.stderr  # an agent that there is
    refused(other.run("revoke", "coder/tester", "--note", "n"), "revocation.name")  # a path
    assert other.run("revoke", "coder").returncode == 2
    assert calls(other, "coder") == ["ok"]


def test_freeze_and_thaw(other):
    result = other.run("freeze", "--note", "an incident")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("frozen: every call is denied from here on (entry ")
    assert calls(other, "coder", "tester") == ["domain.frozen"] * 2
    assert codes(other, *GIVEN) == ["domain.frozen"] * 3
    result = other.run("thaw", "--note", "over")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("thawed: calls go on (entry ")
    assert calls(other, "coder", "tester") == ["ok", "ok"]
    assert codes(other, *GIVEN) == [None] * 3
    rows = [row for row in other.lines("audit", "list") if row["kind"] == "freeze"]
    assert [row["reason"] for row in rows] == ["frozen: an incident", "thawed: over"]
    assert other.run("audit", "verify").returncode == 0


def test_doctor_says_who_was_stopped(other):
    def stopped() -> list[str]:
        checks = json.loads(other.run("doctor", "--json").stdout)["checks"]
        warned = [one for one in checks if one["status"] == "warn"]
        return [one["check"] for one in warned if "denied" in one["what"]]

    with (other.folder / "agentguard.toml").open("a") as file:
        file.write('[principals."user:alice"]\n')
    assert stopped() == []
    for command in (["revoke", "coder"], ["revoke", "user:alice"], ["freeze"]):
        assert other.run(*command, "--note", "n").returncode == 0
    assert stopped() == ["freeze", "agent coder", "principal user:alice"]
    assert other.run("thaw", "--note", "n").returncode == 0
    assert stopped() == ["agent coder", "principal user:alice"]


def test_freeze_and_thaw_as_json(other):
    for command, frozen in (("freeze", True), ("thaw", False)):
        found = told_as_json(other.run(command, "--note", "n", "--json"))
        assert found.keys() == {"frozen", "shard", "index"}
        assert found["frozen"] is frozen
    for command in ("freeze", "thaw"):
        without = other.run(command)
        assert without.returncode == 2
        assert "--note" in without.stderr


def test_where_there_is_no_project(project):
    for command in (["freeze"], ["thaw"], ["revoke", "x"]):
        refused(project.run(*command, "--note", "n"), "config.missing")


def test_files_and_options_are_where_they_are_named(lent, project):
    """From another folder, with another home."""
    where = ["--config", lent.folder / "agentguard.toml", "--anchor", lent.anchor]
    for command in ("inspect", "verify"):
        result = project.run("token", command, lent.folder / "task.json", *where)
        assert (result.returncode, result.stderr) == (0, "")
