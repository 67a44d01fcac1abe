"""An instance of a guard in this process gives up what it holds, as ``POST /revoke`` records it."""

from __future__ import annotations

import os
import time

from embedded_parts import instance_of, runtime_of

from agentguard import Agent, Guard
from agentguard.audit.kinds.identities import SurrenderEntry
from agentguard.call.invocation import timestamp
from agentguard.proof import dpop
from agentguard.signing.canonical import loads_object
from agentguard.signing.keys import Ed25519Signer


def give_up(guard: Guard, agent: Agent) -> None:
    """Write the entry by which the agent gives up its delegation."""
    issued = agent.access_token()
    chain = loads_object(issued.chain)
    hops = chain["hops"]
    assert isinstance(hops, list)
    signer = instance_of(agent).actor.signer
    assert isinstance(signer, Ed25519Signer)
    proof = dpop.sign(
        signer,
        "POST",
        "https://agents.example/revoke",
        access_token=issued.token,
        at=int(time.time()),
        jti=os.urandom(16).hex(),
    )
    ports = runtime_of(guard).current_ports()
    at = timestamp(max(ports.clock(), ports.log.last_at))
    ports.log.append(SurrenderEntry(at=at, hop=str(hops[-1]), proof=proof).record())
