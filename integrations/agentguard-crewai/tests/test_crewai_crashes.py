"""SIGKILL while a crew works: in another process its run goes on, and does nothing twice.

The process of a piece of work is killed at a random moment, or at a certain one. A few rounds by
default, ``AGENTGUARD_ROUNDS=full`` for many.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import rounds
from preloaded import Preloaded, Process
from served_folder import SERVER, serving

from agentguard import Ed25519Signer
from agentguard.audit.kinds import parse_entry
from agentguard.domain import administration, config, domain, keystore, verify
from agentguard.store.reader import StoredLog

ROUNDS = 8 if rounds.FULL else 1
KILLED = pytest.mark.slow("a crew in a process that is killed, and then in others")
PASSPHRASE = b"of this test"

PROGRAM = '''
import itertools, json, logging, os, signal, time

from crewai import Agent, Crew, Task
from crewai.flow import Flow, listen, or_, start
from crewai.flow.persistence import SQLiteFlowPersistence
from crewai.hooks import register_after_tool_call_hook
from crewai.llms.base_llm import BaseLLM
from crewai.tools import tool

from agentguard import ApprovalPending, Decision, Ed25519Signer, Guard
from agentguard_crewai import answered, guard_crew, kickoff_or_pause, resumable

ASKING = {"mode": "pause", "timeout": 20}
DIE = []
RESULTS = {}


def decide(document):
    is_asked = os.path.exists("asked")  # decided in a guard server, or in the process of a crew
    if is_asked and document["action"] == "pay" and document["args"]["to"][-1] in "13":
        return Decision.require_approval()
    return Decision.allow()


def say(*what):
    """Acknowledge something; what is said is seen by all, even after a SIGKILL."""
    os.write(SAID, (json.dumps(what) + "\\n").encode())


def die(*where):
    if DIE and DIE[0] == list(where):
        os.kill(os.getpid(), signal.SIGKILL)


@tool
def look(what: str) -> str:
    """Look at something."""
    return f"looked at {what}"


@tool
def pay(to: str) -> str:
    """Pay somebody."""
    die("before", to)
    time.sleep(0.01)  # so that some are killed in here
    os.write(EFFECTS, f"{to}\\n".encode())
    time.sleep(0.01)
    die("after", to)
    return f"paid {to}"


def kept(context):
    name = context.tool_input.get("to")
    if name is not None:
        # in text, CrewAI reminds a model of its tools below a result now and then
        RESULTS[name] = str(context.tool_result).partition("\\n")[0]


class Model(BaseLLM):
    steps: list = []
    native: bool = True
    name: str = ""

    def call(self, messages, *args, **kwargs):
        die("model", f"{self.name}-{len(self.steps)}")
        step = self.steps.pop(0)
        if isinstance(step, str):
            return step if self.native else f"Thought: I know.\\nFinal Answer: {step}"
        if not self.native:
            ((tool, arguments),) = step
            return f"Thought: go on.\\nAction: {tool}\\nAction Input: {json.dumps(arguments)}\\n"
        return [
            {
                "id": f"call_{at}",
                "type": "function",
                "function": {"name": tool, "arguments": json.dumps(arguments)},
            }
            for at, (tool, arguments) in enumerate(step)
        ]

    def supports_function_calling(self):
        return self.native

    def supports_stop_words(self):
        return False


def agent(role, name, native, steps, **options):
    model = Model(model="scripted", native=native, steps=steps, name=f"{name}-{role}")
    given = {"goal": "a goal", "backstory": "a story", "max_retry_limit": 0, **options}
    return Agent(role=role, llm=model, tools=[look, pay], **given)


def order(guard, name):
    """Two payments, at once where the model calls tools natively, and one by a coworker."""
    native = name[-1] in "02468"
    one, two, three = (("pay", {"to": f"{name}-{n}"}) for n in (1, 2, 3))
    work = {"task": f"pay {name}-3", "context": "now", "coworker": "Worker"}
    handed = [("delegate_work_to_coworker", work)]
    both = [[one, two]] if native else [[one], [two]]
    steps = [[("look", {"what": name})], *both, handed, "done"]
    lead = agent("Lead", name, native, steps, allow_delegation=True)
    worker = agent("Worker", name, native, [[three], "is paid"])
    task = Task(description="a task", expected_output="words", agent=lead)
    waits = ASKING["mode"] == "wait"
    options = {"on_approval": ASKING["mode"], "timeout": ASKING["timeout"] if waits else None}
    return guard_crew(Crew(agents=[lead, worker], tasks=[task]), guard, **options)


def lent(guard):
    return guard.delegate("user:alice", scope=["pay"], via="crew:report")


def approve(guard):
    bob = Ed25519Signer.from_seed(bytes.fromhex(open("bob").read()))
    for request in guard.approvals.pending():
        if guard.approvals.missing(request) is not None:
            guard.approvals.approve(request, bob)


def run(guard, name):
    """Do it to its end; whatever waits is approved, and the crew kicked off again."""
    RESULTS.clear()
    while True:
        try:
            with lent(guard), resumable(name):
                assert order(guard, name).kickoff().raw == "done"
            return dict(RESULTS)
        except ApprovalPending as pending:
            say("asks", name, pending.request.request_id)
            approve(guard)
            say("answered", name, pending.request.request_id)


def work(guard, prefix):
    for number in itertools.count():
        name = f"{prefix}.{number}"
        say("begun", name)
        say("done", name, run(guard, name))


def resume(guard, *names):
    for name in names:
        say("resumed", name, run(guard, name))


def wait_for_all(guard, name):
    """Begin it once, and have nobody answer."""
    try:
        with lent(guard), resumable(name):
            order(guard, name).kickoff()
    except ApprovalPending as pending:
        say("asks", name, pending.request.request_id)


class Paying(Flow):
    _skip_auto_memory: bool = True  # it would import, in each fork, what takes seconds

    @start()
    def begin(self):
        return "begun"

    @listen(or_("begin", answered("order")))
    def order(self):
        name = self.state["name"]
        with lent(GUARD[0]):
            return kickoff_or_pause(self, order(GUARD[0], name), run=name).raw

    @listen("order")
    def end(self, said):
        return f"flow {said}"


GUARD = []


def flows(guard, prefix):
    """Begin flows; each is paused when this says so."""
    GUARD[:] = [guard]
    store = SQLiteFlowPersistence("flows.db")
    for number in itertools.count():
        name = f"{prefix}.{number}"
        flow = Paying(persistence=store, suppress_flow_events=True)
        say("begun", name, flow.flow_id)
        flow.kickoff(inputs={"name": name})
        say("paused", name, flow.flow_id)


def finish(guard, *flows):
    """Have all answered, and let flows go on, or begin them anew, to their ends."""
    GUARD[:] = [guard]
    store = SQLiteFlowPersistence("flows.db")
    for name, flow_id in flows:
        RESULTS.clear()
        said = None
        while said != "flow done":
            approve(guard)
            say("goes on", name)
            try:
                flow = Paying.from_pending(flow_id, store, suppress_flow_events=True)
            except ValueError:  # it was not paused yet, or was lost while it went on
                flow = Paying(persistence=store, suppress_flow_events=True)
                said = flow.kickoff(inputs={"id": flow_id, "name": name})
            else:
                said = flow.resume()
        say("done", name, dict(RESULTS))


def main(job, options, *arguments):
    global EFFECTS, SAID
    logging.disable(logging.WARNING)
    flags = os.O_CREAT | os.O_APPEND | os.O_WRONLY
    EFFECTS, SAID = os.open("effects", flags), os.open("said", flags)
    ASKING.update(options.get("asking", {}))
    DIE[:] = [options["die"]] if "die" in options else []
    register_after_tool_call_hook(kept)
    asked = lambda request: say("request", request.request_id)
    with Guard.open("agentguard.toml", passphrase=b"of this test", on_request=asked) as guard:
        globals()[job](guard, *arguments)
'''

MAIN = "import crash_program, json, sys; crash_program.main(*json.loads(sys.argv[1]))"

TABLES = """
trust_domain = "acme.example"
state = "state"
anchor = "anchor"

