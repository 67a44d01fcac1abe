"""A secret in the keyring of the user who runs the guard, through the library ``keyring``."""

from __future__ import annotations

import keyring

from agentguard.errors import SecretError
from agentguard.secrets.rule import secret_of
from agentguard.signing.keys import Secret


class KeyringSource:
    """The password of one user of one service.

    The constructor loads the backend of the keyring, so that a call imports nothing.
    """

    def __init__(self, service: str, user: str) -> None:
        self._service = service
        self._user = user
        keyring.get_keyring()

    def fetch(self) -> Secret:
        """Return the secret. Raises ``SecretError`` (``secret.failed``)."""
        found = self._look_up()
        if isinstance(found, str):
            message = f"the keyring has no password of {self._user} for {self._service}: {found}"
            raise SecretError(message, code="secret.failed")
        return secret_of(found.reveal(), f"the password of {self._user} for {self._service}")

    def _look_up(self) -> Secret | str:
        """Return the password, or the problem; an error of a backend may hold anything."""
        try:
            password = keyring.get_password(self._service, self._user)
            if password is None:
                return f"run keyring set {self._service} {self._user}"
            return Secret(password.encode())
        except Exception as error:  # noqa: BLE001  a backend may raise anything
            return f"the keyring failed ({type(error).__name__}): unlock it, or set one up"
