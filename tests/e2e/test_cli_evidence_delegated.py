"""The evidence of a call under a delegation, by ``evidence verify`` and the independent verifier.

A stranger is told who lent what. And somebody who has every key of a domain forges chains around a
call, each with its signatures, its place in the log and the call that names it in order: what does
not hold is refused by both verifiers, beside twins that they accept.
"""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from leaf_tree import LeafTree

from agentguard import Decision, Guard
from agentguard.audit import head as heads
from agentguard.audit import merkle
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import parse_time
from agentguard.audit.evidence import verify_evidence
from agentguard.audit.evidence_file import EvidenceFile, Extension, LoggedEntry
from agentguard.audit.head import Head
from agentguard.audit.kinds import parse_entry
from agentguard.audit.tlog_proof import TlogProof
from agentguard.call import invocation
from agentguard.delegation import grant
from agentguard.delegation.chain import hops_digest
from agentguard.errors import DecodeError, VerificationError
from agentguard.identity.trust import TrustDocument, TrustedKey
from agentguard.signing import canonical, dsse, jws
from agentguard.signing.canonical import b64_decode, b64_encode
from agentguard.signing.keys import Ed25519Signer

EXAMPLE = Path(__file__).parents[2] / "examples" / "verify_evidence" / "verify_evidence.py"

INDEPENDENT: Callable[[bytes, bytes], Any] = runpy.run_path(str(EXAMPLE))["verify"]

LENT = """
from agentguard import Denied, Guard

with Guard.open("agentguard.toml") as guard:
    orchestrator, coder = guard.new_agent("orchestrator"), guard.new_agent("coder")

    @guard.tool(requires=["files:read"])
    def read_file(path: str) -> str:
        return "the content of " + path

    @guard.tool(requires=["files:write"])
    def write_file(path: str) -> None: ...

    @guard.tool
    def assign() -> str:
        try:
            coder.call(write_file, "a.txt")
        except Denied:
            return coder.call(read_file, "a.txt")

    with guard.delegate(
        "user:alice", scope=["files:read"], via="service:chat", task_id="t1", max_calls=3
    ):
        orchestrator.call(assign)
"""
ROLES = """
[roles.worker]
scope = ["files:read", "files:write"]
[agents.orchestrator]
type = "assistant"
roles = ["worker"]
[agents.coder]
type = "assistant"
roles = ["worker"]
"""


@pytest.fixture(scope="module")
def lent(tmp_path_factory, told):
    """A project in which agents act for alice."""
    made = told.copy(tmp_path_factory.mktemp("lent") / "place")
    with (made.folder / "agentguard.toml").open("a") as file:
        file.write(ROLES)
    policy = 'package agent.authz\nallow if input.delegation.subject == "user:alice"\n'
    (made.folder / "policies" / "authz.rego").write_text(policy)
    called = made.python("-c", LENT)
    assert called.returncode == 0, called.stderr
    return made


def test_a_delegated_call_is_proved_with_who_lent_what(lent, tmp_path):
    assert lent.run("trust", "export", "-o", tmp_path / "trust.json").returncode == 0
    rows = [r for r in lent.lines("audit", "list") if r["principal"] == "user:alice"]
    calls = {r["tool"]: r["invocation_id"] for r in rows if r["kind"] == "call"}
    file, trust = tmp_path / "call.json", tmp_path / "trust.json"
    command = ["evidence", "verify", file, "--trust", trust]
    for tool, decision in (("read_file", "allow"), ("write_file", "deny [scope.exceeded]")):
        lent.run("evidence", "make", calls[tool], "-o", file, "--force")
        shown = lent.run(*command)
        assert (shown.returncode, shown.stderr) == (0, "")
        text = " ".join(shown.stdout.replace("| ", "").split())
        for words in (
            "for user:alice",
            "vouched for by the application, which has authenticated user:alice",
            "hop 1 spiffe://project.internal lets service:chat do files:read for user:alice",
            "for user:alice, signed by the issuer hop 2",
            "hop 2 service:chat lets agent:orchestrator:",
            "do files:read for user:alice, signed by the issuer in its place",
            "hop 3 agent:orchestrator:",
            "may files:read; until ",
            "calls 3 at the most",
            "task_id t1",
            f"decision {decision}",
            "whether the delegation was revoked by then",
        ):
            assert words in text, words
        story = " ".join(lent.run("audit", "show", calls[tool]).stdout.replace("| ", "").split())
        assert "lets agent:orchestrator:" in story
        said = lent.json(*command)
        assert [hop["depth"] for hop in said["delegation"]] == [1, 2, 3]
        assert said["delegation"] == lent.json("audit", "show", calls[tool])["delegation"]["hops"]
        independent = INDEPENDENT(file.read_bytes(), trust.read_bytes())
        assert independent["principal"] == "user:alice"
        assert independent["actors"] == ["service:chat", "agent:orchestrator", "agent:coder"]
    assert lent.run("audit", "verify").returncode == 0


