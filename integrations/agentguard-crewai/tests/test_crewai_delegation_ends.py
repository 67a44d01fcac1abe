"""What ends a crew's delegation: no delegation, expiry, its number of calls, and revocation."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from crewai.tools import tool
from crewai_coworkers import AGENTS, DELEGATE, READ, DelegatingTeam, codes, hands, hops

from agentguard import Decision, Guard
from agentguard.domain import administration, config, domain
from agentguard.guard.embedded import Embedded
from agentguard.policy.function import FunctionEngine


def test_without_a_delegation_nobody_acts(make_delegating_team, native, caplog):
    make_delegating_team = make_delegating_team()
    output = make_delegating_team.two(native, READ, hands("Hand"), "led").kickoff()
    assert codes(output) == ["delegation.missing"] * 2
    told = output.tasks_output[0].tool_failures[0].failure.message
    assert told == (
        "Denied: read_file was not run. Reason: the application is not able to make this call. "
        "Do not retry: repeating the same call will not help."
    )
    reason = output.tasks_output[0].tool_failures[0].failure.details["reason"]
    assert reason.startswith("agent lead acts only under a delegation")
    logged = [one.getMessage() for one in caplog.records if one.name == "agentguard"]
    assert len(logged) == 2
    assert [line.count("[delegation.missing]") for line in logged] == [1, 1]
    assert "For the developer: kick off the crew inside a block of guard.delegate(...)" in logged[0]
    assert make_delegating_team.story() == [
        ("lead", "read_file", "delegation.missing"),
        ("lead", DELEGATE, "delegation.missing"),
    ]
    assert (
        make_delegating_team.ran,
        hops(make_delegating_team.guard),
        make_delegating_team.made.policy_inputs,
    ) == ([], [], [])
    assert {call.chain for call in make_delegating_team.calls()} == {()}


@pytest.mark.parametrize(("depth", "became"), [(4, "ok"), (3, "ok"), (2, "denied"), (1, "denied")])
def test_a_chain_that_is_too_long_is_told_as_a_failure(make_delegating_team, native, depth, became):
    make_delegating_team = make_delegating_team()
    output = make_delegating_team.kickoff(
        make_delegating_team.two(native, hands("Hand"), "led"), max_depth=depth
    )
    if became == "ok":
        assert make_delegating_team.story() == [
            ("lead", DELEGATE, "ok"),
            ("hand", "read_file", "ok"),
        ]
        assert codes(output) == []
    else:
        assert codes(output) == ["delegation.depth"]
        assert make_delegating_team.ran == []
        assert "ok" not in [outcome for *_who, outcome in make_delegating_team.story()]


def test_a_delegation_that_has_ended_is_no_longer_one(monkeypatch, make_delegating_team, native):
    ahead = timedelta()
    monkeypatch.setattr("agentguard.guard.process.clock", lambda: datetime.now(UTC) + ahead)
    make_delegating_team = make_delegating_team()

    @tool
    def wait(what: str) -> str:
        """Wait until what was lent has ended."""
        nonlocal ahead
        ahead = timedelta(hours=1)
        return what

    crew = make_delegating_team.two(
        native, READ, ("wait", {"what": "it"}), READ, hands("Hand"), "led"
    )
    crew.agents[0].tools.append(wait)
    output = make_delegating_team.kickoff(crew, expires_in=3600)
    assert codes(output) == ["delegation.expired"] * 2
    assert make_delegating_team.story() == [
        ("lead", "read_file", "ok"),
        ("lead", "wait", "ok"),
        ("lead", "read_file", "delegation.expired"),
        ("lead", DELEGATE, "delegation.expired"),
    ]
    assert [path for path, _members in make_delegating_team.ran] == ["plan"]


def test_no_more_calls_are_made_than_were_lent(make_delegating_team, native):
    make_delegating_team = make_delegating_team()
    output = make_delegating_team.kickoff(
        make_delegating_team.two(native, hands("Hand"), READ, "led"), max_calls=2
    )
    assert codes(output) == ["calls.exceeded"]
    assert make_delegating_team.story() == [
        ("lead", DELEGATE, "ok"),
        ("hand", "read_file", "ok"),
        ("lead", "read_file", "calls.exceeded"),
    ]


PASSPHRASE = b"of this test"


class Place(DelegatingTeam):
    """A desk whose guard is a durable one; ``revoke`` is what an administrator does meanwhile."""

    def __init__(self, folder, signed):
        self._settings = settings_of(folder)
        home = domain.take_up(self._settings, PASSPHRASE)
        engine = FunctionEngine(lambda _document: Decision.allow())
        super().__init__(
            SimpleNamespace(guard=Guard(Embedded(self._settings, engine, home))), signed
        )

    def revoke(self, what):
        at = datetime.now(UTC)
        if what == "everything":
            administration.freeze(self._settings, PASSPHRASE, frozen=True, note="n", now=at)
        else:
            administration.revoke(self._settings, PASSPHRASE, what, note="n", now=at)


def settings_of(folder):
    tables = {"trust_domain": "acme.example", "anchor": "", "agents": AGENTS}
    return config.parse(tables, source="agentguard.toml", base=folder)


@pytest.fixture(scope="module")
def founded(tmp_path_factory):
    """A domain that nobody has used yet."""
    settings = settings_of(tmp_path_factory.mktemp("founded"))
    domain.found(settings, PASSPHRASE, now=datetime.now(UTC))
    return settings.base


@pytest.fixture
def place(tmp_path, founded, signed):
    """A desk with a durable guard."""
    shutil.copytree(founded, tmp_path, dirs_exist_ok=True)
    made = Place(tmp_path, signed)
    yield made
    assert made.guard.verify().ok
    made.guard.close()


@pytest.mark.parametrize(
    ("what", "code", "stopped"),
    [
        ("agent:hand", "delegation.revoked", {"hand"}),
        ("agent:lead", "delegation.revoked", {"hand", "lead"}),
        ("user:alice", "delegation.revoked", {"hand", "lead"}),
        ("crew:report", "delegation.revoked", {"hand", "lead"}),
        ("this delegation", "delegation.revoked", {"hand", "lead"}),
        ("everything", "domain.frozen", {"hand", "lead"}),
        ("agent:third", "", set()),
        ("user:bob", "", set()),
    ],
)
def test_what_is_revoked_stops_at_its_next_call(place, native, what, code, stopped):
    names: list[str] = []

    @tool
    def meanwhile(what: str) -> str:
        """Let an administrator act meanwhile."""
        place.revoke(*names)
        return what

    hand = (READ, ("meanwhile", {"what": "it"}), ("read_file", {"path": "paper"}), "done")
    crew = place.two(native, hands("Hand"), READ, hands("Hand"), "led", hand=(*hand, "done again"))
    crew.agents[1].tools.append(meanwhile)
    with place.lend() as lent:
        names.append(lent.id if what == "this delegation" else what)
        output = crew.kickoff()

    def became(agent):
        return code if agent in stopped else "ok"

    assert place.story()[:5] == [
        ("lead", DELEGATE, "ok"),
        ("hand", "read_file", "ok"),
        ("hand", "meanwhile", "ok"),
        ("hand", "read_file", became("hand")),
        ("lead", "read_file", became("lead")),
    ]
    assert [path for path, _members in place.ran] == [
        "plan",
        *["paper"] * ("hand" not in stopped),
        *["plan"] * ("lead" not in stopped),
    ]
    # the second handing over: a call of the lead's, or one that has failed for the hand's sake
    again = code if "lead" in stopped else "error" if stopped else "ok"
    assert place.story()[5:] == [("lead", DELEGATE, again)]
    refused = {0: 0, 1: 2, 2: 3}[len(stopped)]
    assert [one for one in codes(output) if one] == [code] * refused
