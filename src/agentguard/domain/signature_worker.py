"""A process that verifies Ed25519 signatures: questions on stdin, one byte for each on stdout.

The file runs by itself, with nothing of agentguard, so that it starts quickly. A batch is its
length in four bytes and its questions; a question is the key, the lengths of signature and message
in four bytes each, the signature and the message.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

HOLDS = 1
"""The answer for a signature that holds; 0 for another."""

_KEY_SIZE = 32


def question(key: bytes, signature: bytes, message: bytes) -> bytes:
    """Return the question whether ``signature`` of ``message`` holds under ``key`` (32 bytes)."""
    sizes = len(signature).to_bytes(4) + len(message).to_bytes(4)
    return key + sizes + signature + message


def answers(batch: bytes) -> bytes:
    """Return the answers to a batch of questions."""
    return bytes(_answer(*parts) for parts in _questions(batch))


def _questions(batch: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    at = 0
    while at < len(batch):
        key, at = batch[at : at + _KEY_SIZE], at + _KEY_SIZE
        first, second = int.from_bytes(batch[at : at + 4]), int.from_bytes(batch[at + 4 : at + 8])
        at += 8
        yield key, batch[at : at + first], batch[at + first : at + first + second]
        at += first + second


def _answer(key: bytes, signature: bytes, message: bytes) -> int:
    try:
        _public_key(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return 0
    return HOLDS


@lru_cache(maxsize=1024)
def _public_key(key: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(key)


def main() -> None:
    """Answer batches until stdin ends."""
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while size := source.read(4):
        target.write(answers(source.read(int.from_bytes(size))))
        target.flush()


if __name__ == "__main__":
    main()
