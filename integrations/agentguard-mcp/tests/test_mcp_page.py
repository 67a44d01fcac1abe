"""The code on the page about MCP is that of the example, which runs in ``sdk2``."""

from __future__ import annotations

from pathlib import Path

import docs_pages
import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "mcp_server"
CODE = "".join((EXAMPLE / name).read_text() for name in ("server.py", "main.py"))
BLOCKS = docs_pages.blocks(docs_pages.text("how-to/mcp"), "python")


def test_the_page_has_code():
    assert len(BLOCKS) == 5


@pytest.mark.parametrize("number", range(5))
def test_each_block_is_part_of_the_example(number):
    assert "".join(BLOCKS[number].split()) in "".join(CODE.split())
