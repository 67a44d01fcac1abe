"""``agentguard serve``: runs the guard server until a signal ends it."""

from __future__ import annotations

import logging
import signal
import threading
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from pathlib import Path
from typing import Final

from agentguard import telemetry
from agentguard.cli.terminal import location, screen
from agentguard.cli.terminal.options import CONFIG, command
from agentguard.domain.config import Config, clients
from agentguard.domain.config.server import ServerConfig
from agentguard.errors import AgentguardError
from agentguard.guard.embedded import Embedded, open_embedded
from agentguard.server.activation import inherited_socket, notify
from agentguard.server.hardening import harden
from agentguard.server.serve import GuardServer

_LOGGER: Final = logging.getLogger("agentguard")

_LOOK: Final = 0.25
"""Seconds after which the server looks whether a signal has come, at the latest."""


@command(CONFIG)
def serve(config: Path | None) -> None:
    """Opens the state, the policy and the log of the configuration, and listens at the url of
    [server], or at the socket that a service manager such as systemd hands over. Keys, policy, log
    and approvals are then out of the reach of the agents' processes. With [service], also answers
    over HTTP as a token service. SIGHUP has the server load the configuration and the policy anew,
    as agentguard server reload does. SIGTERM or Ctrl-C ends the server: it waits for the outcomes
    of calls that run. Another Ctrl-C ends the wait.
    """
    harden()
    settings = location.load_to_serve(config)
    own = settings.require_server()
    telemetry.follow(settings.telemetry)
    for what in clients.warnings(settings):
        screen.warn(what)
    ended, reloads = threading.Event(), threading.Event()
    signal.signal(signal.SIGHUP, lambda _number, _frame: reloads.set())
    parts = open_embedded(settings, None, is_server=True)
    hurries: list[int] = []

    def on_signal(number: int, _frame: object) -> None:
        if ended.is_set() and number == signal.SIGINT:
            hurries.append(number)
        ended.set()

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)
        server = GuardServer(settings, parts, inherited_socket())
        with ExitStack() as until_closed:
            try:
                until_closed.enter_context(_health(own, server))
                until_closed.enter_context(_service(settings, own, parts))
                screen.line(f"serving {parts.trust.trust_domain} at unix:{server.socket}")
                if settings.service is not None:
                    screen.line(f"tokens at {settings.service.issuer}")
                notify("READY=1")
                # A signal that another thread gets, or that comes just before the wait, does not
                # end the wait: Python runs its handler when this thread goes on.
                while not ended.wait(_LOOK):
                    if reloads.is_set():
                        reloads.clear()
                        _reload(server)
                notify("STOPPING=1")
                screen.line(_farewell(server.sessions.running(), own))
            finally:  # also where nobody could be told: calls that run need the drain
                server.close(lambda: bool(hurries))
        if server.sessions.in_doubt:
            screen.warn(f"{server.sessions.in_doubt} calls are in doubt: see agentguard audit list")
    finally:
        parts.close()


def _reload(server: GuardServer) -> None:
    """Load the configuration anew, for a signal; the log says what has become of that."""
    try:
        server.sessions.reload()
    except AgentguardError:  # the server's log has said why, and the server goes on as before
        pass
    except Exception:
        _LOGGER.exception("the configuration could not be loaded anew, and stays as it was")


def _farewell(calls: int, config: ServerConfig) -> str:
    """Say what a server that ends still waits for."""
    if not calls:
        return "ending: no call runs"
    running = screen.count(calls, "call runs", "calls run")
    return (
        f"ending: {running}, and the clients have {config.drain:g} seconds to report the outcomes; "
        "Ctrl-C ends the server at once, and leaves running calls in doubt"
    )


def _health(config: ServerConfig, server: GuardServer) -> AbstractContextManager[object]:
    """Return the listener for probes, which ends with the context; nothing where none is wanted."""
    if config.health is None:
        return nullcontext()
    from agentguard.server.health import HealthListener  # noqa: PLC0415  few servers are probed

    return closing(HealthListener(config.health, server.sessions.status))


def _service(
    settings: Config, config: ServerConfig, parts: Embedded
) -> AbstractContextManager[object]:
    """Return the token service, which ends with the context; nothing where none is wanted."""
    if settings.service is None:
        return nullcontext()
    # few servers issue tokens, and the extra brings what these modules import
    from agentguard.service.listener import ServiceListener  # noqa: PLC0415
    from agentguard.service.parts import open_parts  # noqa: PLC0415

    return closing(ServiceListener(open_parts(settings, parts), drain=config.drain))
