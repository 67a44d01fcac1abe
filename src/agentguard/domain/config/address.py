"""Addresses in a configuration, ``HOST:PORT``: where something listens, or is to be found."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Final, NamedTuple

from agentguard.tables import kinds
from agentguard.tables.kinds import Kind

_MAX_PORT: Final = 65_535


class Address(NamedTuple):
    """A host, which is a name or a literal address, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_literal(self) -> bool:
        """Whether the host is a literal address, and no name."""
        try:
            ip_address(self.host)
        except ValueError:
            return False
        return True

    @property
    def is_loopback(self) -> bool:
        """Whether the host is an address of this machine alone; a name is none."""
        return self.is_literal and ip_address(self.host).is_loopback


def parse(text: str) -> Address | None:
    """Return the address of ``HOST:PORT``, None for another text.

    Brackets around an IPv6 address are taken off. 0 is a port, by which the system chooses one.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    is_port = port.isascii() and port.isdigit() and len(port) <= len(str(_MAX_PORT))
    return Address(host, int(port)) if host and is_port and int(port) <= _MAX_PORT else None


def address(
    expected: str = "a host and a port, as in 'guard.example:7443'",
    is_good: Callable[[Address], bool] = lambda _: True,
) -> Kind[Address]:
    """Return the kind of the addresses for which ``is_good`` is true."""

    def make(text: str) -> Address | None:
        parsed = parse(text)
        return parsed if parsed is not None and is_good(parsed) else None

    return kinds.text.to(make, expected)