[policy]
engine = "function"
path = "crash_program:decide"

[agents.lead]
max_scope = ["pay"]

[agents.worker]
max_scope = ["pay"]
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, and a state that nobody has used yet, where bob may approve."""
    folder = tmp_path_factory.mktemp("template")
    (folder / "crash_program.py").write_text(PROGRAM, "utf-8")
    seed = os.urandom(32)
    (folder / "bob").write_text(seed.hex())
    bob = Ed25519Signer.from_seed(seed).public_key.openssh()
    people = f'[approvers.bob]\nprincipal = "user:bob"\nkeys = ["{bob}"]\n'
    (folder / "agentguard.toml").write_text(TABLES + people, "utf-8")
    settings = config.load(folder / "agentguard.toml")
    domain.found(settings, PASSPHRASE, now=datetime.now(UTC))
    return folder


class Place:
    """A state in a folder, the processes that work on it, and what they have done and said."""

    def __init__(self, folder: Path, preloaded: Preloaded) -> None:
        self.folder = folder
        self.preloaded = preloaded
        self.settings = config.load(folder / "agentguard.toml")

    def lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text("utf-8").splitlines() if path.exists() else []

    def said(self, *kinds: str) -> list[Any]:
        return [said for line in self.lines("said") if (said := json.loads(line))[0] in kinds]

    @property
    def effects(self) -> Counter[str]:
        return Counter(self.lines("effects"))

    def begin(self, job: str, options: Any, *arguments: str) -> Process:
        if options.get("asking", {}).get("approval", False):
            (self.folder / "asked").touch()
        given = json.dumps([job, options, *arguments])
        return self.preloaded.begin("-c", MAIN, given, cwd=self.folder)

    def killed(self, job: str, *arguments: str, seconds: float = 0.5, **options: Any) -> None:
        """Let a process work, and kill it at some moment once it does."""
        before = len(self.lines("said"))
        child = self.begin(job, options, *arguments)
        until = time.monotonic() + 120
        while len(self.lines("said")) == before:
            assert time.monotonic() < until, self.lines("output")
            time.sleep(0.001)
        time.sleep(random.uniform(0.0, seconds))  # noqa: S311  any moment will do
        child.kill()
        ends = {-signal.SIGKILL, 0} if job == "finish" else {-signal.SIGKILL}
        assert child.wait() in ends, "\n".join(self.lines("output")[-20:])

    def done(self, job: str, *arguments: str, ends: int = 0, **options: Any) -> list[Any]:
        """Let a process work to its end; return what it has said of runs that were."""
        before = len(self.said("resumed", "done"))
        child = self.begin(job, options, *arguments)
        assert child.wait() == ends, "\n".join(self.lines("output")[-20:])
        return self.said("resumed", "done")[before:]

    def examine(self) -> verify.Report:
        with closing(StoredLog.of(self.settings.state)) as reader:
            trust = keystore.load_trust(self.settings.state)
            return verify.examine(reader, trust, anchor=self.settings.anchor)

    def require_sound(self) -> None:
        """The log verifies, and nothing was done twice or without having been authorised."""
        assert self.examine().problems == ()
        effects = self.effects
        assert set(effects.values()) <= {1}, "a side effect came twice"
        assert effects.keys() <= self.authorised().keys(), "one came without its authorization"

    def authorised(self) -> dict[str, list[str]]:
        """The ids of the calls that were allowed, by the payee in their arguments."""
        return self._of_calls("allow", lambda index, _members: str(index))

    def doubted(self) -> dict[str, list[str]]:
        """The earlier attempts that refusals name as in doubt, by the payee in their arguments."""
        return self._of_calls(
            "deny",
            lambda _index, members: (
                members.get("replay_of") if members["code"] == "journal.in_doubt" else None
            ),
        )

    def _of_calls(
        self, decision: str, what: Callable[[int, Mapping[str, Any]], str | None]
    ) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        with closing(StoredLog.of(self.settings.state)) as reader:
            for stored in reader.stored():
                parsed = parse_entry(stored.body)
                if parsed.kind != "call" or parsed.members["decision"] != decision:
                    continue
                said = what(stored.index, parsed.members)
                kept = [one.data for one in stored.attachments if one.role == "arguments"]
                for to in (json.loads(data).get("to") for data in kept):
                    if to is not None and said is not None:
                        found.setdefault(to, []).append(said)
        return found

    def outcomes(self) -> int:
        with closing(StoredLog.of(self.settings.state)) as reader:
            return sum(parse_entry(stored.body).kind == "outcome" for stored in reader.stored())


SERVED = pytest.param(True, marks=pytest.mark.slow("a server, and crews that are killed"))


@pytest.fixture(params=[False, SERVED], ids=["embedded", "served"])
def place(request, preloaded, template) -> Iterator[Place]:
    """A trust domain in a folder: each process has a guard of its own, or they share a server."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # a socket has a short path
        folder = Path(name)
        shutil.copytree(template, folder, dirs_exist_ok=True)
        server = None
        if request.param:
            with (folder / "agentguard.toml").open("a", encoding="utf-8") as tables:
                tables.write(SERVER)
            server = serving(preloaded, folder, PASSPHRASE.decode())
        yield Place(folder, preloaded)
        if server is not None:
            server.kill()
            server.wait()


