"""A model for tests and first steps: the model makes the tool calls that a script names.

``scripted_model`` needs no key and no network. CrewAI has no model of this kind. This module is for
tests of a guarded crew, for examples and for the pages of the project.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from crewai.llms.base_llm import BaseLLM
from pydantic import PrivateAttr

__all__ = ["ScriptedModel", "Step", "ToolCall", "scripted_model"]

ToolCall = tuple[str, Mapping[str, Any]]
"""One tool call: the tool's name as models write the name, and the arguments."""

Step = str | ToolCall | Sequence[ToolCall]
"""One answer of the model: final words, a tool call, or several tool calls at once."""


class ScriptedModel(BaseLLM):
    """A model of CrewAI that answers with one step of its script after another.

    ``steps`` are the answers that are left. Make one with ``scripted_model``.
    """

    steps: list[Any]
    _heard: list[str] = PrivateAttr(default_factory=list)

    @property
    def heard(self) -> list[str]:
        """What the model was told: the last message of each request, oldest first."""
        return self._heard

    def call(self, messages: Any, *_args: Any, **_kwargs: Any) -> Any:
        """Return the next step as CrewAI reads a model's answer; without a next one ``"Done."``."""
        self._heard.append(str(messages if isinstance(messages, str) else messages[-1]["content"]))
        step = self.steps.pop(0) if self.steps else "Done."
        if isinstance(step, str):
            return step
        calls: Sequence[ToolCall] = [step] if isinstance(step, tuple) else step
        return [
            {
                "id": f"call_{len(self._heard)}_{number}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
            for number, (name, arguments) in enumerate(calls)
        ]

    async def acall(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the next step, as ``call``."""
        return self.call(messages, *args, **kwargs)

    def supports_function_calling(self) -> bool:
        """Tell CrewAI that the model calls tools natively."""
        return True

    def get_input_tokens_count(self, *_args: Any, **_kwargs: Any) -> int:
        """Return 0: the model reads nothing, and costs nothing."""
        return 0


def scripted_model(*steps: Step) -> ScriptedModel:
    """Make a model that answers with these steps, in this order, whatever the model is told.

    A step is a text (the agent's final answer), a pair of a tool's name and its arguments, or a
    list of such pairs (several calls at once). After the last step the model answers ``"Done."``.
    """
    return ScriptedModel(model="scripted", steps=list(steps))
