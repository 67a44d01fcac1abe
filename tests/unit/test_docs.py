"""The pages under docs/ against the tree: layers, names of pages, links.

What a page's examples do is tested where their subject is; ``docs/reference/cli/`` and
``docs/reference/reason-codes.md`` have tests of their own.
"""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("integrations/*/*.md")])
MODULES = sorted([*ROOT.glob("src/**/*.py"), *ROOT.glob("integrations/*/src/**/*.py")])
LAYERS = (ROOT / "docs" / "explanation" / "layers.md").read_text(encoding="utf-8")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_rows_of_the_layers_are_those_of_the_contract():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (layers,) = [
        contract["layers"]
        for contract in project["tool"]["importlinter"]["contracts"]
        if contract["id"] == "layers"
    ]
    _, _, section = LAYERS.partition("\n## Layers\n")
    rows = re.findall(r"^\| (`[^|]*`) \|", section.partition("\n## ")[0], re.MULTILINE)
    written = [" : ".join(sorted(re.findall(r"\w+", row))) for row in rows]
    assert written == [" : ".join(sorted(row.split(" : "))) for row in layers]


def docstrings(source: str) -> str:
    """All that stands in the place of a docstring, as one text."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [
        node.value.value
        for owner in ast.walk(ast.parse(source))
        if isinstance(owner, documented)
        for node in owner.body
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]
    return " ".join(" ".join(texts).split())


def missing(source: str) -> list[str]:
    """The pages that docstrings name, by path or ``keys.md`` for short, and that are not.

    Of ``(keys.md, Rotation)`` the page must have that section, or a paragraph that begins so.
    """
    found: list[str] = []
    if ".md" not in source:  # syntax trees take seconds
        return found
    for page, section in re.findall(r"([\w./-]+\.md\b)(?:, \"?([^).\"]+))?", docstrings(source)):
        files = [ROOT / page] if "/" in page else [*ROOT.glob(page), *ROOT.glob(f"docs/**/{page}")]
        files = [file for file in files if file.is_file()]
        if not files:
            found.append(page)
        elif section and files[0].name in ("policy-document.md", "records.md"):
            begins = rf"^(#+ |- |)(\*\*)?{re.escape(section)}(\*\*.*|)$"
            if not re.search(begins, files[0].read_text(encoding="utf-8"), re.MULTILINE):
                found.append(f"{page}, {section}")
    return found


def test_what_a_docstring_names_of_the_pages_is_there():
    found = {name(module): missing(module.read_text(encoding="utf-8")) for module in MODULES}
    assert {module: pages for module, pages in found.items() if pages} == {}


def test_what_is_not_there_is_found():
    source = (
        'X = 1\n"""As in policies.md (records.md, Identity), and no_such.md."""\n'
        'def f():\n    """Of docs/none.md (records.md, Audit\n    log)."""\n'
    )
    assert missing(source) == ["no_such.md", "docs/none.md", "records.md, Audit log"]


def test_every_link_of_a_page_leads_somewhere():
    links = [
        (page, link)
        for page in PAGES
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert len(links) > len(PAGES)
    assert [(name(page), link) for page, link in links if not leads_somewhere(page, link)] == []


def leads_somewhere(page: Path, link: str) -> bool:
    """Whether a link of this page has a file here, and that file the heading; or leads outside."""
    path, _, heading = link.partition("#")
    if "://" in path:
        return True
    target = page.parent / path if path else page
    return target.exists() and (not heading or heading in headings(target))


@pytest.mark.parametrize("link", ["docs/none.md", "docs/glossary.md#no-such-heading", "#nor-this"])
def test_a_link_that_leads_nowhere_is_found(link):
    assert not leads_somewhere(ROOT / "README.md", link)
    assert leads_somewhere(ROOT / "README.md", "docs/glossary.md")


@cache
def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_contributing_says_where_each_public_vector_comes_from():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tests = "".join(path.read_text("utf-8") for path in (ROOT / "tests" / "vectors").glob("*.py"))
    folders = set(re.findall(r'vectors / "(\w+)"', tests))
    assert {"jcs", "merkle", "wimse", "wycheproof"} <= folders
    for folder in folders:
        assert re.search(rf"^\| `{folder}/.*\| [0-9a-f]{{7}} \|", text, re.MULTILINE), folder
    for file in re.findall(r'read\(vectors, "([\w.]+)"\)', tests):
        assert f"| `{file}` |" in text, file
