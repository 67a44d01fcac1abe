"""A revocation ends proofs: at the guard at once, and at a receiver that has the published file."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from proof_scene import URL, ProofScene, check, refused
from published import publish
from tool_servers import SCOPE, in_call

from agentguard.cli.mcp import gateway
from agentguard.domain import administration, config, rotation
from agentguard.errors import ConfigError, ProofError
from agentguard.proof import ProofStore, PublishedRevocations, Receiver
from agentguard.proof.presentation import prove_request
from agentguard.signing.canonical import loads_object

PASSPHRASE = b"correct horse battery staple"
AGENTS = {name: {"max_scope": SCOPE} for name in ("payer", "other")}


class Domain:
    """A durable domain with a receiver; ``publish`` writes its file of revocations."""

    def __init__(self, place, folder: Path) -> None:
        tables = {**loads_object(place.config.encoded), "agents": AGENTS}
        place.config = config.parse(tables, source="agentguard.toml", base=place.config.base)
        self.config = place.config
        self.scene = ProofScene(folder, place.open())
        self.published = folder / "revocations.json"
        self.publish()
        self.knowing = self.scene.new_receiver(
            revocations=PublishedRevocations(self.published, self.scene.guard.trust)
        )

    def publish(self) -> None:
        publish(self.config.state, self.published)

    def revoke(self, name: str) -> None:
        now = datetime.now(UTC)
        administration.revoke(self.config, PASSPHRASE, name, note="n", now=now)


@pytest.fixture
def domain(place, tmp_path_factory) -> Iterator[Domain]:
    domain = Domain(place, tmp_path_factory.mktemp("receiver"))
    with domain.scene.guard:
        yield domain


@pytest.mark.parametrize("name", ["agent:payer", "user:alice"])
def test_a_revoked_name_is_refused_where_the_receiver_has_the_file(domain, name):
    before, after, elsewhere = (domain.scene.request() for _ in range(3))
    assert check(domain.knowing, before).principal == "user:alice"
    domain.revoke(name)
    domain.publish()
    assert refused(domain.knowing, after) == "delegation.revoked"
    # a receiver without the file knows what was signed, for the five minutes of the token
    assert check(domain.scene.receiver, elsewhere).principal == "user:alice"


def test_another_agent_goes_on(domain):
    domain.revoke("agent:other")
    domain.publish()
    assert check(domain.knowing, domain.scene.request()).principal == "user:alice"


def test_a_frozen_domain_is_refused(domain):
    sent = domain.scene.request()
    now = datetime.now(UTC)
    administration.freeze(domain.config, PASSPHRASE, frozen=True, note="n", now=now)
    domain.publish()
    assert refused(domain.knowing, sent) == "domain.frozen"
    administration.freeze(domain.config, PASSPHRASE, frozen=False, note="n", now=now)
    domain.publish()
    assert check(domain.knowing, sent).principal == "user:alice"


def test_a_revocation_in_one_domain_says_nothing_of_another(domain, tmp_path_factory):
    """``agent:payer`` and ``user:alice`` are names in both domains."""
    sent = domain.scene.request()
    domain.revoke("agent:payer")
    domain.publish()
    ours = domain.scene.guard.trust
    published = PublishedRevocations(domain.published, ours)
    elsewhere = ProofScene(tmp_path_factory.mktemp("elsewhere"))
    with elsewhere.guard:
        trust, store = (
            [ours, elsewhere.guard.trust],
            ProofStore(domain.published.with_name("p.sqlite")),
        )
        other = elsewhere.guard.trust.trust_domain
        known = {ours.trust_domain: published, other: None}
        both = Receiver(URL, trust, store, revocations=known)
        assert refused(both, sent) == "delegation.revoked"
        assert check(both, elsewhere.request()).principal == "user:alice"
        with pytest.raises(ConfigError):
            Receiver(URL, trust, store, revocations=published)


def test_revocations_under_a_misspelt_name_of_a_domain_do_not_count_as_none(domain, tmp_path):
    ours, store = domain.scene.guard.trust, ProofStore(tmp_path / "p.sqlite")
    published = PublishedRevocations(domain.published, ours)
    misspelt = {f"{ours.trust_domain}x": published}
    for revocations in (misspelt, {}, {**misspelt, ours.trust_domain: published}):
        with pytest.raises(ConfigError):
            Receiver(URL, ours, store, revocations=revocations)
    Receiver(URL, ours, store, revocations={ours.trust_domain: published})


def test_a_file_that_is_missing_or_altered_refuses_everything(domain):
    path = domain.published
    whole, sent = path.read_bytes(), domain.scene.request()
    path.write_bytes(whole.replace(b"\n0\n", b"\n1\n").replace(b"Z\n", b"Z \n"))
    assert refused(domain.knowing, sent) == "storage.corrupt"
    path.unlink()
    assert refused(domain.knowing, sent) == "storage.missing"
    path.write_bytes(whole)
    assert check(domain.knowing, sent).principal == "user:alice"


def test_an_older_file_in_the_place_of_the_newest_refuses_everything(domain):
    path = domain.published
    sent, older = domain.scene.request(), path.read_bytes()
    domain.revoke("agent:other")
    domain.publish()
    newest = path.read_bytes()
    assert check(domain.knowing, domain.scene.request()).principal == "user:alice"
    path.write_bytes(older)
    assert refused(domain.knowing, sent) == "storage.rolled_back"
    path.write_bytes(newest)
    assert check(domain.knowing, sent).principal == "user:alice"


def test_a_guard_proves_nothing_more_in_a_call_whose_agent_is_revoked_meanwhile(domain):
    def tool():
        first = prove_request("POST", f"{URL}/pay", b"")
        domain.revoke("agent:payer")
        with pytest.raises(ProofError) as caught:
            prove_request("POST", f"{URL}/pay", b"")
        return first, caught.value.code

    first, code = in_call(domain.scene.guard, tool, audience=[URL])
    assert first.proof
    assert code == "proof.refused"


def test_a_gateway_reads_the_revocations_of_its_own_domain_in_the_log(place):
    server = {"command": ["server"], "agent": "payer", "audience": "mcp:git", "proofs": "p.sqlite"}
    tables = {**loads_object(place.config.encoded), "agents": AGENTS, "mcp": {"git": server}}
    settings = config.parse(tables, source="agentguard.toml", base=place.config.base)
    chosen = gateway.settings_of(settings, gateway.server_of(settings, "git", ()), gateway.Caller())
    known = chosen.proofs.revocations
    assert known.refusal({"agent:payer"}) is None
    now = datetime.now(UTC)
    rotation.rotate(settings, PASSPHRASE, "log", now=now)  # while the gateway runs
    administration.revoke(settings, PASSPHRASE, "agent:payer", note="n", now=now)
    assert known.refusal({"agent:payer"})[0] == "delegation.revoked"
    assert known.refusal({"agent:other"}) is None
