"""``Log``: the guarded calls in a guard's log, read and verified as an auditor would."""

from __future__ import annotations

import json
from base64 import b64decode
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from agentguard import Guard
from agentguard.audit.kinds import parse_entry
from agentguard.identity import credential
from agentguard.signing.dsse import Envelope, parse_statement


@dataclass(frozen=True)
class Logged:
    """An authorization entry, its signature verified with the key of the agent that it names."""

    agent: str
    tool: str
    decision: str
    code: str
    values: Any
    encoded: bytes | None
    predicate: Any
    outcome: str | None


class Log:
    """The log of a guard, read the way an auditor would."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard

    def calls(self) -> list[Logged]:
        reader, keys, authorizations, outcomes = self.guard.reader(), {}, [], {}
        for stored in reader.stored():
            read = parse_entry(stored.body)
            members: Any = read.members
            if read.kind == "identity":
                at = int(datetime.fromisoformat(read.at).timestamp())
                issued = credential.verify(members["credential"], self.guard.trust, at=at)
                keys[issued.uri] = issued.key
            elif read.kind == "call":
                attached = {a.role: a.data for a in stored.attachments}
                authorizations.append((stored.index, members, attached.get("arguments")))
            elif read.kind == "outcome":
                payload = json.loads(b64decode(members["statement"]["payload"]))
                place = payload["predicate"]["authorization"]["index"]
                outcomes[place] = payload["predicate"]["status"]
        return [self._logged(keys, outcomes, *one) for one in authorizations]

    def _logged(self, keys, outcomes, index, members, encoded) -> Logged:
        sealed = Envelope.parse(members["invocation"], may_be_joint=True)
        claimed = json.loads(sealed.payload)["predicate"]["agent"]
        payload = sealed.verify(keys[claimed])
        predicate: Any = parse_statement(payload, "invocation").predicate
        return Logged(
            agent=predicate["agent"],
            tool=predicate["tool"]["name"],
            decision=members["decision"],
            code=members["code"],
            values=None if encoded is None else json.loads(encoded),
            encoded=encoded,
            predicate=predicate,
            outcome=outcomes.get(index),
        )
