"""``agentguard audit``: the commands around the log; here they are put together.

Each stands in a module of its own. All but ``resolve`` and ``erase``, which add to the log, only
read it: they take no lock and need no passphrase.
"""

from __future__ import annotations

import typer

from agentguard.cli import administer, evidence, export, listing, show, tail, verify

app = typer.Typer(no_args_is_help=True, help="Look at the log, and verify it.")
app.command("list")(listing.list_entries)
app.command("show")(show.show)
app.command("tail")(tail.tail)
app.command("export")(export.export)
app.command("verify")(verify.verify)
app.command("prove")(evidence.prove)
app.command("verify-evidence")(evidence.verify_evidence)
app.command("resolve")(administer.resolve)
app.command("erase")(administer.erase)
