"""Play the demo with its spans sent to an OTLP receiver: for ``scripts/trace`` and the tests.

``python tools/traced_demo.py FOLDER ENDPOINT SERVICE`` plays it in FOLDER, which is made, and sends
the spans under the name SERVICE.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Final

from rich.console import Console

from agentguard import telemetry
from agentguard_langchain.demo import people, run
from agentguard_langchain.demo.script import ScriptedModel
from agentguard_langchain.demo.timeline import Timeline

_SECONDS: Final = 30.0


def main(folder: str, endpoint: str, service: str) -> None:
    """Play the demo, and see that its spans are sent."""
    telemetry.configure(endpoint=endpoint, service_name=service)
    timeline = Timeline(Console(file=io.StringIO()), "agentguard")
    if not run(Path(folder), ScriptedModel(), timeline, people.agreeing).ok:
        sys.exit("the log did not verify, or the changed byte was not found")
    if not telemetry.flush(_SECONDS):
        sys.exit(f"the spans were not sent to {endpoint}")


if __name__ == "__main__":
    main(*sys.argv[1:])
