"""The machine that sends spans and metrics, as attributes of their resource.

Where a trace does not name the machine of each span, Jaeger takes the clocks of a run and of the
run's continuation for two clocks, and warns of a clock skew that does not exist.
"""

from __future__ import annotations

import hashlib
import hmac
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from agentguard.storage import files

NAME: Final = "host.name"
ID: Final = "host.id"
IP: Final = "host.ip"
JAEGER_IP: Final = "ip"
"""The attribute by which Jaeger up to 2.13 tells machines apart on its page; a single address."""

_MACHINE_IDS: Final = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_ROUTES: Final = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
"""An address of no machine in each family (RFC 5737, RFC 3849): where a route would begin."""

_LOOPBACK: Final = "127.0.0.1"
_ID_DIGITS: Final = 32
_LONGEST_ID: Final = 4096


def attributes() -> dict[str, Any]:
    """Return the machine's name, its id if it has one, and its addresses if it has a route.

    Sends nothing and asks no name server.
    """
    found: dict[str, Any] = {NAME: socket.gethostname()}
    machine = _machine_id()
    if machine is not None:
        found[ID] = machine
    addresses = tuple(_addresses())
    if addresses:
        found[IP] = addresses
    # a machine without a route reaches a trace store of its own alone
    found[JAEGER_IP] = addresses[0] if addresses else _LOOPBACK
    return found


def _machine_id() -> str | None:
    """Return a digest of the machine's id, because the id itself should not leave the machine.

    systemd's page machine-id(5) asks for that, and for a digest that each application keys.
    """
    for path in _MACHINE_IDS:
        try:
            secret = files.read(path, limit=_LONGEST_ID).strip()
        except OSError:
            continue
        if secret:
            return hmac.digest(secret, b"agentguard host.id", hashlib.sha256).hex()[:_ID_DIGITS]
    return None


def _addresses() -> Iterator[str]:
    for family, address in _ROUTES:
        try:
            with closing(socket.socket(family, socket.SOCK_DGRAM)) as probe:
                probe.connect((address, 9))  # of UDP: no packet is sent
                yield str(probe.getsockname()[0])
        except OSError:
            continue
