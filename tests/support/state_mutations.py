"""What somebody who can write a state makes of its files: one change at a time, of all of them.

Nothing here names a file: whatever lies in the state, or lay there at some moment, is deleted,
emptied, damaged, moved, replaced by what it was or by something that is no file; and of what is
JSON, each member is changed. Rows of databases are changed by ``state_rows.py``.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from state_scene import remove

from agentguard.errors import AgentguardError
from agentguard.signing import canonical
from agentguard.signing.canonical import b64_decode, b64_encode

_VARIABLE = re.compile(r"[0-9a-f]{32,}|[\w-]{43}|\b\d+\b")
DATABASE = b"SQLite format 3\0"


class Mutation(NamedTuple):
    """A change that ``write`` makes in a state; those of one ``kind`` differ in where alone."""

    kind: str
    what: str
    write: Callable[[Path], None]


class UnwritableError(Exception):
    """The change can't be made by this means."""


def family(path: Path | str) -> str:
    """Name a file by what it is: numbers and digests in its path do not count."""
    return _VARIABLE.sub("*", str(path))


def paths(state: Path) -> list[Path]:
    """Return all that lies in a state, and the state itself, relative to it."""
    return [Path(), *sorted(path.relative_to(state) for path in state.rglob("*"))]


def of_files(
    base: Path, moments: Mapping[str, Path], chance: Random, *, since: Path | None = None
) -> Iterator[Mutation]:
    """Yield what can be done to files and folders; to what has changed ``since``, if given."""
    for path in _changed(base, since):
        for what, write in _whole(base, path, chance):
            yield Mutation(f"{family(path)} {what}", f"{path} {what}", write)
    yield from of_moments(base, moments)


def of_moments(base: Path, moments: Mapping[str, Path]) -> Iterator[Mutation]:
    """Yield all that can be put back, alone or with the folder around it."""
    for moment, then in moments.items():
        for path in paths(then):
            if not _same(base / path, then / path):
                what = f"as of '{moment}'"
                write = placing(then / path, path)
                yield Mutation(f"{family(path)} {what}", f"{path} {what}", write)


def _changed(base: Path, since: Path | None) -> list[Path]:
    return [path for path in paths(base) if since is None or not _same(base / path, since / path)]


