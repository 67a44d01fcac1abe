"""What the demo prints: the timeline as it happens, the effects, the log's verdicts, the commands.

It is given values and prints them. Text of models and tools is shown as text: without markup,
control or bidirectional characters.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from agentguard import ApprovalRequest, Delegation, Report, Requirement
from agentguard.cli.audit import phrases
from agentguard.delegation.grant import Grant
from agentguard.identity.credential import agent_alias
from agentguard.visible import visible_json, visible_text, written_out
from agentguard_demo.forge import Forge
from agentguard_demo.proof import Proof
from agentguard_demo.setting import Setting
from agentguard_demo.steps import Step
from agentguard_demo.tampering import Change
from agentguard_demo.trace import SEARCHES, Sent

_STYLES: Final = {"allow": "bold green", "deny": "bold red", "approval": "bold yellow"}
_LONGEST_VALUE: Final = 36
_NARROWEST: Final = 20
"""Cells beside its head in which a text is still wrapped."""
_INDENT: Final = 10
_RULE: Final = "-" * 70
"""What unittest prints above its summary."""


class Timeline:
    """Prints one run on a ``console``; ``program`` is how the reader calls agentguard."""

    def __init__(self, console: Console, program: str) -> None:
        self.console = console
        self._program = program
        self._lent: set[str] = set()

    def opening(self, setting: Setting, lent: Delegation, task: str, model: str) -> None:
        """Say who is about to do what, for whom, and where."""
        self._title("Agents at work for alice: each call signed, decided and logged before it runs")
        for name, value in (
            ("folder", str(setting.directory)),
            ("for", f"{lent.principal}, through {lent.via}, until {lent.expires_at:%H:%M:%S} UTC"),
            ("model", model),
            ("task", task),
        ):
            self._line(Text.assemble((f"{name:>8}  ", "dim"), visible_text(value)), hang=10)
        self.console.print()

    def said(self, text: str) -> None:
        """Show what the model says between its calls."""
        if text.strip():
            self._line(Text(f"   model  {visible_text(text)}", style="italic dim"), hang=10)

    def step(self, step: Step, parameters: Mapping[str, Mapping[str, object]]) -> None:
        """Show one call: its place in the log, who for whom, what, and the answer.

        Before it stand the hops that were not shown yet. ``parameters`` are the tool's, in its
        order, as JSON schemas: an argument that has the default value is left out.
        """
        self._lending(step)
        arguments = ", ".join(
            f"{visible_text(name)}={_cut(str(step.args[name]))}"
            for name in dict.fromkeys((*parameters, *step.args))
            if name in step.args and not _is_default(step.args[name], parameters.get(name, {}))
        )
        call = Text.assemble(
            (f"{f'#{step.index}':>8}  ", "cyan"),
            (f"{visible_text(agent_alias(step.agent))}", "magenta"),
            (f" for {visible_text(step.principal)}  ", "dim"),
            (visible_text(step.tool), "bold"),
            f"({arguments})",
        )
        self._line(call, hang=10)
        answer, style = _answer(step)
        self._line(
            Text.assemble(
                (f"{step.decision.upper():>8}  ", _STYLES.get(step.decision, "")),
                (visible_text(answer), style),
            ),
            hang=10,
        )

    def asked(self, request: ApprovalRequest) -> None:
        """Show the exact call that a person is asked to approve: nothing of it is cut."""
        needed = "; ".join(map(_needed, request.requirements))
        until = datetime.fromtimestamp(request.expires_at, UTC)
        self._signed("request", request.request_id)
        self._signed("asks for", f"{needed}, until {until:%H:%M:%S} UTC")
        self._signed(
            "agent", f"{request.agent_name}, through {', '.join(request.actors) or 'nobody'}"
        )
        self._signed("for", request.principal)
        self._signed("not by", ", ".join(request.requesters))
        self._signed("tool", f"{request.tool}: {request.description}")
        self._signed("on", request.resource or "nothing that is named")
        for name, value in json.loads(request.arguments).items():
            self._signed(f"argument {name}", Text(visible_json(value)))
        self._signed("digest", request.call_digest)

    def answered(self, arguments: Sequence[str], said: str) -> None:
        """Show the command with which bob has answered, in his process, and what it said."""
        command = f"{self._program} {shlex.join(arguments)}"
        self._line(
            Text.assemble(("   bob $  ", "yellow"), (visible_text(command), "bold")), hang=10
        )
        for line in said.rstrip("\n").split("\n"):
            self._line(Text(f"          {written_out(line)}"), hang=10)

    def waiting(self, requests: Sequence[ApprovalRequest]) -> None:
        """Say at the end which calls wait for a person: they have not run."""
        for request in requests:
            text = f"   WAITS  {request.tool} was not run: the request {request.request_id} waits"
            self._line(Text(written_out(text), style="bold yellow"), hang=10)

    def _signed(self, name: str, value: str | Text) -> None:
        line = Text.assemble(("       |  ", "yellow"), (f"{visible_text(name):<16}  ", "dim"))
        self._line(
            line.append_text(value if isinstance(value, Text) else Text(visible_text(value))),
            hang=28,
        )

    def _lending(self, step: Step) -> None:
        """Show by which hops the agent came to what it may do."""
        parent: Grant | None = None
        for hop in step.hops:
            if hop.jti not in self._lent:
                self._lent.add(hop.jti)
                said = visible_text(phrases.said(hop, parent))
                self._line(Text.assemble(("   lends  ", "blue"), (said, "blue")), hang=10)
            parent = hop

    def effects(self, forge: Forge, steps: Sequence[Step]) -> None:
        """Show what has truly changed: the branches, the pull requests, the last run of CI."""
        self._title("What it left in the repository")
        for line in forge.history().split("\n"):
            self._line(Text(f"          {written_out(line)}"))
        for pull in forge.pull_requests():
            state = f"merged as {pull.merged[:10]}" if pull.merged else "open"
            what = f"pull request {pull.number} ({state}): {pull.title}"
            self._line(Text(f"          {visible_text(what)}"))
        runs = [step for step in steps if step.tool == "trigger_ci" and step.status == "ok"]
        if runs:
            summary = visible_text(_summary(str(runs[-1].result)))
            self._line(Text.assemble(("      ci  ", "dim"), summary), hang=10)

    def verified(self, report: Report) -> None:
        """Give the verdict on the log."""
        self._title("Can it be proved later?")
        self._verdict("the log", report)

    def proved(self, proofs: Sequence[Proof]) -> None:
        """Say who has answered, as the evidence of each call proves it."""
        for path, evidence in proofs:
            for answer in evidence.approved:
                said = answer.approval
                person = answer.approver
                who = (
                    f"{said.approver}"
                    if person is None
                    else (
                        f"{said.approver} ({', '.join(person.roles)}), signed with "
                        f"{answer.envelope.signatures[0][0]}"
                    )
                )
                done = "approved by" if said.verdict == "approve" else "rejected by"
                text = f"      OK  {path.name}: {evidence.call.tool} {done} {who}"
                self._line(Text(written_out(text), style="bold green"), hang=10)

    def tampered(self, change: Change, report: Report, setting: Setting) -> None:
        """Say which byte was changed, and give the verdict on the copy."""
        path = change.path.relative_to(setting.directory)
        what = (
            f"byte {change.offset} of {path} (a copy) from '{change.before}' to '{change.after}': "
            f"entry {change.index} moved by a microsecond"
        )
        self._line(Text(f"  change  {what}", style="yellow"), hang=10)
        self._verdict("the copy", report)

    def commands(
        self,
        setting: Setting,
        steps: Sequence[Step],
        proofs: Sequence[Proof],
        sent: Sent | None = None,
    ) -> None:
        """End with the commands to try on what was left behind, and the one that removes it."""
        self._title("Try it yourself")
        state, copy, anchor = setting.state, setting.tampered, setting.anchor
        calls = [step for step in steps if step.invocation_id is not None]
        told = [step for step in calls if step.answered] or calls
        self._command("audit", "list", "--state", state)
        for step in told[-1:]:
            self._command("audit", "show", str(step.index), "--state", state, "--anchor", anchor)
        if sent is not None and sent.in_time:
            of_trace = ("--trace", sent.trace_id, "--state", state, "--anchor", anchor)
            self._command("audit", "show", *of_trace)
        for path, _proved in proofs[-1:]:
            self._command("evidence", "verify", path, "--trust", setting.kept_trust)
        self._command("approvals", "list", "--config", setting.config)
        self._command("audit", "verify", "--state", state, "--anchor", anchor)
        self._command("audit", "verify", "--state", copy, "--anchor", anchor)
        git = shlex.join(["git", "-C", str(setting.forge.path), "log", "--all", "--stat"])
        self.console.print(Text(f"  {git}"), soft_wrap=True)
        self._title("Remove all of it")
        remove = shlex.join(["rm", "-rf", str(setting.directory)])
        self.console.print(Text(f"  {remove}"), soft_wrap=True)

    def sent(self, sent: Sent) -> None:
        """Say where the trace is, and what to search for."""
        self._title("The trace")
        if not sent.in_time:
            text = f"it was not taken (in time): does an OTLP receiver listen at {sent.endpoint}?"
            self._line(Text(f"  {text}", style="bold yellow"))
            return
        lines = [
            f"in Jaeger:    {sent.link}",
            f"as JSON:      {sent.api}",
            "the page needs a Jaeger with its UI; one that scripts/services has built has none",
            "find it by the tags of a span, in the page's field Tags or by the query API:",
        ]
        for tags in SEARCHES:
            named = " ".join(f"{name}={value}" for name, value in tags.items())
            lines += [f"  {named}", f"    {sent.search(tags)}"]
        for line in lines:
            self.console.print(Text(f"  {line}"), soft_wrap=True)

    def _command(self, *arguments: str | Path) -> None:
        command = f"{self._program} {shlex.join(map(str, arguments))}"
        # never wrapped: a line is copied as it stands
        self.console.print(Text(f"  {command}"), soft_wrap=True)

    def _verdict(self, what: str, report: Report) -> None:
        for problem in report.problems:
            where = "" if problem.index is None else f", entry {problem.index}"
            found = f"shard {problem.shard}{where}: {problem.what}"
            self._line(Text(f"   FOUND  {visible_text(found)}", style="bold red"), hang=10)
        if report.ok:
            # the demo writes state and anchor as one user
            anchored = f"anchored, {report.witness}" if report.anchored else "UNANCHORED"
            doubtful = len(report.in_doubt)
            doubt = f"{doubtful} {'call' if doubtful == 1 else 'calls'} in doubt"
            text = f"      OK  {what}: {report.entries} entries verified, {anchored}, {doubt}"
            self._line(Text(text, style="bold green"))

    def _title(self, text: str) -> None:
        self.console.print()
        self.console.print(Text(text, style="bold"))

    def _line(self, text: Text, *, hang: int = 0) -> None:
        """Print one line: cut at the console's width, or wrapped and indented by ``hang``."""
        if not hang:
            text.truncate(self.console.width, overflow="ellipsis")
            self.console.print(text, no_wrap=True)
            return
        first, rest = text[:hang], text[hang:]
        width = self.console.width
        if width - hang < _NARROWEST:  # the text stands below its head, and never at the left edge
            self.console.print(first)
            hang = min(_INDENT, width - 1)
            first = Text(" " * hang)
        for line in rest.wrap(self.console, width - hang):
            line.rstrip()
            self.console.print(first.append_text(line), soft_wrap=True)
            first = Text(" " * hang)


