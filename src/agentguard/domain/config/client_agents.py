"""Finds the agents in ``[clients]`` that have no table in ``[agents]``: no program can be one."""

from __future__ import annotations

from collections.abc import Iterator

from agentguard.domain.config.server import ClientConfig
from agentguard.domain.config.settings import Config
from agentguard.domain.config.spelling import did_you_mean


def warnings(settings: Config) -> Iterator[str]:
    """Yield what is wrong and what to do, for each name that matches no agent."""
    tables = {client.table: client for client in settings.client_tables.values()}
    for client in tables.values():
        for pattern in client.agents:
            one = ClientConfig(client.name, client.uid, (pattern,))
            if not any(map(one.may_be, settings.agents)):
                hint = did_you_mean(pattern, settings.agents)
                yield (
                    f"agents in [clients.{client.table}] has {pattern!r}, which is the name of no "
                    f"table [agents.NAME]: {hint}add the table, or correct the name"
                )