SERVICE, ORCHESTRATOR, CODER = range(3)
"""The hops, by whom they go to."""


@dataclass(frozen=True)
class Forger:
    """Somebody with every key of a domain, and a call of it under a delegation."""

    trust: TrustDocument
    keys: dict[str, Ed25519Signer]  # by use, or by an agent's name
    bodies: list[bytes]

    def hops(self) -> list[Any]:
        """The claims of the hops, as they were signed."""
        return [dict(grant.read(token).claims()) for token in self._chain()["hops"]]

    def _chain(self) -> Any:
        return canonical.loads_object(self.bodies[self.index("delegation")])["chain"]

    def index(self, kind: str) -> int:
        """Where the last entry of a kind stands."""
        kinds = [parse_entry(body).kind for body in self.bodies]
        return len(kinds) - 1 - kinds[::-1].index(kind)

    def signed(self, claims: list[Any], by: list[str], *, linked: bool) -> list[str]:
        """Sign hops, each with the key of somebody, and with the digest of the one before."""
        tokens: list[str] = []
        for hop, name in zip(claims, by, strict=True):
            if linked and tokens:
                signing_input = tokens[-1].rpartition(".")[0].encode()
                hop = {**hop, "par": canonical.sha256_hex(signing_input)}  # noqa: PLW2901
            signer = self.keys[name]
            tokens.append(jws.sign(hop, signer, typ=grant.TYPE, header={"kid": signer.key_id}))
        return tokens

    def evidence(self, given: Any, said: dict[str, Any], actors: list[str]) -> bytes:
        """The evidence of the call as if it had been made under this chain."""
        bodies = list(self.bodies)
        lent, call = self.index("delegation"), self.index("call")
        bodies[lent] = canonical.dumps({**canonical.loads_object(bodies[lent]), "chain": given})
        members: Any = canonical.loads(bodies[call])
        before: Any = json.loads(b64_decode(members["invocation"]["payload"]))["predicate"]
        predicate = {
            **before,
            "chain_sha256": hops_digest(given["hops"]),
            "log": {
                **before["log"],
                "size": call,
                "root": b64_encode(root_of(bodies[:call])),
            },
            **said,
        }
        payload = invocation.statement("coder", predicate, actors)
        members["invocation"] = dsse.seal(payload, self.keys["coder"]).as_json()
        bodies[call] = canonical.dumps(members)
        return self._file(bodies[: call + 1], predicate)

    def _file(self, bodies: list[bytes], predicate: Any) -> bytes:
        call, tree = len(bodies) - 1, LeafTree(map(merkle.leaf_hash, bodies))
        needed = {"key", "config", "policy"}
        kinds = [canonical.loads_object(body)["kind"] for body in bodies]
        places = [i for i, kind in enumerate(kinds) if kind in needed]
        places += [self._identity(), self.index("delegation"), call]
        at = canonical.loads_object(bodies[-1])["at"]
        head = Head(self.trust.log, len(bodies), root_of(bodies), bytes(32), str(at))
        note = heads.sign(head, self.keys["log"])
        logged = tuple(
            LoggedEntry(bodies[i], TlogProof(i, tuple(tree.inclusion_proof(i)), note))
            for i in sorted(places)
        )
        seen = Checkpoint(head.log, call, b64_decode(predicate["log"]["root"]))
        extension = Extension(seen, tuple(tree.consistency_proof(call)))
        return EvidenceFile(predicate["invocation_id"], logged, extension, ()).dumps()

    def _identity(self) -> int:
        """Where the coder's credential stands."""
        subjects = [
            jws.parse(str(parsed.members["credential"])).claims()["sub"]
            if parsed.kind == "identity"
            else ""
            for parsed in map(parse_entry, self.bodies)
        ]
        return next(i for i, sub in enumerate(subjects) if "/agent/coder/" in str(sub))


