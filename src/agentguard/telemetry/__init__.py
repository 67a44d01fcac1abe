"""OpenTelemetry: spans and metrics of guarded calls. The one part of agentguard that may fail open.

The core needs the API of OpenTelemetry alone. The API is silent until an SDK is set up: by the
application, by ``configure``, or by ``[telemetry]`` of agentguard.toml (traces.md). A module
here that imports the API is imported at its first use (PEP 562). A call imports such a module only
where the application has imported the API already (``silence.py``).
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, cast

from agentguard.call.invocation import Invocation
from agentguard.flow.authority import AgentIdentity
from agentguard.flow.listener import CallListener
from agentguard.telemetry.failing import fails_open
from agentguard.telemetry.run import AgentRun
from agentguard.telemetry.settings import ENDPOINTS, FLUSH_SECONDS, Settings
from agentguard.telemetry.silence import Silent, SilentSpan, is_silent, watch_pending

if TYPE_CHECKING:
    from agentguard.telemetry.agents import SILENT_SPAN, AgentSpan
    from agentguard.telemetry.setup import configure, is_sent, require_exporter
    from agentguard.telemetry.tracing import attached, inside_span, is_tracing, tracer

__all__ = [
    "ENDPOINTS",
    "SILENT_SPAN",
    "AgentRun",
    "AgentSpan",
    "Settings",
    "Telemetry",
    "attached",
    "configure",
    "fails_open",
    "flush",
    "follow",
    "inside_span",
    "is_sent",
    "is_tracing",
    "require_exporter",
    "tracer",
    "watch_pending",
]

_HOMES = {
    "SILENT_SPAN": "agents",
    "AgentSpan": "agents",
    "attached": "tracing",
    "configure": "setup",
    "inside_span": "tracing",
    "is_sent": "setup",
    "is_tracing": "tracing",
    "require_exporter": "setup",
    "tracer": "tracing",
}
"""The module of each name that needs the API of OpenTelemetry."""

if not TYPE_CHECKING:  # a type checker reads the imports above, and finds a name that is misspelt

    def __getattr__(name: str) -> Any:
        """Import a name at its first use."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def follow(settings: Settings) -> None:
    """Set up the SDK as ``[telemetry]`` says; without that table, as the ``OTEL_*`` variables say.

    Raises what ``configure`` raises. The variables alone raise nothing: another library may be the
    one that they are meant for.
    """
    if settings.endpoint or any(map(os.environ.get, ENDPOINTS)):
        from agentguard.telemetry import setup  # noqa: PLC0415  it imports the API

        setup.follow(settings)


def flush(seconds: float = FLUSH_SECONDS) -> bool:
    """Send the spans and metrics that wait, through the SDK that ``configure`` has set up.

    Returns true if all of them were sent within ``seconds`` and the receiver took every span.
    """
    if f"{__name__}.setup" not in sys.modules:
        return False
    from agentguard.telemetry import setup  # noqa: PLC0415  it imports the API

    return setup.flush(seconds)


class Telemetry:
    """Makes the listeners of a guard's calls and the spans of its agents' runs; nothing raises."""

    def __init__(self, settings: Settings, trust_domain: str) -> None:
        self._settings = settings
        self._trust_domain = trust_domain

    def call(self, actor: AgentIdentity, invocation: Invocation) -> CallListener:
        """Return the listener of a call that is made."""
        return _SILENT if is_silent() else self._call(actor, invocation) or _SILENT

    def evaluation(self, actor: AgentIdentity, invocation: Invocation) -> CallListener:
        """Return the listener of an evaluation: a question for the decision, without a call."""
        return _SILENT if is_silent() else self._evaluation(actor, invocation) or _SILENT

    def agent(self, actor: AgentIdentity, run: AgentRun) -> AgentSpan:
        """Begin the span of an agent's run."""
        return self._agent(actor, run) or _NO_SPAN

    def workflow(
        self, name: str, run: AgentRun | None, conversation: str | None, paused: str | None
    ) -> AgentSpan:
        """Begin the span of a workflow; ``run`` has its principal and task, None for unknown."""
        return self._workflow(name, run, conversation, paused) or _NO_SPAN

    @fails_open
    def _agent(self, actor: AgentIdentity, run: AgentRun) -> AgentSpan | None:
        from agentguard.telemetry import agents  # noqa: PLC0415  it imports the API

        return agents.begin(actor.name, self._identity(actor, run) or {}, run)

    @fails_open
    def _workflow(
        self, name: str, run: AgentRun | None, conversation: str | None, paused: str | None
    ) -> AgentSpan | None:
        from agentguard.telemetry import agents, identity  # noqa: PLC0415  they import the API

        who = (self._settings, self._trust_domain)
        work = {} if run is None else identity.work(*who, run.principal, run.task_id)
        return agents.begin_workflow(name, work, conversation, paused)

    @fails_open
    def _call(self, actor: AgentIdentity, invocation: Invocation) -> CallListener:
        from agentguard.telemetry.calls import Call  # noqa: PLC0415  it imports the API

        return Call(self._settings, self._trust_domain, actor, invocation)

    @fails_open
    def _evaluation(self, actor: AgentIdentity, invocation: Invocation) -> CallListener:
        from agentguard.telemetry.calls import Evaluation  # noqa: PLC0415  it imports the API

        return Evaluation(self._settings, self._trust_domain, actor, invocation)

    @fails_open
    def _identity(self, actor: AgentIdentity, run: AgentRun) -> Any:
        from agentguard.telemetry.identity import identity  # noqa: PLC0415  it imports the API

        who = (run.principal, tuple(run.actors), run.task_id)
        return identity(self._settings, self._trust_domain, actor, *who)


_SILENT: Final = Silent()
_NO_SPAN: Final = cast("AgentSpan", SilentSpan())
