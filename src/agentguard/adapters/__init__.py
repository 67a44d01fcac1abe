"""The names that an adapter of a framework may use, beside the public names of ``agentguard``.

An adapter turns a framework's tool call into an ``Invocation``. The adapter then calls ``run`` with
the invocation and a function that runs the tool. adapters.md has a complete adapter and the
purpose of each name. An import contract keeps the adapters of this repository to these names.

Each name is imported at its first use (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentguard.adapters.approvals import note_waiting, take_answer, verdict_of
    from agentguard.adapters.calls import (
        ResultBudget,
        aevaluate,
        agent_scope,
        arun,
        check_tool_names,
        configure_tool,
        denial_text,
        evaluate,
        log_denial,
        may_call_again,
        next_call_id,
        run,
        run_store,
    )
    from agentguard.adapters.context_values import assigned
    from agentguard.adapters.delegation import (
        astream_within,
        refusing_agent,
        require_delegator,
        stream_within,
        take_over,
    )
    from agentguard.adapters.framework_versions import require_supported
    from agentguard.adapters.spans import agent_span, workflow_span
    from agentguard.approvals.answer import MAX_NOTE, Verdict
    from agentguard.approvals.nested import NestedCalls
    from agentguard.call.arguments import MAX_DEPTH, Arguments, FactoryMade, is_namedtuple
    from agentguard.call.binding import Binder, binder
    from agentguard.call.budget import bounded, spend
    from agentguard.call.invocation import CallSite, Invocation
    from agentguard.call.journal import ResultCodec, RunStore, dumps_checked
    from agentguard.call.options import CallOptions
    from agentguard.call.plain import require_plain
    from agentguard.call.tool import ToolSpec, function_schema
    from agentguard.delegation.context import (
        Narrowing,
        is_inside_delegating_call,
        narrowed_here,
        narrowing_owner,
        nested_calls,
    )
    from agentguard.delegation.grant import parse_scopes
    from agentguard.errors import ArgumentsError, DecodeError, EncodeError
    from agentguard.server.unix_socket import listen_unix
    from agentguard.service.uvicorn_server import (
        HttpConnection,
        listen_tcp,
        uvicorn_config,
    )
    from agentguard.signing.canonical import JSON, MAX_INTEGER, digest, loads
    from agentguard.spelling import closest_name
    from agentguard.telemetry import (
        SILENT_SPAN,
        AgentSpan,
        attached,
        fails_open,
        inside_span,
        is_tracing,
    )
    from agentguard.visible import shortened_text, visible_json, visible_text
    from agentguard.wire.peer import peer_of

_NAMES = {
    "adapters.approvals": ("note_waiting", "take_answer", "verdict_of"),
    "adapters.calls": (
        "ResultBudget",
        "aevaluate",
        "agent_scope",
        "arun",
        "check_tool_names",
        "configure_tool",
        "denial_text",
        "evaluate",
        "log_denial",
        "may_call_again",
        "next_call_id",
        "run",
        "run_store",
    ),
    "adapters.context_values": ("assigned",),
    "adapters.delegation": (
        "astream_within",
        "refusing_agent",
        "require_delegator",
        "stream_within",
        "take_over",
    ),
    "adapters.framework_versions": ("require_supported",),
    "adapters.spans": ("agent_span", "workflow_span"),
    "approvals.nested": ("NestedCalls",),
    "approvals.answer": ("MAX_NOTE", "Verdict"),
    "call.arguments": ("MAX_DEPTH", "Arguments", "FactoryMade", "is_namedtuple"),
    "call.binding": ("Binder", "binder"),
    "call.budget": ("bounded", "spend"),
    "call.invocation": ("CallSite", "Invocation"),
    "call.journal": ("ResultCodec", "RunStore", "dumps_checked"),
    "call.options": ("CallOptions",),
    "call.plain": ("require_plain",),
    "call.tool": ("ToolSpec", "function_schema"),
    "delegation.context": (
        "Narrowing",
        "is_inside_delegating_call",
        "narrowed_here",
        "narrowing_owner",
        "nested_calls",
    ),
    "delegation.grant": ("parse_scopes",),
    "spelling": ("closest_name",),
    "errors": ("ArgumentsError", "DecodeError", "EncodeError"),
    "server.unix_socket": ("listen_unix",),
    "service.uvicorn_server": ("HttpConnection", "listen_tcp", "uvicorn_config"),
    "signing.canonical": ("JSON", "MAX_INTEGER", "digest", "loads"),
    "telemetry": (
        "SILENT_SPAN",
        "AgentSpan",
        "attached",
        "fails_open",
        "inside_span",
        "is_tracing",
    ),
    "visible": ("shortened_text", "visible_json", "visible_text"),
    "wire.peer": ("peer_of",),
}
"""The names by the module of ``agentguard`` that has them."""

_HOMES = {name: home for home, names in _NAMES.items() for name in names}

__all__ = [
    "JSON",
    "MAX_DEPTH",
    "MAX_INTEGER",
    "MAX_NOTE",
    "SILENT_SPAN",
    "AgentSpan",
    "Arguments",
    "ArgumentsError",
    "Binder",
    "CallOptions",
    "CallSite",
    "DecodeError",
    "EncodeError",
    "FactoryMade",
    "HttpConnection",
    "Invocation",
    "Narrowing",
    "NestedCalls",
    "ResultBudget",
    "ResultCodec",
    "RunStore",
    "ToolSpec",
    "Verdict",
    "aevaluate",
    "agent_scope",
    "agent_span",
    "arun",
    "assigned",
    "astream_within",
    "attached",
    "binder",
    "bounded",
    "check_tool_names",
    "closest_name",
    "configure_tool",
    "denial_text",
    "digest",
    "dumps_checked",
    "evaluate",
    "fails_open",
    "function_schema",
    "inside_span",
    "is_inside_delegating_call",
    "is_namedtuple",
    "is_tracing",
    "listen_tcp",
    "listen_unix",
    "loads",
    "log_denial",
    "may_call_again",
    "narrowed_here",
    "narrowing_owner",
    "nested_calls",
    "next_call_id",
    "note_waiting",
    "parse_scopes",
    "peer_of",
    "refusing_agent",
    "require_delegator",
    "require_plain",
    "require_supported",
    "run",
    "run_store",
    "shortened_text",
    "spend",
    "stream_within",
    "take_answer",
    "take_over",
    "uvicorn_config",
    "verdict_of",
    "visible_json",
    "visible_text",
    "workflow_span",
]

if not TYPE_CHECKING:  # a type checker reads the imports above, and so reports a misspelt name

    def __getattr__(name: str) -> Any:
        """Import a name at its first use."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = import_module(f"agentguard.{_HOMES[name]}")
        value = globals()[name] = getattr(home, name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
