"""How a process gets a connection to its guard server: at a socket's path, or by inheritance.

A program that ``agentguard run`` has started inherits a *channel* to the server, and the number of
its descriptor in ``AGENTGUARD_SERVER_FD``. Each packet on the channel asks for a connection, and
each answer brings one. An answer serves any process that asks, so threads and forked processes
share the channel without a lock.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from agentguard.client.imposter import require_server
from agentguard.client.tokens import tokens_of
from agentguard.domain.config.server import Host
from agentguard.errors import AgentguardError, ConfigError, DecodeError, ServerError
from agentguard.signing.keys import Secret
from agentguard.wire import values
from agentguard.wire.frame import Frame
from agentguard.wire.stream import EndedError, Stream

VARIABLE: Final = "AGENTGUARD_SERVER_FD"
"""The variable of the environment that has the number of the inherited descriptor."""

_PAUSE: Final = 0.01

_TRIES: Final = 16
"""How many connections of processes that have ended meanwhile a process skips."""


class Dial(Protocol):
    """Opens a connection to the server."""

    def __call__(self, timeout: float) -> Stream:
        """Return a new connection, on which an answer may take ``timeout`` seconds.

        Raises ``OSError`` or ``DecodeError`` where there is no server, and ``AgentguardError`` for
        a refusal.
        """

    def token(self) -> Secret | None:
        """Return the token for a greeting, None where the connection itself says who this is.

        Raises ``ServerError`` (``server.token``).
        """

    def forget_token(self) -> bool:
        """Forget a token that the server has refused; return whether there can be a newer one."""

    def unreachable(self, error: BaseException) -> ServerError:
        """Return the error (``server.unreachable``) that says what to do without a server."""


class _WithoutToken:
    """What every way has to which the connection itself says who the client is."""

    def token(self) -> Secret | None:
        """Return None (``Dial``)."""
        return None

    def forget_token(self) -> bool:
        """Return False (``Dial``)."""
        return False


class AtPath(_WithoutToken):
    """Opens connections to the unix socket at ``path``.

    Raises ``ServerError`` (``server.imposter``) where a process listens that may be no server.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, timeout: float) -> Stream:
        """Return a new connection (``Dial``)."""
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connected.settimeout(timeout)
        until = time.monotonic() + timeout
        try:
            while not self._has_connected(connected, until):
                time.sleep(_PAUSE)
            require_server(connected, self._path)
        except BaseException:
            connected.close()
            raise
        return Stream(connected)

    def _has_connected(self, connected: socket.socket, until: float) -> bool:
        """Connect; return False where the server's queue is full, which nobody else waits for."""
        try:
            connected.connect(str(self._path))
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
            return False
        return True

    def unreachable(self, error: BaseException) -> ServerError:
        """Return the error that says what to do without a server."""
        advice = "start it with agentguard serve"
        if isinstance(error, TimeoutError | BlockingIOError):
            advice = "it listens and does not answer: see its log, or allow more time in [server]"
        message = f"the guard server at {self._path} can't be reached ({error}): {advice}"
        return ServerError(message, code="server.unreachable")


