"""Opens the connection to the server that settings name: a process, or a URL."""

from __future__ import annotations

from collections.abc import Mapping

from agentguard_mcp.gateway.settings import BEARER, Settings
from agentguard_mcp.gateway.upstream import OnLost, ServerProcess, Upstream


async def opened(settings: Settings, secrets: Mapping[str, str], on_lost: OnLost) -> Upstream:
    """Start the server, or make a client of the server at ``settings.url``.

    ``on_lost`` is told of each request that the server will not answer, with the reason. Raises
    ``ConfigError`` for a command that can't be started, for a token that no header can hold, and
    (``config.extra_missing``) where httpx is missing for a URL.
    """
    if settings.url is None:
        return await ServerProcess.start(settings, secrets)
    from agentguard_mcp.gateway.http_upstream import HttpServer  # noqa: PLC0415  the extra httpx

    return HttpServer(settings.url, secrets.get(BEARER), settings.timeout, on_lost)
