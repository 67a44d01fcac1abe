"""IP addresses, networks and interfaces as text that is the same on every Python.

Python 3.13 began to write an IPv6 address that maps an IPv4 one with dots, as RFC 5952 recommends;
so it is written here by every version. Equal text means an equal address, zone included.
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
    """Write an address, as ``10.0.0.1`` or ``fe80::1%eth0``."""
    mapped = value.ipv4_mapped if isinstance(value, IPv6Address) else None
    return str(value) if mapped is None else f"::ffff:{mapped}{_zone(value)}"


def network(value: IPv4Network | IPv6Network) -> str:
    """Write a network, as ``10.0.0.0/8``."""
    return f"{address(value.network_address)}/{value.prefixlen}"


def interface(value: IPv4Interface | IPv6Interface) -> str:
    """Write an address with the network that it is in, as ``10.0.0.1/8``."""
    return f"{address(value.ip)}{_zone(value)}/{value.network.prefixlen}"


def _zone(value: IPv4Address | IPv6Address) -> str:
    zone = value.scope_id if isinstance(value, IPv6Address) else None
    return "" if zone is None else f"%{zone}"