class AtHost:
    """Opens connections to a server on another machine, over TCP with TLS.

    Certificates and key are read once more when their files have changed, since another program may
    replace them before their end. Files that can't be read then change nothing. Raises
    ``ConfigError`` where a certificate or the key can't be read at first, or the token endpoint
    can't be used.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._read = _state_of(host)
        self._context = _context_of(host)
        self._tokens = tokens_of(host)

    def _newest_context(self) -> ssl.SSLContext:
        now = _state_of(self._host)
        if now != self._read:
            with suppress(ConfigError):  # the other program is between two files: the next time
                self._context = _context_of(self._host)
                self._read = now
        return self._context

    def __call__(self, timeout: float) -> Stream:
        """Return a new connection (``Dial``)."""
        context = self._newest_context()
        connected = socket.create_connection((self._host.name, self._host.port), timeout)
        try:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            encrypted = context.wrap_socket(connected, server_hostname=self._host.name)
        except BaseException:
            connected.close()
            raise
        return Stream(encrypted)

    def token(self) -> Secret | None:
        """Return the token of this process, None for a client with a certificate (``Dial``)."""
        return None if self._tokens is None else self._tokens.token()

    def forget_token(self) -> bool:
        """Forget a token that the server has refused (``Dial``)."""
        return self._tokens is not None and self._tokens.forget()

    def unreachable(self, error: BaseException) -> ServerError:
        """Return the error that says what to do without a server."""
        at = f"the guard server at {self._host.name}:{self._host.port}"
        has_hung_up = _has_hung_up(error)
        reason = "it ended the connection, or takes no more now" if has_hung_up else str(error)
        if self._tokens is not None:
            advice = "see whether it runs, and whether its certificate is in force"
        elif has_hung_up:  # before the end of the handshake the server can't say why
            advice = (
                "it may have refused this client's certificate: see whether [clients] at the "
                "server has the certificate's SPIFFE ID, whether [server.tls] ca there has signed "
                "the certificate, and whether the certificate is in force; the server's log says "
                "which"
            )
        else:
            advice = "see whether it runs, and whether both certificates are in force"
        message = f"{at} can't be reached ({reason}): {advice}"
        return ServerError(message, code="server.unreachable")


def _context_of(host: Host) -> ssl.SSLContext:
    """Return what the client's end of TLS goes by; raises ``ConfigError``."""
    what = f"ca ({host.ca})"
    try:
        context = ssl.create_default_context(cafile=_text(host.ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if host.certificate is not None:
            what = f"certificate ({host.certificate}) or key ({host.key})"
            context.load_cert_chain(host.certificate, host.key)
    except OSError as error:  # among them ssl.SSLError
        reason = error.strerror or error
        message = f"[server] {what} can't be read: {reason}: name files in PEM that are there"
        raise ConfigError(message) from error
    return context


def _state_of(host: Host) -> list[tuple[int, int] | None]:
    """Return what tells whether a program has replaced the files since."""
    return [_status(path) for path in (host.ca, host.certificate, host.key) if path is not None]


def _status(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def at(address: Path | Host) -> Dial:
    """Return the way to a server; raises ``ConfigError``."""
    return AtHost(address) if isinstance(address, Host) else AtPath(address)


def _has_hung_up(error: BaseException) -> bool:
    """Whether a server has ended the connection, or the handshake."""
    return isinstance(error, EndedError | ConnectionResetError | BrokenPipeError) or (
        isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLCertVerificationError)
    )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


class Inherited(_WithoutToken):
    """Opens connections over the channel at ``descriptor``, which stays open.

    Raises ``ConfigError`` (``server.inherited``) where the descriptor is no such channel.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        try:
            with self._channel() as channel:
                kind = channel.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
                is_channel = (channel.family, kind) == (socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except (OSError, OverflowError) as error:
            raise _no_channel(f"the descriptor {descriptor} is not open, or no socket") from error
        if not is_channel:
            raise _no_channel(f"the descriptor {descriptor} is another socket")

    def _channel(self) -> socket.socket:
        """Return the channel, as a socket of its own that may be closed."""
        copy = os.dup(self._descriptor)
        try:
            return socket.socket(fileno=copy)
        except BaseException:
            os.close(copy)
            raise

    def __call__(self, timeout: float) -> Stream:
        """Return a new connection (``Dial``)."""
        with self._channel() as channel:
            channel.settimeout(timeout)
            refusal: AgentguardError | None = None
            for _ in range(_TRIES):
                connected = _ask(Stream(channel))
                if not _has_ended(connected):
                    connected.settimeout(timeout)
                    return Stream(connected)
                refusal = _refusal(Stream(connected)) or refusal
                connected.close()
        if refusal is not None:
            raise refusal
        raise ConnectionError("the server closes the connections that it has given")

    def unreachable(self, error: BaseException) -> ServerError:
        """Return the error that says what to do without a server."""
        message = (
            f"the guard server for which this program was started can't be reached ({error}): "
            "start the program again with agentguard run"
        )
        return ServerError(message, code="server.unreachable")


def is_inherited() -> bool:
    """Whether ``agentguard run`` has started this program, or a program around this one."""
    return VARIABLE in os.environ


def inherited() -> Inherited | None:
    """Return the way to the server of ``agentguard run``; None in a program started otherwise.

    Raises ``ConfigError`` (``server.inherited``).
    """
    number = os.environ.get(VARIABLE)
    if number is None:
        return None
    if not (number.isascii() and number.isdigit()):
        raise _no_channel(f"{number!r} is no descriptor")
    return Inherited(int(number))


def require_inherited() -> Inherited:
    """Return the way to the server of ``agentguard run``.

    Raises ``ConfigError`` (``server.inherited``), also in a program started otherwise.
    """
    found = inherited()
    if found is None:
        message = (
            "this program was not started with agentguard run: do that, or pass the server's url, "
            "as in 'unix:///run/agentguard/guard.sock'"
        )
        raise ConfigError(message, code="server.inherited")
    return found


def _ask(channel: Stream) -> socket.socket:
    channel.write(Frame({"op": "connection"}))
    answer, descriptor = channel.read_with()
    if descriptor is None:
        raise values.read_error(answer.header.get("error"))
    return socket.socket(fileno=descriptor)


def _has_ended(connected: socket.socket) -> bool:
    """Whether the server has closed the connection, as after a process that never read it."""
    poll = select.poll()
    poll.register(connected, 0)
    return bool(poll.poll(0))


def _refusal(ended: Stream) -> AgentguardError | None:
    """Return why the server has closed the connection, None where it has not said so."""
    try:
        first = ended.read().header
    except (OSError, DecodeError):  # among them EndedError
        return None
    return values.read_error(first["error"]) if "error" in first else None


def _no_channel(problem: str) -> ConfigError:
    message = (
        f"{VARIABLE}: {problem}: start the program with agentguard run; where another program "
        "starts the program, let that one pass the descriptor on (pass_fds)"
    )
    return ConfigError(message, code="server.inherited")
