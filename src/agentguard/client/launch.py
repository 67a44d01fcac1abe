"""Starts a program that inherits a channel to the guard server (``agentguard run``).

The process of the launcher becomes the program: a user, an environment and a descriptor are set up,
and the program takes the process over. So signals and the exit code are the program's own. In a
terminal of root's, the program runs in a child process without the terminal.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from agentguard.client.dial import VARIABLE, AtPath
from agentguard.errors import DecodeError, ServerError
from agentguard.wire import values
from agentguard.wire.frame import Frame

DESCRIPTOR: Final = 3
"""The number of the inherited descriptor."""

_SECRETS: Final = ("AGENTGUARD_PASSPHRASE", "AGENTGUARD_APPROVER_PASSPHRASE")
"""The variables of an administrator that no program gets."""

_KILLED: Final = 128
"""What a shell adds to the number of the signal that has ended a program."""

_LAST_STREAM: Final = 2
_PR_SET_NO_NEW_PRIVS: Final = 38
_OPEN_FILES: Final = Path("/proc/self/fd")
_TERMINAL: Final = "/dev/tty"
_HANDED_ON: Final = {
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGCHLD,
}
"""The signals that a waiting launcher takes: the last one is its own, and the others the program's.
"""

_IGNORED_BY_PYTHON: Final = (signal.SIGPIPE, signal.SIGXFSZ)


def channel_for(
    path: Path, agent: str, uid: int, vouches_for: Sequence[str], *, timeout: float
) -> socket.socket:
    """Ask the server at ``path`` for a channel: for one agent, used by processes of ``uid``.

    ``vouches_for`` are the principals whose delegations the program may begin. Raises
    ``ServerError`` (``server.unreachable``, ``server.launch``, ``server.busy``) and ``ConfigError``
    (``agent.unknown``).
    """
    dial = AtPath(path)
    request = {"op": "launch", "agent": agent, "uid": uid, "vouches_for": [*vouches_for]}
    try:
        stream = dial(timeout)
        try:
            stream.read()  # from here on the server sees who sends
            stream.write(Frame(request))
            answer, descriptor = stream.read_with()
        finally:
            stream.close()
    except (OSError, DecodeError) as error:
        raise dial.unreachable(error) from error
    if descriptor is None:
        raise values.read_error(answer.header.get("error"))
    return socket.socket(fileno=descriptor)


def replace_with(
    command: Sequence[str], channel: socket.socket, user: pwd.struct_passwd | None
) -> NoReturn:
    """Become ``command`` under ``user``; None stands for the user of this process.

    The command inherits the channel and the standard streams, and no other descriptor. Neither the
    command nor what it starts ever gets more rights than the user has. Raises ``ServerError``
    (``server.launch``) where this process can't become the user, or the command can't be started.
    """
    environment = {name: text for name, text in os.environ.items() if name not in _SECRETS}
    environment[VARIABLE] = str(DESCRIPTOR)
    if user is not None:
        environment |= {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name}
    if user is not None and user.pw_uid != os.getuid():
        _leave_terminal(channel)
    _hand_on_only(channel)  # before the user changes: the list of open files is root's then
    if user is not None:
        _become(user)
    _forgo_rights()
    for number in _IGNORED_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(command[0], [*command], environment)  # noqa: S606  the command that the user names
    except OSError as error:
        raise _no_program(command[0], user, environment) from error


def _no_program(
    program: str, user: pwd.struct_passwd | None, environment: Mapping[str, str]
) -> ServerError:
    """Return the error for a program that is not there, or that the user can't run."""
    place = "" if os.sep in program else f" in the folders of PATH ({environment.get('PATH', '')})"
    name = "this user" if user is None else f"the user {user.pw_name}"
    message = (
        f"there is no program {program} that {name} can run{place}: correct the name after --, or "
        "give the program's path"
    )
    return ServerError(message, code="server.launch")


def _hand_on_only(channel: socket.socket) -> None:
    """Let the command inherit the channel at a fixed number, and the standard streams."""
    for one in [int(file.name) for file in _OPEN_FILES.iterdir()]:
        if one > _LAST_STREAM:
            with suppress(OSError):  # the list itself, which is closed by now
                os.set_inheritable(one, False)  # noqa: FBT003
    if channel.fileno() == DESCRIPTOR:
        os.set_inheritable(DESCRIPTOR, True)  # noqa: FBT003
    else:
        os.dup2(channel.fileno(), DESCRIPTOR)


def _leave_terminal(channel: socket.socket) -> None:
    """Go on in a child process without the terminal, if there is one.

    A program can type into its terminal (``TIOCSTI``), and so give orders to root's shell. The
    launcher waits for the child, hands signals on, and ends as the child does.
    """
    try:
        os.close(os.open(_TERMINAL, os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDED_ON)
    child = os.fork()
    if child == 0:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    channel.close()
    while True:
        number = signal.sigwait(_HANDED_ON)
        if number != signal.SIGCHLD:
            os.kill(child, number)
            continue
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else _KILLED - code)


def _become(user: pwd.struct_passwd) -> None:
    """Become a user for good, with the user's groups."""
    ids = (user.pw_uid,) * 3
    try:
        if os.getresuid() != ids:
            os.initgroups(user.pw_name, user.pw_gid)
            os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
            os.setresuid(*ids)
    except PermissionError as error:
        message = f"only root starts a program under another user ({user.pw_name})"
        raise ServerError(message, code="server.launch") from error


def _forgo_rights() -> None:
    """Let no program that this process starts get more rights, as sudo does."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise ServerError(f"the program could get more rights: {reason}", code="server.launch")
