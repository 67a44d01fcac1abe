"""The pages about delegation as a reader follows them: project, code, commands, tables."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import shutil
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import commands
import docs_pages
import pytest
from denial_lines import without_denials

from agentguard import Guard
from agentguard.cli.terminal import times
from agentguard.delegation import access_token, chain_issuance, grant
from agentguard.delegation.chain import CHAIN_TYPE
from agentguard.identity.credential import agent_alias
from agentguard.signing import jws

DOCS = Path(__file__).parents[2] / "docs"
PAGE = docs_pages.text("how-to/delegation", "how-to/revoke", "reference/delegation-formats")
CODES = (DOCS / "reference" / "reason-codes.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def table(header: str) -> list[list[str]]:
    """The rows of the table that begins with this header."""
    _, _, rest = PAGE.partition(f"| {header} |\n")
    lines = rest.partition("\n\n")[0].splitlines()[1:]
    return [line.strip("| ").split(" | ") for line in lines]


def names(cells: list[str]) -> list[str]:
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


@pytest.fixture(scope="module")
def followed(tmp_path_factory, programs):
    """A project as ``init`` makes it, with the page's tables and policy; its code was run."""
    home = tmp_path_factory.mktemp("home")
    folder = home / "project"
    folder.mkdir()
    assert run(folder, "init", "--trust-domain", "acme.example").returncode == 0
    (toml,), (rego,) = blocks("toml"), blocks("rego")
    with (folder / "agentguard.toml").open("a") as file:
        file.write(f"\n{toml}")
    (folder / "policies" / "authz.rego").write_text(rego)
    code = "\n".join((*blocks("python"), "guard.close()"))
    ran = programs.run("-W", "error", "-c", code, cwd=folder, env=environment(folder))
    assert (ran.returncode, without_denials(ran.stderr)) == (0, "")
    assert ran.stdout == docs_pages.printed(PAGE)
    return folder


@pytest.fixture(autouse=True)
def _while_the_token_lives(followed, monkeypatch):
    """Set the clock of the commands: the tests may outlast the token, which lives five minutes."""
    claims: Any = jws.parse((followed / "token").read_text().strip()).claims()
    issued = datetime.fromtimestamp(claims["iat"], UTC)
    monkeypatch.setattr(times, "now", lambda: issued + timedelta(seconds=1))


@pytest.fixture
def changed(followed, tmp_path):
    """A copy of it for a test that changes it, with a home of its own."""
    shutil.copytree(followed.parent, tmp_path / "home")
    return tmp_path / "home" / followed.name


def environment(folder) -> dict[str, str]:
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("AGENTGUARD_", "XDG_"))}
    return {**kept, "HOME": str(folder.parent), "COLUMNS": "240"}


def run(folder, *args):
    return commands.run(args, cwd=folder, env=environment(folder))


def rows(folder, *args) -> list[dict[str, Any]]:
    listed = run(folder, "audit", "list", "--json", *args)
    assert listed.returncode == 0, listed.stderr
    return [json.loads(line) for line in listed.stdout.splitlines()]


def test_the_log_has_what_the_code_did(followed):
    calls = rows(followed, "--kind", "call")
    assert {row["principal"] for row in calls if row["decision"] == "allow"} == {"user:alice"}
    denied = [(row["tool"], row["principal"]) for row in calls if row["decision"] == "deny"]
    assert denied == [
        ("read_issue", "agent:coder"),  # past the block
        ("open_pr", "user:alice"),  # with less
        ("read_issue", "agent:coder"),  # in a plain thread
    ]
    verified = run(followed, "audit", "verify")
    assert verified.returncode == 0, verified.stdout


