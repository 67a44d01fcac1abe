"""A crew in a Flow pauses at an approval; bob approves in another process, a third one goes on.

Run it with ``python examples/crew_flow_approval.py``: offline, with a scripted model, in a folder
that is gone afterwards (``--state DIR`` keeps one); with ``--model PROVIDER/NAME`` a real model
books. What the crew has done before the pause, it does not do again.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

os.environ.setdefault("CREWAI_DISABLE_TELEMETRY", "true")
os.environ.setdefault("CREWAI_TRACING_ENABLED", "false")

from crewai import LLM, Agent, Crew, Task
from crewai.events.utils.console_formatter import set_suppress_console_output
from crewai.flow import Flow, HumanFeedbackPending, listen, or_, start
from crewai.flow.persistence import SQLiteFlowPersistence
from crewai.llms.base_llm import BaseLLM
from crewai.tools import tool
from pydantic import BaseModel

from agentguard import Ed25519Signer, Guard
from agentguard_crewai import answered, guard_crew, kickoff_or_pause

PROGRAM = Path(__file__).resolve()
MODEL = "TRIP_MODEL"
"""The environment variable that tells each process of a real model."""

CONFIG = """\
trust_domain = "travel.example"
anchor = "anchor"
keys.passphrase_file = "passphrase"

[policy]
engine = "rego"
path = "authz.rego"

[agents.travel-agent]
max_scope = ["trip:book", "trip:pay"]

[tools]
unlisted = "deny"                  # a tool without a table is denied

[tools.book_seat]
requires = ["trip:book"]

[tools.pay]
requires = ["trip:pay"]

[approvers.bob]
principal = "user:bob"
keys = ["{key}"]
"""

POLICY = """\
package agent.authz

default allow := false

allow if input.action == "book_seat"

approval := {"reason": "it costs money", "approvers": ["bob"]} if input.action == "pay"
"""


@tool
def book_seat(train: str) -> str:
    """Book a seat: twice would be one seat too many."""
    note(f"booked a seat in {train}")
    return "seat 61"


@tool
def pay(cents: int) -> str:
    """Pay for what was booked."""
    note(f"paid {cents / 100:.2f}")
    return "paid"


def note(deed: str) -> None:
    """Write down what was done, where other processes can read it."""
    print(f"  the tool runs: {deed}")
    with Path("deeds.txt").open("a", encoding="utf-8") as file:
        file.write(f"{deed}\n")


class ScriptedModel(BaseLLM):
    """A model that books a seat, pays, and is done; from its beginning in each process."""

    script: list[Any]

    def call(self, *_args: Any, **_kwargs: Any) -> Any:
        """Return the next tool call, or words."""
        step = self.script.pop(0)
        if isinstance(step, str):
            return step
        name, arguments = step
        function = {"name": name, "arguments": json.dumps(arguments)}
        return [{"id": secrets.token_hex(4), "type": "function", "function": function}]

    def supports_function_calling(self) -> bool:
        """Say that it calls tools natively."""
        return True

    def get_input_tokens_count(self, *_args: Any, **_kwargs: Any) -> int:
        """Say that it reads nothing."""
        return 0


def model() -> BaseLLM:
    """Return the real model that was asked for, or else the scripted one."""
    name = os.environ.get(MODEL)
    if name is None:
        script = [("book_seat", {"train": "ICE 1507"}), ("pay", {"cents": 5990}), "It is booked."]
        return ScriptedModel(model="scripted", script=script)
    try:
        return LLM(model=name)
    except ImportError as error:  # its text says what to install, or how models are named
        sys.exit(f"--model {name}: {error}")


def crew(guard: Guard) -> Crew:
    """Make the crew, as each process does that runs it."""
    agent = Agent(
        role="Travel Agent",  # [agents.travel-agent]
        goal="Book trips",
        backstory="You book trips.",
        llm=model(),
        tools=[book_seat, pay],
    )
    what = "Book a seat in the train ICE 1507, and pay 5990 cents for it."
    task = Task(description=what, expected_output="What was done.", agent=agent)
    return guard_crew(Crew(agents=[agent], tasks=[task]), guard, on_approval="pause")


class State(BaseModel):
    """What CrewAI keeps of the flow while it waits."""

    id: str = ""
    lent: str = ""
    """For whom it is: what ``guard.delegate`` made; no key is in it."""


class Trip(Flow[State]):
    """A flow with a crew in it, some of whose calls wait for people."""

    @start()
    def lend(self) -> None:
        """Let alice, whom the application has authenticated, lend what the trip needs."""
        lent = Guard.find().delegate("user:alice", scope=["trip:book", "trip:pay"], via="crew:trip")
        self.state.lent = lent.dumps().decode()

    @listen(or_(lend, answered("book")))
    def book(self) -> str:
        """Let the crew work; once bob has answered, this is run again."""
        guard = Guard.find()
        with guard.resume(self.state.lent.encode()):
            return str(kickoff_or_pause(self, crew(guard), run=f"trip-{self.flow_id}"))


def begin() -> tuple[str, str]:
    """Start the flow, which pauses; return its id, and that of the request that waits."""
    flow = Trip(persistence=SQLiteFlowPersistence("flow.db"), suppress_flow_events=True)
    paused = worked(flow.kickoff)
    if not isinstance(paused, HumanFeedbackPending):
        sys.exit(f"it did not pause: {paused}")
    print(f"the flow pauses: {paused.context.message}")
    return flow.flow_id, paused.context.metadata["request_id"]


def resume(flow_id: str) -> None:
    """Go on with the flow, in a process that knows nothing but its id."""
    persistence = SQLiteFlowPersistence("flow.db")
    flow = Trip.from_pending(flow_id, persistence, suppress_flow_events=True)
    print(f"the crew says: {worked(flow.resume)}")


def worked(step: Callable[[], Any]) -> Any:
    """Do a step of the flow; a real model that can't be asked ends it with one sentence."""
    try:
        return step()
    except Exception as error:
        name = os.environ.get(MODEL)
        if name is None:
            raise
        sys.exit(f"--model {name} failed: {type(error).__name__}: {error}")


