"""``agentguard revocations``: write who may act no more to a file, for the servers of tools.

It needs no passphrase: the log's key has signed the head that the file rests on.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from agentguard.cli.terminal import files, location
from agentguard.cli.terminal.options import ANCHOR, CONFIG, FORCE, OUTPUT, STATE, command
from agentguard.storage import published_revocations


@command(OUTPUT, FORCE, CONFIG, STATE, ANCHOR)
def revocations(
    *, output: Path | None, force: bool, config: Path | None, state: Path | None, anchor: str | None
) -> None:
    """The file proves who is revoked, logged out or frozen by now, and who is not; it has no name.
    Write it anew after each revocation, and copy it to the servers that verify the proofs of calls
    (PublishedRevocations): an older file says less.
    """
    where, trust = location.trusted_log(config, state, anchor, None)
    with closing(where.log(trust.document)) as log:
        document = published_revocations.of(log)
    with files.new(output, force=force) as file:
        file.write(document)
