"""A chain of delegation: what a stranger verifies of every hop, key and credential.

Each refusal has its code, and beside it what is allowed. How a chain is issued is in
test_chain_issuing.py. Hundreds of hostile tokens are in tests/attacks/test_hostile_tokens.py; that
nothing ever widens, in tests/properties/test_attenuation.py.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest
from refused_chains import code_of, refused

from agentguard import AgentguardError, VerificationError
from agentguard.delegation import chain_issuance, grant, verification
from agentguard.delegation.chain import Chain, hops_digest
from agentguard.delegation.grant import MAX_DEPTH
from agentguard.errors import DecodeError
from agentguard.signing import canonical

DOMAIN = "spiffe://acme.example"


def forged(world, chain: Chain, *, signer=None, by=None, **changes) -> Chain:
    """The chain with its last hop signed anew, with other claims; by whoever."""
    last = chain.hops[-1].grant
    if signer is None:
        holder = chain.hops[-2].grant if len(chain.hops) > 1 else None
        asserted = holder is None or holder.is_asserted
        signer = world.issuer if asserted else world.member(name_of(last.delegator)).signer
    hop = grant.sign(replace(last, **changes), signer)
    return replace(chain, hops=(*chain.hops[:-1], hop))


def name_of(uri: str) -> str:
    return uri.split("/")[-2]


# --- what is issued verifies ----------------------------------------------------------------------


def test_a_chain_from_a_user_through_a_service_to_two_agents(world):
    chain = world.chain("orchestrator", "fixer", scope=["b", "a"], task_id="t-1", max_calls=9)
    verified = world.verify(chain)
    assert verified == chain
    orchestrator, fixer = world.member("orchestrator"), world.member("fixer")
    assert verified.principal == "user:alice"
    assert verified.members == ("user:alice", "service:ci", orchestrator.uri, fixer.uri)
    assert verified.actors == ["service:ci", "agent:orchestrator", "agent:fixer"]
    assert verified.leaf.scope == ("a", "b")
    assert verified.leaf.key_id == fixer.signer.key_id
    assert [hop.grant.depth for hop in verified.hops] == [1, 2, 3]
    assert {hop.grant.task_id for hop in verified.hops} == {"t-1"}
    assert {hop.grant.principal for hop in verified.hops} == {"user:alice"}
    assert verified.limits == [(verified.root.jti, 9)]
    assert verified.credentials == (orchestrator.credential, fixer.credential)
    assert verified.issuer_keys == {world.issuer.key_id}


def test_its_digest_is_over_the_signing_inputs(world):
    chain = world.chain("a", "b")
    joined = b"".join(hop.signing_input for hop in chain.hops)
    assert chain.sha256 == hashlib.sha256(joined).hexdigest()
    assert chain.sha256 == hops_digest([hop.token for hop in chain.hops])
    assert chain.sha256 != world.chain("a", "b").sha256  # another id, another chain


def test_its_names_are_all_by_which_it_can_be_cut(world):
    chain = world.chain("a", "b")
    a, b = world.member("a"), world.member("b")
    assert chain.names == {
        "user:alice",
        "service:ci",
        a.uri,
        b.uri,
        "agent:a",
        "agent:b",
        a.signer.key_id,
        b.signer.key_id,
        *(hop.grant.jti for hop in chain.hops),
    }
    assert world.issuer.key_id not in chain.names  # to revoke a service is not to revoke everybody


def test_the_application_itself_may_be_the_first_delegatee(world):
    chain = world.chain("a", via=None)
    assert world.verify(chain).members == ("user:alice", DOMAIN, world.member("a").uri)
    assert chain.root.delegator == chain.root.delegatee == DOMAIN


def test_the_first_hop_says_who_vouches_and_that_the_issuer_signs_for_the_service(world):
    root = world.begin("a").root
    assert (root.delegator, root.assurance, root.is_asserted) == (DOMAIN, "application", True)
    assert (root.key_id, root.parent, root.audience) == (world.issuer.key_id, None, (DOMAIN,))
    second = world.chain("a").leaf
    assert (second.assurance, second.is_asserted) == (None, False)


def test_a_chain_is_written_and_read(world):
    chain = world.chain("a", "b")
    data = chain.dumps()
    assert verification.loads(data, world.trust, at=world.now) == chain
    assert canonical.loads_object(data).keys() == {"type", "hops", "credentials"}
    assert verification.from_json(chain.as_json(), world.trust, at=world.now) == chain


def test_a_chain_of_the_first_hop_alone_verifies(world):
    assert world.verify(world.begin("a")).leaf.scope == ("a",)


# --- verifying: every rule of a link --------------------------------------------------------------

WRONG_ROOTS: list[tuple[dict[str, Any], str]] = [
    ({"delegator": "spiffe://evil.example"}, "hop.issuer"),
    ({"delegator": DOMAIN + "/"}, "hop.issuer"),
    ({"parent": "0" * 64}, "hop.parent"),
    ({"depth": 2}, "hop.parent"),
    ({"assurance": None}, "hop.parent"),
    ({"is_asserted": False}, "hop.key"),
    ({"delegatee": "spiffe://acme.example/agent/a/b"}, "hop.name"),
    ({"delegatee": "agent:a"}, "hop.name"),
    ({"delegatee": "spiffe://other.example"}, "hop.name"),
    ({"key_id": "x" * 43}, "key.unknown"),
    ({"expires_at": 1_800_000_000 - 1, "issued_at": 1_700_000_000}, "hop.expired"),
]


@pytest.mark.parametrize(("changes", "code"), WRONG_ROOTS, ids=map(str, WRONG_ROOTS))
def test_the_first_hop(world, changes, code):
    root = world.begin("a")
    assert world.verify(forged(world, root, expires_at=root.root.expires_at - 1))  # the twin
    assert refused(world, forged(world, root, **changes)) == code


def test_the_key_that_signs_for_the_service_is_an_issuers(world):
    for signer in (world.log_key, world.admin, world.member("a").signer):
        root = forged(world, world.begin("a"), key_id=signer.key_id)
        assert refused(world, root) == "key.unknown"


WRONG_LINKS: list[tuple[dict[str, Any], str]] = [
    ({"delegator": "service:other"}, "hop.issuer"),
    ({"assurance": "application"}, "hop.issuer"),
    ({"parent": "0" * 64}, "hop.parent"),
    ({"parent": None}, "hop.parent"),
    ({"principal": "user:bob"}, "hop.subject"),
    ({"task_id": None}, "hop.task"),
    ({"task_id": "t-2"}, "hop.task"),
    ({"depth": 2}, "hop.depth"),
    ({"depth": 4}, "hop.depth"),
    ({"is_asserted": True}, "hop.key"),
    ({"delegatee": "service:other"}, "hop.name"),
    ({"delegatee": "agent:b"}, "hop.name"),
    ({"delegatee": DOMAIN}, "hop.name"),
    ({"key_id": "x" * 43}, "hop.name"),
    ({"scope": ("a", "b", "c")}, "hop.scope"),
    ({"scope": ("admin",)}, "hop.scope"),
    ({"expires_at": 1_800_003_601}, "hop.expiry"),
    ({"issued_at": 1_799_999_999}, "credential.not_yet_valid"),
    ({"audience": (DOMAIN, "spiffe://other.example")}, "hop.audience"),
    ({"audience": ("spiffe://other.example",)}, "hop.audience"),
    ({"max_depth": 9}, "hop.depth"),
    ({"max_calls": 0}, "hop.malformed"),
]
NARROWER: list[dict[str, Any]] = [
    {},
    {"scope": ()},
    {"scope": ("a",)},
    {"expires_at": 1_800_003_599},
    {"max_depth": 3},
    {"max_calls": 3},
    {"max_calls": 1},
]


@pytest.fixture
def lent(world):
    """A chain whose last hop an agent has signed."""
    return world.chain("a", "b", task_id="t-1", max_calls=3)


@pytest.mark.parametrize(("changes", "code"), WRONG_LINKS, ids=map(str, WRONG_LINKS))
def test_every_link(world, lent, changes, code):
    assert refused(world, forged(world, lent, **changes), kind=AgentguardError) == code


@pytest.mark.parametrize("changes", NARROWER, ids=str)
def test_less_is_no_problem(world, lent, changes):
    assert world.verify(forged(world, lent, **changes)).principal == "user:alice"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16])
def test_no_hop_has_a_wider_audience_than_the_one_before(world, count):
    names = tuple(sorted(f"https://{number}.example" for number in range(count)))
    other = "https://z.example"
    chain = world.chain("a", "b", audience=names)
    for narrower in (names, names[:1], names[-1:]):
        assert world.verify(forged(world, chain, audience=narrower)).leaf.audience == narrower
    for wider in ((*names, other), (*names[1:], other), (*names[:-1], other), (other,)):
        assert refused(world, forged(world, chain, audience=wider)) == "hop.audience"


def test_no_hop_allows_more_calls_than_the_one_before(world):
    chain = world.chain("a", max_calls=3)
    assert world.verify(forged(world, chain, max_calls=3)).leaf.max_calls == 3
    assert refused(world, forged(world, chain, max_calls=4)) == "hop.calls"


def test_each_limit_on_the_way_counts(world, lent):
    """Of two, the smaller one ends first; a hop without one takes none away."""
    for further in (2, 4):
        chain = world.verify(forged(world, lent, max_calls=further))
        assert chain.limits == [(chain.root.jti, 3), (chain.leaf.jti, further)]


def test_a_hop_is_not_older_than_the_one_before(world):
    early = world.instance("early", now=world.now - 100)
    chain = world.begin("a")
    hop = world.extend(chain, early).leaf
    older = grant.sign(replace(hop, issued_at=world.now - 1), world.issuer)
    same = grant.sign(hop, world.issuer)
    assert world.verify(Chain((*chain.hops, same), (early.credential,)))
    assert refused(world, Chain((*chain.hops, older), (early.credential,))) == "hop.expiry"


def test_a_hop_is_not_made_after_the_one_before_has_ended(world):
    """Though it would have ended by then itself."""
    a = world.member("a")
    short = world.begin("a", expires_in=10)
    hop = replace(world.extend(short, a).leaf, issued_at=world.now + 10, expires_at=world.now + 11)
    late = Chain((*short.hops, grant.sign(hop, world.issuer)), (a.credential,))
    assert refused(world, late, at=world.now + 10) == "hop.expired"


def test_two_hops_do_not_share_an_id(world, lent):
    assert refused(world, forged(world, lent, jti=lent.root.jti)) == "hop.repeated"


def test_every_hop_counts_at_the_time(world, lent):
    for at, code in (
        (world.now - 1, "hop.not_yet_valid"),
        (world.now + 3600, "hop.expired"),
        (2**50, "hop.expired"),
    ):
        assert refused(world, lent, at=at) == code
        assert code_of(VerificationError, lent.check, at) == code
    assert world.verify(lent, at=world.now + 3599) == lent
    lent.check(world.now + 3599)


def test_a_hop_in_the_middle_that_has_ended_ends_what_comes_after(world):
    chain = world.chain("a")
    short = forged(world, chain, expires_at=world.now + 5)
    chain = world.extend(short, world.member("b"), by=world.member("a"))
    assert chain.leaf.expires_at == world.now + 5
    assert refused(world, chain, at=world.now + 5) == "hop.expired"
    assert world.verify(chain, at=world.now + 4)


# --- verifying: keys and credentials --------------------------------------------------------------


def test_the_holder_alone_signs(world, lent):
    for signer in (world.key(), world.issuer, world.member("b").signer, world.log_key):
        assert refused(world, forged(world, lent, signer=signer)) == "signature.invalid"


def test_what_the_issuer_asserts_is_signed_by_an_issuer(world):
    chain = world.chain("a")
    for signer in (world.key(), world.member("a").signer, world.log_key, world.admin):
        assert refused(world, forged(world, chain, signer=signer)) == "key.unknown"


def test_a_name_counts_only_with_its_credential(world, lent):
    a, b = lent.credentials
    other = world.instance("b")
    for credentials in ((), (a,), (b,), (a, other.credential)):
        assert refused(world, replace(lent, credentials=credentials)) == "chain.credential"


def test_a_name_that_only_the_delegator_claims(world):
    """The key is the right one, and the name is not what the issuer has given it."""
    chain, a = world.chain("a", "b"), world.member("a")
    b = world.member("b")
    claimed = b.uri.replace("/agent/b/", "/agent/root/")
    assert refused(world, forged(world, chain, delegatee=claimed)) == "chain.credential"
    assert world.verify(forged(world, chain)).actors[-1] == "agent:b"
    lone = world.key()
    nobody = f"{DOMAIN}/agent/b/{lone.key_id}"
    hop = forged(world, chain, delegatee=nobody, key_id=lone.key_id)
    for credentials in (chain.credentials, (a.credential,)):
        assert refused(world, replace(hop, credentials=credentials)) == "chain.credential"


def test_no_credential_comes_along_that_nothing_needs(world, lent):
    a, b = lent.credentials
    extra = world.member("c").credential
    for credentials in ((a, b, extra), (b, a), (a, b, b), (a, a, b), (extra, a, b)):
        assert refused(world, replace(lent, credentials=credentials)) == "chain.credential"


def test_a_credential_counts_at_the_time_of_the_hop(world):
    """An agent's own must hold when it is given something, and when it hands it on."""
    old = world.instance("old", now=world.now - 3600)  # ends just now
    begun = world.begin("a")
    made = chain_issuance.extend(
        begun,
        world.issuer,
        old.credential,
        by=None,
        scope=["a"],
        now=world.now,
        jti=world.jti(),
    )
    assert refused(world, made) == "credential.expired"
    still = world.instance("old", signer=old.signer, now=world.now - 3599)
    assert world.verify(world.extend(begun, still))


