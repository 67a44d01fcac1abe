"""A domain with a call in doubt: its report, its calls, and the administrator's entries."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from agentguard.audit.entry import CallPlace
from agentguard.audit.kinds import parse_entry
from agentguard.call.invocation import timestamp
from agentguard.domain import administration, config, domain, keystore
from agentguard.domain.verify import examine
from agentguard.signing import canonical
from agentguard.store.reader import StoredLog

PASSPHRASE = b"correct horse"


def settings_in(folder: Any) -> Any:
    tables = {
        "trust_domain": "acme.example",
        "state": "state",
        "anchor": "anchor",
        "policy": {"engine": "function", "path": "unused:unused"},
        "agents": {"a": {"authority": "own"}},
    }
    return config.parse(tables, source="agentguard.toml", base=folder)


def report(settings: Any) -> Any:
    with closing(StoredLog.of(settings.state)) as reader:
        return examine(reader, keystore.load_trust(settings.state), anchor=settings.anchor)


def calls(settings: Any) -> Any:
    """The authorizations, by what they were given."""
    with closing(StoredLog.of(settings.state)) as reader:
        return {
            canonical.loads_object(stored.attachments[0].data)["what"]: (
                stored.index,
                parse_entry(stored.body),
            )
            for stored in reader.stored()
            if parse_entry(stored.body).kind == "call" and stored.attachments
        }


def resolve(
    settings: Any,
    invocation_id: Any,
    *,
    ran: Any = True,
    note: Any = "asked the bank",
    now: Any = None,
) -> Any:
    return administration.resolve(
        settings, PASSPHRASE, invocation_id, ran=ran, note=note, now=now or datetime.now(UTC)
    )


def in_doubt(settings: Any) -> Any:
    (invocation_id,) = report(settings).in_doubt
    return invocation_id


def append(settings: Any, record: Any) -> Any:
    log = domain.take_up(settings, PASSPHRASE).open_log(datetime.now(UTC))
    try:
        return log.append(record)
    finally:
        log.close()


def place_of(settings: Any, what: Any = "die") -> Any:
    index, call = calls(settings)[what]
    return CallPlace(index, call.invocation_id, call.invocation_sha256)


def now() -> Any:
    return timestamp(datetime.now(UTC))


def admin_of(settings: Any) -> Any:
    return keystore.load_key(settings.state, "admin", PASSPHRASE)


def found(settings: Any) -> Any:
    """Each finding: its index, and what it says."""
    return [(one.index, one.what) for one in report(settings).problems]