def test_the_picture_is_of_such_a_chain(followed):
    """The hops, who signs each, and that the last one names whose key signs the call."""
    picture, *_printed = blocks("text")
    hops = re.findall(r"hop (\d)   (.*?)  lets  (.*?)  +(\w\S+(?: \S+)*?)  +signed: (.*)", picture)
    assert [number for number, *_rest in hops] == ["1", "2", "3", "4"]
    delegatees = [whom.strip() for _n, _who, whom, *_rest in hops]
    delegators = [who.strip() for _n, who, *_rest in hops]
    assert delegators == ["spiffe://acme.example", *delegatees[:-1]]
    scopes = [scope.split() for *_start, scope, _by in hops]
    assert all(set(later) <= set(held) for held, later in pairwise(scopes))
    assert [by for *_start, by in hops] == [
        "issuer",
        "issuer, for the service",
        "orchestrator",
        "coder",
    ]
    lent = rows(followed, "--kind", "delegation")
    says = [f"{agent_alias(row['agent']).split(':')[1]}: {row['reason']}" for row in lent]
    assert says[0] == "orchestrator: it may do pr:write repo:read for user:alice"
    assert "tester: it may do repo:read for user:alice" in says


def test_the_code_says_what_its_text_says():
    assert len(blocks("python")) == 7
    parameters = inspect.signature(Guard.delegate).parameters
    described = table("argument | default | what it says")
    assert [name for row in described for name in names(row[:1])] == list(parameters)[1:]
    defaults = {names(row[:1])[0]: row[1] for row in described}
    assert (
        int(defaults["max_depth"])
        == parameters["max_depth"].default
        == chain_issuance.DEFAULT_DEPTH
    )
    assert f"at the most {grant.MAX_DEPTH}" in PAGE
    assert f"at the most {access_token.MAX_LIFETIME} seconds" in PAGE


def shown_commands():
    (shown,) = blocks("console")
    return [shlex.split(line.removeprefix("$ agentguard ")) for line in shown.splitlines()]


def test_the_commands_do_what_the_page_says(changed, programs):
    listed = [command[:2] for command in shown_commands()]
    assert listed[:2] == [["token", "inspect"], ["token", "verify"]]
    inspect_, verify, revoke, revoke_agent, freeze, thaw = shown_commands()
    told = run(changed, *inspect_)
    assert told.returncode == 0, told.stderr
    said = " ".join(told.stdout.replace("| ", "").split())
    for words in (
        "who service:forge",
        "for user:alice (assurance: application)",
        "may pr:write repo:read",
        "task issue-17",
        "it holds",
    ):
        assert words in said
    assert run(changed, *verify).returncode == 0
    for command in (revoke, revoke_agent, freeze, thaw):
        assert run(changed, *command).returncode == 0
    refused = run(changed, *verify)
    assert (refused.returncode, "[delegation.revoked]" in refused.stdout) == (1, True)
    resumed = programs.run(
        "-c",
        "from agentguard import *\n"
        "with Guard.open('agentguard.toml') as guard:\n"
        "    try: guard.resume(open('task.json', 'rb').read())\n"
        "    except DelegationError as error: print(error.code)\n"
        "    with guard.delegate('user:alice') as task:\n"
        "        read = guard.tool(lambda: 'read', name='read_issue', requires=['repo:read'])\n"
        "        print(guard.new_agent('tester').call(read))\n"
        "        try: guard.new_agent('coder').call(read)\n"
        "        except Denied as denied: print(denied.code)\n",
        cwd=changed,
        env=environment(changed),
    )
    assert resumed.stdout.split() == ["delegation.revoked", "read", "delegation.revoked"]
    braked = [row["reason"] for kind in ("revocation", "freeze") for row in brakes(changed, kind)]
    assert braked[0].endswith(" is revoked: the task was withdrawn")
    assert braked[1:] == [
        "agent:coder is revoked: it reads what it should not",
        "frozen: an incident",
        "thawed: over",
    ]
    assert run(changed, "audit", "verify").returncode == 0


def brakes(folder, kind):
    return rows(folder, "--kind", kind)


def test_the_claims_of_a_hop_are_all_there():
    described = names([row[0] for row in table("claim | what it is")])
    assert sorted(described) == sorted(grant.Claims.__struct_fields__)


