"""An agent that gives its calls the ids that it likes, as code in the agent's process can."""

from __future__ import annotations

import pytest

from agentguard.flow import prepare


def share_id(patch: pytest.MonkeyPatch) -> str:
    """Give one id to each call that a guard of this process makes from now on; return the id."""
    entropy, invocation_id = prepare._entropy, "a" * 32

    def drawn(ports, refusal):  # type: ignore[no-untyped-def]
        salt, _id, failed = entropy(ports, refusal)
        return salt, invocation_id, failed

    patch.setattr(prepare, "_entropy", drawn)
    return invocation_id
