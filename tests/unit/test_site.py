"""The site of docs/: it builds strictly and without a network, and nothing on a page is fetched."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
BUILD = """
import sys
from mkdocs.__main__ import cli
def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        raise RuntimeError(f"the network was asked for: {event} {args}")
sys.addaudithook(refuse)
cli()
"""
KIT = ["APPROVER", "AdapterTests", "RecordedGuard", "recorded_guard"]
"""What agentguard.testing offers."""
MODULES = [
    "agentguard",
    "agentguard.adapters",
    "agentguard.testing",
    "agentguard_langchain",
    "agentguard_mcp",
    pytest.param(
        "agentguard_crewai",
        marks=pytest.mark.skipif(sys.version_info >= (3, 14), reason="CrewAI's own bound"),
    ),
]


class Menu(yaml.SafeLoader):
    """Reads mkdocs.yml without the Python objects in it."""


Menu.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def pages_of(menu: Any) -> list[str]:
    if isinstance(menu, str):
        return [menu]
    parts = menu.values() if isinstance(menu, dict) else menu
    return [page for part in parts for page in pages_of(part)]


def build(root, site):
    arguments = ["build", "--strict", "--config-file", root / "mkdocs.yml", "--site-dir", site]
    return subprocess.run(
        [sys.executable, "-c", BUILD, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    built = build(ROOT, folder)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


TAKES = "mkdocs builds the whole site, in a process of its own"


def test_the_menu_has_each_page_once():
    config = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Menu)  # noqa: S506  a safe one
    there = [path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")]
    assert sorted(pages_of(config["nav"])) == sorted(p for p in there if not p.startswith("adr/"))


@pytest.mark.slow(TAKES)
def test_a_page_fetches_nothing_from_elsewhere(site):
    pages = list(site.glob("**/*.html"))
    assert len(pages) > 50
    fetched = r'<(?:script|img|iframe)[^>]* src="?https?:[^>]*|<link[^>]* href="?https?:[^>]*'
    found = {page.name: re.findall(fetched, page.read_text("utf-8")) for page in pages}
    assert {page: tags for page, tags in found.items() if tags} == {}
    assert not re.search(r"@import|url\(.?https?:", "".join(styles(site)))


def styles(site):
    return [file.read_text("utf-8") for file in site.glob("**/*.css")]


@pytest.mark.slow(TAKES)
@pytest.mark.parametrize("module", MODULES)
def test_the_reference_has_each_public_name(site, module):
    page = (site / "reference" / f"{re.sub('[._]', '-', module)}.html").read_text("utf-8")
    names = getattr(importlib.import_module(module), "__all__", KIT)
    assert [name for name in names if f'id="{module}.{name}"' not in page] == []


@pytest.mark.slow(TAKES)
def test_the_search_knows_a_reason_code_and_a_name(site):
    index = json.loads((site / "search" / "search_index.json").read_text("utf-8"))
    text = " ".join(entry["text"] for entry in index["docs"])
    assert "scope.exceeded" in text
    assert "idempotency_key" in text


@pytest.mark.slow(TAKES)
@pytest.mark.parametrize("link", ["nowhere.md", "glossary.md#nothing", "../src/nothing.py"])
def test_a_dead_link_fails_the_build(tmp_path, link):
    (tmp_path / "docs" / "adr").mkdir(parents=True)
    for part in ("mkdocs.yml", "tools"):
        (tmp_path / part).symlink_to(ROOT / part)
    (tmp_path / "docs" / "adr" / "README.md").write_text("# Decisions\n")
    (tmp_path / "docs" / "glossary.md").write_text("# Glossary\n")
    text = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")[0]
    nav = "\nnav:\n  - Home: index.md\n  - Glossary: glossary.md\n  - Explanation: []\n"
    (tmp_path / "mkdocs.yml").unlink()
    (tmp_path / "mkdocs.yml").write_text(text + nav)
    for written, fails in ((f"[x]({link})", True), ("[x](glossary.md#glossary)", False)):
        (tmp_path / "docs" / "index.md").write_text(f"# Home\n\n{written}\n")
        built = build(tmp_path, tmp_path / "site")
        assert (built.returncode != 0) is fails, built.stderr
