"""A real OpenBao: what its operator does there, through its HTTP API.

Tests share a server. So each takes a mount, policies and a namespace whose names are its own.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import ssl
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError
from urllib.request import HTTPSHandler, ProxyHandler, Request, build_opener

import binaries


class OpenBao:
    """A server at ``url``, and the token of its operator; ``ca`` is for https."""

    URL: Final = "AGENTGUARD_OPENBAO_URL"
    TOKEN_FILE: Final = "AGENTGUARD_OPENBAO_TOKEN_FILE"

    def __init__(self, url: str, token: str, ca: Path | None = None) -> None:
        self.url = url
        self.token = token
        secure = HTTPSHandler(context=ssl.create_default_context(cafile=ca)) if ca else None
        self._opener = build_opener(ProxyHandler({}), *([secure] if secure else []))

    @classmethod
    def named(cls, variables: Mapping[str, str]) -> OpenBao:
        """The server that ``scripts/services env`` names."""
        token = Path(variables[cls.TOKEN_FILE]).read_text("ascii").strip()
        return cls(variables[cls.URL], token)

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """Return what the server answers, None for an answer without a body."""
        request = Request(  # noqa: S310  our own URL
            f"{self.url}/v1/{path}",
            None if body is None else json.dumps(body).encode(),
            {"X-Vault-Token": self.token},
            method=method,
        )
        try:
            with self._opener.open(request, timeout=10) as answer:
                return json.loads(answer.read() or b"null")
        except HTTPError as error:
            error.add_note(error.read().decode())
            raise

    def mount(self, namespace: str = "", version: int = 2) -> str:
        """Mount a new key-value store, empty; return its path."""
        where = f"{namespace}m{secrets.token_hex(4)}"
        name = where.removeprefix(namespace)
        options = {"type": "kv", "options": {"version": str(version)}}
        self.ask("POST", f"{namespace}sys/mounts/{name}", options)
        return where

    def namespace(self) -> str:
        """Make a namespace; return its path, which ends with a slash."""
        name = f"n{secrets.token_hex(4)}"
        self.ask("POST", f"sys/namespaces/{name}", {})
        return f"{name}/"

    def put(self, path: str, **fields: object) -> None:
        """Write the next version of a secret; ``path`` is that of the API."""
        for _ in range(200):
            try:
                self.ask("POST", path, {"data": fields})
            except HTTPError as error:
                # a new store is made ready in the background, and says so
                if not any("Upgrading" in note for note in getattr(error, "__notes__", ())):
                    raise
                time.sleep(0.05)
            else:
                return
        raise AssertionError(path)

    def token_for(self, *paths: str, namespace: str = "", uses: int = 0) -> str:
        """Return a new token that may read these paths, and nothing else, in its namespace.

        The token is good for so many ``uses``; 0 is for any number of them.
        """
        policy = f"p{secrets.token_hex(4)}"
        rules = "\n".join(f'path "{path}" {{ capabilities = ["read"] }}' for path in paths)
        self.ask("PUT", f"{namespace}sys/policies/acl/{policy}", {"policy": rules})
        asked = {"policies": [policy], "no_default_policy": True, "num_uses": uses}
        made = self.ask("POST", f"{namespace}auth/token/create", asked)
        token: str = made["auth"]["client_token"]
        return token

    def revoke(self, token: str) -> None:
        self.ask("POST", "auth/token/revoke", {"token": token})


def token_file(folder: Path, token: str) -> Path:
    """Write a token where a configuration's ``token_file`` names it, for this user alone."""
    file = folder / "vault-token"
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(f"{token}\n")
    return file


class OwnOpenBao(OpenBao):
    """A real OpenBao of one test, over TLS; ``ca`` has the certificate of its authority."""

    def __init__(self, program: str, folder: Path) -> None:
        self.ca = folder / "vault-ca.pem"
        token = secrets.token_hex(16)
        for _ in range(5):  # another program may take a port that was free a moment ago
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{free.getsockname()[1]}"
            self._process = _start(program, folder, address, token)
            while self._process.poll() is None:
                with suppress(OSError):  # no authority yet, no listener yet, not ready yet
                    super().__init__(f"https://{address}", token, self.ca)
                    self.ask("GET", "auth/token/lookup-self")
                    return
                time.sleep(0.02)
        raise AssertionError((folder / "openbao.log").read_text())

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def _start(program: str, folder: Path, address: str, token: str) -> subprocess.Popen[bytes]:
    command = [program, "server", "-dev-tls", "-dev-no-store-token"]
    command += [f"-dev-tls-cert-dir={folder}", f"-dev-listen-address={address}"]
    command += [f"-config={binaries.TOOLS / 'openbao' / 'config.hcl'}"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    with (folder / "openbao.log").open("ab") as log:
        return subprocess.Popen(
            command,
            env={**environment, "BAO_DEV_ROOT_TOKEN_ID": token},
            stdout=log,
            stderr=log,
        )
