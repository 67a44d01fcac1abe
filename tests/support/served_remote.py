"""A guard server with clients on other machines: TLS, and a certificate for each client."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

from certificates import Authority
from ports import free_port

from agentguard import Guard

WEB, BATCH = "spiffe://acme.example/web-1", "spiffe://acme.example/batch"


class Remote:
    """A server that listens for remote clients, and what their configurations need.

    The server's process runs ``before`` first. ``server`` has the server's certificate and its key,
    and ``ca`` the authority of clients; the authority of the test makes what is not given.
    """

    def __init__(
        self,
        place: Any,
        before: str = "",
        server: tuple[Path, Path] | None = None,
        ca: Path | None = None,
    ) -> None:
        self.place = place
        self.authority = Authority(place.folder, "acme")
        certificate, key = server or self.authority.issue("server")
        self.port = free_port()
        with (place.folder / "agentguard.toml").open("a", encoding="utf-8") as file:
            file.write(
                f'\n[server.tls]\nlisten = "127.0.0.1:{self.port}"\ncertificate = "{certificate}"\n'
                f'key = "{key}"\nca = "{ca or self.authority.file}"\n'
                f'[clients.web]\nspiffe = "{WEB}"\nagents = ["clerk"]\nvouches_for = ["user:*"]\n'
                f'[clients.batch]\nspiffe = "{BATCH}"\nagents = ["helper"]\n'
            )
        place.start(before)

    def open(
        self, files: tuple[Path, Path], ca: Path | None = None, host: str = "127.0.0.1"
    ) -> Guard:
        folder = self.place.folder / files[0].stem
        folder.mkdir(exist_ok=True)
        toml = folder / "agentguard.toml"
        toml.write_text(
            f'[server]\nurl = "tls://{host}:{self.port}"\nca = "{ca or self.authority.file}"\n'
            f'certificate = "{files[0]}"\nkey = "{files[1]}"\npatience = 0.2\n'
        )
        guard = Guard.open(toml)
        self.place.guards.append(guard)
        return guard

    def socket(self, files: tuple[Path, Path] | None, **options: Any) -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=str(self.authority.file))
        for name, value in options.items():
            setattr(context, name, value)
        if files is not None:
            context.load_cert_chain(*files)
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        return context.wrap_socket(plain, server_hostname="127.0.0.1")
