"""A process that has imported CrewAI, which takes seconds, and forks for each piece of work.

A piece of work is ``main`` of a program with its arguments, in a folder, with a file ``output`` in
it for what is printed. A program is imported once, by its own name, before it is forked for: the
path of a policy finds that module. ``Forge`` is the end that tests hold; the rest is the process.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any


class Forge:
    """Begins the process; ``close`` ends it.

    It has the classes of guarded agents and crews, which take long to make, unless it is ``bare``.
    """

    def __init__(self, *, bare: bool = False) -> None:
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, __file__, *(["bare"] if bare else [])]
        self._process = subprocess.Popen(command, **pipes)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._tell, self._told = self._process.stdin, self._process.stdout
        assert self._told.readline() == "ready\n"

    def begin(self, program: Path, folder: Path, *given: Any) -> int:
        """Fork for a piece of work; return the process's id, which is its own until its ``end``."""
        return self._asked([str(program), str(folder), *given])

    def end(self, child: int) -> int:
        """Return how a piece of work has ended, once it has."""
        return os.waitstatus_to_exitcode(self._asked(child))

    def done(self, program: Path, folder: Path, *given: Any) -> list[str]:
        """Return the lines that a piece of work has printed; it must end well."""
        ended = self.end(self.begin(program, folder, *given))
        output = (folder / "output").read_text("utf-8")
        assert ended == 0, output
        return output.splitlines()

    def close(self) -> None:
        """End the process."""
        self._tell.close()
        self._told.close()
        self._process.wait()

    def _asked(self, what: Any) -> int:
        self._tell.write(json.dumps(what) + "\n")
        self._tell.flush()
        return int(self._told.readline())


def serve() -> None:
    """Fork for each line of input that is a piece of work, and wait for each that is a process."""
    import agentguard_crewai  # noqa: F401, PLC0415

    if sys.argv[1:] != ["bare"]:
        _build()
    assert threading.active_count() == 1, "a fork has the thread alone that forks"
    _say("ready")
    for line in sys.stdin:
        asked = json.loads(line)
        _say(os.waitpid(asked, 0)[1] if isinstance(asked, int) else _fork(*asked))


def _build() -> None:
    """Have CrewAI and the adapter make the classes that they make at their first use."""
    from crewai import Agent, Crew, Task  # noqa: PLC0415
    from crewai.agents.agent_executor import AgentExecutor  # noqa: PLC0415
    from crewai.llms.base_llm import BaseLLM  # noqa: PLC0415

    from agentguard import Decision, Guard  # noqa: PLC0415
    from agentguard_crewai import guard_crew  # noqa: PLC0415

    class Model(BaseLLM):
        def call(self, *_args: Any, **_kwargs: Any) -> Any:
            raise AssertionError

    AgentExecutor.flow_definition()
    member: Any = Agent(role="Lead", goal="g", backstory="b", llm=Model(model="none"))
    task = Task(description="a task", expected_output="words", agent=member)
    tables = {"agents": {"lead": {"authority": "own"}}}
    with Guard.ephemeral(lambda _call: Decision.allow(), config=tables) as guard:
        guard_crew(Crew(agents=[member], tasks=[task]), guard)
        member.create_agent_executor()


def _say(what: object) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def _fork(program: str, folder: str, *given: Any) -> int:
    path = Path(program)
    if path.stem not in sys.modules:
        sys.path.insert(0, str(path.parent))
        importlib.import_module(path.stem)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.chdir(folder)
            output = os.open("output", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
            nothing = os.open(os.devnull, os.O_RDONLY)
            for number, instead in enumerate((nothing, output, output)):
                os.dup2(instead, number)
            sys.modules[path.stem].main(*given)
            status = 0
        except BaseException:  # noqa: BLE001  as the interpreter ends a process
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return child


if __name__ == "__main__":
    serve()
