"""Files of tokens, and what the ``token`` command prints of them."""

from __future__ import annotations

import json
from typing import Any

from agentguard.signing import canonical, jws


def claims_of(project: Any) -> dict[str, Any]:
    return jws.parse((project.folder / "token").read_text().strip()).claims()


def write(project: Any, name: str, document: Any) -> str:
    (project.folder / name).write_bytes(canonical.dumps(document))
    return name


def words(result: Any) -> str:
    return " ".join(result.stdout.replace("| ", "").split())


def told_as_json(result: Any, code: int = 0) -> Any:
    assert (result.returncode, result.stderr) == (code, "")
    return json.loads(result.stdout)


def refused(result: Any, code: str) -> None:
    """A mistake of whoever has typed it: one line, and exit code 2."""
    assert (result.returncode, result.stdout) == (2, "")
    assert f"[{code}]" in result.stderr
    assert "Traceback" not in result.stderr
