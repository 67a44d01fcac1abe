"""Rego: policies evaluated in this process, behind a gate that refuses what could fail open.

This package is the only way in: other packages import these names from here and nothing from the
modules inside (an import contract in pyproject.toml). ``RegoEngine`` evaluates a policy,
``RegoSource`` holds the files of one, and ``places`` lists the paths that a policy is read from.
"""

from __future__ import annotations

from agentguard.policy.rego.engine import RegoEngine
from agentguard.policy.rego.source import RegoSource, places

__all__ = ["RegoEngine", "RegoSource", "places"]
