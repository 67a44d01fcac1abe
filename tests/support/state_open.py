"""What must not come of a state that is written while a guard has the state open.

``live`` opens a guard, makes the calls of all probes, and writes a mutation. The administrator
freezes all calls and thaws them, and the calls are made again. What was there may then be put back.
Last, a new guard is opened. ``verdict`` says whether somebody has gained by the mutation. Where all
was put back, nobody may have lost by it either: the guard would have signed, with the log's key,
what nobody has done.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import state_history as past
import state_mutations
import state_rows
from embedded_parts import runtime_of
from state_mutations import Mutation, UnwritableError
from state_probes import (
    LONGEST,
    Agents,
    HangError,
    Outcome,
    Verdict,
    agents_of,
    attempt,
    bounded,
    probe,
    probe_in,
)
from state_rows import Table
from state_scene import Scene, remove

from agentguard import Guard
from agentguard.errors import AgentguardError

ENDS = ("", "-wal", "-shm", "-journal")
BACK, NEW = "put back", "in a new guard"
AFTER = (f"once all is {BACK}", NEW)
NOTHING = Mutation("nothing", "nothing", lambda _state: None)


class Aside:
    """Writes a mutation, and can put back what the mutation has taken away or changed.

    Files are put back as the same files: each has a second name beside the state meanwhile, and a
    guard that has a file open goes on writing to it. Where a database was changed in its place, its
    rows are put back. ``is_all`` is false where a database's file was taken away, or its schema was
    changed: then what the guard wrote meanwhile may be lost.
    """

    def __init__(self, scene: Scene, moment: str, mutation: Mutation) -> None:
        self._state, self._aside = scene.state, scene.folder / "aside of the open"
        databases = state_rows.databases(scene.moments[moment] / "state")
        before = {path: _contents(self._state / path) for path in databases}
        remove(self._aside)
        shutil.copytree(self._state, self._aside, symlinks=True, copy_function=os.link)
        mask = os.umask(0o077)
        try:
            mutation.write(self._state)
        except OSError as error:
            raise UnwritableError(str(error)) from error
        finally:
            os.umask(mask)
        was, now = _files(self._aside), _files(self._state)
        self._moved = sorted(path for path in {*was, *now} if was.get(path) != now.get(path))
        moved = {path for path in databases if not _with_ends(path).isdisjoint(self._moved)}
        lying = [path for path in databases if path not in moved]  # another may not open at all
        self._rows = {path: (before[path], _contents(self._state / path)) for path in lying}
        self.is_all = not moved and all(
            schema == then for (schema, _), (then, _) in self._rows.values()
        )

    def put_back(self) -> None:
        """Have the state be as it was, as far as that can be."""
        for path in self._moved:
            remove(self._state / path)
        for path in self._moved:
            if (self._aside / path).is_dir():
                (self._state / path).mkdir(0o700)
            elif (self._aside / path).exists():
                spare = self._aside.with_name("spare")
                os.link(self._aside / path, spare)
                spare.replace(self._state / path)  # the guard may have made a new reserve by now
        for path, ((_, before), (_, written)) in self._rows.items():
            if before != written:
                state_rows.put_back(self._state / path, before, written)


def _with_ends(path: Path) -> set[Path]:
    """Return a database's file, and those that SQLite keeps beside it."""
    return {path.with_name(f"{path.name}{end}") for end in ENDS}


def _contents(path: Path) -> tuple[list[Any], Mapping[str, Table]]:
    """Return a database's schema with its marks, and its tables."""
    asked = ("SELECT sql FROM sqlite_master", "PRAGMA user_version", "PRAGMA application_id")
    with closing(sqlite3.connect(path)) as connection:
        schema = [connection.execute(statement).fetchall() for statement in asked]
    return schema, state_rows.tables(path)


