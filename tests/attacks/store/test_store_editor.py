"""An editor of the database who has no key: what a store decides by is right, or it refuses.

Every row of every table is deleted, altered, exchanged, doubled and taken from an older database. A
process that was open reads and writes then, and a new one, with an anchor and without.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rounds import FULL
from store_place import KIND, OTHER, Place, add, get, items, record, verified

from agentguard.audit.map import key
from agentguard.errors import StorageError
from agentguard.store.store import Store
from agentguard.store.transaction import Transaction

NAMES = [str(i) for i in range(60)]
GONE = NAMES[:5]
LATER = ["later 1", "later 2"]
TABLES = ("head", "entry", "attachment", "tree", "map", "ending", "page", "request")


def write_page(store: Store, name: str, data: bytes) -> None:
    store.run(lambda tx: tx.write_page(name, data))


class Edit(NamedTuple):
    """One change of the database: its name, and the statements."""

    name: str
    statements: list[tuple[str, list[Any]]]


class Scene:
    """A store with its history: an older copy, and the newest."""

    def __init__(self, folder: Path) -> None:
        self.place = Place(folder)
        store = self.place.open(anchored=True)
        for name in NAMES:
            add(store, name, name.encode(), KIND if int(name) % 2 else OTHER)
        for name in ("runs/a", "runs/b", "journal/c", "requests/d", "answers/1/e"):
            write_page(store, name, b"before")
        store.close()
        self.older = folder / "older.sqlite"
        self.copy(self.place.path, self.older)
        store = self.place.open(anchored=True)
        for name in GONE:
            add(store, name, None, KIND if int(name) % 2 else OTHER)
        for name in LATER:
            add(store, name, b"late")
        for name in ("runs/a", "requests/d", "requests/f"):
            write_page(store, name, b"after")
        store.close()
        self.newest = folder / "newest.sqlite"
        self.copy(self.place.path, self.newest)
        self.truth = {
            key(KIND if int(name) % 2 else OTHER, name): name.encode()
            for name in NAMES
            if name not in GONE
        } | {key(KIND, name): b"late" for name in LATER}
        self.asked = [
            *(key(KIND if int(name) % 2 else OTHER, name) for name in NAMES),
            *(key(KIND, name) for name in LATER),
            key(KIND, "never"),
        ]

    @staticmethod
    def copy(source: Path, target: Path) -> None:
        """Copy a database that processes may have open."""
        with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
            one.backup(other)

    def reset(self) -> None:
        """Put the newest database back in place, and nothing beside."""
        for suffix in ("-wal", "-shm"):
            self.place.path.with_name(self.place.path.name + suffix).unlink(missing_ok=True)
        shutil.copyfile(self.newest, self.place.path)

    def edit(self, edit: Edit) -> bool:
        """Edit the database in place; return whether it has changed."""
        with closing(sqlite3.connect(self.place.path)) as connection:
            before = list(connection.iterdump())
            for statement, values in edit.statements:
                connection.execute(statement, values)
            connection.commit()
            return list(connection.iterdump()) != before

    def edits(self) -> list[Edit]:
        """Return all edits."""
        with (
            closing(sqlite3.connect(self.newest)) as newest,
            closing(sqlite3.connect(self.older)) as older,
        ):
            return [edit for table in TABLES for edit in _edits(newest, older, table)]


def _rows(connection: sqlite3.Connection, table: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    cursor = connection.execute(f"SELECT * FROM {table}")  # noqa: S608
    return [column[0] for column in cursor.description], cursor.fetchall()


def _edits(newest: sqlite3.Connection, older: sqlite3.Connection, table: str) -> list[Edit]:
    columns, rows = _rows(newest, table)
    _columns, old = _rows(older, table)
    keys = {"head": 1, "entry": 2, "attachment": 3, "tree": 3, "map": 2, "ending": 3}.get(table, 2)
    where = " AND ".join(f"{name} = ?" for name in columns[:keys])
    marks = ", ".join("?" * len(columns))
    put = f"INSERT OR REPLACE INTO {table} VALUES ({marks})"  # noqa: S608
    drop = f"DELETE FROM {table} WHERE {where}"  # noqa: S608
    edits = []
    # the first, the last, and some between: what is done to one row of a table is done to another
    chosen = [*rows[:3], *rows[3:-3:7], *rows[-3:]] if len(rows) > 9 else rows
    for row in chosen:
        at = f"{table} {row[:keys]}"
        edits.append(Edit(f"{at} deleted", [(drop, [*row[:keys]])]))
        for index, (column, value) in enumerate(zip(columns, row, strict=True)):
            others = {one[index] for one in rows[:20]} - {value}
            for changed in [*_altered(value), *sorted(others, key=repr)[:2]]:
                edited = [*row[:index], changed, *row[index + 1 :]]
                edits.append(
                    Edit(f"{at} {column} {changed!r:.20}", [(drop, [*row[:keys]]), (put, edited)])
                )
        for other in [one for one in rows[:2] if one is not row]:
            exchanged = [*row[:keys], *other[keys:]]
            edits.append(Edit(f"{at} has the values of {other[:keys]}", [(put, exchanged)]))
    changed = [row for row in old if row not in rows]
    edits += [Edit(f"{table} {row[:keys]} as it was", [(put, [*row])]) for row in changed]
    as_it_was = [(f"DELETE FROM {table}", []), *((put, [*row]) for row in old)]  # noqa: S608
    edits += [
        Edit(f"{table} is empty", as_it_was[:1]),
        Edit(f"{table} is as it was", as_it_was),
    ]
    return edits


def _altered(value: object) -> list[object]:
    match value:
        case bytes():
            return [value[:-1] + bytes((value[-1] ^ 1,)) if value else b"x", b"", value + b"\0"]
        case str():
            return [value + "x", ""]
        case int():
            return [value + 1, 2**40]
    return ["x"]


def outcome(store: Store, scene: Scene) -> str:
    """Return "right" or "refused" for all that the store says, and fail for anything wrong."""
    said = set()
    for look in (
        lambda: dict(zip(scene.asked, get(store, *scene.asked), strict=True)),
        lambda: {**dict.fromkeys(scene.asked), **items(store, KIND), **items(store, OTHER)},
    ):
        try:
            found = look()
        except StorageError:
            said.add("refused")
        else:
            assert found == {**dict.fromkeys(scene.asked), **scene.truth}
            said.add("right")
    for one in scene.asked:
        try:
            assert get(store, one) == [scene.truth.get(one)]
        except StorageError:
            said.add("refused")
    try:
        before = store.head()
        index = add(store, "new", b"new")
        assert index == before.size
        assert get(store, key(KIND, "new")) == [b"new"]
    except StorageError:
        said.add("refused")
    return "right" if said == {"right"} else "refused"


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return Scene(tmp_path_factory.mktemp("edited"))


def trial(scene: Scene, edit: Edit, *, anchored: bool, is_open: bool) -> str:
    """Edit beside an open store, or before a store is opened; return what becomes of it."""
    scene.reset()
    anchor = scene.place.anchor_path.read_bytes()
    try:
        store = scene.place.open(anchored=anchored) if is_open else None
        if not scene.edit(edit):
            return "unchanged"
        return outcome(store or scene.place.open(anchored=anchored), scene)
    except StorageError:
        return "refused"
    except AssertionError:
        return "wrong"
    finally:
        for store in scene.place.opened:
            with suppress(StorageError):
                store.close()
        scene.place.opened.clear()
        scene.place.anchor_path.write_bytes(anchor)


@pytest.mark.parametrize(
    ("anchored", "is_open"), [(True, True), (False, True), (True, False), (False, False)]
)
def test_no_edit_makes_a_store_decide_wrong(scene, anchored, is_open):
    edits = scene.edits()[:: 1 if FULL else 8]
    told = {edit.name: trial(scene, edit, anchored=anchored, is_open=is_open) for edit in edits}
    became = Counter(told.values())
    assert [name for name, one in told.items() if one == "wrong"] == []
    assert became["refused"] > len(edits) / 10
    assert (
        became["right"] > len(edits) / 10
    )  # what no decision reads: verify finds it, or nothing was signed
    right = {name.partition(" ")[0] for name, one in told.items() if one == "right"}
    assert right <= {"entry", "attachment", "tree", "ending", "head", "page", "request"}


UNSIGNED = ("attachment", "ending", "page", "request")
"""What no head covers: a commitment in an entry, a signature or a digest may vouch for it."""

COLUMNS = (
    *("kind", "at", "invocation_id", "agent", "principal", "tool", "decision", "status"),
    *("task_id", "trace_id"),
)
"""The columns of a search: whoever shows a row compares it with its entry."""


def verdict(scene: Scene, edit: Edit) -> str:
    """Edit, and verify the whole store in a new process."""
    scene.reset()
    if not scene.edit(edit):
        return "unchanged"
    try:
        verified(scene.place.open())
    except StorageError:
        return "found"
    else:
        return "accepted"
    finally:
        scene.place.close()
        scene.place.opened.clear()


def test_verify_finds_each_edit_of_what_was_signed(scene):
    scene.reset()
    verified(scene.place.open())
    scene.place.close()
    scene.place.opened.clear()
    edits = scene.edits()[:: 1 if FULL else 4]
    accepted = [edit.name for edit in edits if verdict(scene, edit) == "accepted"]
    strange = [name for name in accepted if not name.startswith(UNSIGNED)]
    assert [name for name in strange if not any(f") {one} " in name for one in COLUMNS)] == []


@pytest.fixture
def copies(tmp_path):
    """A store, and a clone of it in another folder; each has a process that has seen its head."""
    place = Place(tmp_path)
    add(place.open(anchored=True), "a")
    clone = Place(tmp_path / "clone", "none")
    clone.path.parent.mkdir()
    Scene.copy(place.path, clone.path)
    clone.kind, clone.anchor_path = "file", tmp_path / "clone" / "anchor"
    yield place, clone
    for one in (place, clone):
        for store in one.opened:
            with suppress(StorageError):
                store.close()


@pytest.mark.parametrize("grown", [0, 1, 2, 30, 100])
def test_another_history_in_the_place_of_the_store_is_refused_by_who_saw_it(copies, grown):
    place, clone = copies
    store = place.open(anchored=True)
    add(store, "here")
    other = clone.open()
    for i in range(grown):
        add(other, f"there {i}")
    other.close()
    Scene.copy(clone.path, place.path)
    for look in (store.head, lambda: get(store, key(KIND, "a")), lambda: add(store, "more")):
        with pytest.raises(StorageError) as caught:
            look()
        assert caught.value.code == "storage.rolled_back"
    with pytest.raises(StorageError) as caught:
        place.open(anchored=True)
    assert caught.value.code == "storage.rolled_back"
    # accepted, by name: a new process without an anchor believes what it finds
    assert place.open().head().size == 1 + grown


def test_the_same_entries_with_another_map_are_another_history(copies):
    place, clone = copies

    def job(value: bytes) -> Callable[[Transaction], int]:
        def put(tx: Transaction) -> int:
            tx.put(key(KIND, "b"), value)
            return tx.append(record("b"))

        return put

    place.now = clone.now = lambda: datetime(2030, 1, 1, tzinfo=UTC)
    store = place.open(anchored=True)
    store.run(job(b"here"))
    other = clone.open()
    other.run(job(b"there"))
    assert (store.head().root, store.head().at) == (other.head().root, other.head().at)
    other.close()
    Scene.copy(clone.path, place.path)
    for look in (store.head, lambda: place.open(anchored=True)):
        with pytest.raises(StorageError) as caught:
            look()
        assert caught.value.code == "storage.rolled_back"


def edited(place: Place, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(place.path)) as connection:
        connection.execute(statement, values)
        connection.commit()


def test_peaks_that_are_not_those_of_the_head_are_never_signed_over(on_disk):
    for i in range(3):
        add(on_disk.open(), str(i))
    edited(on_disk, "UPDATE head SET peaks = ?", b"\1" * 64)
    with pytest.raises(StorageError) as caught:
        on_disk.open()
    assert caught.value.code == "storage.corrupt"


PLANTED = {
    "an entry": (
        "INSERT INTO entry SELECT log, 2, kind, at, invocation_id, agent, principal, tool, "
        "decision, status, task_id, trace_id, leaf, body FROM entry WHERE idx = 0"
    ),
    "a node": "INSERT INTO map VALUES (0, 'ff', x'02')",
    "a head": "INSERT INTO head SELECT 1, note, peaks FROM head",
    "a hash": "INSERT INTO tree VALUES (0, 4, 0, x'00')",
}


@pytest.mark.parametrize("name", PLANTED)
def test_verify_finds_a_row_that_no_head_covers(on_disk, name):
    store = on_disk.open()
    add(store, "a")
    add(store, "b")
    verified(store)  # the twin
    edited(on_disk, PLANTED[name])
    with pytest.raises(StorageError) as caught:
        verified(store)
    assert caught.value.code == "storage.corrupt"


def test_a_row_planted_at_the_next_index_is_named_and_nothing_is_written(on_disk):
    store = on_disk.open()
    add(store, "a")
    add(store, "b")
    edited(on_disk, PLANTED["an entry"])
    with pytest.raises(StorageError, match="no writer has put there") as caught:
        add(store, "c")
    assert caught.value.code == "storage.corrupt"
    edited(on_disk, "DELETE FROM entry WHERE idx = 2")
    assert add(store, "c") == 2


def test_a_process_behind_another_follows_it_also_by_far(copies):
    place, _clone = copies
    behind = place.open()
    ahead = place.open(anchored=True)
    for number in (1, 3, 64, 65, 200):
        for i in range(number):
            add(ahead, f"{number} {i}")
        assert behind.head() == ahead.head()
        add(behind, f"{number} again")
    assert place.open(anchored=True).head().size == verified(behind).size


def test_two_clones_are_found_where_their_anchors_meet(copies):
    place, clone = copies
    clone.anchor_path = place.anchor_path
    add(place.open(anchored=True), "here")
    with pytest.raises(StorageError) as caught:
        clone.open(anchored=True)
    assert caught.value.code == "storage.rolled_back"
    assert get(clone.open(), key(KIND, "here")) == [None]  # accepted: there is no anchor


def test_a_database_replaced_under_a_running_process_takes_no_commit(copies):
    place, clone = copies
    store = place.open()
    add(store, "here")
    clone.path.replace(place.path)
    with pytest.raises(StorageError) as caught:
        add(store, "more")
    assert caught.value.code == "storage.corrupt"
