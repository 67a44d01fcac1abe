"""The check of the sources for empty values that count as absent ones finds these alone."""

from __future__ import annotations

from pathlib import Path

import empty_is_all
import pytest

ASKED = "def f(scope: list[str] | None):\n    %s"


@pytest.mark.parametrize(
    "planted",
    [
        "ask(scope or None)",
        "given = table.scope or ()",
        "names = claims['aud'] or []",
        "names = claims.get('roles') or ['user']",
        "audience = asked.audience or tuple(default)",
        "agent = caller.agent or table.agent or ''",
        "known = max_scope or self.everything",
        "given = tuple(approvers) if approvers else None",
        "given = None if not tools else tuple(tools)",
        ASKED % "if not scope: return ALL",
        ASKED % "return [x for x in ALL if scope and x in scope]",
        ASKED % "return ALL if limit and not scope else scope",
        ASKED % "return bool(scope)",
    ],
)
def test_a_planted_case_is_found(planted):
    ((line, code),) = empty_is_all.problems(planted)
    assert line in (1, 2)
    assert code in planted


@pytest.mark.parametrize(
    "innocent",
    [
        "ask(None if scope is None else tuple(scope))",
        "name = label or 'agents'",
        "if scope or label: raise Error",
        "shown = ' '.join(scope) or 'nothing'",
        "text = f' in the roles {roles}' if roles else ''",
        "found = is_agent or in_advance",
        "read = root.text('tools') if root.is_text('tools') else None",
        ASKED % "if scope is None: return ALL",
        "def f(scope: list[str]):\n    if not scope: raise Error",
    ],
)
def test_an_innocent_line_passes(innocent):
    assert empty_is_all.problems(innocent) == []


def test_no_source_has_such_a_place(capsys):
    assert empty_is_all.main() == 0, capsys.readouterr().out
    assert {path.parts[-2] for path in empty_is_all.SOURCES} >= {"agentguard-mcp"}
    assert (Path(empty_is_all.SOURCES[0]) / "agentguard").is_dir()
