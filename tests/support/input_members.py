"""Every member of the policy's input (``agentguard.call.vocabulary``), each with its path."""

from __future__ import annotations

from collections.abc import Iterator

from agentguard.call.vocabulary import INPUT, Member, Path


def input_members(
    members: tuple[Member, ...] = INPUT, around: Path = ()
) -> Iterator[tuple[Path, Member]]:
    """Yield every member with its path, each object before its members."""
    for member in members:
        path = (*around, member.name)
        yield path, member
        yield from input_members(member.members, path)
