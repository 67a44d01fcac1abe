"""The OPA engine beside a real OPA: what it answers, each way to fail, and the way back.

What a hostile server could answer is in attacks/test_hostile_opa.py; TLS, tokens and configuration
are in test_engine_opa_connections.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from embedded_parts import runtime_of
from opa_calls import AUTHZ, ask, code_of, engine_of

from agentguard import Denied, Guard, PolicyError, StorageError
from agentguard.policy.document import UNDEFINED, decide
from agentguard.policy.engine import Explains
from agentguard.policy.opa import OpaEngine
from agentguard.policy.opa_http import Client
from agentguard.policy.opa_server import Server
from agentguard.policy.rego import RegoEngine


def connections(port: int) -> list[str]:
    """The established connections from this machine to a port of it (Linux)."""
    table = Path("/proc/net/tcp").read_text().splitlines()[1:]
    established = [line.split() for line in table if line.split()[3] == "01"]
    return [row[1] for row in established if row[2].endswith(f":{port:04X}")]


def bundle(folder: Path, revision: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "authz.rego").write_bytes(AUTHZ.read_bytes())
    (folder / ".manifest").write_text(json.dumps({"revision": revision, "roots": ["agent"]}))
    return folder


# --- what it answers


@pytest.mark.parametrize(
    ("call", "outcome", "reasons"),
    [
        ({"action": "open_pr", "repo": {"visibility": "internal"}}, "allow", None),
        ({"action": "open_pr", "repo": {"visibility": "public"}}, "deny", None),
        ({"action": "trigger_ci", "branch": "agent/fix"}, "allow", None),
        ({"action": "trigger_ci", "branch": "main"}, "deny", None),
        (
            {"action": "merge_pr", "branch": "main"},
            "deny",
            ("direct merges to main require human approval",),
        ),
    ],
)
def test_the_same_file_decides_alike_on_a_server_and_embedded(opa, call, outcome, reasons):
    call = {"agent": {"type": "code-agent"}, **call}
    remote = ask(engine_of(opa(AUTHZ)), **call)

    assert remote.document == RegoEngine.load(AUTHZ).evaluate(json.dumps(call).encode())
    assert decide(remote).outcome == outcome
    assert reasons is None or decide(remote).reasons == reasons


def test_an_answer_says_which_decision_of_which_bundle_it_is(opa, tmp_path):
    server = opa("--bundle", bundle(tmp_path / "authz", "r1"))

    said = ask(engine_of(server)).evaluation

    assert isinstance(said["revisions"], dict)
    assert list(said["revisions"].values()) == ["r1"]
    assert said["version"]
    assert said["decision_id"] in server.log


def test_what_the_server_has_not_is_undefined(opa):
    answer = ask(engine_of(opa(AUTHZ), query="data.agent.other"))

    assert answer.document is UNDEFINED
    assert decide(answer).code == "policy.undefined"
    assert answer.evaluation["decision_id"]


def test_who_sets_it_up_is_told_more_than_goes_on_record():
    engine: Explains = OpaEngine(Server("http://127.0.0.1:1"))
    assert isinstance(engine, Explains)
    assert engine.explain(b"{}", "engine.unreachable") == (
        "start OPA at http://127.0.0.1:1, or correct [policy] url"
    )
    assert not isinstance(RegoEngine.load(AUTHZ), Explains)


def test_an_evaluation_that_fails_says_where_and_quotes_no_argument(opa, tmp_path):
    (tmp_path / "p.rego").write_text(
        "package agent.authz\nallow if to_number(input.args.token) > 1\n"
    )
    engine = engine_of(opa(tmp_path / "p.rego"))

    with pytest.raises(PolicyError, match=r"p\.rego:2:10: .*eval_builtin_error") as raised:
        ask(engine, args={"token": "s3cret"})
    assert raised.value.code == "policy.error"
    assert "s3cret" not in str(raised.value)
    assert decide(ask(engine, args={"token": "2"})).allowed


def test_what_it_is_on_record():
    engine = OpaEngine(Server("http://127.0.0.1:1"))

    assert (engine.name, engine.version, engine.policy_sha256) == ("opa", "v1", None)
    assert engine.policy_files == {}
    assert engine.waits


# --- faults: each denies with a code of its own, and passes again without a restart


def test_down_and_back_again(opa):
    server = opa(AUTHZ)
    engine = engine_of(server)
    assert decide(ask(engine)).allowed

    server.stop()
    assert code_of(engine) == "engine.unreachable"
    assert code_of(engine) == "engine.unreachable"

    server.start()
    assert decide(ask(engine)).allowed


def test_restarted_between_two_calls(opa):
    server = opa(AUTHZ)
    engine = engine_of(server)
    assert decide(ask(engine)).allowed

    server.stop()
    server.start()

    assert decide(ask(engine)).allowed  # its connection was closed, and it makes another


def test_it_restarts_under_load(opa):
    server = opa(AUTHZ)
    engine = engine_of(server)
    codes, done, allowed, failed = set(), *(threading.Event() for _ in range(3))

    def call() -> None:
        while not done.is_set():
            try:
                assert decide(ask(engine)).allowed
                allowed.set()
            except PolicyError as error:
                codes.add(error.code)
                failed.set()

    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(call) for _ in range(4)]
        for _ in range(3):
            allowed.clear()
            assert allowed.wait(60)
            server.stop()
            failed.clear()
            assert failed.wait(60)
            server.start()
        done.set()
        for each in calls:
            each.result()
    assert codes <= {"engine.unreachable", "engine.disconnected"}
    assert codes
    assert decide(ask(engine)).allowed


def test_stopped_in_its_tracks_and_going_on(opa):
    server = opa(AUTHZ)
    engine = engine_of(server, timeout=1.5)
    assert decide(ask(engine)).allowed

    os.kill(server._process.pid, signal.SIGSTOP)
    os.waitpid(server._process.pid, os.WUNTRACED)  # the signal is under way until then
    assert code_of(engine) == "engine.timeout"
    os.kill(server._process.pid, signal.SIGCONT)

    assert decide(ask(OpaEngine(Server(server.url)))).allowed
    assert decide(ask(engine)).allowed


def test_a_slow_policy(opa, tmp_path):
    (tmp_path / "p.rego").write_text(
        "package agent.authz\n"
        "range := numbers.range(1, 3000)\n"
        "slow if count([1 | some i in range; some j in range; i == j]) > 0\n"
        'allow if {\n    input.action == "open_pr"\n    slow\n}\n'
    )
    engine = engine_of(opa(tmp_path / "p.rego", "--v1-compatible"), timeout=0.2)
    assert code_of(engine) == "engine.timeout"


def test_a_huge_answer(opa, tmp_path):
    (tmp_path / "p.rego").write_text(
        "package agent.authz\nallow := true\nbig := numbers.range(1, input.n)\n"
    )
    engine = engine_of(opa(tmp_path / "p.rego"))

    assert decide(ask(engine, n=10)).allowed
    with pytest.raises(PolicyError) as raised:
        ask(engine, n=200_000)
    assert raised.value.code == "engine.too_large"
    assert decide(ask(engine, n=10)).allowed


def test_an_input_that_it_does_not_take(opa):
    with pytest.raises(PolicyError, match="status 400") as raised:
        engine_of(opa(AUTHZ)).evaluate(b"{")
    assert raised.value.code == "engine.failed"


# --- threads, forks, interrupts, event loops


def test_many_threads(opa):
    engine = engine_of(opa(AUTHZ))
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: decide(ask(engine)).allowed, range(200)))
    assert answers == [True] * 200


def test_a_fork_has_connections_of_its_own(opa):
    engine = engine_of(opa(AUTHZ))
    assert decide(ask(engine)).allowed
    child = os.fork()
    if child == 0:
        allowed = [decide(ask(engine)).allowed for _ in range(20)]
        os._exit(0 if all(allowed) else 1)
    assert all(decide(ask(engine)).allowed for _ in range(20))
    assert os.waitpid(child, 0)[1] == 0


def test_a_question_that_interrupts_another_is_refused(opa, monkeypatch):
    engine = engine_of(opa(AUTHZ))
    send, codes = Client._send, []

    def interrupted(*arguments):
        with pytest.raises(StorageError) as caught:
            ask(engine)
        codes.append(caught.value.code)
        return send(*arguments)

    monkeypatch.setattr(Client, "_send", interrupted)
    assert decide(ask(engine)).allowed
    assert codes == ["storage.busy"]
    monkeypatch.undo()
    assert decide(ask(engine)).allowed  # the twin


async def test_a_stopped_server_does_not_stop_the_event_loop(opa):
    server = opa(AUTHZ)
    config = {"agents": {"coder": {"type": "code-agent", "authority": "own"}}}
    async with Guard.ephemeral(engine_of(server, timeout=20.0), config=config) as guard:

        @guard.tool(facts=lambda _args: {"repo": {"visibility": "internal"}}, gives=["repo"])
        async def open_pr() -> str:
            return "opened"

        coder = guard.new_agent("coder")
        assert await coder.acall(open_pr) == "opened"
        os.kill(server._process.pid, signal.SIGSTOP)
        calls = [asyncio.ensure_future(coder.acall(open_pr)) for _ in range(8)]
        # the loop itself has the server go on: were it held up, nobody would, and time be over
        while (  # noqa: ASYNC110  the kernel sets no event
            len(connections(server.port)) < len(calls) and not any(call.done() for call in calls)
        ):
            await asyncio.sleep(0.01)
        assert not any(call.done() for call in calls)
        os.kill(server._process.pid, signal.SIGCONT)
        assert await asyncio.gather(*calls) == ["opened"] * len(calls)


async def test_a_cancelled_call_is_on_record_and_does_not_run(opa):
    server = opa(AUTHZ)
    ran = []
    with Guard.ephemeral(engine_of(server, timeout=20.0)) as guard:

        @guard.tool
        async def open_pr() -> None:
            ran.append(1)

        call = asyncio.ensure_future(guard.new_agent("coder").acall(open_pr))
        os.kill(server._process.pid, signal.SIGSTOP)
        await asyncio.sleep(0.1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        os.kill(server._process.pid, signal.SIGCONT)
    assert not ran


def test_a_guard_that_is_closed_has_no_connections(opa):
    server = opa(AUTHZ)
    engine = engine_of(server)
    with Guard.ephemeral(engine) as guard:

        @guard.tool
        def open_pr() -> None:
            """Open."""

        with pytest.raises(Denied):
            guard.new_agent("coder").call(open_pr)
        assert connections(server.port)
    assert not connections(server.port)
    assert engine is runtime_of(guard)._setup.engine
