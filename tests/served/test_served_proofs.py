"""A guard server in a process of its own proves the requests of its clients' running calls."""

from __future__ import annotations

import os
from contextlib import closing
from typing import Any

import pytest

from agentguard import ConfigError, Ed25519Signer, ProofError, ReceiverLog
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.running import ProofEntry, ReceiptEntry
from agentguard.delegation.context import running_call
from agentguard.proof.call_proof import params_digest
from agentguard.proof.presentation import note_receipt, prove_call, prove_request
from agentguard.proof.receipt import Answer, VerifiedReceipt, mint
from agentguard.signing import jws
from agentguard.signing.canonical import b64url_decode, loads_object, sha256_hex
from agentguard.store.reader import StoredLog

URL = "https://payments.example"


def test_the_server_proves_a_request_of_a_running_call_and_none_after_the_end(place):
    guard = place.connect()
    kept: list[Any] = []

    def pay():
        kept.append(running_call())
        return prove_request("POST", f"{URL}/pay", b"3")

    with guard.delegate("user:alice", scope=["pay"], audience=[URL]):
        proof = guard.new_agent("clerk").call(guard.tool(name="note")(pay))
    claims = loads_object(b64url_decode(proof.proof.split(".")[1]))
    assert claims["htu"] == f"{URL}/pay"
    link, request_id = guard._parts._link, kept[0].releases._request_id
    asked = {"op": "proof", "request_id": request_id, "method": "POST", "url": f"{URL}/pay"}
    with pytest.raises(ProofError) as caught:
        link.request({**asked, "body_sha256": "0" * 64})
    assert caught.value.code == "proof.refused"


def test_the_proof_is_in_the_server_s_log_before_the_client_has_the_proof(place):
    guard = place.connect()

    def pay():
        proof = prove_request("POST", f"{URL}/pay", b"3")
        with closing(StoredLog.of(place.settings.state)) as reader:
            bodies = [body for _index, body in reader.entries()]
        (entry,) = [one for one in map(parse_entry, bodies) if isinstance(one, ProofEntry)]
        return proof.proof, entry.proof.sha256

    with guard.delegate("user:alice", scope=["pay"], audience=[URL]):
        proof, digest = guard.new_agent("clerk").call(guard.tool(name="note")(pay))
    assert digest == sha256_hex(proof.encode())


def test_a_receipt_goes_into_the_server_s_log(place):
    guard, key = place.connect(), Ed25519Signer.from_seed(os.urandom(32))

    def pay():
        proof = sha256_hex(prove_request("POST", f"{URL}/pay", b"3").proof.encode())
        token = mint(Answer(proof, 200, "0" * 64, "0" * 64), key, server=f"{URL}/", at=1)
        note_receipt(VerifiedReceipt(token, key.public_key.thumbprint, proof))
        forged = mint(Answer("f" * 64, 200, "0" * 64, "0" * 64), key, server=f"{URL}/", at=1)
        with pytest.raises(ProofError) as caught:
            note_receipt(VerifiedReceipt(forged, key.public_key.thumbprint, "f" * 64))
        with closing(StoredLog.of(place.settings.state)) as reader:
            bodies = [body for _index, body in reader.entries()]
        (entry,) = [one for one in map(parse_entry, bodies) if isinstance(one, ReceiptEntry)]
        return caught.value.code, entry.receipt == token

    with guard.delegate("user:alice", scope=["pay"], audience=[URL]):
        noted = guard.new_agent("clerk").call(guard.tool(name="note")(pay))
    assert tuple(noted) == ("proof.refused", True)


def test_a_receiver_opens_its_log_in_its_own_process(place):
    with pytest.raises(ConfigError, match=r"Guard\.open"):
        ReceiverLog(place.connect())


def test_the_server_itself_looks_at_the_audience(place):
    guard = place.connect()

    def pay():
        return prove_request("POST", "https://evil.example/pay", b"")

    with (
        guard.delegate("user:alice", scope=["pay"], audience=[URL]),
        pytest.raises(ProofError) as caught,
    ):
        guard.new_agent("clerk").call(guard.tool(name="note")(pay))
    assert caught.value.code == "proof.audience"


def test_the_server_proves_a_request_over_mcp_and_itself_looks_at_the_audience(place):
    guard = place.connect()
    params = {"name": "pay", "arguments": {"cents": 3}}

    def pay(audience):
        return prove_call(audience, "tools/call", params)

    tool = guard.tool(name="note")(pay)
    with guard.delegate("user:alice", scope=["pay"], audience=["mcp:payments"]):
        clerk = guard.new_agent("clerk")
        proved = clerk.call(tool, "mcp:payments")
        with pytest.raises(ProofError) as caught:
            clerk.call(tool, "mcp:other")
    assert caught.value.code == "proof.audience"
    claims = jws.parse(str(proved["_meta"]["dev.agentguard/proof"])).claims()
    assert (claims["aud"], claims["mdg"]) == ("mcp:payments", params_digest(params))
