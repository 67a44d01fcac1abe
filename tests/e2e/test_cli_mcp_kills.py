"""Gateways, servers and clients that are killed: no call runs twice, and none is lost unseen.

Each round is one client in a process of its own, with a gateway and a server behind it. One of the
three is killed in the middle of calls that all run at once. A few calls by default, 1,000 calls in
10 rounds with ``AGENTGUARD_ROUNDS=full``, and as many rounds as ``AGENTGUARD_KILLS`` says.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from rounds import FULL

from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import CallEntry
from agentguard.signing import canonical
from agentguard.store.reader import StoredLog

SERVER = (
    Path(__file__)
    .parents[2]
    .joinpath("integrations", "agentguard-mcp", "tests", "support", "scripted_server.py")
)
POLICY = (
    'package agent.authz\n\ndefault allow := false\n\nallow if input.action in {"echo", "hang"}\n'
)
ROUNDS = int(os.environ.get("AGENTGUARD_KILLS", "10" if FULL else "3"))
CALLS = 100 if FULL else 30
PARTS = ("gateway", "server", "client")

CLIENT = textwrap.dedent("""
    import json, os, subprocess, sys

    number, calls, *command = sys.argv[1:]
    gateway = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    seen = os.open("answers", os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    for call in range(int(calls)):
        name = "echo" if call else "hang"
        params = {"name": name, "arguments": {"text": f"{number}.{call}"}}
        message = {"jsonrpc": "2.0", "id": call, "method": "tools/call", "params": params}
        gateway.stdin.write(json.dumps(message).encode() + b"\\n")
    gateway.stdin.flush()
    for line in gateway.stdout:
        if line.endswith(b"\\n"):
            answer = json.loads(line)
            result = answer["result"]
            code = result.get("_meta", {}).get("dev.agentguard/code", "ok")
            os.write(seen, f"{number}.{answer['id']} {code}\\n".encode())
    gateway.stdin.close()
    gateway.wait()
""")
"""A client that makes calls all at once, and writes down which answers have come.

The first call never has an answer: so at least one call runs when a part is killed.
"""


def lines_of(file: Path) -> list[str]:
    """Return the whole lines of a file that another process writes."""
    return file.read_text().split("\n")[:-1] if file.exists() else []


def child_of(process: int) -> int:
    """Return the only process that a process has started; 0 for none."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    children = [word for task in tasks for word in (task / "children").read_text().split()]
    return int(children[0]) if children else 0


def play(project, number: int) -> None:
    """Have a client make its calls, and kill a part after some answers."""
    words = ["-m", "agentguard.cli", "mcp", "run", "--agent", "assistant", "--name", "files"]
    server = [sys.executable, "-I", "-S", str(SERVER), json.dumps({"ran": "ran"})]
    command = [sys.executable, *words, "--", *server]
    client = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", CLIENT, str(number), str(CALLS), *command],
        cwd=project.folder,
        env=project.environment,
        stderr=subprocess.DEVNULL,
    )
    answers, ran = project.folder / "answers", project.folder / "ran"
    limit = time.monotonic() + 60
    count = len(lines_of(answers)) + 1 + number * 7 % (CALLS // 2)
    while len(lines_of(answers)) < count or f"hang {number}.0" not in lines_of(ran):
        assert client.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.002)
    gateway = child_of(client.pid)
    processes = {"gateway": gateway, "server": child_of(gateway), "client": client.pid}
    os.kill(processes[PARTS[number % len(PARTS)]], signal.SIGKILL)
    client.wait(60)
    while Path(f"/proc/{gateway}").exists():  # of a client that was killed, it ends by itself
        assert time.monotonic() < limit
        time.sleep(0.01)


def logged(project) -> dict[str, str]:
    """Return the id of each authorised call in the log, by its argument."""
    found = {}
    with closing(StoredLog.of(project.folder / ".agentguard")) as reader:
        for stored in reader.stored():
            entry = parse_entry(stored.body)
            if isinstance(entry, CallEntry):
                (data,) = [one.data for one in stored.attachments if one.role == "arguments"]
                text = str(canonical.loads_object(data)["text"])
                assert text not in found
                found[text] = str(entry.invocation_id)
    return found


@pytest.mark.slow("it starts clients, gateways and servers, and kills them in the middle of calls")
@pytest.mark.skipif(sys.platform != "linux", reason="it finds processes in /proc")
def test_no_call_runs_twice_and_each_that_ran_is_in_the_log_or_in_doubt(project):
    assert project.run("init").returncode == 0
    project.allow_unlisted()
    (project.folder / "policies" / "authz.rego").write_text(POLICY)
    for number in range(ROUNDS):
        play(project, number)
    time.sleep(0.5)  # servers whose gateway was killed end by themselves
    lines = [line.split() for line in lines_of(project.folder / "ran")]
    ran = Counter(text for method, text in lines if method in ("echo", "hang"))
    assert set(ran.values()) == {1}
    answers = dict(line.split() for line in lines_of(project.folder / "answers"))
    done = {text for text, code in answers.items() if code == "ok"}
    assert done <= ran.keys()
    assert set(answers.values()) <= {"ok", "tool.lost", "tool.unreachable", "tool.unlisted"}

    calls = logged(project)
    assert ran.keys() <= calls.keys()
    report = json.loads(project.run("audit", "verify", "--json").stdout)
    assert report["ok"] is True
    in_doubt = {*report["in_doubt"]}
    listed = map(json.loads, project.run("audit", "list", "--json").stdout.splitlines())
    outcomes = {
        one["invocation_id"]: one["outcome"] for one in listed if one["decision"] == "allow"
    }
    open_calls = {text for text in calls if calls[text] in in_doubt}
    ok = {text for text in calls if outcomes[calls[text]] == "ok"}
    unknown = {text for text in calls if outcomes[calls[text]] == "unknown"}
    assert {text for text in calls if outcomes[calls[text]] == "in_doubt"} == open_calls
    assert ok <= ran.keys()
    assert ran.keys() - ok <= unknown | open_calls
    assert done <= ok | open_calls  # a client may hear of an answer just before a kill
    hanging = {f"{number}.0" for number in range(ROUNDS)}
    assert hanging <= open_calls | unknown
    assert {text for text in hanging if int(text[:-2]) % len(PARTS) == 0} <= open_calls
    lost = {text for text, code in answers.items() if code == "tool.lost"}
    assert lost <= unknown
