"""The audit log's formats: Merkle tree, checkpoints, entries, verifier, all pure.

``store/`` keeps entries. The package imports nothing here, so that a program loads only the
modules that it uses.
"""

from __future__ import annotations
