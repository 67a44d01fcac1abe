"""What every test can ask for: the public vectors, a key made for this test, hypothesis' rounds.

The vectors are not in this repository. AGENTGUARD_VECTORS names the folder that holds them; a
clone without it skips those tests, and CI, where CI=true, fails them.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from agentguard.keys import Ed25519Signer

settings.register_profile("quick", max_examples=100, deadline=None)
settings.register_profile(
    "full", max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("full" if os.environ.get("AGENTGUARD_ROUNDS") == "full" else "quick")

WHERE = (
    "AGENTGUARD_VECTORS does not name a folder with the public test vectors (RFC 8037, "
    "cyberphone/json-canonicalization, transparency-dev/merkle, C2SP/wycheproof, C2SP signed-note, "
    "secure-systems-lab/dsse, ietf-wg-wimse/draft-ietf-wimse-s2s-protocol): CONTRIBUTING.md says "
    "how it is laid out"
)


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The folder of the public vectors."""
    folder = os.environ.get("AGENTGUARD_VECTORS")
    if folder and (Path(folder) / "README.md").is_file():
        return Path(folder)
    if os.environ.get("CI") == "true":
        pytest.fail(WHERE)
    pytest.skip(WHERE)


@pytest.fixture
def signer() -> Ed25519Signer:
    """A signer with a new key."""
    return Ed25519Signer.from_seed(os.urandom(32))


@pytest.fixture
def stranger() -> Ed25519Signer:
    """Another signer, whom nobody has reason to believe."""
    return Ed25519Signer.from_seed(os.urandom(32))