def root_of(bodies: list[bytes]) -> bytes:
    tree = merkle.CompactRange()
    for body in bodies:
        tree.append(merkle.leaf_hash(body))
    return tree.root()


@pytest.fixture(scope="module")
def forger() -> Forger:
    made: list[Ed25519Signer] = []
    from_seed = Ed25519Signer.from_seed
    agent = {"max_scope": ["a", "b", "c"]}
    tables = {"agents": {"orchestrator": agent, "coder": {"max_scope": ["a"]}}}
    with pytest.MonkeyPatch.context() as patched:

        def recorded(seed):
            made.append(from_seed(seed))
            return made[-1]

        patched.setattr(Ed25519Signer, "from_seed", staticmethod(recorded))
        with Guard.ephemeral(lambda _: Decision.allow(), config=tables) as guard:
            agents = {name: guard.new_agent(name) for name in tables["agents"]}
            read = guard.tool(name="read", requires=["a"])(lambda: "read")
            assign = guard.tool(name="assign")(lambda: agents["coder"].call(read))
            with guard.delegate(
                "user:alice", scope=["a", "b"], via="service:chat", task_id="t1", max_calls=5
            ):
                agents["orchestrator"].call(assign)
            bodies = [body for _index, body in guard.reader().entries()]
            ids = {name: one.id.rpartition("/")[2] for name, one in agents.items()}
    by_id = {signer.key_id: signer for signer in made}
    keys: dict[str, Ed25519Signer] = {
        known.use: by_id[known.key.thumbprint] for known in guard.trust.keys
    }
    keys |= {name: by_id[key_id] for name, key_id in ids.items()}
    return Forger(guard.trust, keys, bodies)


BY = ["issuer", "issuer", "orchestrator"]
ACTORS = ["service:chat", "agent:orchestrator", "agent:coder"]


def refusals(forger: Forger, data: bytes) -> tuple[str | None, bool]:
    """The code with which agentguard refuses evidence, and whether the other refuses it."""
    code, refused = None, False
    try:
        verify_evidence(data, forger.trust)
    except (DecodeError, VerificationError) as error:
        code = error.code
    try:
        INDEPENDENT(data, forger.trust.dumps())
    except Exception:  # noqa: BLE001  as its last lines do
        refused = True
    return code, refused


def with_hops(forger: Forger, claims: list[Any], by: list[str] = BY, **options: Any) -> bytes:
    """Evidence of the call under a chain of these hops; options are those of the call."""
    linked = options.pop("linked", True)
    given = {**forger._chain(), "hops": forger.signed(claims, by, linked=linked)}
    given["credentials"] = options.pop("credentials", given["credentials"])
    actors = options.pop("actors", ACTORS)
    return forger.evidence(given, options, actors)


def test_the_chain_that_was_issued_is_accepted_by_both(forger):
    assert refusals(forger, with_hops(forger, forger.hops())) == (None, False)


@pytest.mark.parametrize(
    ("hop", "claims"),
    [
        (CODER, {"scope": ""}),
        (CODER, {"max_calls": 5}),
        (CODER, {"max_calls": 1}),
        (CODER, {"max_depth": 3}),
    ],
    ids=str,
)
def test_a_chain_that_narrows_is_accepted_by_both(forger, hop, claims):
    hops = forger.hops()
    hops[hop] |= claims
    assert refusals(forger, with_hops(forger, hops)) == (None, False)


