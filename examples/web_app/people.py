"""The people of the application: who they are, and what they may do.

An application has a database and a login in the place of this file. ``python people.py`` makes a
random token for each person and prints the tokens as variables of the shell; the file
``tokens.json`` has only their digests.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from pathlib import Path

TOKENS = Path(__file__).with_name("tokens.json")

PEOPLE = {
    "user:alice": ["support"],
    "user:bob": ["support"],
    "user:mary": ["support"],
}
"""The roles of each person, which ``[roles]`` of agentguard.toml gives a scope."""

MANAGERS = {"user:mary"}


def roles_of(principal: str) -> list[str] | None:
    """Return the roles of a person; None for somebody who is not known."""
    return PEOPLE.get(principal)


def approver_roles(principal: str) -> list[str] | None:
    """Return the roles in which a person approves calls; None for somebody who is not known."""
    if principal not in PEOPLE:
        return None
    return ["manager"] if principal in MANAGERS else []


def authenticate(token: str) -> str | None:
    """Return the principal who has a token; None for an unknown token."""
    principal: str | None = json.loads(TOKENS.read_text()).get(digest(token))
    return principal


def digest(token: str) -> str:
    """Return the digest under which a token is stored."""
    return hashlib.sha256(token.encode()).hexdigest()


def main() -> None:
    """Make a token for each person, and print the tokens as variables of the shell."""
    tokens = {principal: secrets.token_urlsafe(24) for principal in PEOPLE}
    TOKENS.write_text(json.dumps({digest(token): who for who, token in tokens.items()}))
    for principal, token in tokens.items():
        print(f"export {principal.removeprefix('user:').upper()}={token}")


if __name__ == "__main__":
    main()
