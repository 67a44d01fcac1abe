"""The entry of a receipt: what a tool's server has signed about its answer to a request.

The receipt (a compact JWS, ``proof/receipt.py``) stands in the agent's log between the proof of the
request and the outcome of the call. The client has verified the receipt's signature with a key that
the client knew before. Whoever has the key can verify the signature again.
"""

from __future__ import annotations

from typing import NamedTuple

from agentguard.audit import records
from agentguard.audit.entry import Entry
from agentguard.audit.records import Record
from agentguard.audit.running_call import CallName
from agentguard.audit.summary import Summary
from agentguard.call.releases import ReleaseSubject
from agentguard.errors import DecodeError
from agentguard.signing import jws
from agentguard.signing.canonical import is_integer, is_sha256


class ReceiptEntry(NamedTuple):
    """The receipt of one answer; ``proof_sha256`` (hex) is the digest of the request's proof.

    ``key_id`` is the thumbprint of the key with which the client has verified the receipt.
    """

    proof_sha256: str
    receipt: str
    key_id: str
    at: str
    call: CallName

    @property
    def summary(self) -> Summary:
        """The summary of the entry."""
        return self.call.summary("receipt", self.at)


def receipt(
    proof_sha256: str, token: str, key_id: str, subject: ReleaseSubject, *, at: str
) -> Record:
    """Build the entry of a receipt.

    Raises ``DecodeError`` for a text that is no receipt of the request, and ``EncodeError``.
    """
    _require_receipt_of(token, proof_sha256)
    call = CallName.of(subject)
    members = {
        "kind": "receipt",
        "at": at,
        "proof_sha256": proof_sha256,
        "receipt": token,
        "key_id": key_id,
        **call.members(),
    }
    return records.new_record(members, call.summary("receipt", at))


def read_receipt(entry: Entry) -> ReceiptEntry:
    """Read a receipt entry, with the receipt's signature unverified; raises ``DecodeError``."""
    match entry.members:
        case {"proof_sha256": str(digest), "receipt": str(token), "key_id": str(key_id)}:
            _require_receipt_of(token, digest)
            return ReceiptEntry(digest, token, key_id, entry.at, CallName.read(entry))
    raise DecodeError("not the entry of a receipt", code="entry.malformed")


def status_of(entry: ReceiptEntry) -> int:
    """Return the status of the answer that a receipt states; raises ``DecodeError``."""
    status = jws.parse(entry.receipt).claims().get("status")
    if not is_integer(status):
        raise DecodeError("the receipt states no status", code="entry.malformed")
    return status


def _require_receipt_of(token: str, proof_sha256: str) -> None:
    if not is_sha256(proof_sha256) or jws.parse(token).claims().get("prf") != proof_sha256:
        raise DecodeError("the receipt is of another request", code="entry.malformed")
