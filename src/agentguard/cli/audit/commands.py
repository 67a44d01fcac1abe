"""``agentguard audit``: the commands around the log; here they are put together.

Each stands in a module of its own. All but ``resolve`` and ``erase``, which add to the log, only
read it: they take no lock and need no passphrase.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import typer

from agentguard.cli.lazy import Group


class _Audit(Group):
    places: ClassVar[Mapping[str, tuple[str, str]]] = {
        "list": ("audit.listing:list_entries", "List the calls, the newest last."),
        "show": ("audit.show:show", "Tell the story of one call."),
        "tail": ("audit.tail:tail", "Watch the calls as they come."),
        "export": ("audit.export:export", "Write the log as JSON lines."),
        "verify": ("audit.verify:verify", "Verify the whole log."),
        "prove": ("audit.evidence:prove", "Write the evidence of one call."),
        "verify-evidence": (
            "audit.evidence:verify_evidence",
            "Check the evidence of one call, and tell what it proves.",
        ),
        "resolve": ("audit.resolve:resolve", "State what became of a call in doubt."),
        "erase": (
            "audit.resolve:erase",
            "Erase a call's arguments, the policy's input and its result.",
        ),
    }


app = typer.Typer(no_args_is_help=True, cls=_Audit)