def first_and_slow(cases: list[tuple[object, ...]]) -> list[Any]:
    """The first case, and the others marked as slow."""
    first, *others = cases
    return [first, *(pytest.param(*case, marks=KILLED) for case in others)]


# --- at any moment --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asking", [False, pytest.param(True, marks=KILLED)], ids=["allowed", "approved"]
)
def test_a_run_that_was_killed_goes_on_and_pays_once(place, asking):
    # what is in doubt is refused and listed; what was acknowledged is as it was
    options = {"asking": {"approval": asking}}
    doubtful: set[str] = set()
    for kill in range(ROUNDS):
        place.killed("work", f"{kill}", **options)
        place.require_sound()
        before = place.effects
        begun = [name for _kind, name in place.said("begun") if name.startswith(f"{kill}.")]
        acknowledged = {name: results for _kind, name, results in place.said("done")}
        for name in begun[:-1]:
            assert acknowledged[name] == {f"{name}-{n}": f"paid {name}-{n}" for n in (1, 2, 3)}
        resumed = place.done("resume", *begun[-3:], **options)
        place.require_sound()
        after, report = place.effects, place.examine()
        assert [name for _kind, name, _results in resumed] == begun[-3:]
        for _kind, name, results in resumed:
            for to in (f"{name}-{n}" for n in (1, 2, 3)):
                result = results.get(to)
                if name in acknowledged or result is None:  # what a coworker has done is not asked
                    assert before[to] == after[to] == 1
                    assert result in (None, f"paid {to}")
                else:
                    require_told(result, to, before, after)
                    assert asking or "approval" not in result
        # a call whose end is on record, and not its result, is in doubt for the run alone
        doubtful.update(chain.from_iterable(place.doubted().values()))
        listed = set(report.in_doubt)
        assert len(doubtful - listed) <= place.outcomes()
    again = place.done("resume", *begun[-3:], **options)
    for (_kind, name, results), (_again, same, once_more) in zip(resumed, again, strict=True):
        assert name == same
        for to, result in once_more.items():
            assert result == results.get(to) or "approval.consumed" in results[to]
    place.require_sound()
    assert sum(place.effects.values()) > 0


