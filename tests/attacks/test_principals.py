"""Who tries to be somebody else by writing a name otherwise: a principal has one spelling.

Separation of duties compares names. So a name that could be another spelling of somebody's is
refused wherever a name comes in: in the program, in the configuration, in an answer, in a command.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from agentguard import (
    AgentguardError,
    ApprovalPending,
    ConfigError,
    Decision,
    DelegationError,
    Denied,
    Guard,
    Requirement,
)
from agentguard.approvals.answer import seal_answer
from agentguard.approvals.request import ApprovalRequest
from agentguard.signing import canonical, dsse
from agentguard.signing.dsse import Envelope
from agentguard.signing.keys import Ed25519Signer

SPELLINGS = {
    "without a kind": "dora",
    "a capital": "user:Dora",
    "all in capitals": "USER:DORA",
    "a kind in capitals": "User:dora",
    "a kind that is misspelt": "users:dora",
    "a kind of one's own": "person:dora",
    "two kinds": "user:user:dora",
    "a space before": " user:dora",
    "a space after": "user:dora ",
    "a space within": "user: dora",
    "a line feed": "user:dora\n",
    "a dot at the end": "user:dora.",
    "a slash at the end": "user:dora/",
    "no name": "user:",
    "full width": "user:\uff44ora",
    "a full-width colon": "user\uff1adora",
    "Cyrillic": "user:d\u043era",
    "an accent in two parts": "user:dora\u0301",
    "a letter of zero width": "user:do\u200bra",
    "right to left": "user:\u202edora",
    "a soft hyphen": "user:do\xadra",
    "a ligature": "user:do\ufb01",
    "an escape": "user:%64ora",
    "an issuer without TLS": "http://idp.example#dora",
    "an issuer in capitals": "https://IDP.example#dora",
    "an issuer with its usual port": "https://idp.example:443#dora",
    "a usual port with a zero before": "https://idp.example:0443#dora",
    "a port with a zero before": "https://idp.example:08443#dora",
    "an empty label": "https://idp..example#dora",
    "two slashes": "https://idp.example//#dora",
    "two slashes in the path": "https://idp.example/realms//acme#dora",
    "a dot as a segment": "https://idp.example/./#dora",
    "a dot at the end of the path": "https://idp.example/realms/.#dora",
    "a step up": "https://idp.example/realms/../acme#dora",
    "an issuer without a subject": "https://idp.example#",
    "two fragments": "https://idp.example#a#dora",
    "somebody at an issuer": "https://dora@idp.example#1",
}


def spelled() -> Any:
    return pytest.mark.parametrize("name", SPELLINGS.values(), ids=SPELLINGS)


def key() -> Ed25519Signer:
    return Ed25519Signer.from_seed(os.urandom(32))


class Refunds:
    """A policy that has refunds approved, dora who may approve them, and a tool that counts."""

    def __init__(self, **tables: Any) -> None:
        self.keys = {"dora": key(), "erin": key()}
        people = {
            name: {"principal": f"user:{name}", "keys": [signer.public_key.openssh()]}
            for name, signer in self.keys.items()
        }
        tables = {"approvers": people, "approvals": {"application": True}, **tables}
        self.guard = Guard.ephemeral(
            lambda _input: Decision.require_approval(Requirement("a refund")), config=tables
        )
        self.paid: list[int] = []
        self.refund = self.guard.tool(name="refund")(self.paid.append)
        self.agent = self.guard.new_agent("support")

    def ask(self) -> ApprovalRequest:
        with pytest.raises(ApprovalPending) as pending:
            self.agent.call(self.refund, 500)
        return pending.value.request


def refused(error: type[AgentguardError], call: Any, *args: Any, **named: Any) -> str:
    with pytest.raises(error) as caught:
        call(*args, **named)
    assert caught.value.code == "principal.malformed"
    return str(caught.value)


@spelled()
def test_nobody_lends_under_another_spelling(name):
    refunds = Refunds()
    said = refused(DelegationError, refunds.guard.delegate, name, scope=[])
    assert said.isascii()  # what looks like another letter shows as what it is
    refused(DelegationError, refunds.guard.delegate, "user:carl", scope=[], via=name)


def test_she_who_lends_does_not_approve_and_another_does():
    """The twin: in the one spelling she is known as who asks; with somebody else it runs."""
    refunds = Refunds()
    with refunds.guard.delegate("user:dora", scope=[]):
        request = refunds.ask()
        with pytest.raises(AgentguardError, match="user:dora asks for this call"):
            refunds.guard.approvals.approve(request, refunds.keys["dora"])
        with pytest.raises(ApprovalPending):
            refunds.agent.call(refunds.refund, 500)
        refunds.guard.approvals.approve(request, refunds.keys["erin"])
        refunds.agent.call(refunds.refund, 500)
    assert refunds.paid == [500]


@spelled()
def test_nobody_answers_under_another_spelling(name):
    """By the application's word, or with a signature under a name that is not the roster's."""
    refunds = Refunds()
    with refunds.guard.delegate("user:dora", scope=[]):
        request = refunds.ask()
        with pytest.raises(AgentguardError) as caught:
            refunds.guard.approvals.vouch(request, "approve", principal=name)
        assert caught.value.code == "principal.malformed"
        with pytest.raises(AgentguardError):
            refunds.guard.approvals.accept(request, signed(request, name, refunds.keys["dora"]))
        with pytest.raises(ApprovalPending):
            refunds.agent.call(refunds.refund, 500)
        refunds.guard.approvals.vouch(request, "approve", principal="user:erin")
        refunds.agent.call(refunds.refund, 500)


def signed(request: ApprovalRequest, name: str, signer: Ed25519Signer) -> Envelope:
    """An answer that dora has signed under another name."""
    own = seal_answer(
        request,
        "approve",
        approver="user:dora",
        approval_id=os.urandom(16).hex(),
        at=request.requested_at,
        signer=signer,
    )
    statement = canonical.loads_object(own.payload)
    assert isinstance(statement["predicate"], dict)
    statement["predicate"]["approver"] = name
    return dsse.seal(canonical.dumps(statement), signer)


@spelled()
def test_no_configuration_names_somebody_otherwise(name):
    line = key().public_key.openssh()
    tried: tuple[dict[str, Any], ...] = (
        {"approvers": {"d": {"principal": name, "keys": [line]}}},
        {"agents": {"support": {"owner": name}}},
        {"principals": {name: {}}},
    )
    for tables in tried:
        with pytest.raises(ConfigError, match="no name of a principal"):
            Guard.ephemeral(lambda _input: Decision.allow(), config=tables)


def test_an_approver_in_capitals_is_told_what_to_write():
    """The name of the table is the principal, where none is said."""
    tables = {"Dora": {"keys": [key().public_key.openssh()]}}
    with pytest.raises(ConfigError, match=r"approvers\.Dora.*'user:dora'"):
        Guard.ephemeral(lambda _input: Decision.allow(), config={"approvers": tables})


@pytest.mark.parametrize(
    "name",
    [
        "user:dora",
        "user:42",
        "user:d.o-r_a+test@acme.example",
        "service:acme/forge",
        "crew:newsroom",
        "https://idp.example#42",
        "https://idp.example/realms/acme/#auth0|Dora",
        "https://idp.example:8443/#d",
        "https://idp.example/.well/v1..2/#a//../b:443/",
    ],
)
def test_whoever_has_one_spelling_lends_and_does_not_approve(name):
    """Somebody of another issuer too: a subject there is compared letter by letter (OpenID)."""
    refunds = Refunds()
    with refunds.guard.delegate(name, scope=[], via="service:chat"):
        request = refunds.ask()
        assert request.principal == name
        with pytest.raises(AgentguardError, match="asks for this call"):
            refunds.guard.approvals.vouch(request, "approve", principal=name)
        refunds.guard.approvals.vouch(request, "reject", principal=name)
        with pytest.raises(Denied):
            refunds.agent.call(refunds.refund, 500)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("dora", "user:dora"),
        ("user:Dora", "user:dora"),
        ("Dora@ACME.example", "user:dora@acme.example"),
        ("users:dora", "user:dora"),
        (" user:dora", "user:dora"),
        ("user:\uff44ora", "user:dora"),
    ],
)
def test_the_error_says_what_to_write(name, meant):
    said = refused(DelegationError, Refunds().guard.delegate, name, scope=[])
    assert f"write {meant!r}" in said


def test_a_service_is_told_to_be_one():
    guard = Refunds().guard
    said = refused(DelegationError, guard.delegate, "user:dora", scope=[], via="HelpDesk")
    assert "write 'service:helpdesk'" in said


def test_a_misspelt_name_loads_nothing_from_the_folder_where_a_program_is_by_then(tmp_path):
    """Of a program of ``python -c`` that folder is the first in which a module is looked for."""
    (tmp_path / "difflib.py").write_text("print('hostile')")
    program = f"""
import os
from agentguard import AgentguardError, Decision, Guard
guard = Guard.ephemeral(lambda _: Decision.allow(), config={{"tools": {{"reed": {{}}}}}})
os.chdir({str(tmp_path)!r})
for lend in (lambda: guard.delegate("alice"), lambda: guard.delegate("usr:alice")):
    try:
        lend()
    except AgentguardError as error:
        print(error.code)
guard.tool(name="read")(lambda: None)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == ["principal.malformed"] * 2, done.stderr
