"""A policy in Rego with a data file, and a fact that the policy does not take from the model.

Run it with ``python examples/custom_policy/main.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from agentguard import Denied, FactsInput, Guard

ORDERS = {"A-1": {"paid": True}, "A-2": {"paid": False}}


class OrderFacts(TypedDict):
    """What the policy reads beside the call itself."""

    order: dict[str, bool]


def order_facts(call: FactsInput) -> OrderFacts:
    """Look the order up in the shop's own books: the policy sees it as ``input.order``."""
    return {"order": ORDERS[call["order"]]}


guard = Guard.ephemeral(policy=Path(__file__).with_name("policy"))


@guard.tool(resource="order:{order}", facts=order_facts)
def refund(order: str, cents: int) -> str:
    """Refund a part of an order."""
    return f"{cents} cents of {order} refunded"


def main() -> None:
    """Let two agents ask for refunds; an agent that the data does not name gets none."""
    for name, order, cents in (
        ("support-bot", "A-1", 4_900),
        ("support-bot", "A-1", 9_900),
        ("billing-bot", "A-1", 9_900),
        ("billing-bot", "A-2", 9_900),
        ("billing-bot", "A-3", 9_900),
        ("intern-bot", "A-1", 1),
    ):
        asked = f"{name}, {cents} cents of {order}:"
        try:
            print(asked, guard.new_agent(name).call(refund, order=order, cents=cents))
        except Denied as denied:
            print(f"{asked} denied, {denied.reason} [{denied.code}]")


if __name__ == "__main__":
    with guard:
        main()