def _files(root: Path) -> Mapping[Path, tuple[int, int]]:
    """Return what lies in a folder: of what type, and if it is no folder, which file."""
    found = state_mutations.paths(root) if not root.is_symlink() else [Path()]
    there = {path: (root / path).lstat() for path in found if os.path.lexists(root / path)}
    return {
        path: (stat.S_IFMT(status.st_mode), 0 if stat.S_ISDIR(status.st_mode) else status.st_ino)
        for path, status in there.items()
    }


class Life(NamedTuple):
    """What came of each probe, and whether all was put back, so that nobody may lose by it."""

    found: dict[str, Outcome]
    is_back: bool


def live(scene: Scene, moment: str, mutation: Mutation = NOTHING, *, back: bool = True) -> Life:
    """Write a mutation under an open guard, and put ``back`` what was there, if asked.

    Raises ``UnwritableError`` where it can't be written.
    """
    scene.restore(moment)
    found: dict[str, Outcome] = {}
    closed = _refusable(found, "the guard closes")
    with closed, scene.open() as guard:
        agents = agents_of(guard, scene)
        first = probe_in(guard, agents, scene)  # what is used up by now is not there a second time
        thawed = any(outcome.ran for outcome in first.values())
        runtime_of(guard).flush()  # what the guard still writes is not to be put back
        aside = Aside(scene, moment, mutation)
        found |= _few("written", guard, agents, scene)
        for frozen, word in ((True, "frozen"), (False, "thawed")) if thawed else ():
            with _refusable(found, f"all is {word}"):
                past.freeze(scene, frozen=frozen)
                found |= _few(word, guard, agents, scene)
        found |= _named("in the open guard", probe_in(guard, agents, scene))
        if back:
            aside.put_back()
            with _refusable(found, "all is put back"):
                past.freeze(scene, frozen=not thawed)  # the mutation may have prevented a thaw
                found |= _few(BACK, guard, agents, scene)
    for _ in range(2):  # a refusal does not make the next opening any easier
        with _refusable(found, "a new guard opens"):
            found |= _named(NEW, probe(scene))
            break
    return Life(found, back and aside.is_all)


def _few(word: str, guard: Guard, agents: Agents, scene: Scene) -> dict[str, Outcome]:
    """Make calls that leave no page behind."""
    calls = (past.READ, past.PLAIN, past.ROBOT, past.MALLORY)
    few = {call.what: attempt(scene, guard, call, agents[call.agent]) for call in calls}
    return _named(f"once all is {word}", few)


def _named(where: str, found: Mapping[str, Outcome]) -> dict[str, Outcome]:
    return {f"{where}: {name}": outcome for name, outcome in found.items()}


@contextmanager
def _refusable(found: dict[str, Outcome], what: str) -> Iterator[None]:
    try:
        yield
    except AgentguardError as refused:
        found[what] = Outcome(0, (), (str(refused),))


def verdict(
    scene: Scene,
    moment: str,
    mutation: Mutation,
    before: Mapping[str, Outcome],
    *,
    back: bool,
    most: float = 3 * LONGEST,
) -> Verdict:
    """Try a mutation under an open guard; ``before`` is what ``live`` found without one."""
    try:
        with bounded(most):
            after, is_back = live(scene, moment, mutation, back=back)
    except UnwritableError as error:
        return Verdict("unwritable", (str(error),))
    except HangError as error:
        return Verdict("accepted", (str(error),))
    except Exception as error:  # noqa: BLE001  whatever it is, nobody was told a code
        return Verdict("accepted", (f"it raised {type(error).__name__}: {error}",))
    nothing = Outcome(0, (), ())
    gained = [name for name in after if after[name].exceeds(before.get(name, nothing))]
    lost = [name for name in before if before[name].exceeds(after.get(name, nothing))]
    wrong = [*gained, *(name for name in lost if is_back and name.startswith(AFTER))]
    if wrong:
        refused = [f"{name}: {after[name].codes}" for name in after if name not in before]
        why = (f"{name}: {before.get(name)}, now {after.get(name)}" for name in wrong)
        return Verdict("accepted", (*why, *refused))
    return Verdict("refused" if lost else "harmless", tuple(lost))