def test_an_agent_that_hands_on_later_shows_a_later_credential(world):
    """The delegation outlives the credential: both come along, each for its hop."""
    chain, a = world.chain("a", expires_in=7200), world.member("a")
    later = world.now + 3600
    renewed = world.instance("a", signer=a.signer, now=later)
    b = world.instance("b", now=later)
    made = world.extend(chain, b, by=renewed, now=later)
    assert made.credentials == (a.credential, renewed.credential, b.credential)
    assert world.verify(made, at=later) == made
    stale = world.extend(chain, b, by=a, now=later)
    assert refused(world, stale, at=later) == "credential.expired"


def test_a_credential_of_another_issuer(world, lent, stranger):
    other = replace(lent.credentials[1], token=resigned(lent.credentials[1].token, stranger))
    credentials = (lent.credentials[0], other)
    assert refused(world, replace(lent, credentials=credentials)) == "signature.invalid"


def resigned(token: str, signer) -> str:
    head = token.rpartition(".")[0]
    return f"{head}.{canonical.b64url_encode(signer.sign(head.encode()))}"


def test_another_trust_domain_believes_nothing_of_it(world, lent):
    other = type(world)()
    assert code_of(VerificationError, other.verify, lent) == "key.unknown"


def test_the_same_keys_in_another_trust_domain(world, lent):
    trust = replace(world.trust, trust_domain="other.example")
    refusal = code_of(VerificationError, verification.loads, lent.dumps(), trust, at=world.now)
    assert refusal == "hop.issuer"


