"""``examples/web_app``: several users at once, a refund that waits, a manager's click, a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "web_app"

pytestmark = pytest.mark.slow("a real server is started, killed and started again")


class Site:
    """The application in a folder, with its server; each person has a token."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "HOME": str(folder.parent / "home")}
        self.environment.pop("AGENTGUARD_PASSPHRASE", None)  # a reader has none: init makes a file
        made = self.run("people.py").splitlines()
        names = (line.removeprefix("export ").partition("=") for line in made)
        self.tokens = {name.lower(): token for name, _equals, token in names}
        self.run("-m", "agentguard.cli", "init")
        self.server: subprocess.Popen[bytes] | None = None

    def run(self, *words: str) -> str:
        """Run a program of Python in the folder; return what it printed."""
        return subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            env=self.environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def start(self, module: str = "app") -> None:
        """Start the server on a port that is free, and wait until it answers."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.server = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", f"{module}:app", "--port", str(self.port)],
            cwd=self.folder,
            env=self.environment,
        )
        while True:
            assert self.server.poll() is None, "the server has ended"
            try:
                httpx.get(f"http://127.0.0.1:{self.port}/docs", timeout=60)
            except httpx.TransportError:
                time.sleep(0.1)
            else:
                return

    def kill(self) -> None:
        """Kill the server, as a crash does."""
        assert self.server is not None
        self.server.kill()
        self.server.wait()

    def stop(self) -> None:
        """End the server as an operator does; everything is durable then."""
        assert self.server is not None
        self.server.send_signal(signal.SIGTERM)
        assert self.server.wait() == -signal.SIGTERM or self.server.returncode == 0

    def ask(self, who: str, method: str, path: str, body: object = None) -> httpx.Response:
        """Send a request as a person; nobody's token is sent for ``nobody``."""
        token = {"Authorization": f"Bearer {self.tokens.get(who, 'wrong')}"}
        url = f"http://127.0.0.1:{self.port}{path}"
        return httpx.request(method, url, json=body, headers=token, timeout=300)

    def write(self, who: str, chat: str, text: str) -> list[tuple[str, str]]:
        """Write a message, and return the events of the answer."""
        return events(self.ask(who, "POST", f"/chats/{chat}", {"text": text}))

    def answer(self, who: str, request: str, verdict: str, note: str = "seen") -> httpx.Response:
        """Answer a request for an approval."""
        return self.ask(who, "POST", f"/approvals/{request}", {"verdict": verdict, "note": note})

    def inbox(self) -> list[dict[str, Any]]:
        """Return the requests that wait for mary."""
        waiting: list[dict[str, Any]] = self.ask("mary", "GET", "/approvals").json()
        return waiting

    def read(self, who: str, chat: str, until: str) -> list[str]:
        """Return a chat's messages, once one of them has the text ``until``."""
        end = time.monotonic() + 300
        while time.monotonic() < end:
            messages: list[str] = self.ask(who, "GET", f"/chats/{chat}").json()
            if any(until in message for message in messages):
                return messages
            time.sleep(0.1)
        raise AssertionError(messages)

    def refunds(self) -> list[str]:
        """Return the refunds that were paid."""
        path = self.folder / "refunds.txt"
        return path.read_text().splitlines() if path.exists() else []


def events(response: httpx.Response) -> list[tuple[str, str]]:
    assert response.status_code == 200, response.text
    found = []
    for block in response.text.strip().split("\n\n"):
        kind, data = block.split("\n")
        found.append((kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    assert found[-1] == ("done", "")
    return found[:-1]


def text(found: list[tuple[str, str]]) -> str:
    return "".join(data for kind, data in found if kind == "text")


@pytest.fixture
def site(tmp_path) -> Iterator[Site]:
    folder = tmp_path / "web_app"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "home").mkdir()
    site = Site(folder)
    site.start()
    try:
        yield site
    finally:
        site.kill()


def calls(site: Site) -> list[dict[str, Any]]:
    """Return the calls in the log."""
    shown = site.run("-m", "agentguard.cli", "audit", "list", "--json", "--last", "0")
    return [one for one in map(json.loads, shown.splitlines()) if one["kind"] == "call"]


def test_messages_to_one_chat_at_once_wait_for_each_other(site):
    """Else one of them is lost, or the chat says that a refund was not run which has run."""
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda number: site.write("bob", "busy", f"status {number}"), range(3)))
    messages = site.ask("bob", "GET", "/chats/busy").json()
    for number in range(3):
        assert f"order {number} was delivered on Monday" in messages


