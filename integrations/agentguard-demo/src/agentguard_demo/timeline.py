"""Prints the demo: the steps as they happen, the effects, the verdicts on the log, the commands.

This file decides nothing: it prints the values that it gets. Text of models and tools is printed
without markup, control or bidirectional characters.
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
from agentguard_demo.trace import SEARCHES, SentTrace

_STYLES: Final = {"allow": "bold green", "deny": "bold red", "approval": "bold yellow"}
_LONGEST_VALUE: Final = 36
_NARROWEST: Final = 20
"""The least number of cells beside a line's head in which a text is wrapped."""
_INDENT: Final = 10
_RULE: Final = "-" * 70
"""What unittest prints above its summary."""


class Timeline:
    """Prints one run on a ``console``; ``program`` is how the reader calls agentguard."""

    def __init__(self, console: Console, program: str) -> None:
        self.console = console
        self._program = program
        self._shown_hops: set[str] = set()

    def show_server(self, process: int) -> None:
        """Show where the guard is: in a server."""
        text = f"in a server, process {process}, at unix:guard.sock"
        self._line(Text.assemble(("   guard  ", "dim"), text), hang=10)

    def show_opening(self, setting: Setting, delegation: Delegation, task: str, model: str) -> None:
        """Show the folder, the principal, the model and the task."""
        self._title("Agents at work for alice: each call signed, decided and logged before it runs")
        until = f"{delegation.expires_at:%H:%M:%S}"
        for name, value in (
            ("folder", str(setting.directory)),
            ("for", f"{delegation.principal}, through {delegation.via}, until {until} UTC"),
            ("model", model),
            ("task", task),
        ):
            self._line(Text.assemble((f"{name:>8}  ", "dim"), visible_text(value)), hang=10)
        self.console.print()

    def show_model_text(self, text: str) -> None:
        """Show the text of a model's message."""
        if text.strip():
            self._line(Text(f"   model  {visible_text(text)}", style="italic dim"), hang=10)

    def show_step(self, step: Step, parameters: Mapping[str, Mapping[str, object]]) -> None:
        """Show one call: its index in the log, the agent, the principal, the call and the decision.

        The hops of the call's delegation that were not shown yet come first. ``parameters`` has a
        JSON schema for each parameter of the tool, in the tool's order: an argument that equals the
        default value is left out.
        """
        self._show_hops(step)
        arguments = ", ".join(
            f"{visible_text(name)}={_truncate(str(step.args[name]))}"
            for name in dict.fromkeys((*parameters, *step.args))
            if name in step.args and not _is_default(step.args[name], parameters.get(name, {}))
        )
        call = Text.assemble(
            (f"{f'#{step.index}':>8}  ", "cyan"),
            (visible_text(agent_alias(step.agent)), "magenta"),
            (f" for {visible_text(step.principal)}  ", "dim"),
            (visible_text(step.tool), "bold"),
            f"({arguments})",
        )
        self._line(call, hang=10)
        for name in step.secrets:
            text = f"  secret  {visible_text(name)}, released to this call and to no model"
            self._line(Text(text, style="dim"), hang=10)
        text, style = _result_text(step)
        self._line(
            Text.assemble(
                (f"{step.decision.upper():>8}  ", _STYLES.get(step.decision, "")),
                (visible_text(text), style),
            ),
            hang=10,
        )

    def show_request(self, request: ApprovalRequest) -> None:
        """Show the exact call that a person is to approve: no value is shortened."""
        requirements = "; ".join(map(_requirement_text, request.requirements))
        until = datetime.fromtimestamp(request.expires_at, UTC)
        self._request_row("request", request.request_id)
        self._request_row("asks for", f"{requirements}, until {until:%H:%M:%S} UTC")
        self._request_row(
            "agent", f"{request.agent_name}, through {', '.join(request.actors) or 'nobody'}"
        )
        self._request_row("for", request.principal)
        self._request_row("not by", ", ".join(request.requesters))
        self._request_row("tool", f"{request.tool}: {request.description}")
        self._request_row(
            "on", "nothing that is named" if request.resource is None else request.resource
        )
        for name, value in json.loads(request.arguments).items():
            self._request_row(f"argument {name}", Text(visible_json(value)))
        self._request_row("digest", request.call_digest)

    def show_answer(self, arguments: Sequence[str], output: str) -> None:
        """Show the command with which bob has answered, and the output of the command."""
        command = f"{self._program} {shlex.join(arguments)}"
        self._line(
            Text.assemble(("   bob $  ", "yellow"), (visible_text(command), "bold")), hang=10
        )
        for line in output.rstrip("\n").split("\n"):
            self._line(Text(f"          {written_out(line)}"), hang=10)

    def show_waiting(self, requests: Sequence[ApprovalRequest]) -> None:
        """Show which calls wait for a person, and have not run."""
        for request in requests:
            text = f"   WAITS  {request.tool} was not run: the request {request.request_id} waits"
            self._line(Text(written_out(text), style="bold yellow"), hang=10)

    def _request_row(self, name: str, value: str | Text) -> None:
        line = Text.assemble(("       |  ", "yellow"), (f"{visible_text(name):<16}  ", "dim"))
        self._line(
            line.append_text(value if isinstance(value, Text) else Text(visible_text(value))),
            hang=28,
        )

    def _show_hops(self, step: Step) -> None:
        """Show the hops of a call's delegation that were not shown yet."""
        parent: Grant | None = None
        for hop in step.hops:
            if hop.jti not in self._shown_hops:
                self._shown_hops.add(hop.jti)
                text = visible_text(phrases.hop_text(hop, parent))
                self._line(Text.assemble(("   lends  ", "blue"), (text, "blue")), hang=10)
            parent = hop

    def show_effects(self, forge: Forge, steps: Sequence[Step]) -> None:
        """Show the branches, the pull requests and the last run of CI."""
        self._title("What it left in the repository")
        for line in forge.history().split("\n"):
            self._line(Text(f"          {written_out(line)}"))
        for pull in forge.pull_requests():
            state = f"merged as {pull.merge_commit[:10]}" if pull.merge_commit else "open"
            what = f"pull request {pull.number} ({state}): {pull.title}"
            self._line(Text(f"          {visible_text(what)}"))
        runs = [step for step in steps if step.tool == "trigger_ci" and step.status == "ok"]
        if runs:
            summary = visible_text(_summary(str(runs[-1].result)))
            self._line(Text.assemble(("      ci  ", "dim"), summary), hang=10)

    def show_log_verdict(self, report: Report) -> None:
        """Show the verdict on the log."""
        self._title("Can it be proved later?")
        self._show_verdict("the log", report)

    def show_proofs(self, proofs: Sequence[Proof]) -> None:
        """Show who has approved or rejected each call, from the call's evidence."""
        for path, evidence in proofs:
            for answer in evidence.answers:
                approval = answer.approval
                person = answer.approver
                who = (
                    approval.approver
                    if person is None
                    else (
                        f"{approval.approver} ({', '.join(answer.roles)}), signed with "
                        f"{answer.envelope.signatures[0][0]}"
                    )
                )
                verb = "approved by" if approval.verdict == "approve" else "rejected by"
                text = f"      OK  {path.name}: {evidence.call.tool} {verb} {who}"
                self._line(Text(written_out(text), style="bold green"), hang=10)

    def show_tampering(self, change: Change, report: Report, setting: Setting) -> None:
        """Show which byte was changed, and the verdict on the copy."""
        path = change.path.relative_to(setting.directory)
        what = (
            f"byte {change.offset} of {path} (a copy) from '{change.before}' to '{change.after}': "
            f"entry {change.index} moved by a microsecond"
        )
        self._line(Text(f"  change  {what}", style="yellow"), hang=10)
        self._show_verdict("the copy", report)

    def show_commands(
        self,
        setting: Setting,
        steps: Sequence[Step],
        proofs: Sequence[Proof],
        sent_trace: SentTrace | None = None,
    ) -> None:
        """Show commands to try on the demo's folder, and the command that removes the folder."""
        self._title("Try it yourself")
        state, copy, anchor = setting.state, setting.tampered_state, setting.anchor
        calls = [step for step in steps if step.invocation_id is not None]
        best = [step for step in calls if step.has_answers] or calls
        self._command("audit", "list", "--state", state)
        for step in best[-1:]:
            self._command("audit", "show", str(step.index), "--state", state, "--anchor", anchor)
        if sent_trace is not None and sent_trace.is_received:
            of_trace = ("--trace", sent_trace.trace_id, "--state", state, "--anchor", anchor)
            self._command("audit", "show", *of_trace)
        for path, _evidence in proofs[-1:]:
            self._command("evidence", "verify", path, "--trust", setting.trust_file)
        self._command("approvals", "list", "--config", setting.config)
        self._command("audit", "verify", "--state", state, "--anchor", anchor)
        self._command("audit", "verify", "--state", copy, "--anchor", anchor)
        git = shlex.join(["git", "-C", str(setting.forge.path), "log", "--all", "--stat"])
        self.console.print(Text(f"  {git}"), soft_wrap=True)
        self._title("Remove all of it")
        remove = shlex.join(["rm", "-rf", str(setting.directory)])
        self.console.print(Text(f"  {remove}"), soft_wrap=True)

    def show_trace(self, sent_trace: SentTrace) -> None:
        """Show the URLs of the trace, and searches for its spans."""
        self._title("The trace")
        if not sent_trace.is_received:
            where = sent_trace.endpoint
            text = f"the receiver did not take it in time: does an OTLP receiver listen at {where}?"
            self._line(Text(f"  {text}", style="bold yellow"))
            return
        lines = [
            f"in Jaeger:    {sent_trace.link}",
            f"as JSON:      {sent_trace.api}",
            "the page needs a Jaeger with its UI; one that scripts/services has built has none",
            "find it by the tags of a span, in the page's field Tags or by the query API:",
        ]
        for tags in SEARCHES:
            query = " ".join(f"{name}={value}" for name, value in tags.items())
            lines += [f"  {query}", f"    {sent_trace.search(tags)}"]
        for line in lines:
            self.console.print(Text(f"  {line}"), soft_wrap=True)

    def _command(self, *arguments: str | Path) -> None:
        command = f"{self._program} {shlex.join(map(str, arguments))}"
        # never wrapped: a line is copied as it stands
        self.console.print(Text(f"  {command}"), soft_wrap=True)

    def _show_verdict(self, what: str, report: Report) -> None:
        for problem in report.problems:
            where = "" if problem.index is None else f"entry {problem.index}: "
            finding = f"{where}{problem.what}"
            self._line(Text(f"   FOUND  {visible_text(finding)}", style="bold red"), hang=10)
        if report.ok:
            # the demo writes state and anchor as one user
            anchored = f"anchored, {report.witness}" if report.anchored else "UNANCHORED"
            count = len(report.in_doubt)
            doubt = f"{count} {'call' if count == 1 else 'calls'} in doubt"
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


def _truncate(value: str) -> str:
    rest = len(value) - _LONGEST_VALUE
    more = f"… ({rest} more characters)" if rest > 0 else ""
    return f"{visible_text(value[:_LONGEST_VALUE])}{more}"


def _requirement_text(requirement: Requirement) -> str:
    people = "1 person" if requirement.quorum == 1 else f"{requirement.quorum} people"
    named = (requirement.approvers, requirement.roles)
    who = [name for names in named if names is not None for name in names]
    return f"{people}{' of ' if who else ''}{', '.join(who)}"


def _is_default(value: object, parameter: Mapping[str, object]) -> bool:
    return "default" in parameter and parameter["default"] == value


def _summary(output: str) -> str:
    """Return CI's own first line and the last lines of unittest: how many tests, and OK or not."""
    verdict, _newline, tests = output.partition("\n")
    summary = (line.strip() for line in tests.rpartition(_RULE)[2].split("\n"))
    return " ... ".join((verdict, *filter(None, summary)))


def _result_text(step: Step) -> tuple[str, str]:
    """Return the result of a call or the reason for its decision, and the style of the text."""
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
