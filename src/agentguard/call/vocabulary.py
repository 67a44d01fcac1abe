"""The names of the policy's input: every member, who fills it, and the members below it.

This table is the only list of these names. Tools can't take a name of the table for an attribute or
a fact (``tool.py``), the checks of policies compare what a policy reads with the table, and a test
compares the documentation (docs/reference/policy-document.md) with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final, Literal, TypeAlias

Path: TypeAlias = tuple[str, ...]
"""The names of a value below ``input``: ``("delegation", "subject")``."""

Source = Literal["guard", "server", "token", "proof", "arguments", "application"]
"""Who fills a member: a guard, a guard server, a verified token or proof, the arguments of the
call, which the model chooses, or the application, which registers tools and names tasks."""

Kind = Literal["text", "texts", "number", "object", "free"]
"""What a member is; the members of ``free`` have names that others choose."""

_CLOSE: Final = 0.7
"""The ratio of ``difflib`` from which one name may be a misspelling of the other."""

_SURE: Final = 0.85
"""The ratio from which it is a misspelling even where an attribute may have the name."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member of the policy's input.

    ``always`` says whether the member is there whenever the object around it is. ``nullable`` says
    that the value may be null. ``meant_by`` are other words that authors of policies use for it.
    """

    name: str
    source: Source
    kind: Kind = "text"
    members: tuple[Member, ...] = ()
    always: bool = True
    nullable: bool = False
    meant_by: tuple[str, ...] = ()


def _subject_token(name: str, *more: Member) -> Member:
    members = (Member("iss", "token"), Member("sub", "token"), *more)
    return Member(name, "token", "object", members, always=False)


INPUT: Final = (
    Member(
        "agent",
        "guard",
        "object",
        (
            Member("id", "guard"),
            Member("name", "guard"),
            Member("type", "guard"),
            Member("instance", "guard"),
            Member("roles", "guard", "texts"),
            Member("client", "server", always=False),
            Member("isolation", "server", always=False),
        ),
    ),
    Member(
        "delegation",
        "guard",
        "object",
        (
            Member("subject", "guard", meant_by=("user", "principal")),
            Member("actor", "guard"),
            Member("via", "guard", nullable=True, meant_by=("service",)),
            Member("chain", "guard", "texts"),
            Member("scope", "guard", "texts"),
            Member("depth", "guard", "number"),
            Member("assurance", "guard"),
            Member("roles", "guard", "texts"),
            _subject_token(
                "subject_token",
                Member("auth_time", "token", "number", nullable=True),
                Member("acr", "token", nullable=True),
            ),
            _subject_token("via_token"),
        ),
        nullable=True,
    ),
    Member("action", "application"),
    Member("resource", "application", nullable=True),
    Member("task_id", "application", nullable=True),
    Member("args", "arguments", "free", meant_by=("arguments", "params")),
    Member(
        "tool",
        "application",
        "object",
        (
            Member("name", "application"),
            Member("schema_sha256", "application"),
            Member("facts", "server", always=False),
        ),
    ),
    Member(
        "approval",
        "guard",
        "object",
        (
            Member("approvers", "guard", "texts"),
            Member("principals", "guard", "texts"),
            Member("roles", "guard", "texts"),
        ),
        always=False,
    ),
    Member("paths", "guard", "free", always=False),
    Member(
        "caller",
        "proof",
        "object",
        (
            Member("agent", "proof"),
            Member("principal", "proof", meant_by=("user", "subject")),
            Member("actors", "proof", "texts"),
            Member("scope", "proof", "texts"),
            Member("task_id", "proof", nullable=True),
            Member("isolation", "proof"),
            Member("assurance", "proof"),
            Member("invocation_sha256", "proof"),
            Member("token", "proof"),
            Member("chain_sha256", "proof"),
        ),
        always=False,
    ),
)
"""The members of the input that are the guard's own (policy-document.md, Input)."""

UNUSED: Final[Mapping[str, Path]] = {
    "client": ("agent", "client"),
    "isolation": ("agent", "isolation"),
    "principal": ("delegation", "subject"),
}
"""Names that no member of the input has, and that would be taken for the member named here."""

_BY_NAME: Final = {member.name: member for member in INPUT}

