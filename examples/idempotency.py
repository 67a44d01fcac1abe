"""A payment with an idempotency key: a retry below the tool never pays twice.

Run it with ``python examples/idempotency.py``.
"""

from __future__ import annotations

from agentguard import Decision, Guard, UnguardedCallError, idempotency_key

PAID: dict[str, int] = {}
"""What the bank holds. It takes idempotency keys, as most payment services do."""


def pay_at_the_bank(cents: int, key: str) -> str:
    """Pay once for each key, however often it is asked to."""
    PAID.setdefault(key, cents)
    return f"paid {PAID[key]} cents"


guard = Guard.ephemeral(policy=lambda _call: Decision.allow())


@guard.tool
def pay(cents: int) -> str:
    """Pay an invoice; the bank's answer is lost once."""
    key = idempotency_key()  # the invocation's id: one authorization, one key
    pay_at_the_bank(cents, key)
    return pay_at_the_bank(cents, key)  # a retry below the tool


def main() -> None:
    """Pay twice, on purpose: two calls are two authorizations, and so two keys."""
    assistant = guard.new_agent("assistant")
    print(assistant.call(pay, cents=4200))
    print(assistant.call(pay, cents=4200))
    print(f"payments: {len(PAID)}, each under the id of its call in the log")
    try:
        idempotency_key()
    except UnguardedCallError:
        print("outside of a call there is no key")


if __name__ == "__main__":
    with guard:
        main()
