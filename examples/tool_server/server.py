"""A payment service that verifies by itself who calls: the agent, the user, the scope, the call.

``main.py`` starts this program. The service knows the public keys of the agents' trust domain, the
file in which the domain publishes its revocations, and the URL under which callers reach the
service. It asks nobody during a request. Each request that it accepts is on record in a log of its
own.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI
from fastapi.responses import RedirectResponse
from pydantic import BaseModel

from agentguard import Guard, ReceiverLog, TrustDocument
from agentguard.proof import (
    CallerMiddleware,
    ProofStore,
    PublishedRevocations,
    Receiver,
    RequestCaller,
)
from agentguard.proof.fastapi import requires

app = FastAPI()


class Payment(BaseModel):
    """What is to be paid, in cents."""

    to: str
    cents: int


Payer = Annotated[RequestCaller, Depends(requires("payments:write"))]
Refunder = Annotated[RequestCaller, Depends(requires("refunds:write"))]


@app.post("/payments")
def pay(payment: Payment, caller: Payer) -> dict[str, str]:
    """Pay, if the user has lent the scope; a policy of the service's own could say more here."""
    who = f"{caller.actors[-1]} for {caller.principal}"
    print(f"  [server] {payment.cents} cents to {payment.to}, by {who}", flush=True)
    return {"paid": f"{payment.cents} cents to {payment.to}", "call": str(caller.invocation_sha256)}


@app.post("/refunds")
def refund(caller: Refunder) -> dict[str, str]:
    """Refund, which needs another scope."""
    return {"refunded": caller.principal}


@app.get("/receipts")
def receipts() -> RedirectResponse:
    """Send the caller on to another server, which the delegation does not name."""
    return RedirectResponse("https://elsewhere.example/receipts")


@app.get("/healthz")
def healthz() -> str:
    """Say that the service runs, to anybody."""
    return "ok"


if __name__ == "__main__":
    url, trust, published, store, configuration, descriptor = sys.argv[1:]
    agents = TrustDocument.loads(Path(trust).read_bytes())
    revocations = PublishedRevocations(published, agents)
    with Guard.open(configuration) as own:
        log = ReceiverLog(own)
        receiver = Receiver(url, agents, ProofStore(store), revocations=revocations, log=log)
        app.add_middleware(CallerMiddleware, receiver=receiver, public=["/healthz"])
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        server.run(sockets=[socket.socket(fileno=int(descriptor))])
