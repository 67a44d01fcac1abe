"""The application's word for a role, where it lies: only a holder of the log's key writes it.

Somebody who can write in the state forges a role, seals an answer with a key of his own, or lays
the answer to one request beside another.
"""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from approval_desk import Desk
from state_pages import Page

from agentguard import ApprovalError, ApprovalRequest, Decision, Guard, Requirement
from agentguard.approvals.answer import read_answer, seal_answer
from agentguard.domain import config
from agentguard.errors import EncodeError
from agentguard.guard.callbacks import Functions
from agentguard.guard.embedded import Embedded
from agentguard.policy.function import FunctionEngine
from agentguard.signing import dsse
from agentguard.signing.canonical import b64_decode, b64_encode, dumps, loads_object
from agentguard.signing.keys import Ed25519Signer
from agentguard.store.sealed_pages import Keys, data_of, sealed

WORD = {"application": True, "application_roles": ["lead"]}


@pytest.fixture
def roles_desk(desk):
    return with_word(desk, WORD)


def with_word(desk: Desk, word: dict[str, Any]) -> Desk:
    """Return a desk of the same state and people, where the application's word counts so."""
    tables = loads_object(desk.place.config.encoded)
    approvers: Any = tables["approvers"]
    approvers["dora"] = {"principal": "user:dora", "roles": ["clerk"]}
    changed = {**tables, "approvers": approvers, "approvals": word}
    desk.place.config = config.parse(changed, source="agentguard.toml", base=desk.place.config.base)
    desk.needed = Requirement("a lead", roles=("lead",))
    return desk


def place_of(desk: Desk, request: ApprovalRequest, name: str) -> Page:
    return desk.folder / "answers" / request.request_id / name


def lie(desk: Desk, request: ApprovalRequest, name: str, data: bytes) -> None:
    place_of(desk, request, name).write_bytes(data)


def forged(
    request: ApprovalRequest, principal: str, *roles: str, signer: Ed25519Signer | None = None
) -> Any:
    return seal_answer(
        request,
        "approve",
        approver=principal,
        approval_id=os.urandom(16).hex(),
        at=request.requested_at,
        roles=roles,
        signer=signer,
    )


def test_a_signed_answer_names_no_role(roles_desk):
    signer = Ed25519Signer.from_seed(os.urandom(32))
    with roles_desk.open() as guard:
        request = roles_desk.ask(guard)
    with pytest.raises(EncodeError) as caught:
        forged(request, "user:dora", "lead", signer=signer)
    assert caught.value.code == "approval.malformed"
    assert read_answer(forged(request, "user:dora", signer=signer)).roles == ()
    assert read_answer(forged(request, "user:dora", "lead")).roles == ("lead",)


def test_a_role_that_is_forged_where_an_answer_lies(roles_desk):
    """Dora, a clerk, rejects nothing and approves nothing: her file says that she is a lead."""
    with roles_desk.open() as guard:
        request = roles_desk.ask(guard)
        with pytest.raises(ApprovalError):
            guard.approvals.vouch(request, "approve", principal="user:dora")
        envelope = forged(request, "user:dora", "lead")
        name = read_answer(envelope).approval_id
        lie(roles_desk, request, name, dumps(envelope.as_json()))
        assert roles_desk.call(guard) == "approval.pending"
        guard.approvals.vouch(request, "approve", principal="user:carol")  # the twin
        assert roles_desk.call(guard) == "merged main"
        assert guard.verify().problems == ()


def test_a_sealed_answer_in_which_somebody_edits_the_roles(roles_desk):
    with roles_desk.open() as guard:
        request = roles_desk.ask(guard)
        guard.approvals.vouch(request, "approve", principal="user:carol")
        (path,) = (roles_desk.folder / "answers" / request.request_id).iterdir()
        kept = path.read_bytes()
        answer = json.loads(data_of(kept))
        payload = b64_decode(answer["payload"]).replace(b'"user:carol"', b'"user:dora"')
        answer["payload"] = b64_encode(payload)
        path.write_bytes(kept[: -len(data_of(kept))] + dumps(answer))
        assert roles_desk.call(guard) == "approval.pending"
        path.write_bytes(kept)
        assert roles_desk.call(guard) == "merged main"


