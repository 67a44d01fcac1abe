"""A policy in Cedar with a schema: agents by their roles, and a fact from the shop's own books.

Run it with ``python examples/cedar/main.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from agentguard import Denied, FactsInput, Guard, PolicyError
from agentguard.policy.cedar import CedarEngine

POLICY = Path(__file__).with_name("policy")
ORDERS = {"A-1": {"paid": True}, "A-2": {"paid": False}}
CONFIG = {
    "roles": {"support": {}, "billing": {}},
    "agents": {
        "support-bot": {"authority": "own", "roles": ["support"]},
        "billing-bot": {"authority": "own", "roles": ["billing"]},
    },
}


class OrderFacts(TypedDict):
    """What the policy reads beside the call itself."""

    order: dict[str, bool]


def order_facts(call: FactsInput) -> OrderFacts:
    """Look the order up: the policy sees it as ``context.order``."""
    return {"order": ORDERS[call["order"]]}


def main() -> None:
    """Let two agents ask for refunds, and show what the schema finds out at load."""
    with Guard.ephemeral(POLICY, config=CONFIG) as guard:

        @guard.tool(resource="order:{order}", facts=order_facts)
        def refund(order: str, cents: int) -> str:
            return f"{cents} cents of {order} refunded"

        for name, order, cents in (
            ("support-bot", "A-1", 4_900),
            ("support-bot", "A-1", 9_900),
            ("billing-bot", "A-1", 9_900),
            ("billing-bot", "A-2", 9_900),
        ):
            asked = f"{name}, {cents} cents of {order}:"
            try:
                print(asked, guard.new_agent(name).call(refund, order, cents))
            except Denied as denied:
                print(f"{asked} denied, {denied.reason} [{denied.code}]")

    misspelt = (POLICY / "authz.cedar").read_text().replace("order.paid", "order.payed")
    try:
        CedarEngine.from_source(misspelt, (POLICY / "schema.cedarschema").read_text())
    except PolicyError as refused:
        print(f"refused at load: {str(refused).splitlines()[0]}")


if __name__ == "__main__":
    main()
