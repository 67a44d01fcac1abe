"""The reason codes with which a chain of delegation is refused."""

from __future__ import annotations

from typing import Any

import pytest

from agentguard import AgentguardError, VerificationError
from agentguard.delegation.chain import Chain


def code_of(kind: type[AgentguardError], call: Any, *args: Any, **kwargs: Any) -> str:
    """Call a function that must raise this kind of error; return the error's code."""
    with pytest.raises(kind) as caught:
        call(*args, **kwargs)
    return caught.value.code


def refused(
    world: Any, chain: Chain, *, at: Any = None, kind: Any = VerificationError, **trust: Any
) -> str:
    """Verify a chain that must be refused; return the reason code."""
    return code_of(kind, world.verify, chain, at=at, **trust)