def _cut(value: str) -> str:
    rest = len(value) - _LONGEST_VALUE
    more = f"… ({rest} more characters)" if rest > 0 else ""
    return f"{visible_text(value[:_LONGEST_VALUE])}{more}"


def _needed(requirement: Requirement) -> str:
    people = "1 person" if requirement.quorum == 1 else f"{requirement.quorum} people"
    who = (*requirement.approvers, *requirement.roles)
    return f"{people}{' of ' if who else ''}{', '.join(who)}"


def _is_default(value: object, parameter: Mapping[str, object]) -> bool:
    return "default" in parameter and parameter["default"] == value


def _summary(output: str) -> str:
    """Return CI's own first line and the last lines of unittest: how many tests, and OK or not."""
    said, _newline, tests = output.partition("\n")
    counted = (line.strip() for line in tests.rpartition(_RULE)[2].split("\n"))
    return " ... ".join((said, *filter(None, counted)))


def _answer(step: Step) -> tuple[str, str]:
    """Return what came of a call, and the style of that."""
    reason = "; ".join(step.reasons)
    if step.decision == "allow":
        return _first_line(step), ""
    if step.decision == "approval":
        return f"{reason}: the graph pauses", "yellow"
    return f"{reason} [{step.code}]", "red"


def _first_line(step: Step) -> str:
    if step.status != "ok":
        return f"({step.status or 'it runs'})"
    return str(step.result).partition("\n")[0]
