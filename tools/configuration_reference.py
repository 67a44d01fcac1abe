"""Writes docs/reference/configuration.md: each key of agentguard.toml, with type, default, example.

The code that checks a configuration says which keys there are, of what type, and with what default:
``agentguard.domain.config.file`` parses the examples, and its tables note here each key that the
code reads. The meanings and the examples are in ``configuration_reference.toml``. A key without a
meaning, or a meaning without a key, is an error. ``--check`` compares the page and writes nothing.
"""

# ruff: noqa: D102  the methods of a table that notes its keys are those of a table

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from agentguard.domain.config import file
from agentguard.domain.config.table import Table

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "reference" / "configuration.md"
MEANINGS: Final = Path(__file__).with_suffix(".toml")
NAMED: Final = frozenset({"aliases", "delegation", "paths", "redact"})
"""The tables whose keys are names that the user chooses."""

BELOW: Final = (".facts", ".oauth", ".serve", ".users", ".vault")
"""The tables within a table whose name the user chooses."""

OPENING: Final = """\
# Configuration: agentguard.toml

`agentguard.toml` says who may act, which policy decides, and where the keys and the log are.
`agentguard init` writes a first one, and `agentguard doctor` checks the file after a change.
Commands and `Guard.find()` take the nearest `agentguard.toml`, from the working directory
upwards; `Guard.open(path)` takes the file named.

`scripts/configuration-reference` makes this page from the code that checks a configuration. An
unknown key is an error, and so is a value of another type (`config.invalid`): the message names
the key and what was expected. A path is relative to the file; `~` is the home folder. A file that
other users can write is refused (`config.exposed`). `Guard.ephemeral(config={...})` takes the
same tables as a dictionary, for tests."""

Found = dict[tuple[str, str], tuple[str, str]]
"""The type and the default of each key, by table and key; NAME is what the user names."""

_REQUIRED: Final = object()


class Noted(Table):
    """A table that notes the type and the default of each key that the code reads."""

    found: Found

    def __init__(self, members: Mapping[str, Any], source: str, path: str) -> None:
        super().__init__(members, source, path)
        first, _, rest = path.partition(".")
        below = next((end for end in BELOW if path.endswith(f"{end}.")), "")
        self._table = f"{first}.NAME{below}" if rest else first
        if first == "server":  # its tables have names of their own
            self._table = path.removesuffix(".")

    def _note(self, key: str, kind: str, default: object = None) -> None:
        name = "NAME" if self._table in NAMED else key
        self.found[self._table, name] = (kind, _for_people(default))

    def text(self, key: str, default: str | None = None, *, may_be_empty: bool = False) -> str:
        self._note(key, "string", _REQUIRED if default is None else default)
        return super().text(key, default, may_be_empty=may_be_empty)

    def optional(self, key: str) -> str | None:
        made = super().optional(key)
        self._note(key, "string")
        return made

    def choice(self, key: str, choices: tuple[Any, ...], default: Any = None) -> Any:
        made: Any = super().choice(key, choices, default)
        self._note(key, " or ".join(f'`"{choice}"`' for choice in choices), default)
        return made

    def boolean(self, key: str, *, default: bool) -> bool:
        self._note(key, "true or false", default)
        return super().boolean(key, default=default)

    def count(self, key: str, default: int) -> int:
        self._note(key, "whole number from 1", default)
        return super().count(key, default)

    def number(self, key: str) -> int | None:
        self._note(key, "whole number")
        return super().number(key)

    def seconds(self, key: str, default: float) -> float:
        self._note(key, "number of seconds", default)
        return super().seconds(key, default)

    def texts(self, key: str, default: Any) -> Any:
        self._note(key, "list of strings")
        return super().texts(key, default)

    def scope(self, key: str, default: Any) -> Any:
        made = super().scope(key, default)
        self._note(key, "list of scopes")
        return made

    def mapping(self, key: str) -> Mapping[str, str] | None:
        self._note(key, "table of strings")
        return super().mapping(key)

    def table(self, key: str, beside: str | None = None) -> Table:
        made = super().table(key, beside)
        return type(self)(made._members, made._source, made._path)  # noqa: SLF001  it is one of ours


def _for_people(default: object) -> str:
    if default is _REQUIRED:
        return "required"
    if default is None or default == "":
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f'`"{default}"`' if isinstance(default, str) else f"`{default}`"


@contextmanager
def noting() -> Iterator[Found]:
    """Have the code that checks a configuration note the keys that it reads."""
    found: Found = {}
    noted = type("NotedHere", (Noted,), {"found": found})
    with patch.object(file, "Table", noted):
        yield found


def sections() -> list[dict[str, Any]]:
    """Return the meanings and examples: the tables of the page, in order."""
    tables: list[dict[str, Any]] = tomllib.loads(MEANINGS.read_text("utf-8"))["section"]
    return tables


def example(section: Mapping[str, Any]) -> str:
    """Return a table with its keys, as TOML."""
    lines = [section["header"]] if "header" in section else []
    for key in section["key"]:
        name = key.get("written", key["name"])
        lines.append(f"{'# ' * key.get('instead', False)}{name} = {key['example']}")
    return "\n".join(lines) + "\n"


def files(told: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the examples as whole files, of which each begins with the keys of no table."""
    numbers = sorted({section.get("file", 0) for section in told})
    of_file = [[one for one in told if one.get("file", 0) == number] for number in numbers]
    return [
        "\n".join(map(example, sorted(ones, key=lambda one: one["table"] != "")))
        for ones in of_file
    ]


def known(told: Sequence[Mapping[str, Any]]) -> Found:
    """Return the type and the default of each key. Raises ``ConfigError`` for a bad example."""
    with noting() as found:
        for text in files(told):
            file.parse(tomllib.loads(text), source=file.FILE, base=ROOT)
    return found


def problems(told: Sequence[Mapping[str, Any]], found: Found) -> list[str]:
    """Return the keys without a meaning, and the meanings without a key."""
    meant = {(section["table"], key["name"]) for section in told for key in section["key"]}
    lacking = [f"[{table}] {key} has no meaning" for table, key in sorted({*found} - meant)]
    return lacking + [f"[{table}] {key} is read nowhere" for table, key in sorted(meant - {*found})]


def page(told: Sequence[Mapping[str, Any]], found: Found) -> str:
    """Return the page."""
    parts = [OPENING]
    for section in told:
        rows = [row(key, *found[section["table"], key["name"]]) for key in section["key"]]
        table = "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])
        head = f"## {section['title']}\n\n{section['about']}"
        parts.append(f"{head}\n\n{table}\n\n```toml\n{example(section)}```")
        if "after" in section:
            parts.append(section["after"].strip())
    return "\n\n".join(parts) + "\n"


def row(key: Mapping[str, Any], kind: str, default: str) -> str:
    """Return the row of one key."""
    cells = (f"`{key['name']}`", kind, key.get("default", default), key["meaning"])
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Write the page or check it; return the exit code."""
    told = sections()
    found = known(told)
    wrong = problems(told, found)
    text = "" if wrong else page(told, found)
    if text and "--check" not in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
    elif text and (not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text):
        wrong = [f"{PAGE.relative_to(ROOT)} is not current: run scripts/configuration-reference"]
    print("\n".join(wrong) or "every key of agentguard.toml has its meaning")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
