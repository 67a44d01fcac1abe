"""What mkdocs adds to the site of docs/: the decisions, and the files that pages of docs/ link to.

A page of docs/ links to a file outside of docs/ by the file's path
(``../../examples/opa/main.py``), so that the link works in the repository, too. The site has a
copy of each such file below ``repository/``: a page of Markdown as a page, any other text as a page
that shows the text, a folder as a list of its files. mkdocs calls ``on_files`` and
``on_page_markdown``.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any, Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).resolve().parents[1]
ADR: Final = "adr"
COPIES: Final = "repository"
"""The folder of the site that has the copies."""

FENCED: Final = re.compile(r"^( *)(```+|~~~+).*?^\1\2 *$", re.DOTALL | re.MULTILINE)
LINK: Final = re.compile(r"(\]\()([^)\s]+)(\))")
HEADING: Final = re.compile(r"^# (.*)$", re.MULTILINE)


def links(markdown: str) -> list[re.Match[str]]:
    """Return the links of a page that lead to files: none of a block of code, none to the web."""
    code = [range(*found.span()) for found in FENCED.finditer(markdown)]
    return [
        found
        for found in LINK.finditer(markdown)
        if not any(found.start() in lines for lines in code)
        and not re.match(r"[a-z]+:|#", found[2])
    ]


def in_repository(source: str) -> str:
    """Return the path in the repository of a file of the site."""
    if source.startswith(f"{COPIES}/"):
        return source.removeprefix(f"{COPIES}/").removesuffix(".code.md")
    return f"docs/{source}"


def in_site(path: str) -> str:
    """Return the path in the site of a file of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        path = f"{path}/README.md"
    return f"{COPIES}/{path}" if path.endswith(".md") else f"{COPIES}/{path}.code.md"


def target(source: str, link: str) -> str:
    """Return the path in the repository of what a link of this file of the site leads to."""
    folder = posixpath.dirname(in_repository(source))
    return posixpath.normpath(posixpath.join(folder, link.partition("#")[0]))


def mended(source: str, markdown: str) -> str:
    """Return a page of the site whose links lead to files of the site."""
    for found in reversed(links(markdown)):
        to = posixpath.relpath(in_site(target(source, found[2])), posixpath.dirname(source) or ".")
        _, mark, heading = found[2].partition("#")
        markdown = f"{markdown[: found.start(2)]}{to}{mark}{heading}{markdown[found.end(2) :]}"
    return markdown


def shown(path: str) -> str:
    """Return the page of a file of the repository: the file itself, or a page that shows it."""
    folder = posixpath.dirname(path)
    if path.endswith("README.md") and not (ROOT / path).is_file():
        return f"# {folder}\n\n{listed(folder)}"
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith("README.md") and folder:
        return f"{text}\n## Files\n\n{listed(folder)}"
    if path.endswith(".md"):
        return text
    kind = {".py": "python", ".toml": "toml", ".yaml": "yaml"}.get(Path(path).suffix, "text")
    return f"# {path}\n\n````{kind}\n{text}````\n"


def listed(folder: str) -> str:
    """Return a list of the files in a folder of the repository, as links."""
    names = sorted(
        path.name
        for path in (ROOT / folder).iterdir()
        if not path.name.startswith((".", "_", "README")) and not path.is_symlink()
    )
    return "".join(f"- [{name}]({name})\n" for name in names)


def copied(files: Files) -> dict[str, str]:
    """Return the pages of the files outside of docs/ that pages lead to, by path in the site."""
    pages = {f.src_uri: f.content_string for f in files.documentation_pages()}
    copies: dict[str, str] = {}
    while pages:
        source, markdown = pages.popitem()
        for found in links(markdown):
            path = target(source, found[2])
            to = in_site(path)
            if path.startswith(("docs/", "../")) or to in copies:
                continue
            if (ROOT / path).exists():
                copies[to] = pages[to] = shown(in_repository(to))
    return copies


def title(markdown: str) -> str:
    """Return the first heading of a page."""
    found = HEADING.search(markdown)
    return found[1] if found else ""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the copies, and have the menu lead to them and to each decision."""
    copies = copied(files)
    for path, text in copies.items():
        files.append(File.generated(config, path, content=text))
    decisions = sorted(f.src_uri for f in files if f.src_uri.startswith(f"{ADR}/"))
    decisions.insert(0, decisions.pop(decisions.index(f"{ADR}/README.md")))
    menu: list[dict[str, Any]] = config.nav or []
    (explained,) = (part["Explanation"] for part in menu if "Explanation" in part)
    explained.append({"Decisions": decisions})
    menu.append({"Repository": [{title(copies[to]): to} for to in sorted(copies)]})
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Mend the links of a page."""
    return mended(page.file.src_uri, markdown)
