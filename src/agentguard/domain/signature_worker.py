"""A process that verifies Ed25519 signatures: batches of questions on stdin, answers on stdout.

The file runs by itself, with nothing of agentguard, so that it starts quickly. A batch is its name,
the length of its questions in four bytes, and the questions; a question is the key, the lengths of
signature and message in four bytes each, the signature and the message. The answers to a batch are
the batch's name and one byte for each question.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

HOLDS = 1
"""The answer for a signature that holds; 0 for another."""

NAME_SIZE = 16
"""The size of a batch's name, in bytes."""

_KEY_SIZE = 32


def question(key: bytes, signature: bytes, message: bytes) -> bytes:
    """Return the question whether ``signature`` of ``message`` holds under ``key`` (32 bytes)."""
    sizes = len(signature).to_bytes(4) + len(message).to_bytes(4)
    return key + sizes + signature + message


def batch(name: bytes, questions: bytes) -> bytes:
    """Return the batch of ``questions`` with the name ``name``, which no batch before had."""
    return name + len(questions).to_bytes(4) + questions


def _answers(questions: bytes) -> bytes:
    return bytes(_answer(*parts) for parts in _split(questions))


def _split(questions: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    at = 0
    while at < len(questions):
        key, at = questions[at : at + _KEY_SIZE], at + _KEY_SIZE
        first, second = (int.from_bytes(questions[n : n + 4]) for n in (at, at + 4))
        at += 8
        yield key, questions[at : at + first], questions[at + first : at + first + second]
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
    while name := source.read(NAME_SIZE):
        size = int.from_bytes(source.read(4))
        target.write(name + _answers(source.read(size)))
        target.flush()


if __name__ == "__main__":
    main()
