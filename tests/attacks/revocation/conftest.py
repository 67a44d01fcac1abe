"""A durable domain with delegations to revoke, and a second process that acts in it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import pytest
from denial_lines import without_denials
from preloaded import Preloaded
from revoked_agents import SCOPE, Scene

from agentguard.domain import config
from agentguard.signing.canonical import loads_object

AGENTS = {
    "robot": {"authority": "own", "max_scope": SCOPE},
    "worker": {"max_scope": SCOPE},
    "helper": {"max_scope": SCOPE},
}


@pytest.fixture
def durable(place):
    """The place, with these agents."""
    tables = {**loads_object(place.config.encoded), "agents": AGENTS}
    place.config = config.parse(tables, source="agentguard.toml", base=place.config.base)
    return place


@pytest.fixture
def scene(durable) -> Iterator[Scene]:
    made = Scene(durable)
    with made.guard:
        assert set(made.calls().values()) == {"ok"}  # all of it is cached from here on
        yield made


OTHER = """
    import sys
    from pathlib import Path
    from agentguard import Decision, Denied, Guard
    from agentguard.guard.embedded import Embedded
    from agentguard.domain import config
    from agentguard.domain import domain
    from agentguard.policy.function import FunctionEngine

    folder, stored = Path(sys.argv[1]), sys.argv[2].encode()
    tables = {"trust_domain": "acme.example", "state": str(folder / "state"),
              "anchor": str(folder / "anchor"),
              "policy": {"engine": "function", "path": "unused:unused"},
              "agents": {"robot": {"authority": "own", "max_scope": ["read"]},
                         "worker": {"max_scope": ["read"]}}}
    settings = config.parse(tables, source="agentguard.toml", base=folder)
    home = domain.take_up(settings, b"correct horse battery staple")
    guard = Guard(Embedded(settings, FunctionEngine(lambda _: Decision.allow()), home))
    read = guard.tool(name="read", requires=["read"])(lambda: "ok")
    alice = guard.resume(stored)
    worker, robot = guard.new_agent("worker").under(alice), guard.new_agent("robot")

    def attempt(agent):
        try:
            return agent.call(read)
        except Denied as denied:
            return denied.code

    for line in sys.stdin:
        if line == "end\\n":
            break
        print(attempt(worker), attempt(robot), flush=True)
    guard.close()
"""


class Other:
    """A process with a guard of its own on the same state, which calls when it is told to."""

    def __init__(self, scene: Scene, programs: Preloaded) -> None:
        base = scene.place.config.base
        words = ("-W", "error", "-c", textwrap.dedent(OTHER), base, scene.alice.dumps().decode())
        self.process = programs.talk(*words, cwd=base)

    def tell(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def calls(self) -> list[str]:
        """What becomes of the next calls of its worker, for alice, and of its robot."""
        self.tell("call")
        return self.process.stdout.readline().split()

    def end(self) -> None:
        _out, err = self.process.communicate("end\n")
        assert (self.process.returncode, without_denials(err)) == (0, "")


@pytest.fixture
def other(scene, programs) -> Iterator[Other]:
    made = Other(scene, programs)
    try:
        assert made.calls() == ["ok", "ok"]  # cached there as well
        yield made
        made.end()
    finally:
        made.process.kill()
        made.process.wait()
