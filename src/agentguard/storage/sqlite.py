"""SQLite's files: how one is made and opened, and the meaning of SQLite's errors."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from agentguard.errors import StorageError
from agentguard.storage import files
from agentguard.visible import written_out


class Format(NamedTuple):
    """What a file has to be: SQLite's application id, the version, and its statements."""

    application: int
    version: int
    schema: str


MAX_LENGTH: Final = 16 * 1024 * 1024
"""The most bytes of one value; SQLite refuses a longer value, in a file's header as well."""

PATIENCE: Final = 5
"""Seconds for which SQLite waits for another connection."""

OPTIONS: Final[Any] = {
    "isolation_level": None,
    "check_same_thread": False,
    "timeout": PATIENCE,
}

_ATTEMPTS: Final = 20
_STANDARD: Final = 3  # some systems list the three standard descriptors in /dev/fd, and no others
_MOST_DESCRIPTORS: Final = 65536
_MOST_FREE: Final = 512
"""The free descriptors after which a search for open files ends: low numbers are used first."""

_CODES: Final = {
    sqlite3.SQLITE_TOOBIG: ("storage.failed", f"a value takes more than {MAX_LENGTH} bytes"),
    sqlite3.SQLITE_FULL: ("storage.full", "the disk is full: make room, then call again"),
    sqlite3.SQLITE_READONLY: ("storage.readonly", "it is read-only: give this user the right"),
    sqlite3.SQLITE_PERM: ("storage.readonly", "it is not accessible: give this user the right"),
    sqlite3.SQLITE_CANTOPEN: ("storage.missing", "it can't be opened: check that it exists"),
    sqlite3.SQLITE_CORRUPT: ("storage.corrupt", "it is damaged: keep a copy, restore a backup"),
    sqlite3.SQLITE_CONSTRAINT: (
        "storage.corrupt",
        "a row is there that no writer has put there; keep a copy, and run agentguard audit verify",
    ),
    sqlite3.SQLITE_NOTADB: ("storage.corrupt", "it is no database: keep a copy, restore a backup"),
    sqlite3.SQLITE_BUSY: ("storage.locked", "another program holds it: close that program"),
    sqlite3.SQLITE_LOCKED: ("storage.locked", "another program holds it: close that program"),
}


def make(path: Path, form: Format, statement: str, values: Sequence[object]) -> None:
    """Make a file with one row, whole or not at all.

    The file is made in memory, since SQLite would look for a journal beside a file. Bytes 18 and
    19 say that the file has a write-ahead log from the first.
    """
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(
            f"BEGIN;{form.schema}PRAGMA application_id={form.application};"
            f"PRAGMA user_version={form.version};COMMIT"
        )
        connection.execute(statement, values)
        connection.commit()
        content = bytearray(connection.serialize())
    content[18:20] = b"\x02\x02"
    files.replace(path, bytes(content))