def main() -> None:
    """Found a trust domain, begin, let bob approve, and let another process go on."""
    os.environ["CREWAI_STORAGE_DIR"] = str(Path("crewai").absolute())
    secret = secrets.token_hex(16)
    signer = Ed25519Signer.from_seed(secrets.token_bytes(32))  # bob's, on his own machine as a rule
    Path("bob").touch(mode=0o600)
    Path("bob").write_bytes(signer.to_openssh(secret.encode()))
    Path("agentguard.toml").write_text(CONFIG.format(key=signer.public_key.openssh()))
    Path("authz.rego").write_text(POLICY)
    agentguard("init")
    print("1. A process begins the flow.")
    flow_id, request = begin()
    command = ("approvals", "approve", request, "--key", "bob", "--yes")
    print(f"2. Another one is bob's: agentguard {' '.join(command)}")
    print(agentguard(*command, AGENTGUARD_APPROVER_PASSPHRASE=secret), end="")
    print("3. A third one goes on with the flow.", flush=True)
    third = subprocess.run([sys.executable, PROGRAM, "--resume", flow_id], check=False)  # noqa: S603
    if third.returncode != 0:
        sys.exit(third.returncode)  # it has said why
    print("\nWhat the log says (agentguard audit list --kind call):")
    print(agentguard("audit", "list", "--kind", "call"), end="")
    agentguard("audit", "verify")  # fails unless it does
    print("It verifies.\n")
    print(f"done altogether: {', '.join(Path('deeds.txt').read_text().splitlines())}")


def agentguard(*arguments: str, **environment: str) -> str:
    """Run ``agentguard`` in a process of its own; return what it prints."""
    ran = subprocess.run(  # noqa: S603  its arguments stand in this file
        [sys.executable, "-m", "agentguard.cli", *arguments],
        env={**os.environ, **environment},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return ran.stdout


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A crew in a Flow that waits for bob.")
    parser.add_argument("--state", type=Path, metavar="DIR", help="a new folder, which is kept")
    parser.add_argument("--model", metavar="PROVIDER/NAME", help="a real model, as CrewAI names it")
    parser.add_argument("--resume", metavar="FLOW", help="go on with this flow: the third process")
    given = parser.parse_args()
    set_suppress_console_output(True)  # CrewAI's panels
    if given.model:
        os.environ[MODEL] = given.model
    if given.resume:
        resume(given.resume)
    elif given.state:
        if given.state.exists():
            parser.error(f"{given.state} is there already: name a new folder")
        given.state.mkdir(parents=True)
        with chdir(given.state):
            main()
    else:
        with tempfile.TemporaryDirectory() as folder, chdir(folder):
            main()
