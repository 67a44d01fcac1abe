"""How a refused call looks to LangChain: the exception, the message, and the text of both.

The decision to refuse a call is the core's.
"""

from __future__ import annotations

from langchain_core.messages import ToolMessage
from langchain_core.tools import ToolException

from agentguard import Decision, Denied
from agentguard.adapters import denial_text


class GuardedToolDenied(ToolException, Denied):
    """A call of a guarded tool was refused, and the tool did not run.

    The exception is a ``Denied`` (``decision``, ``code``, ``reason``) and, for LangChain, a
    ``ToolException``, so that a tool which calls another one may handle it. ``tool`` is the name of
    the refused tool.
    """

    def __init__(self, tool: str, decision: Decision) -> None:
        Denied.__init__(self, decision)
        self.tool = tool
        # LangChain shows a model args[0] of a ToolException that it handles.
        self.args = (denial_text(tool, decision),)

    def __reduce__(self) -> tuple[type[GuardedToolDenied], tuple[str, Decision]]:
        return type(self), (self.tool, self.decision)


def denial_message(tool: str, tool_call_id: str, decision: Decision) -> ToolMessage:
    """Answer a model's tool call with the refusal, so that the model can go on."""
    return ToolMessage(
        content=denial_text(tool, decision),
        name=tool,
        tool_call_id=tool_call_id,
        status="error",
    )
