"""Resolves paths in arguments: whether a path, with every link followed, stays inside a folder.

The text of a path does not show which file it names. In a cloned repository ``notes/today.txt`` may
be a symbolic link to a private key; with ``/`` as the working directory, ``etc/passwd`` is an
innocent relative path. So a policy decides on the resolved place, and a tool opens no other file.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any, Final

from agentguard.storage import files

_START: ContextVar[str | None] = ContextVar("agentguard_working_folder", default="")
"""Where the relative paths of a call start; "" is the working directory, and None is nowhere."""

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LONGEST: Final = 4096
"""The longest path that Linux accepts, in bytes."""

_FILE: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Folder:
    """A folder that tools can't leave, whatever path a model passes.

    A relative path starts at the working directory, as for ``open``. Raises ``OSError`` for the
    root of the file system, which contains every file.
    """

    def __init__(self, root: str | Path) -> None:
        self.root: Final = Path(root).resolve()
        if self.root == self.root.parent:
            message = f"{root} is the root of the file system, and holds every file: name a folder"
            raise OSError(errno.EINVAL, message)

    def resolve(self, path: str) -> Path:
        """Return the absolute path of the file that ``path`` names, without links and ``..``.

        Raises ``PermissionError`` for a path outside the folder, or without a place: one that leads
        through folders which this process can't look into, say. Whoever can write the folder may
        change links after this; ``open`` does not rely on the result alone.
        """
        try:
            # refuse a path that is too long before the system looks up its parts
            resolved = _resolved(Path(path if len(os.fsencode(path)) <= _LONGEST else "\0"))
            str(resolved).encode()
            is_loop = resolved.is_symlink()  # newer versions of Python return a part of a loop
        except (OSError, RuntimeError, ValueError) as error:  # a loop, a NUL, too long, or no text
            raise PermissionError(errno.EACCES, "it leads nowhere", path) from error
        if is_loop:
            raise PermissionError(errno.EACCES, "it leads nowhere", path)
        if not resolved.is_relative_to(self.root):
            raise PermissionError(errno.EACCES, f"it leads out of {self.root}", path)
        return resolved

    def open(self, path: str, mode: str = "r", *, encoding: str | None = None) -> IO[Any]:
        """Open a regular file of the folder as the builtin ``open`` does; text is UTF-8.

        Each part of the resolved path is opened in turn, from the folder's root, and no link is
        followed. So a link that appears after the resolution leads to an error, and never out of
        the folder. Raises ``OSError``.
        """
        resolved = self.resolve(path)
        if resolved == self.root:  # opening by name needs a parent inside the folder
            raise IsADirectoryError(errno.EISDIR, "it is the folder itself", path)
        text = None if "b" in mode else encoding or "utf-8"
        with self._open_parent(resolved) as folder:

            def opener(_path: str, flags: int) -> int:
                number = os.open(resolved.name, flags | _FILE, 0o666, dir_fd=folder)
                try:
                    files.require_regular(Path(path), number)
                except OSError:
                    os.close(number)
                    raise
                return number

            return open(path, mode, encoding=text, opener=opener)

    def read_text(self, path: str) -> str:
        """Return the text of a UTF-8 file; raises ``OSError`` or ``UnicodeDecodeError``."""
        with self.open(path) as file:
            text: str = file.read()
            return text

    @contextmanager
    def _open_parent(self, resolved: Path) -> Iterator[int]:
        """Yield a descriptor of the folder that contains the last part of a resolved path."""
        folder = os.open(self.root, _FOLDER)
        try:
            for part in resolved.relative_to(self.root).parts[:-1]:
                parent, folder = folder, os.open(part, _FOLDER, dir_fd=folder)
                os.close(parent)
            yield folder
        finally:
            os.close(folder)


def _resolved(path: Path) -> Path:
    """Return a path without links; raises ``OSError`` where links may be out of this user's sight.

    Where nothing is there yet, the folders count in which a file would be.
    """
    try:
        return path.resolve(strict=True)
    except (FileNotFoundError, NotADirectoryError):
        resolved = path.resolve()
        with suppress(FileNotFoundError, NotADirectoryError):
            resolved.lstat()
        return resolved


@contextmanager
def starting_at(folder: str | None) -> Iterator[None]:
    """Let the relative paths of a call start at ``folder`` inside the context.

    For a guard server: ``folder`` is the absolute path of the client's working directory. None is
    for a client whose files this process does not see: its paths have no place.
    """
    token = _START.set(folder)
    try:
        yield
    finally:
        _START.reset(token)


class Places:
    """Finds the places to which the paths in arguments lead, by the folders of ``[paths]``.

    A place is a resolved path relative to the folder, such as ``notes/today.txt``; ``.`` is the
    folder itself. An argument that is no text, too long for a path, or outside of its folder has no
    place. ``arguments`` are the names of the arguments that have a folder.
    """

    def __init__(self, folders: Mapping[str, Folder]) -> None:
        self._folders = folders
        self.arguments: Final = frozenset(folders)

    def __call__(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Return the places of a call's arguments: the member ``paths`` of the policy's input."""
        places: dict[str, str] = {}
        start = _START.get()
        for name in sorted(self.arguments & values.keys()) if start is not None else ():
            folder, value = self._folders[name], values[name]
            if isinstance(value, str):
                try:
                    place = folder.resolve(os.path.join(start, value) if start else value)  # noqa: PTH118  keeps ".."
                    places[name] = place.relative_to(folder.root).as_posix()
                except PermissionError:
                    continue
        return places
