"""``agentguard trace``: prints the calls of one run as a tree, from the log alone.

``run_tree.py`` reads the run. The log holds guarded calls and requests for approvals; whatever else
a run does (models, prompts, waits) is in the spans of a tracer, if there is one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import click
from rich.text import Text

from agentguard.cli.audit import log_row, phrases, run_tree
from agentguard.cli.audit.run_tree import Node, Run
from agentguard.cli.terminal import location, screen, times
from agentguard.cli.terminal.options import AS_JSON, CONFIG, STATE, Argument, Option, command
from agentguard.identity.credential import agent_alias

COLUMNS: Final = ("at", "ran for", "decision", "outcome", "call", "resource")
NOT_IN_THE_LOG: Final = (
    "The log holds guarded calls and requests for approvals alone: runs of agents, calls of models "
    "and prompts are no entries of it, and are in the spans of a tracer, if one is set up."
)
_TRACE: Final = re.compile(r"[0-9a-f]{32}")


@command(
    Argument(
        "name",
        "ID",
        "A trace id, 7 or more digits of its beginning, or a call as audit show takes it.",
        required=False,
    ),
    Option("--last", "The run of the newest call."),
    CONFIG,
    STATE,
    AS_JSON,
)
def trace(
    *, name: str | None, last: bool, config: Path | None, state: Path | None, json: bool
) -> None:
    """Which agent called what, for whom, inside which call, what was decided, who approved, and how
    long each tool ran. A run is one trace; without traces, what was done under one delegation, or
    by one agent instance. Nothing is verified; times are UTC.

    With --json, one object: kind (trace, delegation, instance), id, calls (a tree: each call has
    the calls inside it), not_in_log.
    """
    if (name is None) is not last:
        raise click.BadParameter("name a trace or a call, or the newest run with --last")
    where = location.locate(config, state)
    run = run_tree.read(where.reader(), name)
    if json:
        calls = [run_tree.as_json(node) for node in run.nodes]
        run_id = {"kind": run.kind, "id": run.name}
        screen.json_line({**run_id, "calls": calls, "not_in_log": NOT_IN_THE_LOG})
        return
    screen.sheet(_about(run))
    screen.columns(COLUMNS, _lines(run.nodes, "", 0))
    screen.line(NOT_IN_THE_LOG)
    what = "each signature" if run.kind == "trace" else "the signatures of the run's first call"
    screen.line(f"Nothing here is verified; this checks {what}:")
    screen.item(
        "  ", screen.command(f"{_check(run)}{location.log_options(config, state, None, None)}")
    )


def _about(run: Run) -> Iterator[tuple[str, str | Text]]:
    nodes = [*run.all_nodes()]
    what = {"trace": "the trace", "delegation": "the delegation", "instance": "the calls of"}
    name = agent_alias(run.name) if run.kind == "instance" else run.name
    yield "run", f"{what[run.kind]} {name}"
    yield "for", ", ".join(filter(None, dict.fromkeys(node.row.principal for node in nodes)))
    tasks = dict.fromkeys(n.row.about.task_id for n in nodes if n.row.about is not None)
    if any(tasks):
        yield "task", ", ".join(filter(None, tasks))
    moments = [node.row.at for node in nodes if node.row.at is not None]
    if moments:
        first, last = times.to_the_second(min(moments)), times.to_the_second(max(moments))
        yield "from", f"{first} to {last} UTC"
    calls = [node for node in nodes if node.call is not None]
    counts = Counter(str(node.row.decision) for node in calls)
    told = ", ".join(f"{number} {decision}" for decision, number in sorted(counts.items()))
    waiting = len(nodes) - len(calls)
    asked = f"; {screen.count(waiting, 'request', 'requests')} for an approval" if waiting else ""
    yield "calls", f"{len(calls)}{f': {told}' if told else ''}{asked}"


def _lines(nodes: Sequence[Node], around: str, depth: int) -> Iterator[screen.Row]:
    """Yield a line for each call, and one for an agent wherever another one acts."""
    agent = around
    answered = {answer.request_id for node in nodes for answer in node.approvals}
    for node in nodes:
        if node.row.agent != agent:
            agent = "" if node.row.agent is None else node.row.agent
            yield ("", "", "", "", screen.indented(depth, _agent(node)), ""), ""
        inner = depth + (agent != around)
        yield _cells(node, inner, is_answered=node.request_id in answered), _note(node)
        yield from _lines(node.inside, agent, inner + 1)


def _agent(node: Node) -> str:
    name = agent_alias(node.row.agent)
    if not node.hops:
        return name
    through = [phrases.delegatee(hop) for hop in node.hops[:-1] if not phrases.is_direct(hop)]
    return f"{name}, for {' > '.join([str(node.row.principal), *through])}"


def _cells(node: Node, depth: int, *, is_answered: bool) -> tuple[str | Text, ...]:
    row = node.row
    decision = phrases.decision(row.decision or "", enforced=row.enforced is not False)
    outcome = screen.styled(row.outcome or "", row.outcome or "")
    if node.call is None:
        word = "answered" if is_answered else "asked"
        outcome = screen.styled("ok" if is_answered else "approval", word)
    elif row.resolved is not None:
        outcome = screen.styled("resolved", "resolved")
    call = screen.indented(depth, row.tool or "")
    resource = "" if row.resource is None else row.resource
    return (row.at or "")[11:23], _duration(node), decision, outcome, call, resource


def _note(node: Node) -> str:
    """Say why a call was denied or did not run, how it failed, and who has answered."""
    call, members = node.call, node.outcome.predicate if node.outcome is not None else {}
    said = [f"{call.code}: {'; '.join(call.reasons)}"] if call is not None and call.code else []
    if node.outcome is not None and node.outcome.status == "not_run":
        said.append(phrases.not_run(node.outcome.ended.replay_of))
    if node.secrets:
        said.append(f"got the secret {', '.join(node.secrets)}")
    if members.get("error_type") is not None:
        said.append(str(members["error_type"]))
    for answer in node.approvals:
        verdict = "approved" if answer.verdict == "approve" else "rejected"
        said.append(f"{verdict} by {answer.approver} at {phrases.moment(answer.not_before)}")
    if call is None and node.row.reason:
        said.append(node.row.reason)
    return "; ".join(said)


def _duration(node: Node) -> str:
    seconds = node.seconds
    if seconds is None:
        return ""
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _check(run: Run) -> str:
    """Return the command that verifies a run; it holds no text that an edited log has chosen."""
    if run.kind == "trace" and _TRACE.fullmatch(run.name):
        return f"agentguard audit show --trace {run.name}"
    ids = (node.row.invocation_id for node in run.all_nodes())
    first = next((one for one in ids if log_row.is_id(one)), "INDEX")
    return f"agentguard audit show {first}"