@pytest.mark.parametrize("claims_the_key", [True, False])
def test_an_answer_that_is_sealed_with_another_key(roles_desk, claims_the_key):
    with roles_desk.open() as guard:
        request = roles_desk.ask(guard)
        envelope = forged(request, "user:carol", "lead")
        name = read_answer(envelope).approval_id
        mallory = Ed25519Signer.from_seed(os.urandom(32))
        place = place_of(roles_desk, request, name)
        data = sealed(dumps(envelope.as_json()), place.path, Keys(mallory, lambda: guard.trust))
        if claims_the_key:
            (log_key,) = [one for one in guard.trust.keys if one.use == "log"]
            data = data.replace(mallory.key_id.encode(), log_key.key.thumbprint.encode())
        place.write_bytes(data)
        assert roles_desk.call(guard) == "approval.pending"
        guard.approvals.vouch(request, "approve", principal="user:carol")
        assert roles_desk.call(guard) == "merged main"


def test_a_click_on_one_request_is_no_click_on_another(roles_desk):
    with roles_desk.open() as guard:
        first, second = roles_desk.ask(guard, "first"), roles_desk.ask(guard, "second")
        guard.approvals.vouch(first, "approve", principal="user:carol")
        (path,) = (roles_desk.folder / "answers" / first.request_id).iterdir()
        lie(roles_desk, second, path.name, path.read_bytes())
        assert roles_desk.call(guard, "second") == "approval.pending"
        assert roles_desk.call(guard, "first") == "merged first"


def test_a_click_outlives_the_process(roles_desk):
    with roles_desk.open() as guard:
        request = roles_desk.ask(guard)
    with roles_desk.open() as guard:
        guard.approvals.vouch(request, "approve", principal="user:carol")
    with roles_desk.open() as guard:
        assert roles_desk.call(guard) == "merged main"
        assert guard.verify().problems == ()


def test_of_two_clicks_at_once_on_two_guards_of_one_state_one_comes_too_late(roles_desk):
    both = threading.Barrier(2, timeout=60)

    def roles(_principal: str) -> list[str]:
        both.wait()  # each click has passed its first check by now
        return ["lead"]

    def click(guard: Guard, principal: str) -> str:
        try:
            guard.approvals.vouch(request, "approve", principal=principal)
        except ApprovalError as error:
            return error.code
        return "counts"

    place = roles_desk.place
    engine = FunctionEngine(lambda _input: Decision.require_approval(roles_desk.needed))
    with (
        Guard(
            Embedded(place.config, engine, place.take_up(), Functions(approver_roles=roles))
        ) as one,
        Guard(
            Embedded(place.config, engine, place.take_up(), Functions(approver_roles=roles))
        ) as two,
        ThreadPoolExecutor(2) as threads,
    ):
        request = roles_desk.ask(one)
        ends = list(threads.map(click, (one, two), ("user:carol", "user:dora")))
        assert sorted(ends) == ["counts", "request.ended"]
        assert len(two.approvals.answers(request)) == 1
        assert roles_desk.call(two) == "merged main"
        assert one.verify().problems == ()


def test_a_click_does_not_outlive_the_role(desk):
    """A role that the configuration does not list any more counts for no answer, old or new."""
    before = with_word(desk, WORD)
    with before.open() as guard:
        request = before.ask(guard)
        guard.approvals.vouch(request, "approve", principal="user:carol")
    after = with_word(before, {"application": True})
    with after.open() as guard:
        assert after.call(guard) == "approval.pending"
    again = with_word(after, WORD)
    with again.open() as guard:
        assert again.call(guard) == "merged main"
        assert guard.verify().problems == ()


def test_a_signed_answer_claims_no_role(roles_desk):
    """Bob has a key and no role: that he writes one into his answer changes nothing."""
    with roles_desk.open() as guard:
        request = roles_desk.ask(guard)
        unsigned = forged(request, "user:bob", "lead")
        payload = unsigned.payload.replace(b'"application"', b'"ed25519"')
        sealed = dsse.seal(payload, roles_desk.keys["bob"])
        name = "1" * 32
        lie(roles_desk, request, name, dumps(sealed.as_json()))
        assert roles_desk.call(guard) == "approval.pending"
        roles_desk.answer(request, "carol")
        assert roles_desk.call(guard) == "merged main"
