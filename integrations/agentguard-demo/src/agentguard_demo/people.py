"""bob, who answers where the policy asks people: what he says, and the process in which he signs.

His answer comes from the command line, in a process of its own that has his key and none of the
guard's: the agents' process learns of it as it would of one from another machine's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Final, NamedTuple

from rich.console import Console

from agentguard import ApprovalRequest, ConfigError
from agentguard.approvals.answer import MAX_NOTE, Verdict
from agentguard.cli.approvals.approver import PASSPHRASE_VARIABLE
from agentguard.domain.passphrase import PASSPHRASE_VARIABLE as GUARDS_VARIABLE
from agentguard_demo.setting import Setting

_SECONDS: Final = 60
_NOTE: Final = "for issue 17"


class Said(NamedTuple):
    """What bob says to a request."""

    verdict: Verdict
    note: str


Bob = Callable[[ApprovalRequest], Said | None]
"""Says what bob says to a request that was shown; None where he says nothing."""


def agreeing(_request: ApprovalRequest) -> Said:
    """Approve, as the demo's own bob does."""
    return Said("approve", _NOTE)


def asked_at(console: Console) -> Bob:
    """Return a bob who is the person at the terminal; raises ``ConfigError`` where there is none.

    Whoever ends the input there says nothing.
    """
    if not (sys.stdin.isatty() and console.is_terminal):
        message = "--interactive asks a person at the terminal, and there is none: leave it out"
        raise ConfigError(message, code="terminal.missing")

    def ask(_request: ApprovalRequest) -> Said | None:
        try:
            word = _word(console)
            while not (word and ("approve".startswith(word) or "reject".startswith(word))):
                console.print("          type approve or reject; a or r will do")
                word = _word(console)
            if "approve".startswith(word):
                return Said("approve", "")
            return Said("reject", console.input("          for which reason? ").strip()[:MAX_NOTE])
        except EOFError:
            console.print()
            return None

    return ask


def _word(console: Console) -> str:
    return console.input("   bob ?  approve or reject exactly this call? ").strip().lower()


def command(setting: Setting, request: ApprovalRequest, said: Said) -> list[str]:
    """Return the arguments of agentguard with which bob answers, in the demo's folder."""
    key = str(setting.bobs_key.relative_to(setting.directory))
    note = ("--note", said.note) if said.note else ()
    return ["approvals", said.verdict, request.request_id, "--key", key, "--yes", *note]


def sign(setting: Setting, arguments: list[str]) -> str:
    """Run bob's command in a process of its own; return what it prints.

    Raises ``ConfigError`` (``approval.failed``).
    """
    kept = {name: value for name, value in os.environ.items() if name != GUARDS_VARIABLE}
    try:
        ran = subprocess.run(  # noqa: S603  a list, no shell; agentguard itself
            [sys.executable, "-m", "agentguard.cli", *arguments],
            cwd=setting.directory,
            env={**kept, PASSPHRASE_VARIABLE: setting.bobs_passphrase, "COLUMNS": "1000"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        message = f"bob's process did not end within {_SECONDS} s"
        raise ConfigError(message, code="approval.failed") from error
    if ran.returncode != 0:
        message = f"bob's process failed: {ran.stderr.decode(errors='replace').strip()}"
        raise ConfigError(message, code="approval.failed")
    return ran.stdout.decode(errors="replace").strip()
