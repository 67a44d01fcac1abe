"""Options and arguments that several commands share, each declared once, as a type.

What they say is understood elsewhere: where a log lies in ``location.py``, which entries are wanted
in ``filters.py``, a time in ``times.py``.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from agentguard.cli import times

Kind = Literal[
    "call",
    "authorization",
    "outcome",
    "resolution",
    "erasure",
    "delegation",
    "revocation",
    "freeze",
    "identity",
    "config",
    "policy",
    "key",
    "shard",
]
Decided = Literal["allow", "deny", "approval"]

# --- where a log lies, and whom to believe about it ---------------------------------------------

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="The configuration; by default the nearest agentguard.toml, from here upwards.",
    ),
]
StateOption = Annotated[
    Path | None, typer.Option("--state", metavar="DIR", help="The state directory to read.")
]
AnchorOption = Annotated[
    str | None,
    typer.Option(
        "--anchor",
        metavar="DIR",
        help="Where checkpoints are kept outside the state; '' for nowhere.",
    ),
]
TrustOption = Annotated[
    Path | None,
    typer.Option(
        "--trust",
        metavar="FILE",
        help="The trust document to believe; by default the copy that is kept with the anchors.",
    ),
]

# --- what is printed or written -----------------------------------------------------------------

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
EveryOption = Annotated[
    bool,
    typer.Option("--all", help="Also the entries that are no call's; --json always has them."),
]
OutputOption = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="FILE", help="A new file; by default stdout."),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite FILE.")]

NoteOption = Annotated[
    str, typer.Option("--note", metavar="TEXT", help="Why, or how you know; it is logged.")
]

# --- which entries are wanted -------------------------------------------------------------------

AgentOption = Annotated[
    str | None,
    typer.Option("--agent", metavar="NAME|URI", help="An agent, or one instance of it."),
]
PrincipalOption = Annotated[
    str | None, typer.Option("--principal", metavar="NAME", help="Calls for somebody.")
]
ToolOption = Annotated[str | None, typer.Option("--tool", metavar="NAME", help="Calls of a tool.")]
DecisionOption = Annotated[
    Decided | None,
    typer.Option(
        "--decision",
        metavar="DECISION",
        help="Calls that were decided so: allow, deny or approval.",
    ),
]
SinceOption = Annotated[
    datetime | None,
    typer.Option(
        "--since",
        metavar="TIME",
        parser=times.given,
        help="From a time on: 2026-11-25, 2026-11-25T09:30:00Z, or 30m, 2h, 7d ago.",
    ),
]
UntilOption = Annotated[
    datetime | None,
    typer.Option("--until", metavar="TIME", parser=times.given, help="Before a time."),
]
TaskOption = Annotated[str | None, typer.Option("--task", metavar="ID", help="Calls of a task.")]
TraceOption = Annotated[
    str | None, typer.Option("--trace", metavar="ID", help="Calls of a trace (32 hex digits).")
]
KindOption = Annotated[
    Kind | None,
    typer.Option(
        "--kind",
        metavar="KIND",
        help="Entries of a kind: call, outcome, resolution, erasure, delegation, revocation, "
        "freeze, identity, config, policy, key, shard.",
    ),
]
InDoubtOption = Annotated[
    bool,
    typer.Option("--in-doubt", help="Calls that were authorised, of which nothing is known since."),
]
