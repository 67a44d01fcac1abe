"""Logs of a few calls, and bundles of evidence from them, for the tests of tampered evidence."""

from __future__ import annotations

from typing import Any

import pytest
from evidence_mutants import Log

from agentguard import Decision, Denied, Guard
from agentguard.signing.keys import Ed25519Signer


def history(name: str = "reader") -> Log:
    """A log with calls of two agents: allowed, failed, denied."""

    def policy(call):
        return Decision.deny("not three") if call["args"]["x"] == 3 else Decision.allow()

    made: list[Ed25519Signer] = []
    from_seed = Ed25519Signer.from_seed
    with pytest.MonkeyPatch.context() as patched:

        def recorded(seed):
            made.append(from_seed(seed))
            return made[-1]

        patched.setattr(Ed25519Signer, "from_seed", staticmethod(recorded))
        with Guard.ephemeral(policy) as guard:

            @guard.tool
            def halve(x):
                return 10 / x

            for agent in (guard.new_agent(name), guard.new_agent("writer")):
                for number in (1, 0, 3):
                    try:
                        agent.call(halve, x=number)
                    except (Denied, ZeroDivisionError):
                        continue
            reader = guard.reader()
            stored = list(reader.stored())
    bodies = [one.body for one in stored]
    beside = {one.index: list(one.attachments) for one in stored}
    by_key = {signer.public_key: signer for signer in made}
    signers: dict[str, Ed25519Signer] = {k.use: by_key[k.key] for k in guard.trust.keys}
    ours = [signer.public_key for signer in signers.values()]
    (signers["agent"], *_others) = [signer for signer in made if signer.public_key not in ours]
    return Log(guard.trust, signers, bodies, beside)


@pytest.fixture(scope="module")
def log() -> Log:
    return history()


@pytest.fixture(scope="module")
def other() -> Log:
    return history("other")


@pytest.fixture(scope="module")
def ran(log) -> Any:
    """The evidence of a call that ran."""
    return log.proof(log.ids()[0])


@pytest.fixture(scope="module")
def places(log, ran) -> list[int]:
    """The indices of the entries that the evidence of the first call holds."""
    return [int(item["proof"].split("\n")[1].removeprefix("index ")) for item in ran["entries"]]


@pytest.fixture(scope="module")
def call(log) -> int:
    return log.index("call")
