"""The policy's input for a Python function: a name that no input has raises, instead of being None.

``call["delegation"].get("user")`` would be None for every call, and a condition on the value would
never hold. ``in``, iteration and what ``json`` writes are those of a ``dict``.
"""

from __future__ import annotations

from typing import Any

from agentguard.call import vocabulary
from agentguard.call.vocabulary import Path


class UnknownNameError(LookupError):
    """A policy's function has read a name that no input has; the message says which."""


class StrictMembers(dict[str, Any]):
    """An object of the policy's input at ``path``, whose names are fixed (``vocabulary.py``).

    ``[]``, ``get``, ``pop`` and ``setdefault`` raise ``UnknownNameError`` for a name that no input
    has there; at the top, for a name that is very close to a member's. A copy of the object, and
    what ``|`` returns, raise in the same way. A name of the vocabulary that this input lacks is
    missing, as in a ``dict``.
    """

    __slots__ = ("_path",)

    def __init__(self, members: dict[str, Any], path: Path = ()) -> None:
        super().__init__({name: _strict(value, (*path, name)) for name, value in members.items()})
        self._path = path

    def __missing__(self, name: object) -> Any:
        self._require_known(name)
        raise KeyError(name)

    def get(self, name: Any, default: Any = None, /) -> Any:
        """Return the member, or ``default`` where this input lacks a member of this name."""
        self._require_known(name)
        return super().get(name, default)

    def pop(self, name: Any, *default: Any) -> Any:
        """Remove the member, and return the value."""
        self._require_known(name)
        return super().pop(name, *default)

    def setdefault(self, name: Any, default: Any = None, /) -> Any:
        """Return the member, which is set to ``default`` where this input lacks it."""
        self._require_known(name)
        return super().setdefault(name, default)

    def copy(self) -> StrictMembers:
        """Return a copy that is as strict."""
        return StrictMembers(self, self._path)

    __copy__ = copy

    def __or__(self, other: Any, /) -> Any:
        """Return the members of both, as strict as this object."""
        merged = super().__or__(other)
        return merged if merged is NotImplemented else StrictMembers(merged, self._path)

    def __ror__(self, other: Any, /) -> Any:
        """Return the members of both, as strict as this object."""
        merged = super().__ror__(other)
        return merged if merged is NotImplemented else StrictMembers(merged, self._path)

    def _require_known(self, name: object) -> None:
        if name not in self:
            path = (*self._path, str(name))
            problem = vocabulary.slip(path)
            if problem is None and not self._path:
                problem = vocabulary.misspelt(str(name))
            if problem is not None:
                raise UnknownNameError(problem)


def _strict(value: Any, path: Path) -> Any:
    if isinstance(value, dict) and vocabulary.members_of(path):
        return StrictMembers(value, path)
    return value