def test_the_claims_of_an_access_token_are_all_there():
    _, _, section = PAGE.partition("### An access token")
    described = re.findall(r"^\| (`.*?) \|", section.partition("## Reason")[0], re.MULTILINE)
    assert sorted(names(described)) == sorted(access_token._CLAIMS)
    for typ in (grant.TYPE, access_token.TYPE, CHAIN_TYPE):
        assert typ in PAGE


def test_the_example_of_a_chain_has_its_members(followed):
    (shown,) = blocks("json")
    assert json.loads(shown).keys() == json.loads((followed / "task.json").read_text()).keys()


@pytest.mark.parametrize("row", table("code | when"), ids=lambda row: row[0])
def test_the_reason_codes_are_there(row):
    assert f"| {row[0]} |" in CODES


def test_every_code_of_a_delegation_is_named():
    listed = re.findall(r"^\| `((?:delegation|calls|domain)\.\w+)` \|", CODES, re.MULTILINE)
    others = {"delegation.refused", "calls.rate", "calls.simultaneous"}  # the last two: a gateway's
    assert set(listed) - others <= set(names([r[0] for r in table("code | when")]))


# --- the command line, where it is given other things than files ----------------------------------


def test_a_token_may_be_given_as_it_is(followed):
    given = (followed / "token").read_text()
    said = json.loads(run(followed, "token", "inspect", given, "--json").stdout)
    assert said["claims"]["sub"] == "user:alice"
    assert [hop["depth"] for hop in said["hops"]] == [1, 2]
    signed, _dot, signature = given.rpartition(".")
    broken = f"{signed}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"
    refused = json.loads(run(followed, "token", "inspect", broken, "--json").stdout)
    assert (refused["holds"], refused["problem"]["code"]) == (False, "signature.invalid")


@pytest.mark.parametrize(
    "name", ["spiffe://eu.acme.example/agent/coder/x", "user:a.b.c", "user:" + "n" * 255]
)
def test_a_name_with_dots_or_a_long_one_is_no_token(changed, name):
    revoked = run(changed, "revoke", name, "--in-advance", "--note", "gone", "--json")
    assert revoked.returncode == 0, revoked.stderr
    assert json.loads(revoked.stdout)["revoked"] == name


def test_a_token_that_was_revoked_holds_where_nobody_can_know_it(changed, tmp_path):
    exported = tmp_path / "trust.json"
    assert run(changed, "trust", "export", "-o", str(exported)).returncode == 0
    assert run(changed, "token", "verify", "token").returncode == 0
    assert run(changed, "revoke", "./token", "--note", "stolen").returncode == 0
    refused = run(changed, "token", "verify", "token", "--json")
    assert (refused.returncode, json.loads(refused.stdout)["code"]) == (1, "delegation.revoked")
    for name in ("token", "chain.json"):
        shutil.copy(changed / name, tmp_path)
    given = ("--chain", "chain.json", "--trust", str(exported))
    assert run(tmp_path, "token", "verify", "token", *given).returncode == 0


def test_an_agent_is_shown_with_what_it_is_lent(changed):
    """What the last command of the page's code has handed to it, and whether that is revoked."""
    lent = shown_delegations(changed)
    assert {one["for"] for one in lent} == {"user:alice"}
    assert {tuple(one["scope"]) for one in lent} == {("pr:write", "repo:read"), ("repo:read",)}
    assert {one["revoked"] for one in lent} == {None}
    name = lent[0]["id"]
    assert run(changed, "revoke", name, "--note", "enough").returncode == 0
    told = run(changed, "agents", "show", "coder").stdout
    assert f"({name}); REVOKED: {name} was revoked" in told
    assert [one["id"] for one in shown_delegations(changed) if one["revoked"]] == [name]
    assert run(changed, "freeze", "--note", "an incident").returncode == 0
    told = run(changed, "agents", "show", "coder").stdout
    assert told.count("FROZEN: all calls are frozen") == len(lent) - 1
    assert f"({name}); REVOKED: {name} was revoked" in told  # and stays so


def shown_delegations(folder) -> list[Any]:
    (instance,) = json.loads(run(folder, "agents", "show", "coder", "--json").stdout)["instances"]
    return list(instance["delegations"])
