"""What the commands show of a principal who came with a token, and what a stranger can prove."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from login_provider import ISSUER, Provider, acme

from agentguard.signing import canonical, jws
from agentguard.signing.canonical import b64url_encode

EXAMPLE = Path(__file__).parents[2] / "examples" / "verify_evidence" / "verify_evidence.py"
INDEPENDENT: Callable[[bytes, bytes], Any] = runpy.run_path(str(EXAMPLE))["verify"]

TABLES = f"""
[agents.clerk]
type = "assistant"
{acme()}"""

POLICY = """package agent.authz
allow if {
	input.delegation.assurance == "oidc"
	input.delegation.subject_token.acr == "1"
}
"""

CALLED = """
import sys
from agentguard import Denied, Guard

with Guard.open("agentguard.toml") as guard:
    clerk, tool = guard.new_agent("clerk"), guard.tool(name="read_file")(lambda: "text")
    with guard.delegate(subject_token=open("login").read(), scope=["files:read"]) as lent:
        print(clerk.call(tool))
        open("task.json", "wb").write(lent.dumps())
    with guard.delegate("user:alice", scope=["files:read"]):
        try:
            clerk.call(tool)
        except Denied as denied:
            print(denied.code)
"""


@pytest.fixture(scope="module")
def lent(tmp_path_factory, told):
    """A project in which alice logged in at her provider, and lent to the clerk."""
    made = told.copy(tmp_path_factory.mktemp("lent") / "place")
    with (made.folder / "agentguard.toml").open("a") as file:
        file.write(TABLES)
    (made.folder / "policies" / "authz.rego").write_text(POLICY)
    (made.folder / "login").write_text(Provider(made.folder).token())
    called = made.python("-c", CALLED)
    assert called.stdout == "text\npolicy.denied\n", called.stderr
    assert made.run("trust", "export", "-o", "trust.json").returncode == 0
    return made


def shown(result: Any) -> str:
    assert (result.returncode, result.stderr) == (0, "")
    return " ".join(result.stdout.replace("| ", "").split())


def test_a_stored_delegation_says_how_the_principal_was_known(lent):
    said = shown(lent.run("token", "inspect", "task.json"))
    assert "for user:alice (assurance: oidc)" in said
    assert f"vouched for by {ISSUER} (token onrtac:7f2d1e44, log-in at 2027-01-15" in said
    assert lent.run("token", "verify", "task.json").returncode == 0


def test_evidence_names_the_providers_token(lent):
    rows = [row for row in lent.lines("audit", "list") if row["principal"] == "user:alice"]
    (call,) = [row for row in rows if row["decision"] == "allow" and row["tool"] == "read_file"]
    made = lent.run("evidence", "make", call["invocation_id"], "-o", "call.json", "--force")
    assert made.returncode == 0
    said = shown(lent.run("evidence", "verify", "call.json", "--trust", "trust.json"))
    assert f"vouched for by {ISSUER} (token onrtac:7f2d1e44" in said
    evidence, trust = ((lent.folder / name).read_bytes() for name in ("call.json", "trust.json"))
    INDEPENDENT(evidence, trust)
    assert lent.run("audit", "verify").returncode == 0


def test_a_changed_name_of_the_token_is_noticed(lent):
    """The issuer of the trust domain has signed which token was verified."""
    stored = (lent.folder / "task.json").read_text()
    (hop,) = json.loads(stored)["hops"]
    claims: Any = jws.parse(hop).claims()
    claims["subject_token"]["iss"] = "https://login.evil.example"
    head, signed, signature = hop.split(".")
    forged = f"{head}.{b64url_encode(canonical.dumps(claims))}.{signature}"
    (lent.folder / "forged.json").write_text(stored.replace(hop, forged))
    result = lent.run("token", "verify", "forged.json")
    assert result.returncode == 1
    assert "[signature.invalid]" in result.stdout
    same = f"{head}.{signed}.{signature}"
    (lent.folder / "same.json").write_text(stored.replace(hop, same))
    assert lent.run("token", "verify", "same.json").returncode == 0  # the twin
