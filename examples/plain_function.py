"""Plain functions behind a guard: no framework, no files, no network.

Run it with ``python examples/plain_function.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentguard import Decision, Denied, Guard, UnguardedCallError

LIMIT = 50_000


def policy(call: Mapping[str, Any]) -> Decision:
    """Allow small transfers; whatever has no rule here is denied."""
    if call["action"] != "transfer":
        return Decision.deny("only transfers are known here")
    cents = call["args"].get("cents")
    if type(cents) is not int or cents <= 0:  # True is an int to isinstance
        return Decision.deny("cents must be a whole number above 0")
    if cents > LIMIT:
        return Decision.deny(f"more than {LIMIT} cents at once")
    return Decision.allow()


guard = Guard.ephemeral(policy=policy)


@guard.tool(resource="account:{account}")
def transfer(account: str, cents: int) -> str:
    """Transfer money to an account."""
    return f"{cents} cents to {account}"


def main() -> None:
    """Make three calls: one that may run, one that may not, one that passes by every agent."""
    assistant = guard.new_agent("assistant")
    print("allowed:", assistant.call(transfer, account="rent", cents=42_000))

    try:
        assistant.call(transfer, account="rent", cents=420_000)
    except Denied as denied:
        print(f"denied:  {denied.reason} [{denied.code}]")

    try:
        transfer("rent", 1)  # type: ignore[operator]  # a type checker refuses it as well
    except UnguardedCallError as error:
        print(f"refused: {error}")


if __name__ == "__main__":
    with guard:
        main()
