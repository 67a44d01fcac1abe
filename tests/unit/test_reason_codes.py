"""docs/reference/reason-codes.md has every code of the source, and no other."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def check(root: Path) -> subprocess.CompletedProcess[str]:
    command: list[str] = [sys.executable, str(root / "scripts" / "reason-codes"), "--check"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_page_is_complete_and_current():
    result = check(ROOT)
    assert (result.returncode, result.stdout) == (0, "every code has its meaning\n")


def test_a_new_code_and_a_stale_page_are_found(tmp_path):
    adapters = (f"integrations/agentguard-{name}/src" for name in ("crewai", "langchain"))
    for part in ("scripts", "tools", "docs", "src/agentguard", *adapters):
        shutil.copytree(ROOT / part, tmp_path / part)
    (tmp_path / "src/agentguard/extra.py").write_text('raise E("x", code="brand.new")\n')
    (tmp_path / "docs/reference/reason-codes.md").write_text("stale")
    result = check(tmp_path)
    assert result.returncode == 1
    assert "brand.new has no row" in result.stdout
    assert "not current" in result.stdout
