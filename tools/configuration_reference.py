"""Writes docs/reference/configuration.md from the records that declare the tables.

The docstring of a record says what its table is for, and has an example; the docstring below a
field says what the key means (``agentguard.tables``). A key without a meaning, or one that no
example has, is an error. ``--check`` compares the page and writes nothing.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from agentguard.domain.config import Config
from agentguard.tables.kinds import Kind
from agentguard.tables.record import layout_of

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "reference" / "configuration.md"
TOP: Final = "At the top"

OPENING: Final = """\
# Configuration: agentguard.toml

`agentguard.toml` says who may act, which policy decides, and where the keys and the log are.
`agentguard init` writes a first one, and `agentguard doctor` checks the file after a change.
Commands and `Guard.find()` take the nearest `agentguard.toml`, from the working directory
upwards; `Guard.open(path)` takes the file named.

`scripts/configuration-reference` makes this page from the code that reads a configuration. An
unknown key is an error, and so is a value of another type (`config.invalid`): the message names
the key and what was expected. A path is relative to the file; `~` is the home folder. A file that
other users can write is refused (`config.exposed`). `Guard.ephemeral(config={...})` takes the
same tables as a dictionary, for tests. `NAME` is a name that you choose; a line of an example that
is a comment is in the place of another key."""

AFTER_TOOLS: Final = """\
### What show shows

`show` is for the lists of this configuration: `agentguard audit list` and `tail`, and `agentguard approvals list`, each with `--json` (the member `shown`). Whoever may read
the state, or the requests of a guard server, sees the values; the log has them already. A list of calls takes them from the log, as they stand there. An argument that was redacted
when the call was logged, or that `[redact]` redacts now, is never shown: the list says `redacted` (`{"$redacted": true}`). To name one in both `show` and `[redact]` is an error, and so is an argument that
the tool does not take. Where the log does not hold the arguments, as after `agentguard erase`, the list says `not in the log` (`{"$missing": true}`). A request has its arguments until the call is decided;
what only the policy redacts (`obligations`) is shown there, since people approve it. A terminal gets each value escaped, and a long one shortened.

### A name that no tool has

A tool that was renamed in the code and in the policy, and not here, would lose its `requires` and its facts. So agentguard compares the names, as soon as it knows the tools:

| where the tools come from | what happens |
|---|---|
| the program makes tools with `@guard.tool` before the guard's first agent | `new_agent` raises a `ConfigError`, if a table `[tools.X]` has no tool while a tool has no table: it names X and the tool. So it does for a name in `[redact]`, `[aliases]` or `[secrets]` that is close to the name of a tool that has none |
| later: adapters wrap tools with an agent, a gateway learns the tools of an MCP server, the clients of a guard server bring theirs; and always where the configuration has `[server]` or `[mcp]` | one warning in the log of the program names X and a tool without a table whose name is close; `agentguard doctor` compares the names with the calls of the log |
| with `unlisted = "deny"`, anywhere | the call is denied, and the reason names the table to write, or to rename |

Several programs may share an `agentguard.toml`: a table whose tool another program has is no mistake where each tool of this program has a table."""  # noqa: E501  lines of a page


@dataclass(frozen=True)
class Key:
    """A key as the page has it."""

    name: str
    kind: Kind[Any]
    default: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """A section of the page: a table, its keys, and an example in TOML.

    A table whose keys the user chooses has the one key NAME.
    """

    table: str
    about: str
    keys: tuple[Key, ...]
    example: str

    @property
    def place(self) -> tuple[str, ...]:
        """The names that lead to the example's own table."""
        headers = re.findall(r"^\[(.+)\]$", self.example, re.MULTILINE)
        names: tuple[str, ...] = ()
        tables: Any = tomllib.loads(f"[{headers[-1]}]") if headers else {}
        while tables:
            ((name, tables),) = tables.items()
            names += (name,)
        return names


def sections(record: type[Any] = Config, table: str = "") -> Iterator[Section]:
    """Yield the section of a record, and those of the tables below it."""
    texts = _texts(record)
    about, example = _divided(inspect.getdoc(record) or "")
    keys, below = [], []
    prefix = f"{table}." if table else ""
    for name, kind in layout_of(record).keys.items():
        meaning, of_names = _divided(texts.get(name, ""))
        (declared,) = (one for one in fields(record) if one.name == name)
        key = Key(name, kind, _default(declared), meaning)
        if of_names:
            below.append(Section(name, meaning, (Key("NAME", kind, "", "the value"),), of_names))
        elif kind.words not in ("table", "tables"):
            keys.append(key)
        end = ".NAME" if kind.words == "tables" else ""
        for inner in kind.records:
            below += sections(inner(), f"{prefix}{name}{end}")
    others = layout_of(record).others
    if others is not None:
        below += sections(others.metadata["others"](), f"{prefix}NAME")
    yield Section(table, about, tuple(keys), example)
    yield from below