def test_the_issuers_key_counts_for_its_time(world, lent):
    assert world.verify(lent, not_after=world.now + 1) == lent  # it was rotated since
    assert refused(world, lent, not_after=world.now) == "key.expired"
    assert refused(world, lent, not_before=world.now + 1) == "key.expired"
    assert refused(world, lent, compromised_since=world.now) == "key.compromised"


def test_a_stolen_issuer_key_gains_nothing_from_an_old_date(world):
    """The thief signs a hop that ends in years, and dates it before the theft."""
    stolen_at = world.now + 1000
    chain = world.chain("a", expires_in=10**8)
    assert world.verify(chain, at=stolen_at - 1, compromised_since=stolen_at) == chain
    for at in (stolen_at, stolen_at + 10**7):
        assert refused(world, chain, at=at, compromised_since=stolen_at) == "key.compromised"
    assert world.verify(chain, at=stolen_at + 10**7, not_after=stolen_at) == chain  # only rotated


def test_a_delegation_outlives_a_rotation_of_the_issuers_key(world):
    """The service's next hop is signed with the key of that moment."""
    begun, new = world.begin("a"), world.key()
    later = world.now + 100
    trust = world.trust.rotated(
        world.issuer.public_key,
        new.public_key,
        now=later - 10,
        until=later - 10,
        compromised_since=None,
    )
    a = world.member("a")
    made = chain_issuance.extend(
        begun, new, a.credential, by=None, scope=["a"], now=later, jti=world.jti()
    )
    assert verification.loads(made.dumps(), trust, at=later) == made
    assert made.issuer_keys == {world.issuer.key_id, new.key_id}
    late = chain_issuance.extend(
        begun, world.issuer, a.credential, by=None, scope=["a"], now=later, jti=world.jti()
    )
    assert (
        code_of(VerificationError, verification.loads, late.dumps(), trust, at=later)
        == "key.expired"
    )


