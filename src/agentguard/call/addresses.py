"""IP addresses, networks and interfaces as text, the same on every version of Python.

Python 3.13 began to write an IPv6 address that maps an IPv4 address with dots, as RFC 5952
recommends; this module does so on every version. Two addresses have the same text if and only if
they are equal, zones included.
"""

from __future__ import annotations

from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)


def address(value: IPv4Address | IPv6Address) -> str:
    """Return an address as text, such as ``10.0.0.1`` or ``fe80::1%eth0``."""
    mapped = value.ipv4_mapped if isinstance(value, IPv6Address) else None
    return str(value) if mapped is None else f"::ffff:{mapped}{_zone(value)}"


def network(value: IPv4Network | IPv6Network) -> str:
    """Return a network as text, such as ``10.0.0.0/8``."""
    return f"{address(value.network_address)}/{value.prefixlen}"


def interface(value: IPv4Interface | IPv6Interface) -> str:
    """Return an address and its network as text, such as ``10.0.0.1/8``."""
    return f"{address(value.ip)}{_zone(value)}/{value.network.prefixlen}"


def _zone(value: IPv4Address | IPv6Address) -> str:
    zone = value.scope_id if isinstance(value, IPv6Address) else None
    return "" if zone is None else f"%{zone}"
