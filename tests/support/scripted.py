"""A model for CrewAI that says what it was told to say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from crewai.llms.base_llm import BaseLLM
from pydantic import PrivateAttr

Call = tuple[str, Mapping[str, Any]]
"""The name of a tool, as a model gives it, and its arguments."""

Step = Call | Sequence[Call] | str | Exception
"""What a model answers: a call, several at once (natively), its final words, or an error."""


class Scripted(BaseLLM):
    """A model that says what it was told to say, natively or as text; ``heard`` is what it got."""

    steps: list[Any] = []  # noqa: RUF012  a field of a pydantic model
    native: bool = True
    _heard: list[str] = PrivateAttr(default_factory=list)

    @property
    def heard(self) -> list[str]:
        return self._heard

    def call(self, messages: Any, *_args: Any, **_kwargs: Any) -> Any:
        self._heard.append(str(messages if isinstance(messages, str) else messages[-1]["content"]))
        step = self.steps.pop(0) if self.steps else "there is nothing left to say"
        if isinstance(step, Exception):
            raise step
        if isinstance(step, str):
            return step if self.native else f"Thought: I know.\nFinal Answer: {step}"
        calls = [step] if isinstance(step[0], str) else list(step)
        if not self.native:
            ((name, arguments),) = calls
            return f"Thought: go on.\nAction: {name}\nAction Input: {json.dumps(arguments)}\n"
        return [
            {
                "id": f"call_{len(self._heard)}_{at}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
            for at, (name, arguments) in enumerate(calls)
        ]

    async def acall(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        return self.call(messages, *args, **kwargs)

    def supports_function_calling(self) -> bool:
        return self.native

    def supports_stop_words(self) -> bool:
        return False
