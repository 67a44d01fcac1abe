"""A chat model that does as it is told: for tests, and for the programs that tests start."""

from __future__ import annotations

import json
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult


class Obedient(BaseChatModel):
    """Calls the tools that the last human message names as JSON; then repeats what they answered.

    The message is a list of ``[tool, arguments]``. The model keeps nothing, so that any number of
    users may talk to it at once.
    """

    @property
    def _llm_type(self) -> str:
        return "obedient"

    def _generate(
        self, messages: list[Any], stop: Any = None, run_manager: Any = None, **_options: Any
    ) -> ChatResult:
        last = max(place for place, said in enumerate(messages) if said.type == "human")
        answers = [said.text for said in messages[last:] if said.type == "tool"]
        message = AIMessage("; ".join(answers) or "nothing to do")
        if not answers and messages[last].text.startswith("["):
            calls: Any = [
                {"name": name, "args": args, "id": f"call{last}.{number}", "type": "tool_call"}
                for number, (name, args) in enumerate(json.loads(messages[last].text))
            ]
            message = AIMessage("", tool_calls=calls)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def bind_tools(self, tools: Any, **_options: Any) -> Any:
        """Take no notice of the tools: the message names them."""
        return self
