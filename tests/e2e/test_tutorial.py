"""docs/tutorial as a reader follows it: one folder, all stages, and each prints what it says."""

from __future__ import annotations

import re
from itertools import pairwise

import docs_pages
import pytest
from page_reader import Reader

STAGES = sorted((docs_pages.DOCS / "tutorial").glob("[0-9]*.md"))


@pytest.mark.slow("founds a trust domain, and starts a dozen processes")
def test_the_tutorial_runs_from_an_empty_folder(tmp_path, programs):
    reader = Reader(tmp_path, "shop", programs)
    for stage in STAGES:
        reader.follow(stage.read_text("utf-8"))


def test_each_stage_leads_to_the_next_and_the_first_page_to_all():
    first = docs_pages.text("tutorial/README")
    assert re.findall(r"^\| \[.*?\]\((.*?)\)", first, re.MULTILINE) == [s.name for s in STAGES]
    for stage, after in pairwise(STAGES):
        assert f"]({after.name})" in stage.read_text("utf-8")
