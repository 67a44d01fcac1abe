"""A guard server under one user, an agent's program under another, and what each of them can do.

Run it with ``python examples/server/main.py``. As root, the server and the agent get users of their
own. Anybody else can't change the user of a process: both run as the user who starts the example,
and the output shows what is lost. Everything happens in a temporary folder, which is removed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
GUARD, REVIEWER, STRANGER = 64_001, 64_002, 64_003
"""The users of the server, of the agent and of somebody else, as numbers: no account is made."""


class Users:
    """Starts programs of Python under other users, where this process may."""

    def __init__(self, *, are_real: bool) -> None:
        self.are_real = are_real

    def start(self, uid: int, *words: object, **options: Any) -> subprocess.Popen[str]:
        """Start Python with these words as a user, or as the user of this process."""
        if self.are_real:
            options |= {"user": uid, "group": uid, "extra_groups": []}
        program = [sys.executable, *map(str, words)]
        return subprocess.Popen(program, text=True, **options)  # noqa: S603  the words stand here

    def run(self, uid: int, *words: object, **options: Any) -> str:
        """Run Python with these words as a user, and return what it prints."""
        process = self.start(uid, *words, stdout=subprocess.PIPE, **options)
        printed, _none = process.communicate()
        if process.returncode != 0:
            sys.exit(f"a program of the user {uid} has failed: {words}")
        return printed


def why_not() -> str | None:
    """Return why programs can't get users of their own; None where they can."""
    if os.geteuid() != 0:
        return "only root can start programs under other users"
    try:
        Users(are_real=True).run(STRANGER, "-c", "import agentguard", stderr=subprocess.DEVNULL)
    except (OSError, SystemExit):
        return (
            f"other users can't run {sys.executable}, or can't read agentguard (start the example "
            "with a Python that every user can run: see README.md in this folder)"
        )
    return None


def main(folder: Path, reason: str | None) -> None:
    """Set the server up, let the agent's program run beside it, and read the log."""
    users = Users(are_real=reason is None)
    if reason is None:
        print(f"The server runs as user {GUARD}, the agent's program as user {REVIEWER}.")
    else:
        print(f"Both run as user {os.getuid()}, for {reason}.")
    home, run = folder / "server", folder / "run"
    prepare(home, run, users)

    agentguard = ("-m", "agentguard.cli")
    users.run(GUARD, *agentguard, "init", cwd=home)
    server = users.start(GUARD, *agentguard, "serve", cwd=home, stdout=subprocess.PIPE)
    try:
        if server.stdout is None or not server.stdout.readline().startswith("serving"):
            sys.exit("the server has ended")
        program = (run / "agent.py", f"unix:{run / 'guard.sock'}", home, server.pid)
        print(users.run(REVIEWER, *program), end="")
        if users.are_real:
            print("The same program, started by a user who is no client:")
            print(users.run(STRANGER, *program), end="")
    finally:
        server.terminate()  # it waits for outcomes, and ends
        server.communicate()

    print("The server's user reads the log:")
    calls = (*agentguard, "audit", "list", "--kind", "call", "--json")
    listed = users.run(GUARD, *calls, cwd=home)
    for call in map(json.loads, listed.splitlines()):
        words = (*agentguard, "audit", "show", call["invocation_id"])
        shown = users.run(GUARD, *words, cwd=home).splitlines()
        (row,) = (line for line in shown if line.startswith("isolation"))
        isolation = row.partition("|")[2].partition(":")[0].strip()
        print(f"  {call['tool']}: {call['decision']}, isolation {isolation}")
    report = json.loads(users.run(GUARD, *agentguard, "audit", "verify", "--json", cwd=home))
    print("  the log verifies:", report["ok"])


def prepare(home: Path, run: Path, users: Users) -> None:
    """Make the folder of the server's user, and the folder of the socket."""
    home.parent.chmod(0o711)
    home.mkdir(mode=0o700)
    run.mkdir()
    run.chmod(0o755)  # everybody reaches the socket, and only the server's user makes one
    shutil.copyfile(HERE / "agent.py", run / "agent.py")  # other users may not see the clone
    (run / "agent.py").chmod(0o644)
    uid = REVIEWER if users.are_real else os.getuid()
    settings = (HERE / "agentguard.toml").read_text("utf-8")
    (home / "agentguard.toml").write_text(f"{settings}uid = {uid}\n", "utf-8")
    shutil.copyfile(HERE / "authz.rego", home / "authz.rego")
    if users.are_real:
        for path in (*home.iterdir(), home, run):
            os.chown(path, GUARD, GUARD)


if __name__ == "__main__":
    os.environ["COLUMNS"] = "100"  # of what agentguard prints
    one_user = "you asked for one user" if "--one-user" in sys.argv else why_not()
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary), one_user)
