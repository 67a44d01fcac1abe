"""Prints the result of a verification, for ``audit verify`` and ``doctor``.

``domain/verify.py`` verifies a log; this file only prints the findings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from agentguard.audit.findings import Problem
from agentguard.audit.head import Head
from agentguard.audit.log import LogReader
from agentguard.audit.summary import Search
from agentguard.cli.audit import log_row as rows
from agentguard.cli.audit.filters import Filter
from agentguard.cli.audit.history import History
from agentguard.cli.terminal import screen
from agentguard.cli.terminal.location import TrustedLog, config_option, from_home
from agentguard.domain.report import Report
from agentguard.errors import AgentguardError
from agentguard.identity.credential import agent_alias
from agentguard.signing.canonical import JSON
from agentguard.storage import state_location
from agentguard.storage.anchor import log_folder

_LISTED: Final = 20
_WORD_FOR_FILES: Final = (
    "YOUR WORD: nothing shows that the files of --against were kept where whoever writes the state "
    "can't change them; a file that was just made from this log proves nothing about the log"
)


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """A verification's report, with its log.

    ``in_doubt`` holds the ids of the calls in doubt. ``unchecked`` lists the parts that were not
    checked. ``against`` lists the files whose checkpoints counted beside the anchor: that they
    were kept elsewhere is the word of the user.
    """

    log: TrustedLog
    report: Report
    in_doubt: Sequence[str]
    unchecked: Sequence[str]
    against: Sequence[Path]

    def print(self, reader: LogReader, *, json: bool) -> None:
        """Print the report for scripts (``json``) or for people."""
        if json:
            self.print_json()
        else:
            self.draw(reader)

    def print_json(self) -> None:
        """Print the report for scripts, and its warnings to stderr."""
        report = self.report
        screen.json_line(
            {
                "ok": report.ok,
                "entries": report.entries,
                "head": _head_json(report.head),
                "anchored": report.anchored,
                "witness": report.witness,
                "in_doubt": [*self.in_doubt],
                "observed": report.observed_calls,
                "adopted": [
                    {
                        "index": index,
                        "at": entry.at,
                        "note": entry.adoption.note,
                        "lost": entry.adoption.lost and entry.adoption.lost.as_json(),
                        "unanchored": (
                            entry.adoption.unanchored and entry.adoption.unanchored.as_json()
                        ),
                    }
                    for index, entry in report.adoptions
                ],
                "problems": [{"index": one.index, "what": one.what} for one in report.problems],
                "unchecked": [*self.unchecked],
                # listed whether or not they agree: a script must not take silence for a witness
                "your_word": [str(file) for file in self.against],
            }
        )
        for warning in self._warnings():
            screen.warn(warning)

    def draw(self, reader: LogReader) -> None:
        """Print the report for people, with the calls in doubt from the log."""
        report = self.report
        for problem in report.problems:
            screen.item("  ", placed(problem))
        kind, verdict = ("ok", "consistent") if report.ok else ("fail", "FAILED")
        entries = screen.count(report.entries, "entry", "entries")
        where = from_home(self.log.location.state)
        screen.line(screen.styled(kind, verdict), f": {entries} in {where}")
        if report.head is not None:
            covered = screen.count(report.head.size, "entry", "entries")
            screen.line(f"head: {covered} by {report.head.at}, root {report.head.root.hex()}")
        if report.witness == "outside":
            screen.line(
                screen.styled("ok", "anchored"), f": by the checkpoints in {self._witnesses()}"
            )
        elif report.witness is not None:
            screen.line(
                screen.styled("warn", "anchored, same user"),
                f": by the checkpoints in {self._witnesses()}, which whoever writes the state can "
                "change as well: keep some elsewhere too (docs/explanation/anchors.md)",
            )
        if self.report.witness is not None and self.against:
            screen.line(screen.styled("warn", _WORD_FOR_FILES))
        trust = self.log.trust
        screen.line(f"trust: {trust.document.trust_domain}, from {trust.source}")
        for warning in self._warnings():
            screen.line(screen.styled("warn", warning))
        self._draw_doubts(History(reader))

    def _warnings(self) -> Iterator[str]:
        """Yield a warning for each guarantee that the report does not give."""
        if not self.report.anchored:
            yield unanchored(self.log.location.anchor, self.report)
        original = self._original()
        if original is not None:
            yield f"A COPY: the log goes on in {original}, of which the anchor tells"
        if not self.log.trust.outside:
            yield self.log.trust.warning()
        if self.report.observed_calls:
            calls = screen.count(self.report.observed_calls, "call", "calls")
            yield (
                f"NOT ENFORCED: {calls} ran while the policy was only observed, whatever it said: "
                "agentguard audit list --decision observe"
            )
        yield from losses(self.report)
        if self.unchecked:
            yield f"NOT CHECKED: {'; '.join(self.unchecked)}"

    def _original(self) -> str | None:
        """Return the path of the original where the anchor shows this state to be a copy."""
        anchor, log = self.log.location.anchor, self.log.trust.document.log
        if anchor is not None:
            with suppress(AgentguardError):
                return state_location.original(log_folder(anchor, log), self.log.location.state)
        return None

    def _witnesses(self) -> str:
        anchor = self.log.location.anchor
        sources = [anchor] if anchor is not None else []
        return ", ".join(from_home(source) for source in [*sources, *self.against])

    def _draw_doubts(self, history: History) -> None:
        if not self.in_doubt:
            return
        number = screen.count(len(self.in_doubt), "call", "calls")
        screen.line()
        screen.line(
            screen.styled("in_doubt", f"{number} in doubt"),
            f": authorised, and nothing is known since. {self._advice_on_doubts()}",
        )
        for invocation_id in self.in_doubt[:_LISTED]:
            selection = Filter(Search(kind="call", invocation_id=invocation_id))
            matches = history.rows(selection) if not self.report.damaged else ()
            for row in islice(matches, 1):
                by = agent_alias(row.agent)
                screen.item("  ", f"{row.tool} by {by}, {row.at}, entry {row.index}")
            if self._may_resolve():
                remedy = f"{rows.remedy(invocation_id)}{config_option(self.log.location)}"
                screen.item("    ", screen.command(remedy))
        if len(self.in_doubt) > _LISTED:
            others = len(self.in_doubt) - _LISTED
            screen.item("  ", f"and {others} more: agentguard audit list --in-doubt")

    def _may_resolve(self) -> bool:
        """Whether a person may settle the calls in doubt by what this log says.

        What is missing in a damaged log, or is written after a copy was made, may have the outcome.
        """
        return self.report.ok and self._original() is None and self.log.location.config is not None

    def _advice_on_doubts(self) -> str:
        if self._may_resolve():
            return "Find out whether the tool ran, and say so:"
        if not self.report.ok:
            return (
                "Resolve no call by a log that is not whole: what is missing may have the outcome."
            )
        return "Resolve a call only in the log that is in use: this one may be a copy."


def placed(problem: Problem) -> str:
    """Return a problem in words, after the entry that it is of."""
    return problem.what if problem.index is None else f"entry {problem.index}: {problem.what}"


def losses(report: Report) -> Iterator[str]:
    """Yield a warning for each adoption with lost entries, or where nobody knows of any."""
    for index, entry in report.adoptions:
        what = "WERE LOST" if entry.adoption.lost else "MAY BE LOST"
        yield f"ENTRIES {what}, by entry {index} of {entry.at}: {entry.words}"


def unanchored(anchor: Path | None, report: Report) -> str:
    """Return the warning for a log for which no checkpoint from outside vouches.

    Either there is no such checkpoint, or the log is damaged (then ``report.kept`` is true).
    """
    if report.kept:
        why = f"{_kept_by(anchor)}, but the log is not whole or not the one it saw"
    elif anchor is None:
        why = "no anchor is named"
    elif report.ok:
        why = f"{from_home(anchor)} keeps none"
    else:
        why = f"{from_home(anchor)} has none that can be used"
    return f"UNANCHORED: no checkpoint from outside the state vouches for this log ({why})"


def _head_json(head: Head | None) -> JSON:
    if head is None:
        return None
    roots: dict[str, JSON] = {"root": head.root.hex(), "map_root": head.map_root.hex()}
    return {"log": head.log, "size": head.size, **roots, "at": head.at}


def _kept_by(anchor: Path | None) -> str:
    return f"{from_home(anchor)} keeps one" if anchor is not None else "one was named"
