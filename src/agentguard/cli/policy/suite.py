"""The tests that lie beside a policy: tables of cases, and files with tests in Rego.

Files are found here, not read: ``cases.py`` reads tables, OPA the rest. What looks like a
test, and would be passed over for its name or its place, is an error: its author relies on it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agentguard.cli.policy import cases, source
from agentguard.cli.terminal import files
from agentguard.domain.config import Config, resolve
from agentguard.errors import ConfigError, StorageError

_REGO: Final = ".rego"
_DATA: Final = "data.json"
"""A policy's data, which is no table whatever is in it."""

_TABULAR: Final = frozenset({".toml", ".json", ".jsonc", ".json5", ".yaml", ".yml"})
_CASES: Final = re.compile(rb"\[\[\s*cases?\s*\]\]|\bcases?[\"']?\s*[:=]\s*(?:\[|$)", re.MULTILINE)
_EXPECTED: Final = re.compile(rb"\bexpect(?:ed)?[\"']?\s*[:=]")
_RULE: Final = re.compile(rb"^(?:todo_)?test_", re.MULTILINE)
"""How a test begins in Rego: ``opa test`` goes by the names of rules."""


def tables(settings: Config) -> list[Path]:
    """Return the tables in the policy's folder.

    Raises ``ConfigError`` for one whose name keeps it from being read.
    """
    found = []
    for file in _files(settings):
        if file.match("*_test.*") and file.suffix in cases.SUFFIXES:
            found.append(file)
        elif _is_meant_as_table(file):
            raise ConfigError(
                f"{file}: nothing reads this table of cases: write it in TOML or JSON and call it "
                f"*_test.toml or *_test.json, or name the tables that are to be read; if it is no "
                "table, give it another name"
            )
    return found


def rego(settings: Config) -> list[Path]:
    """Return the files with tests in Rego: ``*_test.rego``, and the policy's own that have some.

    Raises ``ConfigError`` for one whose name or place keeps it from being run.
    """
    own = _own(settings) if source.policy_of(settings).engine == "rego" else None
    found = []
    for file in _files(settings):
        part = own is not None and file.suffix == _REGO and own in (file, *file.parents)
        if file.name.endswith("_test.rego") or (part and _has_tests(file)):
            found.append(file)
        elif not part and _is_meant_as_rego(file, beside=own is not None):
            raise ConfigError(
                f"{file}: nothing runs these tests in Rego: call the file *_test.rego, or put it "
                "into another folder"
            )
    return found


def _files(settings: Config) -> list[Path]:
    """Return what lies in the policy's folder; of a server or a function, in the configuration's.

    Below a folder that is itself the policy it may lie at any depth. What is hidden is left out.
    """
    own = _own(settings)
    if own is None:
        folder, deep = settings.base, False
    else:
        folder, deep = (own, True) if own.is_dir() else (own.parent, False)
    return sorted(_shown(folder, deep=deep))


def _shown(folder: Path, *, deep: bool) -> Iterator[Path]:
    for file in folder.rglob("*") if deep else folder.glob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if not hidden and not file.is_dir():
            yield file


def _own(settings: Config) -> Path | None:
    """Return the policy's file or folder; None where it is on a server, or a function."""
    written = source.policy_of(settings)
    return resolve(settings.base, written.path) if written.engine in ("rego", "cedar") else None


def _is_meant_as_table(file: Path) -> bool:
    if file.suffix.casefold() not in _TABULAR or file.name == _DATA:
        return False
    if file.stem.casefold().endswith("_test"):
        return True
    text = _text(file)
    return _CASES.search(text) is not None and _EXPECTED.search(text) is not None


def _is_meant_as_rego(file: Path, *, beside: bool) -> bool:
    if file.suffix.casefold() != _REGO:
        return False
    return file.stem.casefold().endswith("_test") or (beside and _has_tests(file))


def _has_tests(file: Path) -> bool:
    return _RULE.search(_text(file)) is not None


def _text(file: Path) -> bytes:
    try:
        return files.read(file)
    except StorageError:
        return b""  # whoever needs it will say so
