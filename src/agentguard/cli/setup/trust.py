"""``agentguard trust``: the public keys with which others verify this domain's log."""

from __future__ import annotations

from pathlib import Path

from agentguard.cli.terminal import files, location, screen
from agentguard.cli.terminal.options import ANCHOR, CONFIG, FORCE, OUTPUT, STATE, command
from agentguard.domain import keystore, trust_pin
from agentguard.errors import ConfigError, VerificationError
from agentguard.storage import state_lock


@command(OUTPUT, FORCE, CONFIG, STATE, ANCHOR)
def export(
    *, output: Path | None, force: bool, config: Path | None, state: Path | None, anchor: str | None
) -> None:
    """The output is the trust document, in JSON. The export fails if the copy in the anchor is
    missing or differs.
    """
    where = location.locate(config, state, anchor)
    document = keystore.load_trust(where.state)
    anchored = location.anchored_trust(where, document)
    if anchored is not None and anchored.document != document:
        message = (
            f"the trust document in {where.state} differs from the one in {anchored.source}: "
            "nothing was exported; find out who changed it"
        )
        raise VerificationError(message, code="trust.changed")
    with files.new(output, force=force) as file:
        file.write(document.dumps() + b"\n")
    if not files.is_stream(output):
        screen.line(f"{output} has {len(document.keys)} public keys of {document.trust_domain}")
        screen.line(f"its fingerprint (SHA-256): {document.fingerprint}")


@command(CONFIG)
def pin(config: Path | None) -> None:
    """For a new anchor, or a state that replaces another one: until then every call is denied.
    Verify the log first (agentguard audit verify --anchor '' --trust FILE). A trust document that
    is in the anchor already is not replaced.
    """
    settings = location.load_own(config)
    if settings.anchor is None:
        raise ConfigError(
            f"{settings.source}: anchor: there is no anchor to pin the keys in; set anchor to a "
            "folder outside the state"
        )
    with state_lock.held(settings.state):
        document = keystore.load_trust(settings.state)
        trust_pin.keep(settings.anchor, settings.state, document)
    where = location.from_home(settings.anchor)
    state = location.from_home(settings.state)
    screen.line(f"{where} names {state} as the state of the log {document.log}")
    for trusted in document.keys:
        screen.item("  ", f"{trusted.use} key {trusted.key.thumbprint}")
    screen.line("These keys are trusted from now on: compare them with the keys that you gave out")
