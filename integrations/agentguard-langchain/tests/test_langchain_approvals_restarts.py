"""A manager's click in an application that restarts: each step is a process of its own."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest

from agentguard.audit.kinds import parse_entry
from agentguard.domain import administration, config
from agentguard.signing.dsse import Envelope
from agentguard.store.reader import StoredLog

SHOP = '''
import json, logging, os, sys
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command
from obedient import Obedient

from agentguard import Decision, Guard, Requirement
from agentguard_langchain import GuardMiddleware

logging.getLogger("agentguard").addHandler(logging.NullHandler())
MANAGER = Requirement("over 100", roles=("manager",))


def decide(document):
    return Decision.require_approval(MANAGER)


def roles(principal):
    return {"user:dora": ["manager"], "user:carl": ["clerk"]}.get(principal)


def refund(order: str) -> str:
    """Refund an order."""
    with open("refunded", "a") as file:
        file.write(f"{order};")
    if os.path.exists("power-cut"):
        os.remove("power-cut")
        print(json.dumps(["power cut", None]), flush=True)
        sys.stdout.flush()
        os._exit(0)
    return f"refunded {order}"


def main(step, who):
    with (
        Guard.open("agentguard.toml", passphrase=b"of this test") as guard,
        SqliteSaver.from_conn_string("graph.db") as saver,
    ):
        config = {"configurable": {"thread_id": "t1"}}
        guarding = GuardMiddleware(guard.new_agent("support"), answered_by=lambda _d, _r: who)
        graph = create_agent(Obedient(), [refund], middleware=[guarding], checkpointer=saver)
        if step == "ask":
            calls = [["refund", {"order": "A-1"}]]
            with guard.delegate(who, scope=["refund"]):
                state = graph.invoke({"messages": [HumanMessage(json.dumps(calls))]}, config)
        elif step == "vouch":
            (request,) = guard.approvals.pending()
            guard.approvals.vouch(request, "approve", principal=who)
            state = graph.get_state(config).values
        elif step == "resume":
            state = graph.invoke(None, config)
        else:
            state = graph.invoke(Command(resume={"decisions": [{"type": step}]}), config)
        named = [one for p in state.get("__interrupt__", ()) for one in p.value["agentguard"]]
        texts = [m.content for m in state["messages"] if m.type == "tool"]
        print(json.dumps([[one.get("problem_code") for one in named], texts]))


if __name__ == "__main__":
    main(*sys.argv[1:])
'''

TABLES = """
trust_domain = "acme.example"
anchor = "anchor"

[policy]
engine = "function"
path = "service:decide"

[agents.support]
max_scope = ["refund"]

[approvals]
application = true
application_roles = ["manager"]
roles = "service:roles"
"""


@pytest.fixture
def shop(start_service):
    """Run each step of the application in a process of its own, as one person."""
    run = start_service(SHOP, TABLES)

    def step(name: str, who: str) -> Any:
        return json.loads(run(name, who).splitlines()[0])

    return step


@pytest.mark.slow("six processes one after another")
def test_a_wrong_click_and_the_right_one_after_restarts(shop, tmp_path):
    assert shop("ask", "user:alice") == [[None], []]
    assert shop("approve", "user:carl") == [["approval.refused"], []]
    assert shop("resume", "user:dora") == [["approval.refused"], []]  # nobody's click is dora's
    assert shop("approve", "user:alice") == [["approval.unknown"], []]
    assert not (tmp_path / "refunded").exists()
    assert shop("approve", "user:dora") == [[], ["refunded A-1"]]
    assert (tmp_path / "refunded").read_text("utf-8") == "A-1;"
    assert shop("approve", "user:dora")[1] == ["refunded A-1"]
    assert (tmp_path / "refunded").read_text("utf-8") == "A-1;"


def test_a_click_in_the_store_counts_in_the_next_process(shop, tmp_path):
    shop("ask", "user:alice")
    shop("vouch", "user:dora")
    assert shop("resume", "user:alice") == [[], ["refunded A-1"]]
    assert (tmp_path / "refunded").read_text("utf-8") == "A-1;"


def test_a_crash_in_the_tool_does_not_run_it_twice(shop, tmp_path):
    shop("ask", "user:alice")
    (tmp_path / "power-cut").touch()
    assert shop("approve", "user:dora")[0] == "power cut"
    texts = shop("resume", "user:dora")[1]
    assert "journal.in_doubt" in texts[0]
    assert (tmp_path / "refunded").read_text("utf-8") == "A-1;"


def _freeze(folder, *, frozen: bool) -> None:
    settings, now = config.load(folder / "agentguard.toml"), datetime.now(UTC)
    administration.freeze(settings, b"of this test", frozen=frozen, note="n", now=now)


def test_a_click_during_a_freeze_is_refused_and_counts_after_the_thaw(shop, tmp_path):
    shop("ask", "user:alice")
    _freeze(tmp_path, frozen=True)
    assert shop("approve", "user:dora") == [["domain.frozen"], []]
    assert not (tmp_path / "refunded").exists()
    _freeze(tmp_path, frozen=False)
    assert shop("approve", "user:dora") == [[], ["refunded A-1"]]


def test_a_run_that_goes_on_during_a_freeze_is_on_record_for_its_principal(shop, tmp_path):
    shop("ask", "user:alice")
    shop("vouch", "user:dora")
    _freeze(tmp_path, frozen=True)
    assert "domain.frozen" in shop("resume", "user:dora")[1][0]
    assert not (tmp_path / "refunded").exists()
    with closing(StoredLog.of(tmp_path / ".agentguard")) as reader:
        entries = [parse_entry(body) for _index, body in reader.entries()]
    (denied,) = [one.members for one in entries if one.kind == "call"]
    assert denied["code"] == "domain.frozen"
    invocation = json.loads(Envelope.parse(denied["invocation"], may_be_joint=True).payload)
    assert invocation["predicate"]["principal"] == "user:alice"


@pytest.mark.slow("three processes one after another, twice")
@pytest.mark.parametrize("can_answer", [True, False])
def test_an_approval_counts_no_more_after_a_restart_where_nobody_can_answer(
    shop, tmp_path, can_answer
):
    """The policy is not asked ahead of the call then; it is asked where the call is made."""
    shop("ask", "user:alice")
    shop("vouch", "user:dora")
    file = tmp_path / "agentguard.toml"
    if not can_answer:
        text = file.read_text("utf-8")
        file.write_text(text.partition("[approvals]")[0], "utf-8")
    named, texts = shop("resume", "user:dora")
    assert named == []
    assert (tmp_path / "refunded").exists() is can_answer
    assert ("refunded A-1" in texts[0]) is can_answer
