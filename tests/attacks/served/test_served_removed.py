"""A client that a reload has removed, on a connection that it keeps open: it may end its calls.

The operations come from the server's own table, so that a new one is asked as well.
"""

from __future__ import annotations

from typing import Any

import pytest
from good_requests import Asked, good_requests
from served_intruder import CLIENTS, Intruder, require_root
from served_place import Place, founded_place

from agentguard.server.requests import OPERATIONS

EVERYTHING = 64_010
TABLE = f"""
[clients.everything]
uid = {EVERYTHING}
agents = ["clerk", "helper"]
vouches_for = ["user:alice"]
answers = true
"""
NARROWED = TABLE.replace('["clerk", "helper"]', '["helper"]')
STAYS = {"span", "facts", "outcome", "withdraw"}
IN_RUNS = ("secret", "proof", "call_proof", "receipt")


@pytest.fixture
def place(programs):
    require_root()
    with founded_place(programs, CLIENTS + TABLE) as place:
        place.folder.chmod(0o755)
        place.start()
        yield place


@pytest.fixture
def client(place):
    client = Intruder(place, EVERYTHING)
    yield client
    client.close()


def load(place: Place, table: str) -> None:
    """Have the server go by a configuration whose table of the client is ``table``."""
    path = place.folder / "agentguard.toml"
    path.write_text(path.read_text("utf-8").partition("\n[clients.everything]")[0] + table, "utf-8")
    with place.connect() as guard:
        guard._parts._link.request({"op": "reload"})  # type: ignore[attr-defined]


def codes(client: Intruder, asked: dict[str, Asked]) -> dict[str, str | None]:
    """Send the requests; return the reason code of each, None for one that works."""
    assert asked.keys() == OPERATIONS.keys()
    return {op: client.code(op, *blobs, **members) for op, (members, blobs) in asked.items()}


def test_a_removed_client_ends_its_calls_and_every_other_operation_is_refused(place, client):
    asked = good_requests(client)
    load(place, "")
    said = codes(client, asked)
    assert {op for op, code in said.items() if code is None} == STAYS
    assert {code for op, code in said.items() if op not in STAYS} == {"server.stranger"}
    others: tuple[Any, ...] = ("status", "reload", "launch", "__class__", None, 5, [])
    for op in others:
        assert client.code(op) == "server.stranger"
    assert client.code("end") is None
    assert "failed in the server" not in place.said()


def test_a_client_that_a_reload_leaves_in_place_has_every_operation(place, client):
    load(place, TABLE + "sees_requests = true")
    said = codes(client, good_requests(client))
    assert said.pop("accept_tool") == "server.remote"  # for the server's own user alone
    assert set(said.values()) == {None}, said


def test_a_running_call_has_no_secret_and_no_proof_of_an_agent_that_was_taken_away(place, client):
    asked = good_requests(client)
    load(place, NARROWED)
    said = {op: client.code(op, *asked[op][1], **asked[op][0]) for op in (*IN_RUNS, *STAYS)}
    assert said == dict.fromkeys(IN_RUNS, "agent.refused") | dict.fromkeys(STAYS)
    load(place, TABLE)  # the twin
    assert {client.code(op, *asked[op][1], **asked[op][0]) for op in IN_RUNS} == {None}
