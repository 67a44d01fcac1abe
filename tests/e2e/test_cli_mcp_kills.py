"""Gateways, servers and clients that are killed: no call runs twice, and none is lost unseen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from rounds import FULL

SERVER = (
    Path(__file__)
    .parents[2]
    .joinpath(*("integrations", "agentguard-mcp", "tests", "support", "scripted_server.py"))
)
POLICY = 'package agent.authz\n\ndefault allow := false\n\nallow if input.action == "echo"\n'
CALLS = 40
READ = (3, 17, 29, 8, 22, 35)
"""In each round, after how many answers something is killed."""


class Round:
    """One gateway with its client, of which one part is killed in the middle of calls."""

    def __init__(self, project) -> None:
        words = ["-m", "agentguard.cli", "mcp", "run", "--agent", "assistant", "--name", "files"]
        server = [sys.executable, "-I", "-S", str(SERVER), json.dumps({"ran": "ran"})]
        self.process = subprocess.Popen(
            [sys.executable, *words, "--", *server],
            cwd=project.folder,
            env=project.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.input, self.output = self.process.stdin, self.process.stdout
        self.answered: set[str] = set()

    def send(self, number: int) -> None:
        """Write calls, each with a text of its own."""
        for call in range(CALLS):
            params = {"name": "echo", "arguments": {"text": f"{number}.{call}"}}
            message = {"jsonrpc": "2.0", "id": call, "method": "tools/call", "params": params}
            self.input.write(json.dumps(message).encode() + b"\n")
        self.input.flush()

    def read(self, number: int) -> None:
        """Read so many answers, or fewer if the gateway ends."""
        for _answer in range(number):
            line = self.output.readline()
            if not line.endswith(b"\n"):
                return
            result = json.loads(line)["result"]
            if not result["isError"]:
                self.answered.add(json.loads(result["content"][0]["text"])["text"])

    def kill_server(self) -> None:
        """Kill the server behind the gateway."""
        number = self.process.pid
        tasks = Path(f"/proc/{number}/task").iterdir()
        children = [word for task in tasks for word in (task / "children").read_text().split()]
        os.kill(int(children[0]), signal.SIGKILL)

    def end(self) -> None:
        """Let the client go away, and wait for the end of the gateway and its server."""
        self.input.close()
        self.output.close()
        self.process.wait(30)


@pytest.mark.slow("it starts gateways, and kills them in the middle of calls")
@pytest.mark.skipif(not FULL, reason="it takes 15 seconds: scripts/test --all runs it")
@pytest.mark.skipif(sys.platform != "linux", reason="it finds the server's process in /proc")
def test_no_call_runs_twice_and_each_that_ran_is_in_the_log(project):
    assert project.run("init").returncode == 0
    (project.folder / "policies" / "authz.rego").write_text(POLICY)
    answered: set[str] = set()
    for number, read in enumerate(READ):
        made = Round(project)
        made.send(number)
        made.read(read)
        if number % 3 == 0:
            made.process.kill()
        elif number % 3 == 1:
            made.kill_server()
            made.read(CALLS)
        made.end()
        answered |= made.answered
    time.sleep(0.5)  # servers whose gateway was killed end by themselves
    ran = Counter((project.folder / "ran").read_text().split()[1::2])
    assert len(ran) > len(READ)
    assert set(ran.values()) == {1}
    assert answered <= ran.keys()
    listed = project.run("audit", "list", "--json").stdout.splitlines()
    calls = [one for one in map(json.loads, listed) if one["kind"] == "authorization"]
    outcomes = Counter(one["outcome"] for one in calls if one["decision"] == "allow")
    assert outcomes["ok"] <= len(ran) <= outcomes.total()
    assert len(ran) - outcomes["ok"] <= outcomes["unknown"] + outcomes["in_doubt"]
    assert outcomes.keys() <= {"ok", "unknown", "in_doubt", "error"}
    assert outcomes["in_doubt"] > 0
    assert outcomes["unknown"] > 0
    assert project.run("audit", "verify").returncode == 0
