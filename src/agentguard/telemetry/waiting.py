"""The methods that count the requests for approvals which wait, one of each guard.

``silence.py`` registers a guard's method; ``metrics.py`` calls all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from weakref import WeakMethod

Waiting = Callable[[], tuple[str, object, int] | None]
"""Returns the trust domain, an id of the state, and the number of waiting requests; or None."""

SOURCES: Final[list[WeakMethod[Waiting]]] = []
"""The methods that count waiting requests for the metrics."""
