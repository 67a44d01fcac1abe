"""The classes of guarded agents and crews: subclasses that look like what they are made from."""

from __future__ import annotations

import functools
import types
from typing import Any


@functools.lru_cache(maxsize=512)
def guarded_class(mixin: type, kind: type) -> Any:
    """Return the subclass of ``kind`` with ``mixin`` before it; it keeps the name of ``kind``.

    CrewAI writes the name down, in events and checkpoints.
    """
    names = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
    }
    return types.new_class(kind.__name__, (mixin, kind), {}, lambda made: made.update(names))
