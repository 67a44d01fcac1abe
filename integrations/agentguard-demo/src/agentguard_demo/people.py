"""bob, who answers requests for an approval: his answer, and the process that signs the answer.

The process runs agentguard's command line with bob's key, and without the guard's passphrase. The
agents' process learns of the answer as of an answer from another machine.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Final, NamedTuple

from rich.console import Console

from agentguard import ApprovalRequest, ConfigError
from agentguard.approvals.answer import MAX_NOTE, Verdict
from agentguard.cli.approvals.approver import PASSPHRASE_VARIABLE
from agentguard_demo.setting import Setting, environment

_SECONDS: Final = 600
"""Seconds after which bob's process is ended, which takes one on an idle machine."""
_NOTE: Final = "for issue 17"


class Answer(NamedTuple):
    """bob's answer to a request."""

    verdict: Verdict
    note: str


Bob = Callable[[ApprovalRequest], Answer | None]
"""Returns bob's answer to a request that was shown, or None for no answer."""


def approve(_request: ApprovalRequest) -> Answer:
    """Approve, as the demo's own bob does."""
    return Answer("approve", _NOTE)


def terminal_bob(console: Console) -> Bob:
    """Return a bob who is the person at the terminal; raises ``ConfigError`` where there is none.

    The end of the input is no answer.
    """
    if not (sys.stdin.isatty() and console.is_terminal):
        message = "--interactive asks a person at the terminal, and there is none: leave it out"
        raise ConfigError(message, code="terminal.missing")

    def ask(_request: ApprovalRequest) -> Answer | None:
        try:
            word = _read_word(console)
            while not (word and ("approve".startswith(word) or "reject".startswith(word))):
                console.print("          type approve or reject; a or r will do")
                word = _read_word(console)
            if "approve".startswith(word):
                return Answer("approve", "")
            return Answer(
                "reject", console.input("          for which reason? ").strip()[:MAX_NOTE]
            )
        except EOFError:
            console.print()
            return None

    return ask


def _read_word(console: Console) -> str:
    return console.input("   bob ?  approve or reject exactly this call? ").strip().lower()


def command(setting: Setting, request: ApprovalRequest, answer: Answer) -> list[str]:
    """Return the arguments of agentguard with which bob answers, in the demo's folder."""
    key = str(setting.bob_key_file.relative_to(setting.directory))
    note = ("--note", answer.note) if answer.note else ()
    return ["approvals", answer.verdict, request.request_id, "--key", key, "--yes", *note]


def sign(setting: Setting, arguments: list[str]) -> str:
    """Run bob's command in a process of its own; return what it prints.

    Raises ``ConfigError`` (``approval.failed``).
    """
    try:
        result = subprocess.run(  # noqa: S603  a list, no shell; agentguard itself
            [sys.executable, "-m", "agentguard.cli", *arguments],
            cwd=setting.directory,
            env={**environment(), PASSPHRASE_VARIABLE: setting.bobs_passphrase, "COLUMNS": "1000"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        message = f"bob's process did not end within {_SECONDS} s"
        raise ConfigError(message, code="approval.failed") from error
    if result.returncode != 0:
        message = f"bob's process failed: {result.stderr.decode(errors='replace').strip()}"
        raise ConfigError(message, code="approval.failed")
    return result.stdout.decode(errors="replace").strip()
