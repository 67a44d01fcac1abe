"""A guard server loads its configuration and its policy anew, while clients go on."""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from agentguard import AgentguardError, ConfigError, Denied, Guard, PolicyError, ServerError
from agentguard.guard.embedded import open_embedded
from agentguard.server.sessions import Sessions

NOTE = 'input.action in {"note", "add", "slow", "trusted"}'
NO_NOTE = 'input.action in {"add", "slow", "trusted"}'


def edit(place, file: str, old: str, new: str) -> None:
    path = place.folder / file
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")


def reload(guard: Guard) -> list[str]:
    """Have the server load its configuration anew, as its own user; return what has changed."""
    link = guard._parts._link  # type: ignore[attr-defined]
    return list(link.request({"op": "reload"}).header["changed"])


def note(guard: Guard):
    return guard.tool(name="note")(lambda text: f"noted {text}")


def code_of(call) -> str | None:
    """Make a call; return the reason code of its denial, None where it runs."""
    try:
        call()
    except AgentguardError as error:
        return error.code
    return None


def test_the_next_call_goes_by_a_new_policy_and_the_agent_stays(place):
    guard = place.connect()
    agent, tool = guard.new_agent("clerk"), note(guard)
    first, who = agent.call(tool, "x"), agent.id
    edit(place, "authz.rego", NOTE, NO_NOTE)
    assert agent.call(tool, "y")  # an edit alone changes nothing
    assert reload(guard) == ["policy"]
    with pytest.raises(Denied) as denied:
        agent.call(tool, "x")
    assert (first, denied.value.code) == ("noted x", "policy.denied")
    edit(place, "authz.rego", NO_NOTE, NOTE)
    assert reload(guard) == ["policy"]
    assert agent.call(tool, "z") == "noted z"
    assert reload(guard) == []
    assert agent.id == who
    entries = place.entries()
    policies = [one.members["policy_sha256"] for one in entries if one.kind == "policy"]
    assert (len(policies), len(set(policies))) == (4, 2)
    assert {call.policy_sha256 for call in place.calls()} == set(policies)
    assert place.verify().ok


def test_what_is_wrong_or_needs_a_new_start_changes_nothing(place):
    guard = place.connect()
    agent, tool = guard.new_agent("clerk"), note(guard)
    agent.call(tool, "x")
    guard.flush()
    entries = len(place.entries())
    edit(place, "authz.rego", NOTE, NO_NOTE)  # what is right in the same edit does not count, too
    for file, old, new, code in (
        ("authz.rego", "default allow", "default allo w", "policy.invalid"),
        ("authz.rego", "input.balance > 100", "input.balnce > 100", "policy.invalid"),
        ("agentguard.toml", "[agents.clerk]", "[agents.clerk]\nspeed = 3", "config.invalid"),
        ("agentguard.toml", 'state = "state"', 'state = "other"', "server.reload"),
        ("agentguard.toml", "drain = 1", "drain = 2", "server.reload"),
    ):
        edit(place, file, old, new)
        with pytest.raises((ConfigError, PolicyError, ServerError)) as refused:
            reload(guard)
        assert refused.value.code == code
        assert code in place.said()
        edit(place, file, new, old)
    assert len(place.entries()) == entries
    assert agent.call(tool, "y") == "noted y"
    assert reload(guard) == ["policy"]  # the twin
    assert code_of(lambda: agent.call(tool, "x")) == "policy.denied"


def test_a_call_under_way_ends_under_what_it_began_with(place):
    guard = place.connect()
    agent, inner = guard.new_agent("clerk"), note(guard)
    runs, goes_on = threading.Event(), threading.Event()

    @guard.tool(name="slow")
    def slow(text):
        runs.set()
        assert goes_on.wait(30)
        return code_of(lambda: agent.call(inner, text)), agent.call(add, text)

    add = guard.tool(name="add")(lambda text: f"added {text}")
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(agent.call, slow, "x")
        assert runs.wait(30)
        edit(place, "authz.rego", NOTE, 'input.action in {"add"}')
        reload(guard)
        goes_on.set()
        assert call.result() == ("policy.denied", "added x")  # a call inside is a new call
    assert code_of(lambda: agent.call(slow, "x")) == "policy.denied"
    guard.flush()
    assert [one.status for one in place.outcomes()] == ["ok", "ok"]
    report = place.verify()
    assert (report.ok, report.in_doubt) == (True, ())


