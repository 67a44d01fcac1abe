"""The key with which a person answers: an encrypted OpenSSH file, or one in an ssh-agent."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import click

from agentguard.cli.terminal import files
from agentguard.errors import KeyMaterialError
from agentguard.signing.keys import Ed25519Signer, PublicKey, Secret, Signer, require_encrypted
from agentguard.storage.ssh_agent import SshAgentSigner

PASSPHRASE_VARIABLE: Final = "AGENTGUARD_APPROVER_PASSPHRASE"  # noqa: S105  a name, no secret
"""The environment variable with the passphrase of an approver's key, where nobody can be asked."""


def signer(path: Path) -> Signer:
    """Return the signer of a key: ``FILE.pub`` is asked of the ssh-agent, ``FILE`` is opened.

    Its passphrase is asked for at the terminal. Raises ``StorageError`` or ``KeyMaterialError``.
    """
    data = files.read(path)
    if path.suffix == ".pub":
        return SshAgentSigner(PublicKey.from_openssh(data.decode("utf-8", "replace")))
    require_encrypted(data)
    return Ed25519Signer.from_openssh(data, _passphrase(path))


def _passphrase(path: Path) -> Secret:
    if os.environ.get(PASSPHRASE_VARIABLE):
        return Secret(os.fsencode(os.environ[PASSPHRASE_VARIABLE]))
    if not sys.stdin.isatty():
        message = (
            f"nobody is there to be asked for the passphrase of {path}: set {PASSPHRASE_VARIABLE}, "
            f"or name {path}.pub, to sign by ssh-agent"
        )
        raise KeyMaterialError(message, code="key.passphrase")
    question = f"Passphrase of {path}"
    return Secret(os.fsencode(click.prompt(question, hide_input=True, err=True)))
