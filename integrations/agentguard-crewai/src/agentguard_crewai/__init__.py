"""agentguard for CrewAI: the public names of the adapter, and nothing else."""

from __future__ import annotations

from agentguard_crewai.agents import guard_agent
from agentguard_crewai.crews import guard_crew, guard_crewbase
from agentguard_crewai.flows import ANSWERED, akickoff_or_pause, kickoff_or_pause
from agentguard_crewai.runs import resumable

__all__ = [
    "ANSWERED",
    "akickoff_or_pause",
    "guard_agent",
    "guard_crew",
    "guard_crewbase",
    "kickoff_or_pause",
    "resumable",
]
