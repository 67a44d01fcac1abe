"""``token inspect`` as users type the command.

The command explains good tokens, names the hop that makes a token wrong, and refuses other files.
"""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from token_files import claims_of, refused, told_as_json, words, write

from agentguard.delegation import access_token, grant
from agentguard.delegation.chain import hops_digest
from agentguard.signing import canonical, jws
from agentguard.signing.canonical import b64url_encode
from agentguard.signing.keys import Ed25519Signer

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
        "        open('token', 'w').write(coder.access_token().token)\n"
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
    chain = (lent.folder / "chain.json").read_bytes()
    digest = hops_digest(json.loads(chain)["hops"])
    assert found["claims"][access_token.CHAIN_CLAIM] == digest
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
    for name in ("token", "chain.json", "task.json", "trust.json"):
        shutil.copy(lent.folder / name, project.folder)
    for given in (("token", "--chain", "chain.json"), ("task.json",)):
        for command in ("inspect", "verify"):
            assert project.run("token", command, *given, "--trust", "trust.json").returncode == 0
    state = lent.state
    assert project.run("token", "verify", "token", "--state", state, "--anchor", "").returncode == 0


def test_without_one_it_is_explained_and_said_not_to_be_checked(lent, project):
    for name in ("token", "chain.json"):
        shutil.copy(lent.folder / name, project.folder)
    given = ("token", "--chain", "chain.json")
    result = project.run("token", "inspect", *given)
    assert result.returncode == 0
    assert "NOT CHECKED: no trust document" in result.stdout
    assert "it holds" not in result.stdout
    assert told_as_json(project.run("token", "inspect", *given, "--json"))["holds"] is None
    refused(project.run("token", "verify", *given), "config.missing")
    refused(project.run("token", "inspect", "token", "--state", "nowhere"), "storage.missing")


def test_another_domain_believes_nothing_of_it(lent, project):
    assert project.run("init", "--trust-domain", "other.example").returncode == 0
    for name in ("token", "chain.json", "task.json"):
        shutil.copy(lent.folder / name, project.folder)
    for given in (("token", "--chain", "chain.json"), ("task.json",)):
        for command in ("inspect", "verify"):
            result = project.run("token", command, *given)
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
    chain: Any = json.loads((other.folder / "chain.json").read_bytes())
    grant_claims = jws.parse(chain["hops"][2]).claims()
    chain["hops"][2] = unsigned({**grant_claims, "txn": HOSTILE}, grant.TYPE)
    beside = ("--chain", write(other, "spoilt.json", chain))
    alone = ("--state", "state")  # which has no chain of this digest
    for change in (
        {"jti": HOSTILE},
        {"sub": HOSTILE},
        {"aud": [HOSTILE]},
        {"exp": 10**15},
        {"exp": HOSTILE},
        {access_token.CHAIN_CLAIM: HOSTILE},
        {},
    ):
        (other.folder / "hostile").write_text(unsigned({**claims, **change}))
        for more in (beside, alone):
            result = other.run("token", "inspect", "hostile", *more)
            shown = result.stdout
            assert not any(ord(c) < 32 and c != "\n" for c in shown)
            assert not {"\x7f", "\x9b", "\u202e"} & set(shown)
        assert other.run("token", "inspect", "hostile", *beside, "--json").returncode == 1


def test_a_token_without_its_chain_shows_what_it_says_itself(lent, tmp_path):
    """A receiver has neither the state nor its log."""
    for name in ("token", "chain.json", "trust.json"):
        shutil.copy(lent.folder / name, tmp_path)
    elsewhere = replace(lent, folder=tmp_path)
    said = words(elsewhere.run("token", "inspect", "token", "--trust", "trust.json"))
    assert "for user:alice may files:read towards spiffe://project.internal" in said
    assert "NOT CHECKED: its chain is not known: give --chain FILE" in said
    refusal = elsewhere.run("token", "verify", "token", "--trust", "trust.json")
    assert refusal.returncode == 2
    assert "give its file with --chain FILE" in refusal.stderr
    given = ("--trust", "trust.json", "--chain", "chain.json")
    said = words(elsewhere.run("token", "inspect", "token", *given))  # the twin
    assert re.search(r"hop 3 agent:coder:\S{4} lets agent:tester:\S{4}: files:read;", said)
    assert "it holds: every signature, link and limit" in said
    assert elsewhere.run("token", "verify", "token", *given).returncode == 0
    assert elsewhere.run("token", "verify", "chain.json", *given).returncode == 2


def test_the_chain_of_another_token_does_not_verify_a_token(lent):
    given = ("--trust", "trust.json", "--chain", "task.json")
    result = lent.run("token", "verify", "token", *given)
    assert result.returncode == 1
    assert "it does not hold [token.mismatch]" in result.stdout


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
