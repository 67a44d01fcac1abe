"""Connects a client with the server that settings name: a process, or a URL.

``linked`` makes the relay between the two. A gateway on stdio has one relay. A gateway over HTTP
has one for each session.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from agentguard import Agent, ConfigError, Guard
from agentguard_mcp.gateway.caller_source import CallerSource
from agentguard_mcp.gateway.calls import Calls
from agentguard_mcp.gateway.limits import Limits
from agentguard_mcp.gateway.messages import Client, RequestId
from agentguard_mcp.gateway.relay import Relay
from agentguard_mcp.gateway.settings import BEARER, Settings
from agentguard_mcp.gateway.upstream import OnLost, OnPoll, Upstream
from agentguard_mcp.gateway.upstream.concealed import concealed
from agentguard_mcp.gateway.upstream.process import ServerProcess
from agentguard_mcp.gateway.upstream.protocol import not_started


class Link(NamedTuple):
    """A relay, and the server behind the relay."""

    relay: Relay
    upstream: Upstream


async def linked(
    guard: Guard,
    agent: Agent,
    settings: Settings,
    client: Client,
    callers: CallerSource | None,
    *,
    joins_retries: bool,
    limits: Limits | None = None,
    first: dict[str, str] | None = None,
) -> Link:
    """Start the server of ``settings``, and return the relay between the server and ``client``.

    ``callers`` says who sends each request, None for the caller that the settings name.
    ``joins_retries`` is as for ``Relay``. Sessions that share ``limits`` are counted together; None
    counts the calls of this relay alone. ``first`` is as for ``Catalog``. Raises as ``opened`` and
    ``Calls.start`` do.
    """
    relays: list[Relay] = []

    def on_lost(identifier: RequestId, error: Exception) -> None:
        for relay in relays:
            relay.lose_request(identifier, error)

    make_calls = partial(Calls, guard, agent, settings, callers=callers, limits=limits, first=first)
    upstream = await opened(settings, await make_calls(not_started).start(), on_lost, client.poll)
    relay = Relay(settings, client, upstream, make_calls, joins_retries=joins_retries)
    relays.append(relay)
    return Link(relay, upstream)


def proved_callers(guard: Guard, settings: Settings) -> CallerSource | None:
    """Return what verifies the proofs of calls; None where the settings ask for no proofs.

    Raises ``ConfigError`` (``config.extra_missing``) without the extra ``sdk``, and as
    ``ProvedCallers`` does.
    """
    if settings.proofs is None:
        return None
    try:
        from agentguard_mcp.proved_callers import ProvedCallers  # noqa: PLC0415  the extra sdk
    except ModuleNotFoundError as error:
        message = (
            f"a gateway that verifies proofs needs {error.name}: from a clone of the project, run "
            "pip install './integrations/agentguard-mcp[sdk]'"
        )
        raise ConfigError(message, code="config.extra_missing") from error
    return ProvedCallers(guard, settings.proofs)


async def opened(
    settings: Settings,
    secrets: Mapping[str, str],
    on_lost: OnLost,
    on_poll: OnPoll = lambda _identifier: None,
) -> Upstream:
    """Start the server, or make a client of the server at ``settings.url``.

    ``on_lost`` is told of each request that the server will not answer, with the reason, and
    ``on_poll`` of each for whose answer the server wants to be asked again. What the server says
    does not show the values of ``secrets`` (``upstream/concealed.py``). Raises
    ``ConfigError`` for a command that can't be started, for a token that no header can hold, and
    (``config.extra_missing``) where httpx is missing for a URL.
    """
    if settings.url is None:
        return concealed(await ServerProcess.start(settings, secrets), secrets)
    from agentguard_mcp.gateway.upstream.http import HttpServer  # noqa: PLC0415  the extra httpx

    server = HttpServer(settings.url, secrets.get(BEARER), settings.timeout, on_lost, on_poll)
    return concealed(server, secrets)
