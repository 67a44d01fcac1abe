"""The floor of a guarded call: frozen, so that a change of the product does not move it.

What the floor does is what the guarantees require: the policy's evaluation, two Ed25519 signatures,
the canonical JSON of what is signed and logged, SHA-256 hashes, Merkle leaves, and one append. The
tree and the evaluations are copies of the product's as of November 2026, with the same work for
each call. The floor calls ``cryptography``, ``orjson`` and ``regorus`` by itself, and imports
nothing of ``agentguard`` but the type of a decision, which the policy's function returns.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agentguard import Decision

SORTED = orjson.OPT_SORT_KEYS


def _node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


Evaluate = Callable[[bytes], object]
"""Evaluates the policy on its input, canonical JSON."""


class Tree:
    """The compact range of a growing Merkle tree (RFC 9162, 2.1.1)."""

    def __init__(self) -> None:
        self._size = 0
        self._peaks: list[bytes] = []

    def append(self, leaf: bytes) -> None:
        """Add a leaf by its hash."""
        size = self._size
        self._size = size + 1
        peaks = self._peaks
        while size & 1:
            leaf = sha256(b"\x01" + peaks.pop() + leaf).digest()
            size >>= 1
        peaks.append(leaf)

    def root(self) -> bytes:
        """Return the tree's root."""
        root = self._peaks[-1]
        for peak in self._peaks[-2::-1]:
            root = _node_hash(peak, root)
        return root


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf (RFC 9162, 2.1.1)."""
    return sha256(b"\x00" + data).digest()


class Signer:
    """An Ed25519 key in this process's memory."""

    __slots__ = ("_key",)

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(os.urandom(32))

    def sign(self, data: bytes) -> bytes:
        """Return the signature (64 bytes)."""
        return self._key.sign(data)


class _Engines(threading.local):
    """A thread's engines by policy."""

    def __init__(self) -> None:
        self.by_policy: OrderedDict[str, Any] = OrderedDict()


def rego(policy: str, query: str) -> Evaluate:
    """Return the evaluation of a policy in Rego, by regorus, with an engine for each thread."""
    engines = _Engines()

    def take() -> Any:
        engine = engines.by_policy.pop(policy, None)
        if engine is None:
            engine = importlib.import_module("regorus").Engine()
            engine.add_policy("policy.rego", policy)
            engine.add_data_json("{}")
        return engine

    def evaluate(document: bytes) -> object:
        engine = take()
        engine.set_input_json(document.decode())
        value = _value(engine.eval_query_as_json(query))
        engines.by_policy[policy] = engine
        return value

    return evaluate


def _value(answer: str) -> object:
    match orjson.loads(answer):
        case {"result": [{"expressions": [{"value": value}]}]}:
            return value
    raise AssertionError("the policy has no answer")


def function(decide: Callable[[Mapping[str, Any]], Decision]) -> Evaluate:
    """Return the evaluation of a policy that is a Python function."""

    def evaluate(document: bytes) -> object:
        members = orjson.loads(document)
        decision: object = decide(members)
        if not isinstance(decision, Decision):
            raise TypeError("the policy's function returns no decision")
        require_own(decision)
        return answer_of(decision)

    def require_own(decision: Decision) -> None:
        if decision.code != codes.get(decision.outcome):
            raise AssertionError("the policy gives a code of its own")
        if decision.allowed and (decision.reasons or decision.requirements):
            raise AssertionError("an allow has reasons")

    def answer_of(decision: Decision) -> dict[str, Any]:
        match decision.outcome:
            case "allow":
                return {"allow": True}
        raise AssertionError("the policy does not allow the call")

    codes = {"allow": "", "deny": "policy.denied", "approval": "approval.required"}
    return evaluate


def call(
    evaluate: Evaluate,
    arguments: Mapping[str, str],
    document: bytes,
    bodies: list[bytes],
    commit: Callable[[list[bytes]], None],
) -> Callable[[], object]:
    """Return the floor of one call.

    ``document`` is the policy's input in a guarded call with these ``arguments``, and ``bodies``
    are the two entries that such a call has written. ``commit`` appends entries.
    """
    signer = Signer()
    signed = [orjson.loads(body) for body in bodies]
    inputs = orjson.loads(document)
    tree = Tree()

    def once() -> None:
        salt = os.urandom(48)
        encoded_arguments = orjson.dumps(arguments, option=SORTED)
        sha256(salt + encoded_arguments).hexdigest()
        encoded = orjson.dumps(inputs, option=SORTED)
        evaluate(encoded)
        sha256(salt + encoded).hexdigest()
        entries = []
        for statement in signed:
            payload = orjson.dumps(statement, option=SORTED)
            sha256(payload).hexdigest()
            signer.sign(payload)
            entry = orjson.dumps(statement, option=SORTED)
            tree.append(leaf_hash(entry))
            entries.append(b"%b" % entry)  # what orjson returns keeps a buffer of 4 KiB
        tree.root()
        commit(entries)

    return once
