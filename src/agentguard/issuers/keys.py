"""Where the public keys of an issuer come from: a file, or a URL whose answer is cached.

A file is read for each token, so a program that rotates keys replaces the file. The answer of a URL
counts for ``FRESH`` seconds. While the issuer can't be asked, the last answer counts up to
``KEPT`` seconds; after that, every token is refused. An answer without a key that can verify tokens
is an answer, too: the keys of before count no more.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from agentguard.errors import AgentguardError, ServerError
from agentguard.identity.jwks import KeySet, parse_jwks, parse_spiffe_bundle
from agentguard.identity.jwt import JwtRule
from agentguard.storage import files

_LOGGER = logging.getLogger("agentguard")

FRESH: Final = 300.0
"""Seconds after which the keys of a URL are fetched again."""

KEPT: Final = 3600.0
"""Seconds for which the last keys count while the issuer can't be asked."""

COOL_DOWN: Final = 30.0
"""Seconds between two fetches: whoever sends tokens with unknown keys must not steer more."""

RETRY: Final = 5.0
"""Seconds between two fetches after one that has failed."""


class KeySource(Protocol):
    """The public keys of one issuer. Threads may share a source."""

    def keys(self) -> KeySet:
        """Return the keys that count now.

        Raises ``ServerError``: ``issuer.unreachable`` where they can't be had, ``issuer.keys``
        where what can be had is no key set.
        """

    def newer(self, than: KeySet) -> KeySet | None:
        """Return keys for a token whose key is not in ``than``; None where there are none yet."""


class FileKeys:
    """The keys of a rule's issuer in a file, which ``read`` reads anew each time.

    The keys are parsed anew where the file has changed. ``read`` reads a file that no other user
    can have written. It raises ``AgentguardError``, and ``OSError`` for a file that can't be read.
    """

    def __init__(self, rule: JwtRule, path: Path, read: Callable[[Path], bytes]) -> None:
        self._rule = rule
        self._path = path
        self._read = read
        self._parsed: tuple[bytes, KeySet] | None = None

    def keys(self) -> KeySet:
        """Return the keys that the file has now (``KeySource``)."""
        try:
            data = self._read(self._path)
        except OSError as error:
            problem = files.unreadable(self._path, error)
            message = f"the keys of the issuer {self._rule.name} can't be had: {problem}"
            raise ServerError(message, code="issuer.unreachable") from error
        except AgentguardError as error:
            message = f"the keys of the issuer {self._rule.name} can't be used: {error}"
            raise ServerError(message, code="issuer.keys") from error
        parsed = self._parsed  # one look, since another thread may replace the pair
        if parsed is None or parsed[0] != data:
            self._parsed = parsed = data, parse_keys(self._rule, data)
        return parsed[1]

    def newer(self, than: KeySet) -> KeySet | None:  # noqa: ARG002  the file was just read
        """Return None: the keys of a file are never old."""
        return None


class _Kept(NamedTuple):
    keys: KeySet
    at: float


class FetchedKeys:
    """The keys that ``fetch`` returns, cached. ``clock`` is a monotonic one, in seconds.

    ``fetch`` raises ``AgentguardError`` where the keys can't be had; the server's log then says
    why. One thread fetches at a time. The others go on with keys that still count. Without such
    keys they wait, but not where the last fetch has failed: whoever sends tokens must not have
    every thread wait for a slow issuer. A forked process goes on with the keys, and waits for no
    fetch of its parent.
    """

    def __init__(
        self,
        name: str,
        fetch: Callable[[], KeySet],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._fetch = fetch
        self._clock = clock
        self._process = os.getpid()
        self._lock = threading.RLock()  # no call that interrupts this thread waits for it
        self._kept: _Kept | None = None
        self._next = float("-inf")  # no fetch before this time
        self._problem: AgentguardError | None = None

    def keys(self) -> KeySet:
        """Return the keys that count now, fetched again where they are old (``KeySource``)."""
        if not self._is_younger(self._kept, FRESH):
            self._refresh(waits=not self._is_younger(self._kept, KEPT))
        kept = self._kept  # one look: another thread may replace the keys, and their time
        if kept is not None and self._is_younger(kept, KEPT):
            return kept.keys
        raise self._unreachable()

    def newer(self, than: KeySet) -> KeySet | None:
        """Return keys that were fetched after ``than``; fetch them, unless it is too early."""
        kept = self._kept
        if kept is None or kept.keys is than:
            self._refresh(waits=True)
        kept = self._kept
        return None if kept is None or kept.keys is than else kept.keys

    def _is_younger(self, kept: _Kept | None, seconds: float) -> bool:
        return kept is not None and self._clock() - kept.at < seconds

    def _refresh(self, *, waits: bool) -> None:
        lock = self._own_lock()
        if not lock.acquire(blocking=waits and self._problem is None):
            return  # another thread fetches
        try:
            if self._clock() < self._next:
                return
            try:
                self._kept, self._problem = _Kept(self._fetch(), self._clock()), None
            except AgentguardError as error:
                self._problem = error
                if error.code == "issuer.keys":  # an answer: the issuer has withdrawn its keys
                    self._kept = None
                _LOGGER.warning("the keys of the issuer %s can't be fetched: %s", self._name, error)
            self._next = self._clock() + (COOL_DOWN if self._problem is None else RETRY)
        finally:
            lock.release()

    def _own_lock(self) -> threading.RLock:
        if self._process != os.getpid():  # a thread of the parent may have had the lock
            self._lock = threading.RLock()
            self._process = os.getpid()  # last: another thread must not take the parent's lock
        return self._lock

    def _unreachable(self) -> ServerError:
        message = (
            f"the keys of the issuer {self._name} can't be had, so no token of the issuer counts: "
            "see the log of the guard server"
        )
        error = ServerError(message, code="issuer.unreachable")
        error.__cause__ = self._problem
        return error


def parse_keys(rule: JwtRule, data: bytes) -> KeySet:
    """Parse the keys of a rule's issuer; raises ``ServerError`` (``issuer.keys``)."""
    try:
        keys = (
            parse_jwks(data)
            if rule.trust_domain is None
            else parse_spiffe_bundle(data, rule.trust_domain)
        )
    except AgentguardError as error:
        message = f"the keys of the issuer {rule.name} can't be used: {error} [{error.code}]"
        raise ServerError(message, code="issuer.keys") from error
    if not keys.keys:
        what = "signatures" if rule.trust_domain is None else "JWT-SVIDs (use: jwt-svid)"
        message = f"the issuer {rule.name} has no key for {what} in its key set"
        raise ServerError(message, code="issuer.keys")
    return keys
