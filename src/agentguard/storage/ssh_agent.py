"""A signer whose private key stays in an ssh-agent (draft-miller-ssh-agent).

Approvers use this signer; a guard's own keys lie in its state (``domain/keystore.py``).
"""

from __future__ import annotations

import os
import socket
from typing import Final

from agentguard.errors import KeyMaterialError
from agentguard.signing.keys import PublicKey

_VARIABLE: Final = "SSH_AUTH_SOCK"
_KIND: Final = b"ssh-ed25519"
_SIGN_REQUEST: Final = 13
_SIGN_RESPONSE: Final = 14
_TIMEOUT: Final = 60.0
"""Seconds: an agent may ask its user first."""

_MAX_ANSWER: Final = 1 << 16


class SshAgentSigner:
    """A ``Signer`` that asks the ssh-agent at ``SSH_AUTH_SOCK``."""

    def __init__(self, key: PublicKey) -> None:
        self._key = key

    @property
    def key_id(self) -> str:
        """The public key's RFC 7638 thumbprint."""
        return self._key.thumbprint

    @property
    def public_key(self) -> PublicKey:
        """The key that verifies what ``sign`` returns."""
        return self._key

    def sign(self, data: bytes) -> bytes:
        """Return the 64 bytes of the agent's signature.

        Raises ``KeyMaterialError``, or ``VerificationError`` for a signature that does not hold.
        """
        blob = _string(_KIND) + _string(self._key.raw)
        request = bytes([_SIGN_REQUEST]) + _string(blob) + _string(data) + bytes(4)
        answer = _ask(request)
        if not answer or answer[0] != _SIGN_RESPONSE:
            message = (
                "the ssh-agent does not sign with this key: add it with ssh-add, and see ssh-add -l"
            )
            raise KeyMaterialError(message, code="key.unusable")
        kind, rest = _read(_read(answer[1:])[0])
        signature, _rest = _read(rest)
        if kind != _KIND:
            raise _strange()
        self._key.verify(signature, data)
        return signature


def _ask(request: bytes) -> bytes:
    path = os.environ.get(_VARIABLE)
    if not path:
        message = f"no ssh-agent is at hand ({_VARIABLE} is not set): name the private key's file"
        raise KeyMaterialError(message, code="key.unusable")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
            agent.settimeout(_TIMEOUT)
            agent.connect(path)
            agent.sendall(_string(request))
            size = int.from_bytes(_exactly(agent, 4), "big")
            if size > _MAX_ANSWER:
                raise _strange()
            return _exactly(agent, size)
    except OSError as error:
        message = f"the ssh-agent at {path} can't be asked ({error.strerror or error})"
        raise KeyMaterialError(message, code="key.unusable") from error


def _exactly(agent: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        more = agent.recv(size - len(received))
        if not more:
            raise _strange()
        received += more
    return bytes(received)


def _string(data: bytes) -> bytes:
    """RFC 4251, 5: a string begins with its length."""
    return len(data).to_bytes(4, "big") + data


def _read(data: bytes) -> tuple[bytes, bytes]:
    """Return a string at the beginning of ``data``, and what follows it."""
    size = int.from_bytes(data[:4], "big")
    if len(data) < 4 + size:
        raise _strange()
    return data[4 : 4 + size], data[4 + size :]


def _strange() -> KeyMaterialError:
    return KeyMaterialError("the ssh-agent answers in an unknown way", code="key.unusable")
