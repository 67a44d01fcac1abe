"""``audit match`` finds what one side's log lacks, what was forged, and what differs."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

import commands
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from msgspec.structs import replace
from proof_scene import BODY, URL, Sent, check, header, refused
from request_logs import TwoSides
from tool_servers import in_call, listed

from agentguard import Ed25519Signer
from agentguard.delegation.context import running_call
from agentguard.proof.presentation import note_receipt, prove_request
from agentguard.proof.receipt import Answer, VerifiedReceipt, mint
from agentguard.signing.canonical import sha256_hex


def other() -> Ed25519Signer:
    return Ed25519Signer.from_seed(os.urandom(32))


@pytest.fixture
def key() -> Ed25519Signer:
    """The key with which the server signs receipts."""
    return other()


def run(sides: TwoSides, *options: str) -> commands.Result:
    """Run the command on both states, in a home without anchors."""
    states = sides.agent.state, sides.server.state
    words: list[str | Path] = ["audit", "match", *states, "--jobs", "1", *options]
    environment = {"HOME": str(sides.folder), "COLUMNS": "1000", "LC_ALL": "C.UTF-8"}
    return commands.run(words, env=environment, cwd=sides.folder)


def match(sides: TwoSides, *options: str) -> tuple[int, list[dict[str, Any]], dict[str, Any]]:
    """Run the command; return the exit code, the listed requests, and the summary."""
    trust = [
        *("--agent-trust", str(sides.agent.state / "trust.json")),
        *("--receiver-trust", str(sides.server.state / "trust.json")),
    ]
    ran = run(sides, *trust, "--json", *options)
    *listed, summary = map(json.loads, ran.stdout.splitlines())
    return ran.returncode, listed, summary["summary"]


def test_requests_on_both_sides_agree(sides):
    with sides.open() as opened:
        opened.send("/pay")
        opened.send("/refund")
    code, listed, summary = match(sides, "--all")
    assert [(one["state"], one["url"]) for one in listed] == [
        ("both", f"{URL}/pay"),
        ("both", f"{URL}/refund"),
    ]
    (call, _other) = sides.agent.entries("call")
    assert listed[0]["invocation_id"] in json.dumps(sides.agent.entries("proof")[0].members)
    assert call.at < sides.agent.entries("proof")[0].at
    assert (code, summary["ok"], summary["both"]) == (0, True, 2)
    assert summary["verified"] == {"agent": True, "receiver": True}
    assert match(sides)[1] == []  # without --all, only what differs is listed


def test_a_request_that_was_not_sent_is_only_at_the_agent(sides):
    with sides.open() as opened:
        opened.send()
        opened.prove("/lost")
    code, (lost,), summary = match(sides)
    assert (code, lost["state"], lost["url"]) == (1, "agent_only", f"{URL}/lost")
    assert (lost["receiver_entry"], lost["tool"]) == (None, "pay")
    assert (summary["both"], summary["agent_only"], summary["ok"]) == (1, 1, False)


def test_an_agent_that_is_killed_between_the_record_and_the_request_is_listed(sides):
    with sides.open() as opened:
        opened.send()
    child = os.fork()
    if child == 0:  # pragma: no cover  the child is killed
        guard = sides.agent.open()

        def pay():
            prove_request("POST", f"{URL}/killed", BODY)
            os.kill(os.getpid(), signal.SIGKILL)

        in_call(guard, pay, audience=[URL])
    _pid, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    code, (lost,), _summary = match(sides)
    assert (code, lost["state"], lost["url"]) == (1, "agent_only", f"{URL}/killed")


@pytest.mark.parametrize("side", ["agent", "server"])
def test_an_entry_that_is_removed_is_found_twice(sides, side):
    """The log without the entry does not verify, and the other log has the request."""
    with sides.open() as opened:
        opened.send()
        opened.guard.flush()
    state = getattr(sides, side).state
    assert match(sides)[0] == 0  # the twin
    kind = "proof" if side == "agent" else "received"
    with sqlite3.connect(state / "log.sqlite") as connection:
        connection.execute("DELETE FROM entry WHERE kind = ?", (kind,))
    connection.close()
    code, (one,), summary = match(sides)
    assert code == 1
    assert one["state"] == ("receiver_only" if side == "agent" else "agent_only")
    assert summary["verified"]["agent" if side == "agent" else "receiver"] is False


def received(entry, *, at, **said):
    """Return the entry of a request once more, of another time, saying other things."""
    return replace(entry, at=at, unrecorded=0, **said).record()


def other_proof(entry, sha256="f" * 64):
    return replace(entry.proof, sha256=sha256)


def test_a_forged_received_entry_is_only_at_the_receiver(sides):
    """The holder of the receiver's log key says that the agent has sent a request."""
    with sides.open() as opened:
        opened.send()
        (entry,) = sides.server.entries("received")
        opened.append("server", partial(received, entry, proof=other_proof(entry)))
    assert sides.server.verify().ok  # its own log can't tell
    code, (one,), summary = match(sides)
    assert (code, one["state"], one["agent_entry"]) == (1, "receiver_only", None)
    assert (summary["both"], summary["receiver_only"]) == (1, 1)


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"invocation_sha256": "1" * 64}, "invocation_sha256"),
        ({"agent": "spiffe://acme.example/agent/other/x"}, "agent"),
        ({"proof_jti": "x"}, "proof_jti"),
        ({}, None),
    ],
)
def test_a_received_entry_that_says_otherwise_differs(sides, changed, name):
    with sides.open() as opened:
        sent = opened.prove()
        opened.receiver._log = _Changing(opened.receiver._log.received, changed)
        check(opened.receiver, sent)
    code, listed, summary = match(sides)
    assert [one["differs"] for one in listed] == ([] if name is None else [[name]])
    assert (code, summary["differs"]) == ((0, 0) if name is None else (1, 1))


