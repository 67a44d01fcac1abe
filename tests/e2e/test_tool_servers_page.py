"""The pages of tool servers as a reader follows them: a program prints what its page says."""

from __future__ import annotations

import re
from pathlib import Path

import docs_pages
import pytest

from agentguard.proof import headers

PAGE = docs_pages.text("how-to/tool-servers")
FORMAT = docs_pages.text("reference/proof-format")


@pytest.mark.parametrize("name", ["tool-servers", "receiver-log"])
def test_the_program_of_the_page_prints_what_the_page_says(capsys, name):
    ((code, expected),) = docs_pages.prints(docs_pages.text(f"how-to/{name}"))
    exec(compile(code, f"{name}.md", "exec"), {"__name__": "__main__"})  # noqa: S102
    assert capsys.readouterr().out == expected


def test_the_pages_name_each_header_and_its_limit():
    named = set(re.findall(r"^\| `([A-Za-z-]+)(?:: DPoP)?`", PAGE, re.MULTILINE))
    assert {name.lower() for name in named} >= headers.NAMES
    assert f"{headers.MAX_CHAIN_HEADER:,}" in FORMAT
    assert headers.CHAINS_PATH in PAGE


def test_each_name_of_the_page_of_names_is_there():
    page = docs_pages.text("reference/agentguard-proof")
    for name in re.findall(r"^::: (agentguard\.[\w.]+)$", page, re.MULTILINE):
        path = Path(__file__).parents[2] / "src" / Path(*name.split("."))
        module = path if path.with_suffix(".py").is_file() else path.parent
        text = module.with_suffix(".py").read_text("utf-8")
        assert module == path or re.search(rf"^(?:class|def) {path.name}\b", text, re.MULTILINE)
