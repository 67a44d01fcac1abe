"""The processes that verify signatures: what counts as their answer."""

from __future__ import annotations

import os

import pytest

from agentguard.audit.ahead import SignatureCheck
from agentguard.domain.signature_processes import signature_checker
from agentguard.signing import dsse
from agentguard.signing.keys import Ed25519Signer

BAD = 40
"""The place of a signature that does not hold."""


@pytest.fixture(scope="module")
def checks() -> list[SignatureCheck]:
    signer = Ed25519Signer.from_seed(os.urandom(32))
    sealed = [dsse.seal(str(number).encode(), signer) for number in range(BAD + 10)]
    sealed[BAD] = sealed[BAD]._replace(payload=b"another")
    key = signer.public_key
    return [SignatureCheck(*envelope.signed(key), key) for envelope in sealed]


PRINTED = {"nothing": b"", "a byte": b"\x01", "a line": b"hello\n", "all": b"\x01" * 99}


@pytest.mark.parametrize("printed", PRINTED.values(), ids=PRINTED)
def test_what_else_a_process_prints_is_no_answer(checks, tmp_path, monkeypatch, printed):
    """Else the answers would move, and a bad signature would get the answer of a good one."""
    program = f"import os\nos.write(1, {printed!r})\n"
    (tmp_path / "sitecustomize.py").write_text(program, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with signature_checker(2, alone=0) as checker:
        batches = [checker.start(checks) for _ in range(4)]
        for answers in batches:
            holds = [number for number, held in enumerate(answers()) if held]
            good = [number for number in range(len(checks)) if number != BAD]
            assert holds == ([] if printed else good)  # what nobody answers, the verifier checks