class _Changing:
    """A receiver's log that says something else of each request."""

    def __init__(self, received: Any, changed: dict[str, Any]) -> None:
        self._received, self._changed = received, changed

    def received(self, request: Any) -> None:
        changed = dict(self._changed)
        agent = changed.pop("agent", request.known.agent)
        known = request.known._replace(agent=agent)
        self._received(request._replace(known=known, **changed))

    def refused(self, code: str, request: Any) -> None: ...


def test_a_request_that_is_accepted_twice_is_once_too_often_at_the_receiver(sides):
    with sides.open() as opened:
        opened.send()
        (entry,) = sides.server.entries("received")
        opened.append("server", partial(received, entry))
    code, (one,), summary = match(sides)
    assert (code, one["state"]) == (1, "receiver_only")
    assert (summary["both"], summary["receiver_only"]) == (1, 1)


def test_a_request_that_is_proved_past_the_log_is_only_at_the_receiver(sides):
    """Code in the agent's process has the key, and signs a proof that nobody puts on record."""
    with sides.open() as opened:
        accepted: list[Any] = []

        def pay():
            running: Any = running_call()
            subject = running.releases._subject
            proof, _record = subject.prover.prove(
                "POST",
                f"{URL}/past",
                body_sha256=sha256_hex(BODY),
                invocation_sha256=subject.invocation_sha256,
            )
            sent = Sent(listed(proof), path="/past", query="", body=BODY)
            accepted.append(check(opened.receiver, sent))

        in_call(opened.guard, pay, audience=[URL])
        opened.send()  # the twin
    assert len(accepted) == 1  # the receiver alone can't tell
    code, (past,), summary = match(sides)
    assert (code, past["state"], past["url"]) == (1, "receiver_only", f"{URL}/past")
    assert (summary["both"], summary["verified"]["agent"]) == (1, True)


def test_a_refused_request_is_known_to_both_sides(sides):
    with sides.open() as opened:
        sent = opened.prove()
        assert refused(opened.receiver, sent._replace(body=b"altered")) == "proof.request"
        accepted = opened.send()
        assert refused(opened.receiver, accepted) == "proof.used"  # a thief sends it once more
        digest = sha256_hex(header(sent, "DPoP").encode())
    code, (one,), summary = match(sides)
    assert (one["state"], one["code"]) == ("refused", "proof.request")
    assert one["differs"] == ["body_sha256"]
    assert digest in json.dumps(sides.agent.entries("proof")[0].members)
    assert (code, summary["ok"], summary["both"], summary["refused"]) == (0, True, 1, 1)