def test_the_web_application(site):
    # several users at once, each for themselves
    with ThreadPoolExecutor(8) as threads:
        asked = [
            (who, number, threads.submit(site.write, who, f"c{number}", f"status {number}"))
            for number, who in enumerate(["alice", "bob"] * 4)
        ]
        for _who, number, answer in asked:
            found = answer.result()
            assert ("tool", f"order {number} was delivered on Monday") in found
            assert len([kind for kind, _data in found if kind == "text"]) > 3  # word by word
            assert f"order {number} was delivered" in text(found)
    decided = [call for call in calls(site) if call["tool"] == "order_status"]
    assert sorted(call["principal"] for call in decided) == ["user:alice"] * 4 + ["user:bob"] * 4

    # a small refund runs at once, and no refund is larger than the policy says
    assert ("tool", "refunded 15.00 for order 7") in site.write("bob", "c9", "refund 7 1500")
    assert "between 0.01 and 500.00" in str(site.write("bob", "c9", "refund 7 99900"))
    assert len(site.refunds()) == 1

    # a large one waits, whatever people without the role click
    found = site.write("alice", "help", "refund 4711 5000")
    assert [data for kind, data in found if kind == "waiting"] == [
        "a refund over 20.00 needs a manager"
    ]
    (waits,) = site.inbox()
    assert waits["arguments"] == {"order": 4711, "cents": 5000}
    assert (waits["tool"], waits["for"]) == ("refund", "user:alice")
    for who in ("alice", "bob"):
        assert site.ask(who, "GET", "/approvals").json() == []  # none of their business
        refused = site.answer(who, waits["id"], "approve")
        assert refused.status_code == 403, refused.text
    assert site.answer("nobody", waits["id"], "approve").status_code == 401
    assert site.answer("mary", "0" * 32, "approve").status_code == 404
    assert site.answer("mary", waits["id"][:8], "approve").status_code == 404
    assert site.ask("alice", "GET", "/approvals").json() == []
    assert site.answer("mary", waits["id"], "approve", "n" * 1025).status_code == 422
    assert [one["id"] for one in site.inbox()] == [waits["id"]]

    # the server is killed while the refund waits; a new one goes on
    site.kill()
    site.start()
    assert [one["id"] for one in site.inbox()] == [waits["id"]]
    assert len(site.refunds()) == 1
    assert site.answer("mary", waits["id"], "approve").json() == "approve by user:mary"
    site.read("alice", "help", "refunded 50.00 for order 4711")
    assert len(site.refunds()) == 2

    # a second click is told what became of the call, and nothing runs again
    again = site.answer("mary", waits["id"], "approve")
    assert again.status_code == 409
    assert "user:mary" in again.json()["detail"]
    assert events(site.ask("alice", "POST", "/chats/help/continue")) == []
    assert len(site.refunds()) == 2

    # a rejected one does not run, and the model is told
    site.write("bob", "help", "refund 4712 6000")  # bob's chat of the same name
    (waits,) = site.inbox()
    assert site.answer("mary", waits["id"], "reject").status_code == 200
    site.read("bob", "help", "rejected")
    assert len(site.refunds()) == 2
    assert not any("4712" in message for message in site.ask("alice", "GET", "/chats/help").json())

    # the log says who did it for whom, and who approved
    site.stop()
    site.run("-m", "agentguard.cli", "audit", "verify")
    refunds = [one for one in calls(site) if one["tool"] == "refund" and one["decision"] == "allow"]
    assert [one["principal"] for one in refunds] == ["user:bob", "user:alice"]
    report = site.run("-m", "agentguard.cli", "audit", "show", refunds[1]["invocation_id"])
    for name in ("user:alice", "service:helpdesk", "user:mary", "manager"):
        assert name in report


ELSEWHERE = """
import sys
from agentguard import Guard

with Guard.open("agentguard.toml") as guard:
    (request,) = guard.approvals.pending()
    for step in sys.argv[1:]:
        if step == "withdraw":
            guard.approvals.withdraw(request)
        else:
            guard.approvals.vouch(request, step, principal="user:mary")
"""
"""Another process of the application, which answers or withdraws the one request that waits."""


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (["withdraw"], "was withdrawn, and its call was not made again"),
        (["approve", "reject"], "was rejected by user:mary"),
        (["reject"], "was rejected by user:mary"),
    ],
)
def test_a_click_that_comes_too_late_is_answered(site, steps, said):
    site.write("bob", "late", "refund 1 3000")
    (waits,) = site.inbox()
    site.run("-c", ELSEWHERE, *steps)
    for verdict in ("approve", "reject"):
        late = site.answer("mary", waits["id"], verdict)
        assert late.status_code == 409, late.text
        assert said in late.json()["detail"]
    assert site.refunds() == []


