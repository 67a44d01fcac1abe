"""The tests in ``sdk2`` have an environment of their own: ``test_mcp_sdk_two.py`` runs them."""

from __future__ import annotations

collect_ignore = ["sdk2"]