def test_requests_to_other_servers_and_of_other_domains_are_left_out_and_counted(sides):
    other = "https://other.example"
    with sides.open() as opened:
        opened.send()
        in_call(opened.guard, lambda: bool(prove_request("GET", other, b"")), audience=[other])
        (entry,) = sides.server.entries("received")
        foreign = "spiffe://globex.example/agent/a/x"
        opened.append("server", partial(received, entry, proof=other_proof(entry), agent=foreign))
    code, listed, summary = match(sides)
    assert (code, listed) == (0, [])
    assert (summary["elsewhere"], summary["other_domains"]) == (1, 1)
    code, (lost,), _summary = match(sides, "--server", other)
    assert (code, lost["state"], lost["url"]) == (1, "agent_only", f"{other}/")


def test_a_request_with_a_dpop_proof_is_counted_and_not_compared(sides):
    """No guard signs such a proof, so the agent's log can't have the request."""
    with sides.open() as opened:
        opened.send()
        (entry,) = sides.server.entries("received")
        shown = {"assurance": "dpop", "invocation_sha256": None, "proof": other_proof(entry)}
        opened.append("server", partial(received, entry, **shown))
    code, listed, summary = match(sides)
    assert (code, listed, summary["dpop"], summary["receiver_only"]) == (0, [], 1, 0)


def test_a_proof_that_a_thief_sends_again_and_again_is_one_refused_request(sides):
    with sides.open() as opened:
        accepted = opened.prove()
        assert refused(opened.receiver, accepted._replace(body=b"altered")) == "proof.request"
        for _ in range(3):
            assert refused(opened.receiver, accepted._replace(body=b"again")) == "proof.request"
    assert len(sides.server.entries("refused")) == 4
    code, (one,), summary = match(sides)
    assert (code, one["state"], summary["refused"]) == (0, "refused", 1)


def test_a_log_with_the_names_of_endless_servers_is_refused(sides):
    with sides.open() as opened:
        opened.send()
        (entry,) = sides.server.entries("received")
        for number in range(64):
            proof = other_proof(entry, f"{number:064x}")
            server = f"https://s{number}.example/"
            opened.append("server", partial(received, entry, proof=proof, server=server))
    asked = run(sides, "--no-verify")
    assert (asked.returncode, "more than 64 servers" in asked.stderr) == (2, True)
    assert run(sides, "--no-verify", "--server", URL).returncode == 1  # the twin: forged entries


def test_a_receiver_that_has_nothing_lacks_every_request(sides):
    with sides.open() as opened:
        opened.prove()
    assert match(sides)[0] == 1
    with sides.open() as opened:
        opened.send()
    code, listed, _summary = match(sides)
    assert (code, [one["state"] for one in listed]) == (1, ["agent_only"])


def test_only_requests_since_a_time_count_unless_both_sides_have_them(sides):
    with sides.open() as opened:
        opened.prove("/early")
        opened.send()
    (_early, late) = sides.agent.entries("proof")
    assert match(sides)[0] == 1
    code, listed, summary = match(sides, "--since", late.at)
    assert (code, listed, summary["both"], summary["earlier"]) == (0, [], 1, 1)


def test_without_verification_the_command_says_so(sides):
    with sides.open() as opened:
        opened.send()
    shown = run(sides, "--no-verify")
    assert shown.returncode == 0
    assert "NOT VERIFIED" in shown.stdout
    assert match(sides, "--no-verify")[2]["verified"] == {"agent": None, "receiver": None}
    assert "NOT VERIFIED" not in run(sides).stdout


def test_people_read_a_table_and_one_line_of_summary(sides):
    with sides.open() as opened:
        opened.send()
        opened.prove("/lost")
    shown = run(sides, "--all")
    assert shown.returncode == 1
    for words in ("on both sides", "only at the agent", f"POST {URL}/lost", "FAILED: 1 on both"):
        assert words in shown.stdout
    assert "the agent's log: consistent" in shown.stdout
    assert "UNTRUSTED KEY" in shown.stdout


