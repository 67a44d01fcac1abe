"""``python -m agentguard.cli``: the command line, where no script is on the path."""

from __future__ import annotations

from agentguard.cli.commands import main

main()
