"""Policies of the embedded Rego engine in a test: made, asked, and refused at load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentguard.errors import PolicyError
from agentguard.policy.rego import RegoEngine


def policy(body: str, **options: Any) -> RegoEngine:
    return RegoEngine.from_source(f"package agent.authz\n{body}", **options)


def folder(path: Path, *, data: object = None, **modules: str) -> RegoEngine:
    for name, text in modules.items():
        (path / f"{name}.rego").write_text(text)
    if data is not None:
        (path / "data.json").write_text(json.dumps(data))
    return RegoEngine.load(path)


def ask(engine: RegoEngine, **members: Any) -> dict[str, Any]:
    answer = engine.evaluate(json.dumps(members).encode())
    assert isinstance(answer, dict)
    return answer


def refused(body: str, message: str, **options: Any) -> None:
    with pytest.raises(PolicyError, match=message) as refusal:
        policy(body, **options)
    assert refusal.value.code == "policy.invalid"