def connect(path: Path, form: Format) -> sqlite3.Connection:
    """Open a file for writing; raises ``StorageError``. The caller is inside ``errors``.

    SQLite must play no rollback journal back that an attacker has put beside the file: a journal
    would change the file, and SQLite would remove any file that the journal names. SQLite plays a
    journal back only if no other connection has the file locked. So a second, read-only connection
    keeps the file locked until the first connection uses the write-ahead log; from then on SQLite
    looks for no rollback journal.
    """
    require_file(path)
    shield, connection = _both(path)
    with ExitStack() as undo:
        undo.callback(connection.close)
        with closing(shield):
            shield.execute("BEGIN")  # the file stays locked between statements, too
            try:
                check_version(shield, path, form)
                check_version(connection, path, form)
                (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
            except sqlite3.OperationalError:
                require_file(path)  # which says what is in the way
                raise
            if mode != "wal":
                raise damaged(path, "it has no write-ahead log")
        make_durable(connection)
        undo.pop_all()
    return connection


def connect_to_read(path: Path, form: Format) -> sqlite3.Connection:
    """Open a file for reading alone; raises ``StorageError``. The caller is inside ``errors``.

    A file on read-only storage, as an auditor gets it, is opened too: even to read, SQLite would
    write there.
    """
    require_file(path)
    is_whole = not files.exists(path.with_name(path.name + "-wal"))
    frozen = "&immutable=1" if is_whole and not os.access(path.parent, os.W_OK) else ""
    uri = f"{path.absolute().as_uri()}?mode=ro{frozen}"
    connection: sqlite3.Connection = sqlite3.connect(uri, uri=True, **OPTIONS)
    try:
        check_version(connection, path, form)
    except BaseException:
        connection.close()
        raise
    return connection


def _both(path: Path) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    """Return a read-only and a writable connection to one file, without having used either.

    An attacker may replace the file between the two openings. So each file that this process has
    opened meanwhile must be the file that is at the path now. Other threads may open other files
    at the same time; their files are soon closed, or are already open at the next attempt. A file
    that SQLite has opened stays open.
    """
    for _attempt in range(_ATTEMPTS):
        before = _open_files()
        with ExitStack() as undo:
            both = []
            for mode in ("ro", "rw"):
                uri = f"{path.absolute().as_uri()}?mode={mode}"
                both.append(sqlite3.connect(uri, uri=True, **OPTIONS))
                undo.callback(both[-1].close)
            status = path.stat()
            here = (status.st_dev, status.st_ino)
            others = {one for one in _open_files() - before if one[1] != here}
            for _look in range(_ATTEMPTS):
                if not others:
                    undo.pop_all()
                    return both[0], both[1]
                time.sleep(0.001)
                others = {one for one in others if _open_file(one[0]) == one[1]}
    message = (
        f"{path} can't be opened: threads of this process open other files all the time, or "
        "another file takes its place again and again; try again"
    )
    raise StorageError(message, code="storage.locked")


def _open_files() -> frozenset[tuple[int, tuple[int, int]]]:
    """Return the regular files that this process has open: descriptor, device and inode."""
    opened = ((number, _open_file(number)) for number in _descriptors())
    return frozenset((number, file) for number, file in opened if file is not None)


def _open_file(number: int) -> tuple[int, int] | None:
    """Return the device and inode of a regular file, by its descriptor; None where none is open."""
    try:
        status = os.fstat(number)
    except OSError:  # such as the folder that was just listed
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def _descriptors() -> Iterable[int]:
    """Return the descriptors of all open files, and perhaps some closed descriptors."""
    descriptors: list[int] = []
    with suppress(OSError):  # a jail without /proc has none
        descriptors = [int(name) for name in os.listdir("/dev/fd")]  # noqa: PTH208  there may be many
    if (
        len(descriptors) > _STANDARD
    ):  # the folder itself is among them, unless they are device nodes
        return descriptors
    return _probed_descriptors()


def _probed_descriptors() -> Iterator[int]:
    limit = os.sysconf("SC_OPEN_MAX")
    free = 0
    for number in range(min(limit, _MOST_DESCRIPTORS) if limit > 0 else _MOST_DESCRIPTORS):
        try:
            os.fstat(number)
        except OSError:
            free += 1
            if free == _MOST_FREE:
                return
        else:
            yield number


def make_durable(connection: sqlite3.Connection) -> None:
    """Make commits durable before they return, and have SQLite overwrite freed space with zeros."""
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA secure_delete=ON")  # off by default in most builds


def damaged(path: Path, problem: str) -> StorageError:
    """Return the error for a file whose content this package can't have written."""
    message = f"{path} is damaged ({problem}): keep a copy, and run agentguard audit verify on it"
    return StorageError(message, code="storage.corrupt")


def require_file(path: Path) -> None:
    """Raise ``StorageError`` (``storage.missing``) unless the file exists.

    Also refuse (``storage.corrupt``) a rollback journal beside the file, because the file always
    has a write-ahead log; and a write-ahead log that is no regular file, because reading a pipe
    would never end.
    """
    if not path.is_file():
        message = f"there is no file {path}: restore it, or name the right one"
        raise StorageError(message, code="storage.missing")
    journal = path.with_name(f"{path.name}-journal")
    if os.path.lexists(journal):
        message = (
            f"{journal} is not agentguard's: SQLite would change {path.name} by it, and "
            "remove files. Find out who made it, and remove it"
        )
        raise StorageError(message, code="storage.corrupt")
    for suffix in ("-wal", "-shm"):
        beside = path.with_name(path.name + suffix)
        if os.path.lexists(beside) and not beside.is_file():
            raise damaged(path, f"{beside.name} is no file")


def check_version(connection: sqlite3.Connection, path: Path, form: Format) -> None:
    """Refuse a file that is not of this format, with exactly the statements of its schema.

    Any other statement is refused: a trigger could drop rows, and reading a view could never end.
    """
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_LENGTH)
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != form.application:
        message = f"{path} is not the file that it has to be: name the right one"
        raise StorageError(message, code="storage.corrupt")
    if version != form.version:
        message = (
            f"{path} has the format {version}, this agentguard knows {form.version}: upgrade it"
        )
        raise StorageError(message, code="storage.version")
    expected = sorted(part.strip() for part in form.schema.split(";") if part.strip())
    statements = connection.execute(
        "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL"
    ).fetchmany(len(expected) + 1)
    if sorted(str(sql) for (sql,) in statements) != expected:
        message = (
            f"{path} has tables, triggers or views that agentguard has not made: find out who made "
            "them"
        )
        raise StorageError(message, code="storage.corrupt")


@contextmanager
def errors(path: Path) -> Iterator[None]:
    """Raise a ``StorageError`` with a code and a remedy in place of SQLite's errors."""
    try:
        yield
    except UnicodeDecodeError as error:  # from SQLite's text of a damaged schema
        raise damaged(path, "its schema is no text") from error
    except (sqlite3.Error, OSError) as error:
        number = getattr(error, "sqlite_errorcode", 0)
        if number == sqlite3.SQLITE_READONLY_ROLLBACK:  # put there after ``require_file``
            raise damaged(path, f"{path.name}-journal is not agentguard's") from error
        primary = number & 0xFF
        code, advice = _CODES.get(primary, ("storage.failed", "see what the system says"))
        # SQLite quotes text of the file, which may contain a terminal's control characters
        text = written_out(str(error))
        raise StorageError(f"{path} failed ({text}): {advice}", code=code) from error
