"""The group ``agentguard audit``: the commands that read the log.

Each command has a module of its own, takes no lock and needs no passphrase. What adds to the log is
no command of this group: ``agentguard resolve`` and ``agentguard erase`` (``resolve.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import typer

from agentguard.cli.lazy import Group


class _Audit(Group):
    places: ClassVar[Mapping[str, tuple[str, str]]] = {
        "list": ("audit.listing:list_entries", "List the calls, the newest last."),
        "show": ("audit.show:show", "Show all that the log says of one call."),
        "tail": ("audit.tail:tail", "Print the newest calls, and wait for new ones."),
        "export": ("audit.export:export", "Write the log's entries as JSON lines."),
        "verify": ("audit.verify:verify", "Verify the whole log."),
        "match": (
            "audit.match:match",
            "Compare the requests in the logs of an agent and of a tool's server.",
        ),
    }


app = typer.Typer(no_args_is_help=True, cls=_Audit)
