"""Finds the tests beside a policy: tables of cases, and files with Rego tests.

``cases.py`` reads the tables, and OPA reads the Rego tests. A file that looks like a test, and
whose name or place keeps it from running, is an error: its author relies on the test.
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
"""The file of a policy's data, which is never a table of cases."""

_TABULAR: Final = frozenset({".toml", ".json", ".jsonc", ".json5", ".yaml", ".yml"})
_CASES: Final = re.compile(rb"\[\[\s*cases?\s*\]\]|\bcases?[\"']?\s*[:=]\s*(?:\[|$)", re.MULTILINE)
_EXPECTED: Final = re.compile(rb"\bexpect(?:ed)?[\"']?\s*[:=]")
_RULE: Final = re.compile(rb"^(?:todo_)?test_", re.MULTILINE)
"""The beginning of a Rego test: ``opa test`` selects rules by their names."""


def tables(settings: Config) -> list[Path]:
    """Return the tables in the policy's folder.

    Raises ``ConfigError`` for one whose name keeps it from being read.
    """
    matches = []
    for file in _files(settings):
        if file.match("*_test.*") and file.suffix in cases.SUFFIXES:
            matches.append(file)
        elif _is_meant_as_table(file):
            raise ConfigError(
                f"{file}: nothing reads this table of cases: write it in TOML or JSON and call it "
                f"*_test.toml or *_test.json, or name the tables that are to be read; if it is no "
                "table, give it another name"
            )
    return matches


def rego(settings: Config) -> list[Path]:
    """Return the files with Rego tests: ``*_test.rego``, and files of the policy with tests.

    Raises ``ConfigError`` for a test whose name or place keeps it from running.
    """
    policy_path = _policy_path(settings) if source.policy_of(settings).engine == "rego" else None
    matches = []
    for file in _files(settings):
        is_policy = (
            policy_path is not None
            and file.suffix == _REGO
            and policy_path in (file, *file.parents)
        )
        if file.name.endswith("_test.rego") or (is_policy and _has_tests(file)):
            matches.append(file)
        elif not is_policy and _is_meant_as_rego(file, beside=policy_path is not None):
            raise ConfigError(
                f"{file}: nothing runs these tests in Rego: call the file *_test.rego, or put it "
                "into another folder"
            )
    return matches


def _files(settings: Config) -> list[Path]:
    """Return the files in the policy's folder, without hidden ones.

    For a policy on a server, or a function, return those in the configuration's folder. Where the
    folder itself is the policy, return the files at any depth.
    """
    policy_path = _policy_path(settings)
    if policy_path is None:
        folder, recursive = settings.base, False
    else:
        folder, recursive = (
            (policy_path, True) if policy_path.is_dir() else (policy_path.parent, False)
        )
    return sorted(_visible_files(folder, recursive=recursive))


def _visible_files(folder: Path, *, recursive: bool) -> Iterator[Path]:
    for file in folder.rglob("*") if recursive else folder.glob("*"):
        is_hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if not is_hidden and not file.is_dir():
            yield file


def _policy_path(settings: Config) -> Path | None:
    """Return the policy's file or folder; None where it is on a server, or a function."""
    policy_config = source.policy_of(settings)
    return (
        resolve(settings.base, policy_config.path)
        if policy_config.engine in ("rego", "cedar")
        else None
    )


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
        return b""  # the reader of the file reports the error
