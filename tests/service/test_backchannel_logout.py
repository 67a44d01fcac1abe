"""``POST /backchannel-logout``: from a provider's log-out on, no agent acts for that log-in."""

from __future__ import annotations

import asyncio
import secrets
import signal
from typing import Any

import pytest
from published import publish
from token_service import CHAIN, Key, claims, error_of, served

from agentguard import AgentguardError, Denied
from agentguard.delegation import verification
from agentguard.domain import keystore
from agentguard.signing.canonical import dumps
from agentguard.storage.published_revocations import PublishedRevocations


class LogIn:
    """A log-in of a user of the service's provider."""

    def __init__(self, service):
        self.service = service
        self.claims = {"sub": secrets.token_hex(8), "sid": secrets.token_hex(8)}

    def token(self) -> str:
        return str(self.service.provider.token(**self.claims))

    def log_out(self) -> str:
        """Send a log-out token, and return the token."""
        token = str(self.service.provider.logout_token(**self.claims))
        self.send(token)
        return token

    def send(self, token: str) -> None:
        answer = self.service.log_out(token)
        assert (answer.status_code, answer.json()) == (200, {})
        assert answer.headers["cache-control"] == "no-store"


def active(service, answer) -> bool:
    return bool(service.introspect(answer.json()["access_token"])["active"])


def test_a_log_out_ends_the_access_tokens_of_its_log_in(service, key, credential):
    gone, kept = LogIn(service), LogIn(service)
    answers = [service.exchange(key, credential, subject_token=one.token()) for one in (gone, kept)]
    assert [active(service, one) for one in answers] == [True, True]
    gone.log_out()
    assert [active(service, one) for one in answers] == [False, True]
    refused = service.exchange(key, credential, subject_token=gone.token())
    assert error_of(refused) == (400, "invalid_request")
    assert "[delegation.logged_out]" in refused.text
    assert service.exchange(key, credential, subject_token=kept.token()).is_success


def test_a_receiver_with_the_published_file_learns_of_a_log_out(service, key, credential):
    state, file = service.place.folder / "state", service.place.folder / "revocations.json"
    trust = keystore.load_trust(state)
    published = PublishedRevocations(file, trust)

    def refusal(log_in: LogIn) -> Any:
        answer = service.exchange(key, credential, subject_token=log_in.token()).json()
        stored, at = dumps(answer[CHAIN]), claims(answer["access_token"])["iat"]
        chain = verification.loads(stored, trust, at=at)
        return lambda: published.refusal(chain.names)

    gone, kept = LogIn(service), LogIn(service)
    of_gone, of_kept = refusal(gone), refusal(kept)
    publish(state, file)
    assert of_gone() is None
    gone.log_out()
    publish(state, file)
    assert of_gone()[0] == "delegation.logged_out"
    assert of_kept() is None  # the twin


def test_a_client_of_the_guard_server_acts_no_more(programs):
    with served(programs) as service, service.place.connect() as guard:
        gone, kept = LogIn(service), LogIn(service)
        agent, tool = guard.new_agent("clerk"), guard.tool(name="note")(lambda: "noted")
        lent = [guard.delegate(subject_token=one.token(), scope=["read"]) for one in (gone, kept)]
        assert [agent.under(one).call(tool) for one in lent] == ["noted", "noted"]
        gone.log_out()
        with pytest.raises(Denied) as denied:
            agent.under(lent[0]).call(tool)
        assert denied.value.code == "delegation.logged_out"
        with pytest.raises(Denied) as denied:
            asyncio.run(agent.under(lent[0]).acall(tool))
        assert denied.value.code == "delegation.logged_out"
        assert agent.under(lent[1]).call(tool) == "noted"  # the twin
        with pytest.raises(AgentguardError) as refused:
            guard.delegate(subject_token=gone.token(), scope=["read"])
        assert refused.value.code == "delegation.logged_out"


@pytest.mark.slow("starts a server twice")
def test_a_log_out_is_durable_before_the_answer(programs):
    with served(programs) as service:
        gone, kept, key = LogIn(service), LogIn(service), Key()
        credential = service.credential(key)
        token = gone.log_out()
        service.place.stop(signal.SIGKILL)
        service.place.start()
        refused = service.exchange(key, credential, subject_token=gone.token())
        assert "[delegation.logged_out]" in refused.text
        assert service.exchange(key, credential, subject_token=kept.token()).is_success
        gone.send(token)  # a provider that got no answer may send the same again
        assert [one.kind for one in service.place.entries()].count("logout") == 1
        assert service.place.verify().problems == ()