def test_a_call_that_waits_for_facts_is_decided_by_the_policy_with_which_it_began(place):
    guard = place.connect()
    agent = guard.new_agent("clerk")
    asks, goes_on = threading.Event(), threading.Event()

    def facts(_arguments):
        asks.set()
        assert goes_on.wait(30)
        return {"balance": 500}

    balance = guard.tool(name="balance", facts=facts, gives=["balance"])(lambda: "rich")
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(agent.call, balance)
        assert asks.wait(30)
        edit(place, "authz.rego", "input.balance > 100", "input.balance > 1000")
        assert reload(guard) == ["policy"]
        goes_on.set()
        assert call.result() == "rich"
    assert code_of(lambda: agent.call(balance)) == "policy.denied"
    guard.flush()
    first, second = place.calls()
    assert first.policy_sha256 != second.policy_sha256
    assert place.verify().ok
    for one in (first, second):  # each has a policy of its own on record
        words = ("-m", "agentguard.cli", "evidence", "make", one.invocation_id, "-o", "-")
        made = place.programs.run(*words, cwd=place.folder)
        assert (made.returncode, one.policy_sha256 in made.stdout) == (0, True), made.stderr


def test_the_servers_own_user_is_no_agent_any_more_once_there_are_clients(place):
    guard = place.connect()
    agent, tool = guard.new_agent("clerk"), note(guard)
    agent.call(tool, "x")
    edit(place, "agentguard.toml", "[server]", "[clients.other]\nuid = 64009\n\n[server]")
    assert reload(guard) == ["clients"]
    assert code_of(lambda: agent.call(tool, "x")) == "agent.refused"
    edit(place, "agentguard.toml", "[clients.other]\nuid = 64009\n\n", "")
    reload(guard)  # the server's own user still looks after the server
    assert agent.call(tool, "x") == "noted x"


def test_a_delegated_call_goes_on_and_a_new_right_counts(place):
    guard = place.connect()
    tool = guard.tool(name="note", requires=["pay"])(lambda text: f"noted {text}")
    lent = guard.delegate("user:alice", scope=["pay", "read"])
    agent = guard.new_agent("helper")

    def call():
        with lent:
            return agent.call(tool, "x")

    assert code_of(call) == "scope.exceeded"
    edit(place, "agentguard.toml", 'max_scope = ["read"]', 'max_scope = ["pay", "read"]')
    assert reload(guard) == ["agents"]
    assert call() == "noted x"
    edit(
        place, "agentguard.toml", "[principals.", "[roles.other]\nscope = ['read']\n\n[principals."
    )
    edit(place, "agentguard.toml", 'roles = ["customer"]', 'roles = ["other"]')
    assert reload(guard) == ["principals", "roles"]
    assert code_of(lambda: guard.delegate("user:alice", scope=["pay"])) == "scope.exceeded"
    assert call() == "noted x"  # until its end, or a revocation
    assert place.verify().ok


def test_a_tool_gets_its_new_table(place):
    guard = place.connect()
    agent, tool = guard.new_agent("clerk"), note(guard)
    agent.call(tool, "x")
    edit(
        place,
        "agentguard.toml",
        "[roles.customer]",
        "[tools.note]\nrequires = ['drop']\n\n[roles.customer]",
    )
    assert reload(guard) == ["tools"]
    assert code_of(lambda: agent.call(tool, "x")) == "scope.exceeded"
    edit(place, "agentguard.toml", "['drop']", "['pay']")
    reload(guard)
    assert agent.call(tool, "x") == "noted x"
    edit(place, "agentguard.toml", "[tools.note]", '[aliases]\nother = "note"\n\n[tools.note]')
    reload(guard)
    assert code_of(lambda: agent.call(tool, "x")) == "config.invalid"  # the name is another tool's
    edit(place, "agentguard.toml", '[aliases]\nother = "note"\n\n', "")
    reload(guard)
    assert agent.call(tool, "x") == "noted x"


OWN = f"[clients.own]\nuid = {os.getuid()}\nagents = ['clerk']\n"


def test_a_client_has_the_rights_that_its_table_has_now(founded):
    edit(founded, "agentguard.toml", "[server]", f"{OWN}\n[server]")
    founded.start()
    guard = founded.connect()
    agent, tool = guard.new_agent("clerk"), note(guard)
    agent.call(tool, "x")
    edit(founded, "agentguard.toml", "['clerk']", "['helper']")
    assert reload(guard) == ["clients"]
    assert code_of(lambda: agent.call(tool, "x")) == "agent.refused"
    guard.new_agent("helper")
    edit(founded, "agentguard.toml", f"uid = {os.getuid()}", "uid = 64009")
    reload(guard)
    for name in ("clerk", "helper"):
        assert code_of(lambda name=name: guard.new_agent(name)) == "agent.refused"
    edit(founded, "agentguard.toml", "uid = 64009\nagents = ['helper']", OWN.split("\n", 1)[1])
    reload(guard)
    assert agent.call(tool, "x") == "noted x"


