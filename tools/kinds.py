"""Write the table of the kinds of entries in docs/explanation/log.md from their declarations.

``scripts/kinds`` runs this file. A row has the kind, its members, and the first paragraph of the
declaration's text.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any, Final, get_type_hints

from agentguard.audit import kinds
from agentguard.audit.entry import KINDS, Entry, Signed
from agentguard.signing.declared import ABSENT, Declared

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "explanation" / "log.md"
BEGIN: Final = "<!-- scripts/kinds writes this table -->\n"
END: Final = "<!-- the end of the table -->\n"
_SIGNERS: Final = {"issuer": "The issuer signs.", "admin": "The admin key signs."}


def table() -> str:
    """Return the table, a row for each kind."""
    rows = ["| kind | members | what the entry says |", "|---|---|---|"]
    rows += [
        f"| `{kind}` | {_members(form)} | {_words(form)} |" for kind, form in sorted(KINDS.items())
    ]
    return "\n".join(rows) + "\n"


def _members(form: type[Entry]) -> str:
    hints = get_type_hints(form)
    defaults = dict(zip(form.__struct_fields__[::-1], form.__struct_defaults__[::-1], strict=False))
    names = [name for name in form.__struct_fields__ if name != "at"]
    always = [_member(name, hints[name]) for name in names if defaults.get(name) is not ABSENT]
    some = [f"`{name}`" for name in names if defaults.get(name) is ABSENT]
    told = f"`{', '.join(always)}`"
    return f"{told}; in some entries {', '.join(some)}" if some else told


def _member(name: str, hint: Any) -> str:
    if isinstance(hint, type) and issubclass(hint, Declared):
        return f"{name} {{{', '.join(hint.__struct_fields__)}}}"
    return name


def _words(form: type[Entry]) -> str:
    said = re.sub(r"\s+", " ", inspect.getdoc(form).split("\n\n")[0]).replace("``", "`")  # type: ignore[union-attr]
    signed = f" {_SIGNERS[form.use]}" if issubclass(form, Signed) else ""
    return said + signed


def main() -> None:
    """Write the table, or with ``--check`` fail where the page has another one."""
    assert kinds.__all__  # noqa: S101  the declarations are imported
    before, rest = PAGE.read_text("utf-8").split(BEGIN)
    text = before + BEGIN + table() + END + rest.split(END)[1]
    if text == PAGE.read_text("utf-8"):
        return
    if "--check" in sys.argv:
        raise SystemExit(f"{PAGE.name} has another table of kinds: run scripts/kinds")
    PAGE.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
