"""Where a path in an argument truly leads: inside a folder, with every link followed, or not.

A path is text, and the text does not say what it names. In a cloned repository ``notes/today.txt``
may be a symbolic link to a private key, and with ``/`` as the working directory ``etc/passwd`` is a
relative path without a hidden part. So a policy decides on the place, and a tool opens no other.
"""

from __future__ import annotations

import errno
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Final

from agentguard.call.tool import FactsFunction, ToolSpec
from agentguard.errors import FactsError
from agentguard.storage import files

FACT: Final = "paths"
"""The name of the fact: ``input.paths.ARGUMENT`` is the place that the argument leads to."""

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LONGEST: Final = 4096
"""Bytes of the longest path that Linux takes."""

_FILE: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Folder:
    """A folder that tools do not leave, whatever path a model gives them.

    A relative path is taken from the working directory, as ``open`` takes it. Raises ``OSError``
    for the root of the file system, inside which is everything.
    """

    def __init__(self, root: str | Path) -> None:
        self.root: Final = Path(root).resolve()
        if self.root == self.root.parent:
            message = f"{root} is the root of the file system, and holds every file: name a folder"
            raise OSError(errno.EINVAL, message)

    def resolve(self, path: str) -> Path:
        """Return the absolute path that ``path`` leads to, which has no link and no ``..`` in it.

        Raises ``PermissionError`` where that is outside the folder, or nowhere. It tells where the
        path led a moment ago: whoever can write the folder may change that. ``open`` does not rely
        on it.
        """
        try:
            # a path that is too long is refused before each part of it is looked up
            resolved = Path(path if len(os.fsencode(path)) <= _LONGEST else "\0").resolve()
            str(resolved).encode()
            is_loop = resolved.is_symlink()  # newer Pythons return what they have of a loop
        except (OSError, RuntimeError, ValueError) as error:  # a loop, a NUL, too long, or no text
            raise PermissionError(errno.EACCES, "it leads nowhere", path) from error
        if is_loop:
            raise PermissionError(errno.EACCES, "it leads nowhere", path)
        if not resolved.is_relative_to(self.root):
            raise PermissionError(errno.EACCES, f"it leads out of {self.root}", path)
        return resolved

    def open(self, path: str, mode: str = "r", *, encoding: str | None = None) -> IO[Any]:
        """Open a regular file of the folder, as the builtin ``open`` does; text is UTF-8.

        The folder is walked from its root, one part of the resolved path after the other, and no
        link is followed on the way: what is changed after the path was resolved leads nowhere else,
        and never out of the folder. Raises ``OSError``.
        """
        resolved = self.resolve(path)
        if resolved == self.root:  # its name stands for another file, below it
            raise IsADirectoryError(errno.EISDIR, "it is the folder itself", path)
        text = None if "b" in mode else encoding or "utf-8"
        with self._beside(resolved) as folder:

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
        """Read a file of the folder, in UTF-8. Raises ``OSError`` or ``UnicodeDecodeError``."""
        with self.open(path) as file:
            text: str = file.read()
            return text

    def facts(self, *arguments: str) -> FactsFunction:
        """Return a look-up of facts: ``{"paths": {ARGUMENT: PLACE}}``, for a tool's ``facts``.

        A place is a resolved path below the folder, as in ``notes/today.txt``; ``.`` is the folder
        itself. An argument that is no text, is too long for a path, or leads out of the folder, has
        none. A tool of which ``[paths]`` names any argument has that fact already, and its calls
        are denied with a second one (``facts.failed``).
        """
        return facts(dict.fromkeys(arguments, self))

    @contextmanager
    def _beside(self, resolved: Path) -> Iterator[int]:
        """Yield the open folder in which the last part of a resolved path stands."""
        here = os.open(self.root, _FOLDER)
        try:
            for part in resolved.relative_to(self.root).parts[:-1]:
                above, here = here, os.open(part, _FOLDER, dir_fd=here)
                os.close(above)
            yield here
        finally:
            os.close(here)


def of_tool(folders: Mapping[str, Folder], spec: ToolSpec) -> ToolSpec:
    """Return a tool with the places of those of its arguments that have a folder."""
    own = spec.schema.get("properties")
    named = {name: folder for name, folder in folders.items() if name in (own or ())}  # type: ignore[operator]
    return replace(spec, facts=facts(named, spec.facts)) if named else spec


def facts(folders: Mapping[str, Folder], more: FactsFunction | None = None) -> FactsFunction:
    """Return a look-up of the places of arguments, each in its folder, and of ``more`` facts."""

    def look_up(values: Any) -> Any:
        found = _places(folders, values)
        return found if more is None else _merged(found, more(values))

    async def alook_up(values: Any) -> Any:
        waited: Callable[..., Any] = more  # type: ignore[assignment]
        return _merged(_places(folders, values), await waited(values))

    return alook_up if inspect.iscoroutinefunction(more) else look_up


def _places(folders: Mapping[str, Folder], values: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    places = {}
    for name, folder in folders.items():
        value = values.get(name)
        if isinstance(value, str):
            try:
                places[name] = folder.resolve(value).relative_to(folder.root).as_posix()
            except PermissionError:
                continue
    return {FACT: places}


def _merged(places: dict[str, dict[str, str]], found: Any) -> Any:
    if not isinstance(found, Mapping):
        return found  # which is no facts: the line says so
    if FACT in found:
        message = (
            f"[paths] names an argument of this tool, which so has the fact {FACT!r} already: "
            "leave Folder.facts out of the tool's facts, or its arguments out of [paths], and give "
            "a fact of your own another name"
        )
        raise FactsError(message)
    return {**found, **places}
