"""The demo's timeline as an SVG, from a real run: what ``scripts/timeline`` writes.

``python -m agentguard_demo.picture DIR FILE`` runs the demo in DIR and writes FILE. The picture
shows DIR as given.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Final

from rich.console import Console

from agentguard_demo import people, run
from agentguard_demo.script import ScriptedModel
from agentguard_demo.timeline import Timeline

_WIDTH: Final = 120
_FONT: Final = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def main(directory: str, file: str) -> None:
    """Run the demo in ``directory`` and write its timeline to ``file``."""
    console = Console(
        record=True, width=_WIDTH, file=io.StringIO(), highlight=False, force_terminal=True
    )
    timeline = Timeline(console, "agentguard")
    if not run(Path(directory), ScriptedModel(), timeline, people.approve).ok:
        sys.exit("the log did not verify, or the changed byte was not found: no picture of that")
    svg = console.export_svg(title="agentguard demo", unique_id="timeline")
    # a picture in a repository fetches no fonts from elsewhere
    Path(file).write_text(_FONT.sub("", svg), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
