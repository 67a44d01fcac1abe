"""agentguard for CrewAI: the public names of the adapter, and nothing else."""

from __future__ import annotations

from agentguard.adapters import require_supported

require_supported("agentguard-crewai", "crewai")

from agentguard_crewai.agents import agent_of, guard_agent
from agentguard_crewai.crews import guard_crew, guard_crewbase
from agentguard_crewai.flows import akickoff_or_pause, answered, kickoff_or_pause
from agentguard_crewai.identity import OnApproval
from agentguard_crewai.runs import resumable
from agentguard_crewai.strictness import refuse_unguarded

__all__ = [
    "OnApproval",
    "agent_of",
    "akickoff_or_pause",
    "answered",
    "guard_agent",
    "guard_crew",
    "guard_crewbase",
    "kickoff_or_pause",
    "refuse_unguarded",
    "resumable",
]
