"""``agentguard audit``: the commands that read and verify the log. No lock is taken.

Here they are put together; each stands in a module of its own.
"""

from __future__ import annotations

import typer

from agentguard.cli import export, listing, showing, tail, verify

app = typer.Typer(no_args_is_help=True, help="Look at the log, and verify it.")
app.command("list")(listing.list_entries)
app.command("show")(showing.show)
app.command("tail")(tail.tail)
app.command("export")(export.export)
app.command("verify")(verify.verify)
