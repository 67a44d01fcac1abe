"""Makes bcrypt cheap in the process that imports this: one round, computed once a passphrase.

24 rounds take 0.2 s of CPU for each key that is read or written. A process that a test starts with
an interpreter of its own has them all.
"""

from __future__ import annotations

import functools

from cryptography.hazmat.primitives.serialization import ssh

from agentguard.signing.keys import Ed25519Signer

assert Ed25519Signer.to_openssh.__kwdefaults__ is not None
Ed25519Signer.to_openssh.__kwdefaults__["rounds"] = 1
vars(ssh)["_bcrypt_kdf"] = functools.cache(vars(ssh)["_bcrypt_kdf"])
