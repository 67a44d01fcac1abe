"""The files of a Rego policy: modules, data, and the digests for the log.

Each file is read once; a folder has the layout of an OPA bundle. This module parses no Rego:
``gate.py`` checks the modules, and ``engine.py`` evaluates them.
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from agentguard.errors import EncodeError, PolicyError
from agentguard.policy.rego import expressions
from agentguard.signing import canonical
from agentguard.storage import files

MAX_MODULE_BYTES: Final = 1024 * 1024
"""The longest Rego file, in bytes; the engine's own limit."""

_DATA: Final = "data.json"
# OPA loads these files of a bundle. Without their data, `not data.blocked[x]` would hold.
_UNREADABLE_DATA: Final = ("data.yaml", "data.yml")


@dataclass(frozen=True, slots=True)
class RegoSource:
    """The content of a policy: ``modules`` are sorted ``(path, text)``, ``data`` a JSON object."""

    modules: tuple[tuple[str, str], ...]
    data: Mapping[str, Any]
    files: Mapping[str, str]
    sha256: str

    @classmethod
    def from_texts(cls, texts: Mapping[str, bytes]) -> RegoSource:
        """Build a policy from ``{relative POSIX path: content}``.

        The object in ``a/b/data.json`` stands at ``data.a.b``. Raises ``PolicyError``
        (``policy.invalid``).
        """
        modules: list[tuple[str, str]] = []
        data: dict[str, Any] = {}
        for path, content in sorted(texts.items()):
            *folders, name = path.split("/")
            if name == _DATA:
                _merge(data, _nest(folders, _parse_data(path, content)), path)
            else:
                modules.append((path, _module(path, content)))
        if not modules:
            raise invalid(
                "the policy has no Rego module; add a *.rego file whose name does not end in "
                "_test.rego"
            )
        files = {path: canonical.sha256_hex(content) for path, content in texts.items()}
        try:
            sha256 = canonical.digest(files)
        except EncodeError as error:
            raise invalid(
                f"the name of a file in the policy is not UTF-8: {error}; rename the file"
            ) from error
        return cls(tuple(modules), data, files, sha256)

    @classmethod
    def read(cls, path: Path) -> RegoSource:
        """Read one file, or a folder's ``*.rego`` and ``data.json`` at any depth.

        As in an OPA bundle, ``*_test.rego``, other names, and hidden names (with a dot in front)
        are ignored. With a single file, no ``data.json`` is read. Raises ``PolicyError``
        (``policy.invalid``).
        """
        try:
            paths = {path.name: path} if not path.is_dir() else _files(path)
            return cls.from_texts({name: files.read(file) for name, file in paths.items()})
        except OSError as error:
            raise invalid(f"{error.filename}: can't be read: {error.strerror}") from error


def invalid(message: str) -> PolicyError:
    """Return the error for a policy that must not be used."""
    return PolicyError(message, code="policy.invalid")


def places(path: Path) -> Iterator[Path]:
    """Yield the paths that ``RegoSource.read`` reads: the file, or each folder and its files.

    Raises ``OSError``, and ``PolicyError`` for a file or link that no policy may contain.
    """
    if not path.is_dir():
        yield path
        return
    for folder, policy_files in _walk(path):
        yield folder
        yield from policy_files


def _files(root: Path) -> dict[str, Path]:
    return {file.relative_to(root).as_posix(): file for _, files in _walk(root) for file in files}


def _walk(root: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Yield each folder that is not hidden, with its files that belong to the policy."""
    for where, folders, names in os.walk(root, onerror=_raise):
        here = Path(where)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for folder in (here / name for name in folders):
            if folder.is_symlink():
                raise invalid(
                    f"{folder}: a policy can't have a link to a folder; copy the folder instead"
                )
        for name in names:
            if name in _UNREADABLE_DATA:
                raise invalid(f"{here / name}: data is read from {_DATA} only; convert the file")
        yield here, [here / name for name in names if _belongs(name)]


def _belongs(name: str) -> bool:
    module = name.endswith(".rego") and not name.endswith("_test.rego")
    return (module or name == _DATA) and not name.startswith(".")


def _raise(error: OSError) -> NoReturn:
    raise error


def _module(path: str, content: bytes) -> str:
    if len(content) > MAX_MODULE_BYTES:
        raise invalid(
            f"{path}: the file has more than {MAX_MODULE_BYTES} bytes; move its tables to {_DATA}"
        )
    if content.startswith(codecs.BOM_UTF8):
        raise invalid(
            f"{path}: the file begins with a byte order mark; save the file without the mark"
        )
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise invalid(
            f"{path}: the file is not UTF-8 at byte {error.start}; save it as UTF-8"
        ) from error


def _parse_data(path: str, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(
            content.decode(),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_int=lambda number: int(_plain_number(path, number)),
            parse_float=lambda number: float(_plain_number(path, number)),
        )
    except (ValueError, RecursionError) as error:
        raise invalid(f"{path}: the file is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise invalid(
            f"{path}: the file has another JSON value than an object; put the value into an object"
        )
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} occurs twice in one object")
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _plain_number(path: str, number: str) -> str:
    if not expressions.is_plain(number):
        raise invalid(f"{path}: {number} {expressions.NOT_PLAIN}")
    return number


def _nest(folders: list[str], value: dict[str, Any]) -> dict[str, Any]:
    for folder in reversed(folders):
        value = {folder: value}
    return value


def _merge(into: dict[str, Any], more: Mapping[str, Any], path: str) -> None:
    for name, value in more.items():
        present = into.setdefault(name, value)
        if present is value:
            continue
        if not isinstance(present, dict) or not isinstance(value, dict):
            raise invalid(
                f"{path}: {name!r} is also defined by a {_DATA} in a folder above; rename one of "
                "them"
            )
        _merge(present, value, path)