@pytest.mark.parametrize(
    ("hop", "claims", "code"),
    [
        (CODER, {"scope": "a c"}, "hop.scope"),
        (ORCHESTRATOR, {"scope": "a b c"}, "hop.scope"),
        (CODER, {"exp": 4_000_000_000}, "hop.expiry"),
        (CODER, {"iat": 1_000_000_000}, "credential.not_yet_valid"),
        (ORCHESTRATOR, {"iat": 1_000_000_000}, "key.expired"),
        (CODER, {"aud": ["https://elsewhere.example"]}, "hop.audience"),
        (CODER, {"depth": 2}, "hop.depth"),
        (CODER, {"depth": 4}, "hop.depth"),
        (CODER, {"max_depth": 9}, "hop.depth"),
        (SERVICE, {"max_depth": 2}, "hop.depth"),
        (CODER, {"max_calls": 6}, "hop.calls"),
        (CODER, {"sub": "user:bob"}, "hop.subject"),
        (CODER, {"txn": "t2"}, "hop.task"),
        (CODER, {"txn": None}, "hop.task"),
        (CODER, {"iss": "service:chat"}, "hop.issuer"),
        (SERVICE, {"iss": "spiffe://elsewhere.example"}, "hop.issuer"),
        (CODER, {"assurance": "application"}, "hop.issuer"),
        (SERVICE, {"assurance": None}, "hop.parent"),
        (SERVICE, {"asserted_by": None}, "hop.key"),
        (ORCHESTRATOR, {"asserted_by": "issuer"}, "hop.key"),
        (SERVICE, {"depth": 2}, "hop.parent"),
        (SERVICE, {"par": "0" * 64}, "hop.parent"),
        (SERVICE, {"client_id": "agent:chat"}, "hop.name"),
        (CODER, {"client_id": "service:chat"}, "hop.name"),
        (CODER, {"cnf": {"jkt": "A" * 43}}, "hop.name"),
        (SERVICE, {"cnf": {"jkt": "A" * 43}}, "key.unknown"),
    ],
    ids=str,
)
def test_a_hop_that_does_not_go_on_or_gives_more_is_refused_by_both(forger, hop, claims, code):
    """Though every signature on it holds, and the log and the agent vouch for the call."""
    hops = forger.hops()
    hops[ORCHESTRATOR]["max_calls"] = 5
    hops[hop] |= claims
    assert refusals(forger, with_hops(forger, hops)) == (code, True)


@pytest.mark.parametrize(
    ("by", "code"),
    [
        (["issuer", "issuer", "coder"], "hop.key"),
        (["issuer", "issuer", "issuer"], "hop.key"),
        (["issuer", "orchestrator", "orchestrator"], "key.unknown"),
        (["orchestrator", "issuer", "orchestrator"], "key.unknown"),
        (["log", "issuer", "orchestrator"], "key.unknown"),
    ],
)
def test_a_hop_by_another_key_is_refused_by_both(forger, by, code):
    refused, independent = refusals(forger, with_hops(forger, forger.hops(), by))
    assert (refused in {code, "signature.invalid"}, independent) == (True, True)