def test_a_chat_that_is_not_there_does_not_go_on(site):
    """The server has sent no status yet, so that the client does not read a stream that breaks."""
    unknown = site.ask("alice", "POST", "/chats/nowhere/continue")
    assert (unknown.status_code, unknown.json()["detail"]) == (
        404,
        "there is no chat nowhere: write to it first",
    )
    site.write("bob", "his", "status 1")
    assert site.ask("alice", "POST", "/chats/his/continue").status_code == 404  # hers is another
    assert events(site.ask("bob", "POST", "/chats/his/continue")) == []


REFUSING = """
from agentguard import Guard
from agentguard.errors import DelegationError
import app as web

def delegate(*_args, **_options):
    raise DelegationError("nobody may lend anything today", code="scope.exceeded")

Guard.delegate = delegate
app = web.app
"""


def test_a_run_that_the_guard_refuses_ends_the_stream_with_the_reason(site):
    site.kill()
    (site.folder / "refusing.py").write_text(REFUSING)
    site.start("refusing")
    answer = site.ask("alice", "POST", "/chats/help", {"text": "status 1"})
    expected = "nobody may lend anything today [scope.exceeded]"
    assert answer.text == f"event: error\ndata: {json.dumps(expected)}\n\n"


STALLED = """
import asyncio
import app as web

async def resume(*_args):
    await asyncio.Event().wait()  # the kill comes before the run goes on

web.resume = resume
app = web.app
"""


def test_a_run_whose_server_was_killed_after_the_click_goes_on_with_the_next_server(site):
    site.kill()
    (site.folder / "stalled.py").write_text(STALLED)
    site.start("stalled")
    for who, order in (("alice", 1), ("bob", 2), ("bob", 3)):
        site.write(who, f"c{order}", f"refund {order} 5000")
    asked = {one["arguments"]["order"]: one["id"] for one in site.inbox()}
    assert site.answer("mary", asked[1], "approve").status_code == 200
    assert site.answer("mary", asked[2], "reject").status_code == 200
    assert site.answer("mary", asked[1], "approve").status_code == 409  # answered, and not run
    assert site.refunds() == []
    site.kill()  # between the click and the run

    for _twice in range(2):  # the second sweep finds nothing to do
        site.start()
        site.read("alice", "c1", "Here is what came of it: refunded 50.00 for order 1")
        assert any("rejected" in message for message in site.read("bob", "c2", "came of it"))
        assert [one["id"] for one in site.inbox()] == [asked[3]]  # nobody has answered
        assert not any("came of it" in one for one in site.ask("bob", "GET", "/chats/c3").json())
        assert [line.partition(" ")[2] for line in site.refunds()] == ["order 1: 5000 cents"]
        site.stop()
    (refund,) = [one for one in calls(site) if one["decision"] == "allow"]
    assert refund["principal"] == "user:alice"  # for whom the run was begun


def test_of_clicks_at_once_on_one_call_one_counts_and_the_others_learn_who_has_answered(site):
    site.write("bob", "one", "refund 1 3000")
    (waits,) = site.inbox()
    with ThreadPoolExecutor(4) as threads:
        clicks = list(threads.map(lambda _n: site.answer("mary", waits["id"], "approve"), range(4)))
    assert sorted(click.status_code for click in clicks) == [200, 409, 409, 409]
    for click in clicks:
        if click.status_code == 409:
            assert f"the request {waits['id']} was approved by user:mary at" in click.text
    site.read("bob", "one", "Here is what came of it: refunded 30.00 for order 1")
    assert len(site.refunds()) == 1


def test_two_clicks_at_once_on_two_calls_of_one_run_run_both_once(site):
    site.write("bob", "two", "refund 1 3000 2 4000")
    two = [one["id"] for one in site.inbox()]
    assert len(two) == 2
    with ThreadPoolExecutor(2) as threads:
        clicks = [threads.submit(site.answer, "mary", one, "approve") for one in two]
        assert [click.result().status_code for click in clicks] == [200, 200]
    messages = site.read("bob", "two", "Here is what came of it")
    assert [one for one in messages if one.startswith(("refunded", "Denied"))] == [
        "refunded 30.00 for order 1",
        "refunded 40.00 for order 2",
    ]
    assert len(site.refunds()) == 2