def test_a_flow_that_was_killed_goes_on_or_is_begun_anew_and_pays_once(place):
    # before its pause, while it is paused and while it goes on, whatever CrewAI kept of it
    asking = {"asking": {"approval": True}}
    for kill in range(ROUNDS):
        place.killed("flows", f"{kill}", **asking)
        place.require_sound()
        flows = [one[1:] for one in place.said("begun") if one[1].startswith(f"{kill}.")][-2:]
        assert all(place.effects[f"{name}-1"] == 0 for name, _id in flows)
        place.killed("finish", *flows, seconds=0.3, **asking)
        place.require_sound()
        before = place.effects
        ended = place.done("finish", *flows, **asking)
        place.require_sound()
        assert [name for _kind, name, _results in ended] == [name for name, _id in flows]
        for _kind, name, results in ended:
            for to in (f"{name}-{n}" for n in (1, 2, 3)):
                require_told(results.get(to, f"paid {to}"), to, before, place.effects)


def require_told(result: str, to: str, before: Counter[str], after: Counter[str]) -> None:
    """What a run says of a payment is so: it was made, or is refused and was not made again."""
    if result == f"paid {to}":
        assert after[to] == 1
    elif "journal.in_doubt" in result:
        assert after[to] == before[to]
    else:  # it died between taking the approval and writing down what that allows
        assert "approval.consumed" in result, result
        assert after[to] == before[to] == 0


# --- at a certain moment --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moment", "payment", "name"),
    first_and_slow(rounds.half(["before", "after"], [1, 3], ["native-0", "text-1"])),
)
def test_a_tool_that_died_is_in_doubt_listed_and_not_run_again(place, name, payment, moment):
    # nobody can tell a tool that has run from one that has not: both are refused
    to = f"{name}-{payment}"
    place.done("resume", name, ends=-signal.SIGKILL, die=[moment, to])
    place.require_sound()
    before = place.effects
    assert before[to] == (moment == "after")
    (in_doubt, *others) = {*place.examine().in_doubt}
    if payment == 3:  # and so is the delegation in which it was
        assert len(others) == 1
    ((_kind, _name, results),) = place.done("resume", name)
    place.require_sound()
    assert "journal.in_doubt" in results[to]
    (attempt,) = set(place.doubted()[to])
    assert attempt in {in_doubt, *others}
    assert place.effects[to] == before[to]
    for n in {1, 2, 3} - {payment}:
        sibling = results[f"{name}-{n}"]
        # one that was made at once with it may have died with it
        assert sibling == f"paid {name}-{n}" or ("native" in name and n < 3), sibling
    assert attempt in place.examine().in_doubt


