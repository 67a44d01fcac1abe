"""A Python function as a policy engine (provisional file of the lead; owner overwrites)."""

from __future__ import annotations

import json
from dataclasses import asdict

from agentguard.decision import Decision
from agentguard.errors import PolicyError


class FunctionEngine:
    name = "function"
    version = "0"
    policy_sha256 = None
    policy_files = {}

    def __init__(self, decide):
        self._decide = decide

    def evaluate(self, document):
        try:
            d = self._decide(json.loads(document))
        except Exception as e:
            raise PolicyError("x") from e
        if not isinstance(d, Decision):
            raise PolicyError("no")
        out = {"allow": d.outcome == "allow"}
        if d.outcome == "deny":
            out["deny_reasons"] = list(d.reasons)
        if d.outcome == "approval":
            out["approval"] = [
                asdict(r) | {"approvers": list(r.approvers), "roles": list(r.roles)}
                for r in d.requirements
            ]
        return out
