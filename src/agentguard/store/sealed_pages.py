"""``SealedPages``: a folder of pages that only a holder of the log's key can write.

Each is signed with its name. Whoever writes the state without the key can remove such a page, or
put an older one of the same name back, and can make no other content count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from agentguard.audit.log import Pages
from agentguard.errors import AgentguardError, StorageError, VerificationError
from agentguard.identity.trust import TrustDocument
from agentguard.signing import dsse
from agentguard.signing.canonical import sha256_hex
from agentguard.signing.keys import Signer
from agentguard.store.log import StoreLog
from agentguard.store.pages import MAX_PAGE

_TYPE: Final = "application/vnd.agentguard.page"
_KEY_ID: Final = 43
"""The characters of a thumbprint (RFC 7638)."""

_SIGNATURE: Final = 64


class Keys(NamedTuple):
    """The log's key, None without it, and what returns the trust document that counts.

    Without any ``Keys``, pages are not signed: nobody but this process can write there.
    """

    signer: Signer | None
    trust: Callable[[], TrustDocument]


class SealedPages(NamedTuple):
    """The pages of ``folder``; ``remedy`` tells people what to do about a damaged one.

    A name is any text; a page's is the digest of that text. Each method raises ``StorageError``.
    """

    log: StoreLog
    folder: str
    keys: Keys | None
    remedy: str

    def read(self, name: str) -> bytes | None:
        """Return what was written under a name, verified; None for nothing.

        A page that does not verify is refused (``storage.corrupt``).
        """
        at = self.at(name)
        page = self.log.read(lambda view: view.page(at))
        return None if page is None else self.opened(page, at)

    def opened(self, page: bytes, at: str) -> bytes:
        """Return the data of the page ``at`` a name, verified."""
        try:
            return opened(page, at, self.keys)
        except AgentguardError as error:
            message = f"the page {at} of the state does not hold ({error}): {self.remedy}"
            raise StorageError(message, code="storage.corrupt") from error

    def write(self, name: str, data: bytes) -> None:
        """Write ``data`` under a name, durably, in the place of what was there."""
        sealed = self.sealed(name, data)
        self.log.change_pages(lambda pages: pages.write_page(self.at(name), sealed))

    def add(self, name: str, data: bytes) -> bool:
        """Write ``data`` under a name, durably; return False where something is there already."""
        at, sealed = self.at(name), self.sealed(name, data)

        def add(pages: Pages) -> bool:
            is_there = pages.page(at) is not None
            if not is_there:
                pages.write_page(at, sealed)
            return not is_there

        return self.log.change_pages(add)

    def remove(self, name: str) -> None:
        """Remove what is under a name, if there is anything."""
        at = self.at(name)
        if self.log.read(lambda view: view.page(at)) is not None:
            self.log.change_pages(lambda pages: pages.write_page(at, None))

    def at(self, name: str) -> str:
        """Return the name of a page."""
        return f"{self.folder}/{sha256_hex(name.encode('utf-8', 'surrogatepass'))}"

    def sealed(self, name: str, data: bytes) -> bytes:
        """Return the page that has ``data`` under a name."""
        return sealed(data, self.at(name), self.keys)


def runs(log: StoreLog, keys: Keys | None) -> SealedPages:
    """Return the ``RunStore`` of a log: what adapters keep of a run that goes on later."""
    return SealedPages(log, "runs", keys, "remove it, and begin the run anew")


def sealed(data: bytes, name: str, keys: Keys | None) -> bytes:
    """Return the page with ``data``: who has signed it with the name of the page, then the data.

    Raises ``StorageError``: ``storage.readonly`` without the log's key, ``storage.failed`` for more
    data than a page can hold.
    """
    page = data
    if keys is not None:
        if keys.signer is None:
            message = (
                "this process has no key of the log, and writes no such page: open the state with "
                "its keys"
            )
            raise StorageError(message, code="storage.readonly")
        signature = keys.signer.sign(_to_sign(name, data))
        page = keys.signer.key_id.encode() + signature + data
    if len(page) > MAX_PAGE:
        message = f"{len(data)} bytes are too many for a page of the state, which has {MAX_PAGE}"
        raise StorageError(message)
    return page


def opened(page: bytes, name: str, keys: Keys | None) -> bytes:
    """Return the data of a page, verified; raises ``AgentguardError``."""
    if keys is None:
        return page
    trusted = keys.trust().trusted_key("log", page[:_KEY_ID].decode("latin-1"))
    if trusted.compromised_since is not None:
        raise VerificationError("its key is compromised")
    data = data_of(page)
    trusted.key.verify(page[_KEY_ID : _KEY_ID + _SIGNATURE], _to_sign(name, data))
    return data


def data_of(page: bytes) -> bytes:
    """Return the data of a page, unverified."""
    return page[_KEY_ID + _SIGNATURE :]


def _to_sign(name: str, data: bytes) -> bytes:
    """Return the bytes that are signed, in DSSE's encoding: the page's name, and the data."""
    return dsse.pae(_TYPE, f"{name}\n".encode() + data)