RESERVED: Final = frozenset({*_BY_NAME, *UNUSED})
"""The names at the top level of the input that no attribute and no fact can have."""

STATED: Final = frozenset(_BY_NAME) - {"paths", "caller"}
"""The members that the log's entry of a call states by itself, as the policy reads them."""


def members_of(path: Path) -> tuple[Member, ...] | None:
    """Return the members of the object at a path; None for a value whose names are not fixed.

    A text, a number or a list has no members. The path is one that ``slip`` accepts.
    """
    if not path:
        return None
    member: Member | None = _BY_NAME.get(path[0])
    for name in path[1:]:
        if member is None or member.kind == "free":
            return None
        member = next((one for one in member.members if one.name == name), None)
    return None if member is None or member.kind == "free" else member.members


def slip(path: Path) -> str | None:
    """Return why no input has a value at a path below ``input``; None where one may have.

    The first name may also be that of an attribute or a fact, which are not in the table.
    """
    if not path:
        return None
    if path[0] in UNUSED:
        meant = ".".join(("input", *UNUSED[path[0]]))
        return f"no input has input.{path[0]}; did you mean {meant}?"
    for length in range(1, len(path)):
        around, name = path[:length], path[length]
        members = members_of(around)
        if members is None:
            return None
        if name not in {member.name for member in members}:
            return _no_member(around, name, members)
    return None


def misspelt(name: str) -> str | None:
    """Return why a name at the top of the input is a slip; None where a tool may give the name.

    A tool may give any name as an attribute or a fact. So a name is a slip only where it is very
    close to a name that the guard gives.
    """
    near = get_close_matches(name, _BY_NAME, 1, _SURE) if name not in _BY_NAME else ()
    return next((f"no input has input.{name}; did you mean input.{one}?" for one in near), None)


def _no_member(around: Path, name: str, members: tuple[Member, ...]) -> str:
    where = ".".join(("input", *around))
    if not members:
        return f"{where} is a value without members, and so no input has {where}.{name}"
    names = [member.name for member in members]
    meant = _meant(name, members)
    hint = f"did you mean {where}.{meant}? The" if meant is not None else "the"
    return f"no input has {where}.{name}; {hint} members of {where} are {', '.join(names)}"


def _meant(name: str, members: Iterable[Member]) -> str | None:
    words = {word: one.name for one in members for word in (*one.meant_by, one.name)}
    close = name if name in words else _close(name, words)
    return None if close is None else words[close]


def _close(name: str, names: Iterable[str]) -> str | None:
    return next(iter(get_close_matches(name, names, 1, _CLOSE)), None)


def unknown(path: Path, given: frozenset[Path]) -> str | None:
    """Return why nobody fills a value at a path; None for a path that is filled, or a slip.

    ``given`` are the attributes, the facts and the members of ``paths`` (``("paths", "file")``)
    that tools have.
    """
    if not path or path[0] in UNUSED:  # nothing, or a slip
        return None
    if path[0] == "paths":
        return None if len(path) == 1 or path[:2] in given else _no_folder(path[1], given)
    if path[0] in _BY_NAME or path[:1] in given:
        return None
    named = (Member(one[0], "application") for one in sorted(given) if len(one) == 1)
    meant = _meant(path[0], (*INPUT, *named))
    hint = f"; did you mean input.{meant}? Otherwise name" if meant is not None else "; name"
    return (
        f"no tool gives input.{path[0]}{hint} it in attributes, or in gives of a tool's facts, in "
        "[tools.NAME] or in the code"
    )


def _no_folder(argument: str, given: frozenset[Path]) -> str:
    arguments = sorted(one[1] for one in given if len(one) > 1)
    close = _close(argument, arguments)
    hint = f"did you mean input.paths.{close}? Otherwise name" if close is not None else "name"
    return f"[paths] names no argument {argument}; {hint} its folder there"


def no_member(what: str, name: str, names: Iterable[str]) -> str:
    """Return the sentence on a name that an object of a policy's output does not have."""
    members = sorted(names)
    close = _close(name, members)
    hint = f"did you mean {close}? The" if close is not None else "the"
    return f"{what} has no member {name}; {hint} members are {', '.join(members)}"
