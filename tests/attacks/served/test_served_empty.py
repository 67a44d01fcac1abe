"""Empty is never all: each member of each operation's request, emptied, at the guard server."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

import pytest
from good_requests import BEGINS, good_requests
from served_intruder import CLIENTS, Intruder, new_id, require_root
from served_place import founded_place

from agentguard.server.requests import OPERATIONS

EVERYTHING = 64_011
TABLE = f"""
[clients.everything]
uid = {EVERYTHING}
agents = ["clerk", "helper"]
vouches_for = ["user:alice"]
answers = true
sees_requests = true
"""
ITS_TEXT = "a text that the log shows and that no rule of the server reads"
NO_FOLDER = "a relative path leads nowhere"
NO_SCOPE = "the delegation that results has no scope"
CLIENTS_WORD = "the client describes its own tool; what the tool requires is the configuration's"
GRANT_NOTHING: Final[Sequence[tuple[str, object, str]]] = (
    ("task_id", "", ITS_TEXT),
    ("traceparent", "", "a text that is no span is left out"),
    ("note", "", ITS_TEXT),
    ("folder", "", NO_FOLDER),
    ("folder", [], NO_FOLDER),
    ("folder", {}, NO_FOLDER),
    ("inside", "", "no call of the session has this id, so that the call is inside none"),
    ("unbound", [], "no argument is left out of what is bound"),
    ("types", {}, "facts of no type are plain JSON"),
    ("tool.description", "", ITS_TEXT),
    ("tool.schema", {}, CLIENTS_WORD),
    ("tool.requires", [], CLIENTS_WORD),
    ("tool.attributes", {}, "the policy's input gets no attribute"),
    ("tool.gives", [], "the look-up gives no fact"),
    ("tool.pinned_origin", "", "no origin is empty, so that the pin refuses each tool"),
    ("tool.pinned_schema", "", "no digest is empty, so that the pin refuses each tool"),
    ("tool.unlisted", "", "the configuration says which tools it has to list"),
    ("scope", [], NO_SCOPE),
    ("delegation.scope", [], NO_SCOPE),
)
"""The members that may be empty, with the reason why an empty one grants nothing."""


def places(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of each text, list and table in a table; null stands for one of them."""
    if isinstance(value, str | list | dict | None) and path:
        yield path
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from places(inner, (*path, name))


def with_value(table: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    first, *rest = path
    return {**table, first: with_value(table[first], tuple(rest), value) if rest else value}


@pytest.fixture
def client(programs):
    require_root()
    with founded_place(programs, CLIENTS + TABLE) as place:
        place.folder.chmod(0o755)
        place.start()
        client = Intruder(place, EVERYTHING)
        yield client
        client.close()


def test_an_empty_member_is_refused_or_grants_nothing(client):
    asked = good_requests(client)
    assert asked.keys() == OPERATIONS.keys()
    accepted = []
    for op, (members, blobs) in asked.items():
        for path, empty in itertools.product(places(members), ("", [], {})):
            fresh = {"request_id": new_id()} if op in BEGINS else {}
            emptied = with_value({**members, **fresh}, path, empty)
            if client.code(op, *blobs, **emptied) is None:
                accepted.append((".".join(path), empty))
    known = [(path, empty) for path, empty, _reason in GRANT_NOTHING]
    assert [one for one in accepted if one not in known] == []
    assert [one for one in known if one not in accepted] == []


def test_each_request_works_as_it_stands(client):
    asked = good_requests(client)
    said = {op: client.code(op, *blobs, **members) for op, (members, blobs) in asked.items()}
    assert said.pop("accept_tool") == "server.remote"  # for the server's own user alone
    assert set(said.values()) == {None}, said


def test_a_delegation_with_an_empty_scope_has_no_scope(client):
    terms, _blobs = good_requests(client)["delegate"]
    assert client.got("delegate", **terms).header["scope"] == ["read"]
    lent = client.got("delegate", **{**terms, "scope": []})
    assert lent.header["scope"] == []
    agent, named = client.agent("clerk"), {"id": lent.header["id"], "scope": []}
    issued = client.got("access_token", agent=agent, delegation=named)
    claims = issued.header["token"].split(".")[1]
    scope = json.loads(base64.urlsafe_b64decode(claims + "=="))["scope"]
    assert scope == ""
