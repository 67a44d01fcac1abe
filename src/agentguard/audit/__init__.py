"""The audit log's formats: Merkle tree, checkpoints, entries, verifier, all pure.

Where entries are kept is ``storage``'s business. Nothing is imported here, so that each module
costs what it needs and no more.
"""

from __future__ import annotations
