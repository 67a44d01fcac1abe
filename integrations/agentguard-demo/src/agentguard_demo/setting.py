"""The demo's folder: a trust domain, a policy, a configuration and a forge.

The folder has what ``agentguard init`` and a person's editor would make; the names and the rules
are the demo's own. The demo leaves the folder behind, for the reader to inspect.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Final

from agentguard import ConfigError, TrustDocument
from agentguard.domain import config, domain
from agentguard.domain.keystore import PASSPHRASE_VARIABLE
from agentguard.signing.keys import Ed25519Signer, PublicKey
from agentguard.storage.anchor import trust_path
from agentguard.storage.files import write_new
from agentguard_demo.forge import Forge

ORCHESTRATOR: Final = "orchestrator"
AGENT: Final = "code-agent"
FIXER: Final = "test-fixer"
"""The names of the agents in the configuration."""

_BOBS: Final = "BOB'S PUBLIC KEY"
_CONFIG: Final = """\
trust_domain = "demo.example"
state = ".agentguard"
anchor = "anchor"                  # checkpoints outside the state, as on another machine

[keys]
passphrase_file = "passphrase"

[policy]
engine = "rego"
path = "policies/authz.rego"

[roles.developer]
scope = ["repo:read", "pr:write", "ci:trigger"]

[roles.release-manager]
scope = ["secret:read"]

[principals."user:alice"]          # what she may lend: more than a task needs
roles = ["developer", "release-manager"]

[agents.orchestrator]              # none of them acts by itself, but for whoever lends it something
type = "orchestrator"
owner = "user:carol"
roles = ["developer", "release-manager"]

[agents.code-agent]
type = "code-agent"
owner = "user:carol"
roles = ["developer", "release-manager"]

[agents.test-fixer]
type = "code-agent"
owner = "user:carol"
roles = ["developer"]

[approvers.bob]                    # who answers where the policy asks people
principal = "user:bob"
keys = ["BOB'S PUBLIC KEY"]
roles = ["release-manager"]

[tools]
unlisted = "deny"                  # a tool without a table is denied

[tools.assign_task]
requires = ["repo:read"]

[tools.fix_tests]
requires = ["pr:write"]
resource = "repo:{repo}"
attributes = { branch = "branch" }

[tools.read_file]
requires = ["repo:read"]
resource = "repo:{repo}"

[tools.commit_file]
requires = ["pr:write"]
resource = "repo:{repo}"
attributes = { branch = "branch" }

[tools.open_pr]
requires = ["pr:write"]
resource = "repo:{repo}"
attributes = { branch = "branch" }
facts = { look_up = "agentguard_demo.forge:facts", gives = ["repo"] }

[tools.trigger_ci]
requires = ["ci:trigger"]
resource = "repo:{repo}"
attributes = { branch = "branch" }

[tools.merge_pr]
requires = ["pr:write"]
resource = "repo:{repo}"
attributes = { branch = "into" }

[secrets.DEPLOY_TOKEN]             # for a merge while the merge runs, and for no model
file = "vault/DEPLOY_TOKEN"
tools = ["merge_pr"]

[tools.request_secret]
requires = ["secret:read"]
resource = "secret:{name}"
"""

_SERVER: Final = """
[server]                           # a process of its own has the keys, the policy and the log
url = "unix:guard.sock"
"""

_PASSPHRASE: Final = "passphrase"  # noqa: S105  a file's name


@dataclass(frozen=True, slots=True)
class Setting:
    """The files and folders in the demo's ``directory``.

    ``bobs_passphrase`` decrypts bob's key; the demo keeps the passphrase in memory only.
    """

    directory: Path
    forge: Forge
    trust: TrustDocument
    bobs_passphrase: str = field(repr=False)

    @property
    def config(self) -> Path:
        """The configuration."""
        return self.directory / config.FILE

    @property
    def state(self) -> Path:
        """The keys and the log."""
        return self.directory / ".agentguard"

    @property
    def passphrase(self) -> bytes:
        """The passphrase of the long-lived keys, read from the folder and not the environment."""
        return (self.directory / _PASSPHRASE).read_bytes()

    @property
    def anchor(self) -> Path:
        """The checkpoints and the trust document, outside the state."""
        return self.directory / "anchor"

    @property
    def trust_file(self) -> Path:
        """The file of the trust document, in the anchor."""
        return trust_path(self.anchor, self.trust.log)

    @property
    def bob_key_file(self) -> Path:
        """The file of the encrypted OpenSSH key with which bob signs."""
        return self.directory / "bob" / "id_ed25519"

    @property
    def tampered_state(self) -> Path:
        """The copy of the state in which the demo changes a byte."""
        return self.directory / "tampered"


def create_setting(directory: Path, *, is_served: bool) -> Setting:
    """Create all files and folders in ``directory``, which must be empty or absent.

    ``is_served`` is for a guard in a server, whose socket is in the directory, too.

    Raises ``ConfigError`` (``directory.taken``, ``git.missing``) or ``StorageError``.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_used = any(directory.iterdir())
    except OSError as error:
        message = f"the demo can't make {directory} ({error.strerror}): choose another --dir"
        raise ConfigError(message, code="directory.unusable") from error
    if is_used:
        message = f"{directory} is not empty: choose an empty or new --dir"
        raise ConfigError(message, code="directory.taken")
    forge = Forge.create(directory)
    policy = files("agentguard_demo").joinpath("authz.rego").read_bytes()
    passphrase = secrets.token_urlsafe(32).encode()
    bob = Ed25519Signer.from_seed(secrets.token_bytes(32))
    write_new(directory / "policies" / "authz.rego", policy)
    write_new(directory / _PASSPHRASE, passphrase)
    text = configuration(bob.public_key)
    write_new(directory / config.FILE, (text + _SERVER * is_served).encode())
    settings = config.load(directory / config.FILE)
    trust = domain.found(settings, passphrase, now=datetime.now(UTC))
    setting = Setting(directory, forge, trust, secrets.token_hex(32))
    write_new(setting.bob_key_file, bob.to_openssh(setting.bobs_passphrase.encode()))
    return setting


def environment() -> dict[str, str]:
    """Return the environment of another process, without a passphrase of the guard's keys."""
    return {name: value for name, value in os.environ.items() if name != PASSPHRASE_VARIABLE}


def configuration(bob: PublicKey) -> str:
    """Return the text of the configuration, with bob's key on the roster."""
    return _CONFIG.replace(_BOBS, bob.openssh())
