"""The text that tells a model about a refused call."""

from __future__ import annotations

from agentguard.call.decision import MAY_HAVE_RUN, Decision


def denial_text(
    tool: str, decision: Decision, *, may_call_again: bool = False, shows_code: bool = True
) -> str:
    """Return a text that says that ``tool`` was not run, why, and whether a retry can help.

    ``may_call_again`` is true where the framework may make the same call again. A model whose call
    meets a failure that may pass (``Decision.may_pass_later``) is told to try later. ``shows_code``
    puts the reason code behind the reason, for a framework that has no place of its own for it.
    """
    reason = f"{decision.model_reason} [{decision.code}]" if shows_code else decision.model_reason
    if decision.may_pass_later:
        return (
            f"Not now: {tool} was not run. Reason: {reason}. The same call may work later: "
            "try again after a while."
        )
    if may_call_again:
        return f"Not now: {tool} was not run. Reason: {reason}."
    again = " again" if decision.code in MAY_HAVE_RUN else ""
    return (
        f"Denied: {tool} was not run{again}. Reason: {reason}. "
        "Do not retry: repeating the same call will not help."
    )
