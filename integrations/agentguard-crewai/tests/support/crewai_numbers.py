"""The rounds, the names of agents, and the number of a crew in a text.

The tests ``test_crewai_concurrency_*.py`` share these.
"""

from __future__ import annotations

import rounds

ROUNDS = 8 if rounds.FULL else 1
NAMES = ("lead", "worker", "writer", "reader")


def told(text: str) -> int:
    return int(text.split(maxsplit=1)[0])