# --- what is no chain -----------------------------------------------------------------------------


def test_hops_in_another_order_number_or_of_another_chain(world, lent):
    hops, other = lent.hops, world.chain("a", "b", task_id="t-1", max_calls=3).hops
    assert world.verify(replace(lent, hops=other))
    for wrong, code in (
        (hops[1:], "hop.issuer"),
        ((hops[1], hops[0], hops[2]), "hop.issuer"),
        ((hops[0], hops[2]), "key.unknown"),  # it is the issuer's turn, and an agent has signed
        ((hops[0], hops[0], *hops[1:]), "hop.issuer"),
        ((*hops, hops[2]), "signature.invalid"),
        ((*hops[:2], other[2]), "hop.parent"),
        ((other[0], *hops[1:]), "hop.parent"),
        ((*hops, *other), "signature.invalid"),
    ):
        assert refused(world, replace(lent, hops=wrong)) == code


def test_it_says_which_hop_is_wrong(world, lent):
    with pytest.raises(VerificationError, match=r"^hop 3: it grants c, which"):
        world.verify(forged(world, lent, scope=("a", "b", "c")))
    with pytest.raises(VerificationError, match=r"^hop 1: "):
        world.verify(lent, at=2**40)
    with pytest.raises(DecodeError, match=r"^hop 2: "):
        verification.verify([lent.hops[0].token, "x"], (), world.trust, at=world.now)