def test_a_chain_is_spliced_by_nobody(forger):
    first, second, third = forger.hops()
    for hops, by in (
        ([first, third], ["issuer", "issuer"]),
        ([first, third], ["issuer", "orchestrator"]),
        ([second, third], ["issuer", "orchestrator"]),
        ([first, second], ["issuer", "issuer"]),
        ([second, first, third], BY),
        ([first, second, second], BY),
        ([first, second, third, third], [*BY, "coder"]),
    ):
        for linked in (True, False):
            code, independent = refusals(forger, with_hops(forger, hops, by, linked=linked))
            assert (code is not None, independent) == (True, True), (hops, by)
    with_equal_ids = [first, second, {**third, "jti": first["jti"]}]
    assert refusals(forger, with_hops(forger, with_equal_ids)) == ("hop.repeated", True)
    unlinked = [first, second, {**third, "par": canonical.sha256_hex(b"another")}]
    data = with_hops(forger, unlinked, linked=False)
    assert refusals(forger, data) == ("hop.parent", True)
    as_agent = [{**hop, "sub": "agent:root"} for hop in (first, second, third)]
    data = with_hops(forger, as_agent, principal="agent:root")
    assert refusals(forger, data) == ("hop.malformed", True)
    as_bob = [{**hop, "sub": "user:bob"} for hop in (first, second, third)]  # the valid twin
    assert refusals(forger, with_hops(forger, as_bob, principal="user:bob")) == (None, False)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"principal": "user:bob"}, "statement.mismatch"),
        ({"principal": "agent:coder"}, "statement.mismatch"),
        ({"task_id": "t2"}, "statement.mismatch"),
        ({"task_id": None}, "statement.mismatch"),
        ({"actors": []}, "statement.mismatch"),
        ({"actors": ["service:chat", "agent:coder"]}, "statement.mismatch"),
        ({"chain_sha256": "0" * 64}, "evidence.mismatch"),
        ({"chain_sha256": None}, "evidence.superfluous"),
        ({"chain_sha256": None, "principal": "agent:coder"}, "evidence.superfluous"),
    ],
    ids=str,
)
def test_a_call_that_says_another_chain_than_it_has_is_refused_by_both(forger, said, code):
    assert refusals(forger, with_hops(forger, forger.hops(), **said)) == (code, True)


def test_without_a_credential_that_is_needed_a_chain_is_refused_by_both(forger):
    """And by agentguard alone with one more than is needed, or in another order."""
    orchestrator, coder = forger._chain()["credentials"]
    for credentials in ([], [coder], [orchestrator]):
        data = with_hops(forger, forger.hops(), credentials=credentials)
        assert refusals(forger, data) == ("chain.credential", True)
    changed = coder[:-3] + ("AAA" if not coder.endswith("AAA") else "BBB")
    data = with_hops(forger, forger.hops(), credentials=[orchestrator, changed])
    code, independent = refusals(forger, data)
    assert (code is not None, independent) == (True, True)
    for credentials in ([coder, orchestrator], [orchestrator, coder, coder]):
        data = with_hops(forger, forger.hops(), credentials=credentials)
        assert refusals(forger, data) == ("chain.credential", False)


def test_a_chain_that_has_ended_is_refused_by_both(forger):
    hops = forger.hops()
    logged = parse_time(parse_entry(forger.bodies[forger.index("delegation")]).at)
    for hop in hops:
        hop["exp"] = logged + 1
    code, independent = refusals(forger, with_hops(forger, hops))
    call = parse_time(parse_entry(forger.bodies[forger.index("call")]).at)
    assert (code, independent) == (None, False) if call == logged else ("hop.expired", True)
    late = deepcopy(hops)
    late[CODER]["iat"] = logged + 1
    for hop in late:
        hop["exp"] = logged + 100
    assert refusals(forger, with_hops(forger, late)) == ("hop.not_yet_valid", True)
    early = deepcopy(hops)
    for hop in early:
        hop["exp"] = logged
    code, independent = refusals(forger, with_hops(forger, early))
    assert (code in {"hop.expired", "hop.malformed"}, independent) == (True, True)


@pytest.mark.parametrize(
    ("since", "refused"),
    [(1, ("evidence.incomplete", False)), (-5, ("key.compromised", True))],
    ids=["later", "before"],
)
def test_an_older_date_helps_no_thief_of_an_issuer_s_key(forger, since, refused):
    """The twin lacks the announcement of the key, which the independent verifier leaves out."""
    logged = parse_time(parse_entry(forger.bodies[forger.index("delegation")]).at)
    stolen = Ed25519Signer.from_seed(b"s" * 32)
    trusted = TrustedKey("issuer", stolen.public_key, logged - 100, None, logged + since)
    trust = replace(forger.trust, keys=(*forger.trust.keys, trusted))
    thief = replace(forger, trust=trust, keys={**forger.keys, "thief": stolen})
    hops = forger.hops()
    hops[SERVICE] |= {"iat": logged - 10, "cnf": {"jkt": stolen.key_id}}
    assert refusals(thief, with_hops(thief, hops, ["thief", *BY[1:]])) == refused