def _texts(record: type[Any]) -> dict[str, str]:
    """Return the docstring below each field."""
    (made,) = ast.parse(textwrap.dedent(inspect.getsource(record))).body
    body = made.body if isinstance(made, ast.ClassDef) else []
    texts = {}
    for field, text in pairwise(body):
        match field, text:
            case ast.AnnAssign(ast.Name(name)), ast.Expr(ast.Constant(str(words))):
                texts[name] = inspect.cleandoc(words)
    return texts


def _divided(text: str) -> tuple[str, str]:
    """Return what a docstring says, as Markdown, and the example in it."""
    said, _, example = text.partition("::\n\n")
    about = "\n\n".join(one for one in said.strip().split("\n\n") if not one.startswith("Raises"))
    return _markdown(about), textwrap.dedent(example)


def _markdown(text: str) -> str:
    text = re.sub(r"``(.+?)``", r"`\1`", re.sub(r"(?<!\n)\n(?!\n)", " ", text))
    return re.sub(r"docs/([\w/-]+\.md)(#[\w-]+)?", _link, text)


def _link(found: re.Match[str]) -> str:
    """Return a link with the title of the page, or of the part of this page."""
    path, part = ROOT / "docs" / found[1], found[2] or ""
    if path == PAGE:
        return f"[{part.removeprefix('#').replace('-', ' ')}]({part})"
    title = path.read_text("utf-8").partition("\n")[0].removeprefix("# ")
    return f"[{title}](../{found[1]}{part})"


def _default(declared: Field[Any]) -> str:
    factory = declared.default_factory
    value = declared.default if factory is MISSING else factory()
    if value is MISSING:
        return "required"
    if isinstance(value, bool | int | float):
        return f"`{str(value).lower()}`"
    return f'`"{value}"`' if value else "none"


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Put the tables of one example over those of another."""
    both = {
        name: merged(below[name], value)
        if isinstance(value, Mapping) and isinstance(below.get(name), Mapping)
        else value
        for name, value in above.items()
    }
    return {**below, **both}


def whole(told: list[Section], section: Section) -> dict[str, Any]:
    """Return a whole configuration with the example of a section.

    A client's ``[server]`` and the ``[policy]`` of an OPA server replace the usual ones.
    """
    variants = [one for one in told if one.table == "policy"][1:]
    variants += [one for one in told if one.table == "server.oauth"]
    usual: dict[str, Any] = reduce(
        merged, [tomllib.loads(one.example) for one in told if one not in variants], {}
    )
    own = tomllib.loads(section.example)
    return {**usual, **own} if section in variants else merged(usual, own)


def problems(told: list[Section]) -> list[str]:
    """Return the keys without a meaning, and those that the example of their table lacks."""
    return [
        f"[{section.table}] {key.name} has no {what}"
        for section in told
        for key in section.keys
        for what, has in (
            ("meaning", key.meaning),
            ("example", key.name == "NAME" or f"{key.name} = " in section.example),
        )
        if not has
    ]


def page(told: list[Section]) -> str:
    """Return the page."""
    parts = [OPENING]
    for section in told:
        title = f"`[{section.table}]`" if section.table else TOP
        variant = "" if f"## {title}" not in parts else ' with `engine = "opa"`'
        parts += [f"## {title}{variant}", section.about]
        if [key.name for key in section.keys] == ["NAME"]:
            parts.append(f"Each value is a {section.keys[0].kind.words}.")
        elif section.keys:
            rows = [
                f"| `{key.name}` | {key.kind.words} | {key.default} | {key.meaning} |"
                for key in section.keys
            ]
            parts.append(
                "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])
            )
        parts.append(f"```toml\n{section.example}\n```")
        if section.table == "tools.NAME":
            parts.append(AFTER_TOOLS)
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Write the page or check it; return the exit code."""
    told = list(sections())
    wrong = problems(told)
    text = page(told)
    if not wrong and "--check" not in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        wrong += [f"{PAGE.relative_to(ROOT)} is not current: run scripts/configuration-reference"]
    print("\n".join(wrong) or "every key of agentguard.toml has its meaning and an example")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