def test_a_client_that_can_not_follow_begins_anew(founded):
    founded.start(
        """
from agentguard.server import session
def fail(*_): raise RuntimeError("can't follow")
session.Session.follow = fail
"""
    )
    guard = founded.connect()
    agent, tool = guard.new_agent("clerk"), note(guard)
    agent.call(tool, "x")
    edit(founded, "authz.rego", NOTE, NO_NOTE)
    assert reload(guard) == ["policy"]
    assert code_of(lambda: agent.call(tool, "x")) == "policy.denied"
    assert founded.said().count("can't follow") == 1


def test_the_command_and_the_signal_load_anew(place):
    guard = place.connect()
    agent, tool = guard.new_agent("clerk"), note(guard)
    agent.call(tool, "x")

    def command():
        words = ("-m", "agentguard.cli", "server", "reload")
        return place.programs.run(*words, cwd=place.folder)

    edit(place, "authz.rego", NOTE, NO_NOTE)
    assert (command().stdout, command().stdout) == (
        "loaded anew: policy\n",
        "loaded anew: no change\n",
    )
    assert code_of(lambda: agent.call(tool, "x")) == "policy.denied"
    edit(place, "authz.rego", "default allow", "default allo w")
    refused = command()
    assert (refused.returncode, "policy.invalid" in refused.stderr) == (2, True)
    os.kill(place.server.pid, signal.SIGHUP)
    place.wait_for(lambda: place.said().count("policy.invalid") == 2)
    edit(place, "authz.rego", "default allo w", "default allow")
    edit(place, "authz.rego", NO_NOTE, NOTE)
    os.kill(place.server.pid, signal.SIGHUP)
    place.wait_for(lambda: code_of(lambda: agent.call(tool, "x")) is None)


def test_calls_go_on_while_the_server_loads_anew_again_and_again(place):
    guard = place.connect()
    tool = note(guard)
    agents = [guard.new_agent("clerk") for _ in range(4)]
    has_ended = threading.Event()

    def work(agent) -> set[str | None]:
        codes: set[str | None] = set()
        while not has_ended.is_set():
            codes.add(code_of(lambda: agent.call(tool, "x")))
        return codes

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(work, agent) for agent in agents]
        for at in range(10):
            edit(place, "authz.rego", *((NOTE, NO_NOTE) if at % 2 == 0 else (NO_NOTE, NOTE)))
            edit(
                place,
                "agentguard.toml",
                f"pending_per_agent = {25 + at}",
                f"pending_per_agent = {26 + at}",
            )
            assert reload(guard) == ["approvals", "policy"]
        has_ended.set()
        assert set().union(*(one.result() for one in working)) <= {None, "policy.denied"}
    guard.flush()
    report = place.verify()
    assert (report.ok, report.in_doubt) == (True, ())
    assert json.dumps([call.decision for call in place.calls()]).count("deny") > 0


def test_a_policy_engine_is_closed_after_the_last_call_that_uses_it(founded, monkeypatch):
    parts = open_embedded(founded.settings, None, is_server=True)
    ports = parts.runtime.current_ports()
    first, closed = ports.engine, []

    def close(engine):
        closed.append(engine)

    monkeypatch.setattr(type(first), "close", close)
    parts.reload(founded.settings)
    assert (closed, parts.runtime.current_ports().engine is first) == ([], False)
    del ports  # as a call does at its end
    gc.collect()
    assert closed == [first]
    parts.close()
    assert len(closed) == 2


def test_more_clients_share_the_servers_files(founded, monkeypatch):
    parts = open_embedded(founded.settings, None, is_server=True)
    sessions = Sessions(founded.settings, founded.settings.server, parts)
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (1256, 1256))
    share = sessions.shares.of("client web")
    assert share.most_connections == 1000
    tables = "".join(f"[clients.c{at}]\nuid = {64_100 + at}\n" for at in range(4))
    edit(founded, "agentguard.toml", "[server]", f"{tables}\n[server]")
    assert sessions.reload() == ("clients",)
    assert share.most_connections == 200
    sessions.end()
    parts.close()