def test_an_address_that_protects_no_request_is_no_server(sides):
    asked = run(sides, "--server", "http://payments.example")
    assert (asked.returncode, "use https" in asked.stderr) == (2, True)


def answered(path, signer, named=None):
    """Prove a request inside a call, and note a receipt that the server signs with ``signer``.

    The entry names the key ``named``, by default that of ``signer``.
    """
    proof = sha256_hex(prove_request("POST", f"{URL}{path}", b"").proof.encode())
    token = mint(Answer(proof, 200, "0" * 64, "0" * 64), signer, server=f"{URL}/", at=1)
    note_receipt(VerifiedReceipt(token, (named or signer).public_key.thumbprint, proof))


def keys_of(sides, *signers):
    file = sides.folder / "receipts.pub"
    lines = [signer.public_key.openssh() for signer in signers]
    file.write_text("# keys of receipts\n\n" + "\n".join(lines))
    return "--receipt-keys", str(file)


def test_a_request_with_a_receipt_is_named(sides, key):
    """The receiver has removed its entry, and the agent has what the receiver has signed."""
    with sides.open() as opened:
        opened.send()
        in_call(opened.guard, lambda: answered("/signed", key), audience=[URL])
        opened.prove("/unsigned")
    code, listed, summary = match(sides, *keys_of(sides, other(), key))
    assert [(one["url"], one["receipt"]) for one in listed] == [
        (f"{URL}/signed", "valid"),
        (f"{URL}/unsigned", None),
    ]
    assert [one["receipt_entry"] is None for one in listed] == [False, True]
    assert (code, summary["receipts"], summary["receipts_invalid"]) == (1, 1, 0)
    assert summary["agent_only"] == 2
    shown = run(sides, "--no-verify", *keys_of(sides, key)).stdout
    assert "answered by the receiver, whose log lacks the request" in shown
    assert "1 request has a receipt" in shown
    assert "the signatures hold" in shown


def test_a_receipt_is_not_verified_without_the_keys_of_the_server(sides, key):
    with sides.open() as opened:
        in_call(opened.guard, lambda: answered("/signed", key), audience=[URL])
    _code, (one,), summary = match(sides)
    assert (one["receipt"], summary["receipts_invalid"]) == ("unverified", None)
    shown = run(sides, "--no-verify").stdout
    assert "whose signature is not verified" in shown
    assert "lost, or never received" in shown


@pytest.mark.parametrize("lie", ["of another key", "under the name of the key", "none"])
def test_a_receipt_that_the_server_has_not_signed_is_a_difference(sides, key, lie):
    """The agent's process can note any receipt: both logs verify, and agree on the request."""
    signer = key if lie == "none" else other()
    named = key if lie == "under the name of the key" else None

    def pay(receiver):
        proof = prove_request("POST", f"{URL}/pay", b"")
        check(receiver, Sent(listed(proof), query="", body=b""))
        digest = sha256_hex(proof.proof.encode())
        token = mint(Answer(digest, 200, "0" * 64, "0" * 64), signer, server=f"{URL}/", at=1)
        note_receipt(VerifiedReceipt(token, (named or signer).public_key.thumbprint, digest))

    with sides.open() as opened:
        in_call(opened.guard, lambda: pay(opened.receiver), audience=[URL])
    assert match(sides)[0] == 0  # nobody has named the keys
    code, requests, summary = match(sides, *keys_of(sides, key))
    assert (summary["both"], summary["receipts"]) == (1, 1)
    if lie == "none":
        assert (code, requests, summary["receipts_invalid"]) == (0, [], 0)
    else:
        assert [(one["state"], one["receipt"]) for one in requests] == [("both", "invalid")]
        assert (code, summary["ok"], summary["receipts_invalid"]) == (1, False, 1)
        assert "do not hold" in run(sides, *keys_of(sides, key)).stdout


