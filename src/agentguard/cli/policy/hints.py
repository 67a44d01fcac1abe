"""Says what a developer may have misspelt where no rule of a policy allows a call.

The hints compare the call with the names in the configuration and with the texts in the policy.
They are for the commands ``policy test`` and ``policy eval``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from agentguard.call.decision import Decision
from agentguard.domain.config import Config, resolve
from agentguard.errors import AgentguardError
from agentguard.policy.document import NO_RULE
from agentguard.policy.rego import RegoSource
from agentguard.spelling import did_you_mean
from agentguard.storage import files

_TEXT: Final = re.compile(r'"((?:[^"\\\n]|\\.)*)"')
"""A text in double quotation marks, in Rego and in Cedar."""


def about(
    members: Mapping[str, Any], decision: Decision, settings: Config, vocabulary: Config
) -> tuple[str, ...]:
    """Return hints on a call that no rule allows; none for another decision.

    ``members`` is the policy's input, ``settings`` names the policy, and ``vocabulary`` is the
    configuration with the agents.
    """
    if decision.reasons != (NO_RULE,):
        return ()
    return (*_about_agent(members, vocabulary), *_about_tool(members, settings))


def _about_agent(members: Mapping[str, Any], vocabulary: Config) -> Iterator[str]:
    agent = members.get("agent")
    name = agent.get("name") if isinstance(agent, Mapping) else None
    if isinstance(name, str) and vocabulary.agents and name not in vocabulary.agents:
        meant = did_you_mean(name, vocabulary.agents)
        names = ", ".join(sorted(vocabulary.agents))
        yield (
            f"input.agent.name is {name}, and {vocabulary.source} has no [agents.{name}]: "
            f"{meant or f'the agents are {names}; '}correct the name in the input"
        )


def _about_tool(members: Mapping[str, Any], settings: Config) -> Iterator[str]:
    action = members.get("action")
    texts = frozenset(_TEXT.findall(_policy_text(settings)))
    if isinstance(action, str) and texts and action not in texts:
        meant = did_you_mean(action, texts)
        yield (
            f"the policy does not name the tool {action}: {meant}"
            f"{'Otherwise add' if meant else 'correct the name in the input, or add'} a rule for it"
        )


def _policy_text(settings: Config) -> str:
    """Return the text of the policy's files; the empty text for an engine without files."""
    policy = settings.policy
    if policy is None or policy.engine not in ("rego", "cedar"):
        return ""
    path = resolve(settings.base, policy.path)
    try:
        if policy.engine == "rego":
            return "\n".join(text for _file, text in RegoSource.read(path).modules)
        return files.read(path).decode() if path.is_file() else ""
    except (AgentguardError, OSError, UnicodeError):
        return ""  # the hints are an addition: the command reports the mistake by itself
