"""The group ``agentguard server``: how a running guard server does."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from agentguard.cli.terminal import location, screen
from agentguard.cli.terminal.options import AS_JSON, CONFIG, Argument, command
from agentguard.client import dial
from agentguard.client.link import Link
from agentguard.domain.config import clients
from agentguard.wire import values

_LABELS: Final = {
    "requests": "requests since start",
    "denials": "denials since start",
    "in_doubt": "in doubt since start",
    "in_doubt_before": "in doubt before start",
    "log_failure": "log",
    "isolation": "clients by isolation",
}


@command(CONFIG, AS_JSON)
def status(*, config: Path | None, json: bool) -> None:
    """Only the server's own user may ask, and is not counted. With --json, one object: version,
    uptime (seconds), requests, denials and in_doubt (calls of clients that were lost), each since
    the start, in_doubt_before (calls in doubt from before the start that nobody has settled; 1000
    for so many or more, null until they are counted), clients, connections, calls (under way),
    draining, log_failure (code and message of why the log can't be written, so that each call is
    denied; null where it can), isolation (how many clients by their isolation), config_sha256 and
    policy_sha256 (of what the server has loaded; the latter null for a policy elsewhere). All calls
    in doubt: agentguard audit list --in-doubt. Exit code 1 if the log can't be written, 2 if the
    server does not answer.
    """
    answer = _ask(config, {"op": "status"})
    if json:
        screen.json_line(answer)
    else:
        rows = ((_LABELS.get(name, name), _shown(name, value)) for name, value in answer.items())
        screen.sheet(rows)
    if answer.get("log_failure") is not None:
        raise SystemExit(1)


def _shown(name: str, value: Any) -> str:
    if name == "log_failure":
        return "can be written" if value is None else f"{value['message']} [{value['code']}]"
    if value is None:
        return "not known" if name == "policy_sha256" else "not counted yet"
    if name == "uptime":
        return str(timedelta(seconds=value))
    if isinstance(value, dict):
        return ", ".join(f"{number} {kind}" for kind, number in sorted(value.items())) or "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


@command(CONFIG)
def reload(config: Path | None) -> None:
    """The server checks both, and puts both on record. Calls under way end under what they began
    with. Where something is wrong, or only a new start can make the change (state, keys, addresses
    and limits of the server, traces), the server says so, goes on as before, and the exit code is
    2. Only the server's own user may ask.
    """
    changed = values.texts(_ask(config, {"op": "reload"}).get("changed"))
    for what in clients.warnings(location.load(config)):
        screen.warn(what)
    screen.line(f"loaded anew: {', '.join(changed)}" if changed else "loaded anew: no change")


@command(
    Argument("agent", "AGENT", "The agent that calls the tool."),
    Argument("tool", "TOOL", "The tool's name in the policy."),
    CONFIG,
)
def accept(*, agent: str, tool: str, config: Path | None) -> None:
    """The server refuses a tool that is not what it was at the agent's first call (tool.changed).
    Only the server's own user may accept a change. Exit code 1 if no such tool is pinned.
    """
    answer = _ask(config, {"op": "accept_tool", "agent": agent, "tool": tool})
    if answer.get("accepted") is not True:
        what = (
            f"no tool {tool} of agent {agent} is pinned, since the agent has not called the tool, "
            "or the change is accepted already: there is nothing to do, and the next call pins the "
            "tool"
        )
        screen.warn(what)
        raise SystemExit(1)
    screen.line(f"accepted: the next call of {tool} by {agent} pins the tool anew")


def _ask(config: Path | None, request: dict[str, Any]) -> dict[str, Any]:
    server_config = location.load(config).require_server()
    link = Link(dial.at(server_config.address), timeout=server_config.timeout)
    try:
        return dict(link.request(request).header)
    finally:
        link.close()
