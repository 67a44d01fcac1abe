"""A full disk, a real one: calls are denied, and a freeze and a revocation work all the same."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
from datetime import UTC, datetime
from pathlib import Path
from agentguard import AgentguardError, Decision, Guard
from agentguard.domain import administration, config, domain
from agentguard.domain.verify import examine
from agentguard.guard.embedded import Embedded
from agentguard.policy.function import FunctionEngine
from agentguard.storage import reserve
from agentguard.store.reader import StoredLog

folder, anchor, running = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "running"
SECRET = b"correct horse battery staple"
tables = {"trust_domain": "acme.example", "state": str(folder / "state"),
          "anchor": "" if anchor == "none" else str(folder / "anchor"),
          "policy": {"engine": "function", "path": "unused:unused"},
          "agents": {"reader": {"authority": "own"}, "writer": {"authority": "own"}}}
settings = config.parse(tables, source="agentguard.toml", base=folder)


def opened():
    home = domain.take_up(settings, SECRET)
    return Guard(Embedded(settings, FunctionEngine(lambda _: Decision.allow()), home))


def code_of(work, *arguments, **named):
    try:
        work(*arguments, **named)
    except AgentguardError as error:
        return error.code
    return "none"


def fill():
    with (folder / "state" / "ballast").open("ab", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                pass


def administered(what, **more):
    return code_of(what, settings, SECRET, note="stop", now=datetime.now(UTC), **more)


def calls():
    return [code_of(agent.call, tool, "x") for agent in agents]


effects = []
guard = opened()
agents = [guard.new_agent("reader"), guard.new_agent("writer")]
tool = guard.tool(effects.append, name="note")
print(*calls())
if not running:
    guard.close()
fill()
if running:
    print(*{code for _ in range(40) for code in calls()} - {"none"})
    count = len(effects)
print(administered(administration.freeze, frozen=False))  # nothing else uses the reserve
print(administered(administration.revoke, name="agent:writer"))
if running:
    print(*calls(), len(effects) - count)
fill()
print(administered(administration.freeze, frozen=True))
if running:
    print(*calls(), len(effects) - count)
(folder / "state" / "ballast").unlink()
if running:
    print(*calls())
print(administered(administration.freeze, frozen=False))
if not running:
    guard = opened()
    agents = [guard.new_agent("reader"), guard.new_agent("writer")]
    tool = guard.tool(effects.append, name="note")
print(*calls())
print((folder / "state" / reserve.FILE).stat().st_blocks * 512 >= reserve.SIZE)
guard.close()
report = examine(StoredLog.of(folder / "state"), domain.take_up(settings, SECRET).trust,
                 anchor=settings.anchor)
print(report.problems, len(report.in_doubt))
"""


UNSHARE = ["unshare", "--map-root-user", "--mount", "sh", "-c"]


@pytest.mark.parametrize("anchor", ["outside", "beside", "none"])
@pytest.mark.parametrize("running", ["running", "alone"])
def test_a_full_disk_stops_calls_and_no_freeze(place, anchor, running):
    """A real one, of four megabytes, in a mount name space of its own."""
    mount = 'mount -t tmpfs -o size=4m none "$2/disk" && cp -a "$2/kept" "$2/disk/state"'
    mount += ' && mount --bind "$2/disk/state" "$2/state"'
    if anchor == "beside":
        mount += ' && cp -a "$2/anchor" "$2/disk" && mount --bind "$2/disk/anchor" "$2/anchor"'
    (place.config.base / "disk").mkdir()
    (place.config.base / "anchor").mkdir(exist_ok=True)
    script = f'{mount} || exit 77; exec "$0" -c "$1" "$2" "$3" "$4"'
    shutil.copytree(place.config.state, place.config.base / "kept")
    result = subprocess.run(
        [*UNSHARE, script, sys.executable, PROGRAM, str(place.config.base), anchor, running],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    if result.returncode == 77 or "unshare" in result.stderr:
        pytest.skip(f"no file system can be mounted here: {result.stderr.strip()}")
    assert result.returncode == 0, result.stderr
    # where the log is not open yet, SQLite says of a full disk that reading or writing failed
    lines = result.stdout.replace("storage.failed", "storage.full").splitlines()
    denied = "storage.full storage.full 0"
    while_full = [["storage.full"], [denied], [denied]] if running == "running" else [[], [], []]
    assert lines == [
        "none none",
        *while_full[0],
        "storage.full",
        "none",
        *while_full[1],
        "none",
        *while_full[2],
        *(["domain.frozen delegation.revoked"] if running == "running" else []),
        "none",
        "none delegation.revoked",
        "True",
        "() 0",
    ]
