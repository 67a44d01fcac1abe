"""``Declared``: a JSON object of agentguard's own, declared once as a class with typed members.

A declaration reads the value that ``canonical`` has decoded, and refuses an unknown, a missing or
another member than it declares. It gives the value back with the same members, so that encoding
what was read gives the same bytes. msgspec does the work on values alone: its own reader of JSON
is not used, since it takes the last of two equal keys, and rounds large integers.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeVar, dataclass_transform

import msgspec
from msgspec import Meta, UnsetType

from agentguard.errors import DecodeError

Absent = UnsetType
ABSENT: Final = msgspec.UNSET
"""The value of a member that an object does not have, where the declaration allows that."""

Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
"""A SHA-256 in hex."""

Id = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
"""32 lower-case hex digits, which are safe in a file's name."""

Count = Annotated[int, Meta(ge=0)]
"""A whole number from 0."""

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Declared(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The base of declarations; the fields are the members of the object."""

    def as_json(self) -> dict[str, Any]:
        """Return the members of the object, without those that are ``ABSENT``."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: _plain(value) for name, value in values.items() if value is not ABSENT}


def _plain(value: object) -> object:
    if isinstance(value, Declared):
        return value.as_json()
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def read(declared: type[T], value: object, what: str, *, code: str) -> T:
    """Return the value as ``declared``: a class, or another type that msgspec reads.

    ``what`` says what the value is to be, as in "a statement of a freeze". Raises ``DecodeError``
    with ``code``.
    """
    try:
        return msgspec.convert(value, declared)
    except msgspec.ValidationError as error:
        raise DecodeError(f"not {what}: {error}", code=code) from None