NO_CHAINS: list[Any] = [
    b"",
    b"[]",
    b"null",
    b"{}",
    b'{"type":"urn:agentguard:chain:v1"}',
    b'{"type":"urn:agentguard:chain:v2","hops":[],"credentials":[]}',
    b'{"type":"urn:agentguard:chain:v1","hops":[],"credentials":[]}',
    b'{"type":"urn:agentguard:chain:v1","hops":"x","credentials":[]}',
    b'{"type":"urn:agentguard:chain:v1","hops":[5],"credentials":[]}',
    b'{"type":"urn:agentguard:chain:v1","hops":["x"],"credentials":[null]}',
    b'{"type":"urn:agentguard:chain:v1","hops":["x"],"credentials":[]}',
    b'{"type":"urn:agentguard:chain:v1","hops":["x"],"credentials":[],"more":1}',
    b'{"type":"urn:agentguard:chain:v1","hops":["x"],"hops":["x"],"credentials":[]}',
    b"\xff",
]


@pytest.mark.parametrize("data", NO_CHAINS)
def test_what_is_no_chain(world, data):
    code = code_of(DecodeError, verification.loads, data, world.trust, at=world.now)
    assert code in {"chain.malformed", "jws.malformed"} or code.startswith("json.")


def test_more_hops_or_credentials_than_a_chain_may_have(world, lent):
    hop, held = lent.hops[0].token, lent.credentials[0].token
    for hops, credentials in (
        ([], []),
        ([hop] * (MAX_DEPTH + 1), []),
        ([hop], [held] * (verification.MAX_CREDENTIALS + 1)),
    ):
        code = code_of(
            DecodeError, verification.verify, hops, credentials, world.trust, at=world.now
        )
        assert code == "chain.malformed"