@pytest.mark.parametrize(("payment", "ran"), first_and_slow(rounds.half([2, 3], [True, False])))
def test_once_a_person_has_found_out_the_run_goes_on(place, payment, ran):
    name, moment = "text-1", "after" if ran else "before"
    to = f"{name}-{payment}"
    place.done("resume", name, ends=-signal.SIGKILL, die=[moment, to])
    ((_kind, _name, _results),) = place.done("resume", name)
    (attempt,) = set(place.doubted()[to])
    said = {"ran": ran, "note": "asked the bank", "now": datetime.now(UTC)}
    administration.resolve(place.settings, PASSPHRASE, attempt, **said)
    assert attempt not in place.examine().in_doubt
    ((_kind, _name, again),) = place.done("resume", name)
    place.require_sound()
    if ran:
        assert "journal.unreplayable" in again[to]
    else:
        assert again[to] == f"paid {to}"
    assert place.effects[to] == 1
    ((_kind, _name, once_more),) = place.done("resume", name)
    assert (f"{name}-3" in once_more) is False  # the delegation is complete by now
    place.require_sound()


@pytest.mark.parametrize(("left", "who"), first_and_slow(rounds.half([1, 2], ["Lead", "Worker"])))
def test_a_model_that_died_leaves_nothing_in_doubt(place, who, left):
    name = "native-0"
    # between tools, in the coworker as well: its delegation goes on
    place.done("resume", name, ends=-signal.SIGKILL, die=["model", f"{name}-{who}-{left}"])
    place.require_sound()
    ((_kind, _name, results),) = place.done("resume", name)
    place.require_sound()
    for n in (1, 2, 3):
        to = f"{name}-{n}"
        assert results.get(to, f"paid {to}") == f"paid {to}"
        assert place.effects[to] == 1
    ((_kind, _name, again),) = place.done("resume", name)
    assert f"{name}-3" not in again  # the coworker is not asked once more
    assert sum(place.effects.values()) == 3


@pytest.mark.slow("four processes one after another")
def test_what_waited_in_vain_runs_in_another_process_once_it_is_approved(place):
    name = "native-0"
    asking = {"approval": True, "mode": "wait", "timeout": 0}
    ((_kind, _name, results),) = place.done("resume", name, asking=asking)
    for n in (1, 3):  # the lead's call, and that of its coworker
        assert "approval" in results[f"{name}-{n}"]
    assert [place.effects[f"{name}-{n}"] for n in (1, 2, 3)] == [0, 1, 0]
    place.done("approve")
    ((_kind, _name, again),) = place.done("resume", name, asking=asking)
    assert again == {f"{name}-{n}": f"paid {name}-{n}" for n in (1, 2, 3)}
    ((_kind, _name, once_more),) = place.done("resume", name, asking=asking)
    assert f"{name}-3" not in once_more  # the coworker is not asked once more
    assert len(place.said("request")) == 2
    place.require_sound()


@pytest.mark.parametrize("mode", ["pause", pytest.param("wait", marks=KILLED)])
def test_one_that_was_killed_while_it_waited_pays_once_it_is_answered(place, mode):
    asking = {"asking": {"approval": True, "mode": mode}}
    name = "text-1"
    child = place.begin("wait_for_all", asking, name)
    until = time.monotonic() + 120
    while not place.said("request"):
        assert time.monotonic() < until
        time.sleep(0.005)
    if mode == "wait":
        child.kill()
    ended = -signal.SIGKILL if mode == "wait" else 0
    assert child.wait() == ended, place.lines("output")
    assert place.effects[f"{name}-1"] == 0
    place.done("approve", **asking)
    ((_kind, _name, results),) = place.done("resume", name, asking={"approval": True})
    assert results[f"{name}-1"] == f"paid {name}-1"
    assert [place.effects[f"{name}-{n}"] for n in (1, 2, 3)] == [1, 1, 1]
    # one for each of the two that need it: the first one was found
    assert len(place.said("request")) == 2
    place.require_sound()
