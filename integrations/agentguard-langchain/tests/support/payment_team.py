"""``People``: a guard that asks people about payments, and the calls that tests make with it."""

from __future__ import annotations

import json
import uuid
from typing import Any

from call_log import Log
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_core.tools import StructuredTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from obedient import Obedient

from agentguard import Decision, Guard, Requirement
from agentguard.approvals.answer import seal_answer
from agentguard.signing.keys import Ed25519Signer
from agentguard_langchain import GuardMiddleware

BIG = ("pay", {"to": "ann", "cents": 500})
BIGGER = ("pay", {"to": "ben", "cents": 900})
SMALL = ("pay", {"to": "cal", "cents": 5})
TOO_BIG = ("pay", {"to": "dan", "cents": 20_000})
LOOK = ("look", {"what": "books"})
"""Calls of the tools: ``may_pay`` wants an approval for the first two, and denies ``TOO_BIG``."""

APPROVE = {"type": "approve"}
REJECT = {"type": "reject", "message": "not this one"}
"""Decisions about a call, as LangChain's middleware takes them."""


def edit(name="pay", **args):
    """Return the decision to make another call instead."""
    return {"type": "edit", "edited_action": {"name": name, "args": args}}


KEYS = {name: Ed25519Signer.from_seed(name[:1].encode() * 32) for name in ("bob", "carol", "eve")}


def may_pay(document):
    """Everybody may look; a payment over 100 needs a person, one over 10000 is denied."""
    if document["action"] not in ("pay", "apay"):
        return Decision.allow()
    cents = document["args"]["cents"]
    if cents > 10_000:
        return Decision.deny("that is too much")
    if cents > 100:
        return Decision.require_approval(Requirement(f"{cents} cents is over 100"))
    return Decision.allow()


def _pay(to: str, cents: int) -> str:
    """Pay somebody."""
    raise NotImplementedError


def _look(what: str) -> str:
    """Look at something."""
    raise NotImplementedError


_PAY_TOOL, _LOOK_TOOL = StructuredTool.from_function(_pay, name="pay"), tool("look")(_look)
"""Templates of the tools: LangChain is slow to make a schema, so all ``People`` share these."""


class People:
    """A guard that asks bob or carol about payments over 100, and what has been paid."""

    def __init__(self, policy=may_pay, *, delegated=False, **approvals: Any) -> None:
        self.paid: list[tuple[str, int]] = []
        self.asked: list[Any] = []
        agents = {"authority": "delegated" if delegated else "own", "owner": "user:carol"}
        config: dict[str, Any] = {
            "approvers": {
                name: {"principal": f"user:{name}", "keys": [KEYS[name].public_key.openssh()]}
                for name in ("bob", "carol")
            },
            "approvals": approvals,
            "agents": {
                "payer": {"max_scope": ["pay"], **agents},
                **{name: {"max_scope": ["pay"], "authority": "own"} for name in ("clerk", "other")},
            },
        }
        self.guard = Guard.ephemeral(policy=policy, config=config, on_request=self.asked.append)
        self.agent = self.guard.new_agent("payer")
        self.log = Log(self.guard)
        paid = self.paid

        def pay(to: str, cents: int) -> str:
            paid.append((to, cents))
            return f"paid {cents} to {to}"

        async def apay(to: str, cents: int) -> str:
            return pay(to, cents)

        def look(what: str) -> str:
            paid.append((what, 0))
            return f"looked at {what}"

        self.pay = _PAY_TOOL.model_copy(update={"func": pay, "coroutine": apay})
        self.look = _LOOK_TOOL.model_copy(update={"func": look})
        self.tools: list[Any] = [self.pay, self.look]

    def graph(self, *, tools=None, middleware=None, saver=None, model=None, **options):
        """Return an agent whose model makes the calls of its input, guarded by the middleware."""
        guarding = GuardMiddleware(self.agent, **options)
        return create_agent(
            model or Obedient(),
            self.tools if tools is None else tools,
            middleware=[guarding] if middleware is None else middleware(guarding),
            checkpointer=InMemorySaver() if saver is None else saver,
        )

    def asking(self, *calls):
        return {"messages": [HumanMessage(json.dumps(calls))]}

    def lend(self, user="alice", **options):
        """Delegate a user's authority to pay."""
        return self.guard.delegate(f"user:{user}", scope=["pay"], **options)

    def principals(self):
        """Return for whom each call of the log was made."""
        return [call.predicate["principal"] for call in self.log.calls()]

    @property
    def waiting(self):
        """The requests that wait, oldest first."""
        return self.guard.approvals.pending()

    def approve(self, *requests, by="bob"):
        for request in requests or self.waiting:
            self.guard.approvals.approve(request, KEYS[by])

    def reject(self, *requests, by="bob", note=""):
        for request in requests or self.waiting:
            self.guard.approvals.reject(request, KEYS[by], note=note)

    def signed(self, request, verdict="approve", by="bob"):
        """Return an answer that an approver has signed elsewhere, as JSON."""
        sealed = seal_answer(
            request,
            verdict,
            approver=f"user:{by}",
            approval_id=uuid.uuid4().hex,
            at=request.requested_at,
            signer=KEYS[by],
        )
        return sealed.as_json()

    def codes(self):
        """Return the cents and the decision's code of each payment in the log, sorted."""
        calls = [call for call in self.log.calls() if call.tool == "pay"]
        return sorted((call.values["cents"], call.code or call.decision) for call in calls)
