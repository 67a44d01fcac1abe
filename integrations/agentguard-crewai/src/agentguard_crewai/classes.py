"""Makes the classes of guarded agents, crews and executors, which keep the names of CrewAI's."""

from __future__ import annotations

import functools
import types
from typing import Any


@functools.lru_cache(maxsize=512)
def guarded_class(mixin: type, kind: type) -> Any:
    """Return the class of ``mixin`` and ``kind``, under the name of ``kind``.

    CrewAI writes the name of the class into events and checkpoints.
    """
    names = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
    }
    return types.new_class(kind.__name__, (mixin, kind), {}, lambda made: made.update(names))