def test_a_receipt_that_lies_is_not_hidden_behind_another(sides, key):
    """Two receipts of one request: the first verifies, the second does not, or the other way."""

    def pay(signers):
        proof = sha256_hex(prove_request("POST", f"{URL}/pay", b"").proof.encode())
        for signer in signers:
            token = mint(Answer(proof, 200, "0" * 64, "0" * 64), signer, server=f"{URL}/", at=1)
            note_receipt(VerifiedReceipt(token, signer.public_key.thumbprint, proof))

    with sides.open() as opened:
        in_call(opened.guard, lambda: pay((key, other())), audience=[URL])
        in_call(opened.guard, lambda: pay((other(), key)), audience=[URL])
    _code, requests, summary = match(sides, *keys_of(sides, key))
    assert [one["receipt"] for one in requests] == ["invalid", "invalid"]
    assert summary["receipts"] == 2


def test_a_receipt_contradicts_a_log_that_says_refused(sides, key):
    def pay(receiver):
        proof = prove_request("POST", f"{URL}/pay", b"")
        sent = Sent(listed(proof), query="", body=b"altered")
        assert refused(receiver, sent) == "proof.request"
        digest = sha256_hex(proof.proof.encode())
        token = mint(Answer(digest, 200, "0" * 64, "0" * 64), key, server=f"{URL}/", at=1)
        note_receipt(VerifiedReceipt(token, key.public_key.thumbprint, digest))

    with sides.open() as opened:
        in_call(opened.guard, lambda: pay(opened.receiver), audience=[URL])
    code, (one,), _summary = match(sides)
    assert (code, one["state"]) == (0, "refused")  # an unverified receipt may be forged
    code, (one,), summary = match(sides, *keys_of(sides, key))
    assert (code, one["state"], summary["differs"]) == (1, "differs", 1)
    assert (one["code"], one["differs"]) == ("proof.request", ["body_sha256", "receipt"])
    assert "its log says that the request was refused" in run(sides, *keys_of(sides, key)).stdout


def private_key():
    """Return the private half of a new key, which somebody may name by mistake."""
    made = Ed25519PrivateKey.generate()
    form = (Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    return made.private_bytes(*form).decode()


@pytest.mark.parametrize(
    "text", [str, lambda: "ssh-ed25519 AAAA", private_key], ids=["empty", "cut", "private"]
)
def test_a_file_without_usable_keys_is_refused(sides, text):
    with sides.open() as opened:
        opened.send()
    file = sides.folder / "receipts.pub"
    file.write_text(text())
    asked = run(sides, "--receipt-keys", str(file))
    assert (asked.returncode, "receipts.pub" in asked.stderr) == (2, True)
    assert run(sides, "--receipt-keys", str(sides.folder / "none")).returncode == 2
    assert run(sides, *keys_of(sides, other())).returncode == 0  # the twin


def test_two_logs_that_are_named_the_other_way_round_are_refused(sides):
    """Nothing would be compared, and the logs would agree."""
    with sides.open() as opened:
        opened.send()
    names = sides.agent.state, sides.server.state
    environment = {"HOME": str(sides.folder), "LC_ALL": "C.UTF-8", "COLUMNS": "1000"}
    for states, code in ((names, 0), (names[::-1], 2)):
        words = ["audit", "match", *states, "--no-verify"]
        asked = commands.run(words, env=environment, cwd=sides.folder)
        assert (asked.returncode, "name AGENT first" in asked.stderr) == (code, code == 2)


def test_only_requests_that_are_left_out_are_counted_as_such(sides):
    """A request that both logs have is compared, whatever its time and its server."""
    with sides.open() as opened:
        opened.send("/early")
        opened.prove("/lost")
        opened.send()
    (*_early, late) = sides.agent.entries("proof")
    code, listed, summary = match(sides, "--since", late.at)
    assert (code, listed, summary["both"], summary["earlier"]) == (0, [], 2, 1)
    code, listed, summary = match(sides, "--server", "https://other.example")
    assert (code, listed, summary["both"], summary["elsewhere"]) == (0, [], 2, 1)