def _same(one: Path, other: Path) -> bool:
    if one.is_dir() and other.is_dir():
        names = {path.name for path in (*one.iterdir(), *other.iterdir())}
        return all(_same(one / name, other / name) for name in names)
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def _whole(base: Path, path: Path, chance: Random) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Yield what is done to one file or folder as a whole."""
    yield "deleted", deleting(path)
    yield "is a pipe", _instead(path, os.mkfifo)
    yield "is a folder", _instead(path, Path.mkdir)
    yield "is empty", _instead(path, lambda place: place.write_bytes(b""))
    yield "is endless", _instead(path, lambda place: place.symlink_to("/dev/zero"))
    yield "leads nowhere", _instead(path, lambda place: place.symlink_to("nowhere"))
    yield "lies elsewhere", _elsewhere(path)
    others = [other for other in sorted((base / path).parent.iterdir()) if other != base / path]
    if others and path != Path():
        other = chance.choice(others)
        yield "is another's", placing(other, path)
        yield "and another swapped", _swapping(path, path.with_name(other.name))
        yield "under another name", placing(base / path, path.with_name(_renamed(path, chance)))
    if (base / path).is_file() and (base / path).stat().st_size:
        data = (base / path).read_bytes()
        at = chance.randrange(len(data))
        yield "with a bit changed", _filling(path, _flipped(data, at, 1 << chance.randrange(8)))
        yield "cut short", _filling(path, data[: len(data) // 2])
        yield "made longer", _filling(path, data + b"\0")


def _renamed(path: Path, chance: Random) -> str:
    """Return a name as files of this kind have it, that no file here has."""
    return re.sub(
        r"\d|[a-f](?=[0-9a-f]{8})", lambda _: str(chance.randrange(10)), path.name, count=1
    )


def _flipped(data: bytes, at: int, bit: int) -> bytes:
    return data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]


def deleting(path: Path) -> Callable[[Path], None]:
    return lambda state: remove(state / path)


def _instead(path: Path, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def write(state: Path) -> None:
        remove(state / path)
        make(state / path)

    return write


def _filling(path: Path, data: bytes) -> Callable[[Path], None]:
    return _instead(path, lambda place: place.write_bytes(data))


def placing(source: Path, path: Path) -> Callable[[Path], None]:
    def write(state: Path) -> None:
        remove(state / path)
        (state / path).parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, state / path, symlinks=True)
        else:
            shutil.copy2(source, state / path)

    return write


def _elsewhere(path: Path) -> Callable[[Path], None]:
    def write(state: Path) -> None:
        elsewhere = state.parent / "elsewhere"
        remove(elsewhere)
        (state / path).rename(elsewhere)
        (state / path).symlink_to(elsewhere)

    return write


def _swapping(one: Path, other: Path) -> Callable[[Path], None]:
    def write(state: Path) -> None:
        aside = state.parent / "aside"
        (state / one).rename(aside)
        (state / other).rename(state / one)
        aside.rename(state / other)

    return write


# --- JSON -----------------------------------------------------------------------------------------

Steps = tuple[str | int, ...]


def of_documents(base: Path, chance: Random, *, since: Path | None = None) -> Iterator[Mutation]:
    """Yield what can be done to each member of what is JSON, also where it is encoded in that."""
    found = {path: document for path in paths(base) if (document := read(base / path)) is not None}
    for path in _changed(base, since):
        document = found.get(path)
        if document is None:
            continue
        alike = [other for at, other in found.items() if family(at) == family(path)]
        for what, changed in changes(document, alike, chance):
            kind = f"{family(path)} {family(what)}"
            yield Mutation(kind, f"{path} {what}", _filling(path, changed))


def read(path: Path) -> Any:
    """Return the JSON in a file, None where it holds none."""
    return parsed(path.read_bytes()) if path.is_file() else None


def parsed(data: bytes) -> Any:
    try:
        document = canonical.loads(data)
    except AgentguardError:
        return None
    return document if isinstance(document, dict | list) and document else None


def changes(document: Any, alike: Sequence[Any], chance: Random) -> Iterator[tuple[str, bytes]]:
    """Yield ``(what, bytes)`` for each member; ``alike`` are documents with the same members."""
    places = list(_members(document))
    pools = [dict(_members(other)) for other in alike]
    for steps, value in places:
        named = ".".join(map(str, steps))
        for what, other in _values(steps, value, pools, places, chance):
            changed = _with_value(document, steps, other)
            if changed != document:
                yield f"{named} {what}", canonical.dumps(changed)
        yield f"{named} left out", canonical.dumps(_without(document, steps))
    yield "with one member more", canonical.dumps(_more(document))


def _members(document: Any, steps: Steps = ()) -> Iterator[tuple[Steps, Any]]:
    """Yield all that a document holds, with the way to it; what is encoded is looked into."""
    if steps:
        yield steps, document
    inner = _decoded(document) if isinstance(document, str) else document
    if isinstance(inner, dict | list):
        named = inner.items() if isinstance(inner, dict) else enumerate(inner)
        for name, value in named:
            yield from _members(value, (*steps, name))


def _decoded(text: str) -> Any:
    try:
        return parsed(b64_decode(text))
    except AgentguardError:
        return None


def _values(
    steps: Steps, value: Any, pools: list[dict[Steps, Any]], places: list[Any], chance: Random
) -> Iterator[tuple[str, Any]]:
    """Yield what a member is changed to: nothing, other types, and other values of its own."""
    yield from (("null", None), ("an empty list", []), ("an empty object", {}), ("no text", ""))
    there = [pool[steps] for pool in pools if steps in pool and pool[steps] != value]
    if there:
        yield "another's", chance.choice(there)
    same = [other for at, other in places if type(other) is type(value) and other != value]
    if same:
        yield "another member's", chance.choice(same)
    if isinstance(value, bool):
        yield "turned round", not value
    elif isinstance(value, int):
        yield "one more", value + 1
        yield "one less", value - 1
        yield "huge", 1 << 52
    elif isinstance(value, str) and value:
        at = chance.randrange(len(value))
        yield "a letter changed", value[:at] + ("b" if value[at] == "a" else "a") + value[at + 1 :]
        digit = re.search(r"\d", value)
        if digit:  # of a time, it is the millennium
            one_more = str((int(digit[0]) + 1) % 10)
            yield (
                "its first digit one more",
                value[: digit.start()] + one_more + value[digit.end() :],
            )
        yield "a number", 7
    elif isinstance(value, list) and value:
        yield "one member less", value[1:]
        yield "its last twice", [*value, value[-1]]
        yield "turned round", value[::-1]


def _with_value(document: Any, steps: Steps, value: Any) -> Any:
    return _with(document, steps, lambda _former: value)


def _with(document: Any, steps: Steps, change: Callable[[Any], Any]) -> Any:
    """Return a document with one member changed; what was encoded is encoded again."""
    if not steps:
        return change(document)
    if isinstance(document, str):
        inner = _decoded(document)
        return b64_encode(canonical.dumps(_with(inner, steps, change)))
    changed = copy.copy(document)
    changed[steps[0]] = _with(document[steps[0]], steps[1:], change)
    return changed


def _without(document: Any, steps: Steps) -> Any:
    def leave_out(parent: Any) -> Any:
        encoded = isinstance(parent, str)
        inner = copy.copy(_decoded(parent) if encoded else parent)
        del inner[steps[-1]]
        return b64_encode(canonical.dumps(inner)) if encoded else inner

    return _with(document, steps[:-1], leave_out)


def _more(document: Any) -> Any:
    return {**document, "more": 1} if isinstance(document, dict) else [*document, 1]
