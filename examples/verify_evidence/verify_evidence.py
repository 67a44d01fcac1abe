"""Verify the evidence of one call without agentguard: cryptography and the standard library alone.

Run it with ``python verify_evidence.py EVIDENCE TRUST``. It checks what the proof rests on: that a
log key of the trust document has signed the checkpoint, and every entry is under it; that the
issuer has signed the credential, and the credential's key the call and its outcome; that each hop
of the delegation, if there is one, is signed by whom the hop before it names, gives no more, and
that the last one goes to the agent; that people on the roster, which the issuer has signed, have
answered this call, and that this is enough; that digests and commitments are those of what is
there; and that the log has only grown since the checkpoint that the call itself carries.

It leaves to agentguard: the strict form of everything (members and lines that nobody asked for,
keys and attachments that stand twice, base64 and JSON in another than their one form, a key's
``not_before``, a credential's lifetime, ``iss`` and ``alg``, the form of a hop's claims, of an
answer and of a requirement, and credentials in a chain that nothing needs); where entries stand in
the log and which statements name their places; and entries that it has no need of, among them what
the issuer says there of keys, and what an administrator said of the call
(docs/reference/evidence-format.md).
"""

from __future__ import annotations

import json
import sys
from base64 import b64decode, urlsafe_b64encode
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def need(holds: object, what: str) -> None:
    """Refuse the file unless something holds."""
    if not holds:
        raise ValueError(what)


def canonical(value: object) -> bytes:
    """RFC 8785, for what is digested here: there are no floats with exponents."""

    def by_code_units(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return dict(sorted(pairs, key=lambda pair: pair[0].encode("utf-16-be")))

    ordered = json.loads(json.dumps(value), object_pairs_hook=by_code_units)
    return json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()


def decode(b64: str) -> bytes:
    """RFC 4648: base64, or base64url without padding."""
    return b64decode(b64.replace("-", "+").replace("_", "/") + "=" * (-len(b64) % 4), validate=True)


def thumbprint(jwk: dict[str, str]) -> str:
    """RFC 7638."""
    members = canonical({name: jwk[name] for name in ("crv", "kty", "x")})
    return urlsafe_b64encode(sha256(members).digest()).decode().rstrip("=")


def check(jwk: dict[str, str], signature: bytes, signed: bytes) -> None:
    """RFC 8032."""
    Ed25519PublicKey.from_public_bytes(decode(jwk["x"])).verify(signature, signed)


def trusted(trust: Any, use: str, kid: str, at: float, seen: float = 0) -> dict[str, str]:
    """Return a key of the trust document that at that time had not ended, nor was compromised.

    ``seen`` is when what it has signed was seen: a thief writes an older time into it.
    """
    (key,) = [key for key in trust["keys"] if (key["use"], key["kid"]) == (use, kid)]
    for end, time in ((key["not_after"], at), (key["compromised_since"], max(at, seen))):
        need(end is None or time < end, f"the {use} key {kid} did not count then")
    return dict(key["jwk"])


def node(left: bytes, right: bytes) -> bytes:
    """RFC 6962, 2.1."""
    return sha256(b"\x01" + left + right).digest()


def root(index: int, size: int, leaf: bytes, path: list[bytes]) -> bytes:
    """RFC 6962, 2.1.1: return the root to which the inclusion proof of a leaf leads."""
    if size == 1:
        need(index == 0 and not path, "an inclusion proof of another length")
        return leaf
    left = 1 << ((size - 1).bit_length() - 1)
    if index < left:
        return node(root(index, left, leaf, path[:-1]), path[-1])
    return node(path[-1], root(index - left, size - left, leaf, path[:-1]))


def roots(old: int, size: int, known: list[bytes], path: list[bytes]) -> tuple[bytes, bytes]:
    """RFC 6962, 2.1.2: return the roots of the old tree, which is ``known``, and of the new."""
    if old == size:
        (same,) = known + path
        return same, same
    left = 1 << ((size - 1).bit_length() - 1)
    if old <= left:
        before, after = roots(old, left, known, path[:-1])
        return before, node(after, path[-1])
    before, after = roots(old - left, size - left, [], path[:-1])
    return node(path[-1], before), node(path[-1], after)


def checkpoint(note: str, trust: Any, at: float) -> tuple[int, bytes]:
    """C2SP signed-note, tlog-checkpoint: return the size and the root that a log key has signed."""
    text, _, lines = note.rstrip("\n").rpartition("\n\n")
    origin, size, top, _map, _time = text.split("\n")  # two extension lines
    need(origin == trust["log"], "a checkpoint of another log")
    named = (line.split(" ") for line in lines.split("\n"))  # others may have signed as well
    signatures = {(s := decode(b64))[:4]: s[4:] for _dash, name, b64 in named if name == origin}
    for key in trust["keys"]:
        key_id = sha256(f"{origin}\n\x01".encode() + decode(key["jwk"]["x"])).digest()[:4]
        if key["use"] == "log" and key_id in signatures:
            check(trusted(trust, "log", key["kid"], at), signatures[key_id], f"{text}\n".encode())
            return int(size), decode(top)
    raise ValueError("no log key of the trust document has signed the checkpoint")


def entries(file: Any, trust: Any) -> tuple[dict[str, Any], set[tuple[int, bytes]]]:
    """C2SP tlog-proof: return the entries by kind, and what checkpoints they are under."""
    kinds, heads = dict[str, Any](), set[tuple[int, bytes]]()
    for item in file["entries"]:
        entry, (proof, _, note) = json.loads(item["entry"]), item["proof"].partition("\n\n")
        _version, index, *path = proof.split("\n")
        entry["index"] = place = int(index[6:])
        entry["seconds"] = datetime.fromisoformat(entry["at"]).timestamp()
        heads.add(head := checkpoint(note, trust, entry["seconds"]))
        (size, top), leaf = head, sha256(b"\x00" + item["entry"].encode()).digest()
        need(root(place, size, leaf, [decode(line) for line in path]) == top, "not in the log")
        kinds.setdefault(entry["kind"], []).append(entry)
    return kinds, heads


def claims(token: str, trust: Any) -> dict[str, Any]:
    """RFC 7515: return what the issuer says of an agent instance in its credential."""
    signed, _, signature = token.rpartition(".")
    header, said = (json.loads(decode(part)) for part in signed.split("."))
    check(trusted(trust, "issuer", header["kid"], said["iat"]), decode(signature), signed.encode())
    return dict(said)


def uri_of(credential: dict[str, Any], trust: Any) -> str:
    """Return the name that an agent instance has by its key, which its credential must give."""
    name, jwk = credential["urn:agentguard:agent"]["name"], credential["cnf"]["jwk"]
    uri = f"spiffe://{trust['trust_domain']}/agent/{name}/{thumbprint(jwk)}"
    need(credential["sub"] == uri, "a credential of another name or key")
    return uri


def chain(
    given: Any, trust: Any, times: tuple[float, ...], *, ended: bool = False
) -> tuple[Any, list[str], str]:
    """delegation-formats.md: return the last hop of a chain, its actors by name, and its digest."""
    domain, known = f"spiffe://{trust['trust_domain']}", given["credentials"]
    agents = [(uri_of(said, trust), said) for said in (claims(token, trust) for token in known)]
    held, parent, signed, ids, actors = None, None, b"", list[str](), list[str]()

    def key_of(hop: Any, at: int) -> dict[str, str]:
        """Return the key of the agent to whom a hop goes, by a credential that counted then."""
        of = [c for uri, c in agents if uri == hop["client_id"] and c["iat"] <= at < c["exp"]]
        need(of and thumbprint(of[0]["cnf"]["jwk"]) == hop["cnf"]["jkt"], "a hop to nobody known")
        return dict(of[0]["cnf"]["jwk"])

    for text, _, signature in (token.rpartition(".") for token in given["hops"]):
        header, hop = (json.loads(decode(part)) for part in text.split("."))
        first, at, kid, to = held is None, hop["iat"], header["kid"], hop["client_id"]
        held = held or {**hop, "client_id": domain, "depth": 0, "asserted_by": "issuer"}
        by_issuer = held["asserted_by"] == "issuer"
        jwk = trusted(trust, "issuer", kid, at, times[0]) if by_issuer else key_of(held, at)
        check(jwk, decode(signature), text.encode())
        need((header["typ"], kid) == ("ag-hop+jwt", thumbprint(jwk)), "no hop, or another key")

        # It goes on where the one before it ended, and gives no more.
        known_by = "oidc" if "subject_token" in hop else "application"
        link = {"iss": held["client_id"], "depth": held["depth"] + 1, "par": parent}
        link |= {"sub": held["sub"], "txn": held["txn"], "asserted_by": "issuer" if first else None}
        link |= {"assurance": known_by if first else None}
        need({**hop, **link} == hop, "a hop that does not go on from the one before")
        alike = [name.lower().startswith(("agent:", "spiffe:")) for name in (hop["sub"], to)]
        need(alike == [False, not first or to == domain], "a user or service like an agent")
        need({*hop["scope"].split()} <= {*held["scope"].split()}, "a hop with more scope")
        need({*hop["aud"]} <= {*held["aud"]}, "a hop with a wider audience")
        need(held["iat"] <= at < held["exp"] >= hop["exp"], "a hop that outlives the one before")
        need(hop["depth"] <= hop["max_depth"] <= held["max_depth"], "a chain that is too deep")
        most = [hop["max_calls"], held["max_calls"]]
        need(None in most or most == sorted(most), "a hop with more calls")
        need(ended or all(at <= time < hop["exp"] for time in times), "a hop out of time")

        trusted(trust, "issuer", hop["cnf"]["jkt"], at) if first else key_of(hop, at)
        held, parent, signed = hop, sha256(text.encode()).hexdigest(), signed + text.encode()
        ids, actors = [*ids, hop["jti"]], [*actors, to if first else f"agent:{to.split('/')[4]}"]
    need(len(ids) == len({*ids}), "a hop that stands twice")
    return held, actors, sha256(signed).hexdigest()


def of_refused(said: Any, lent: Any, trust: Any, at: float, name: str) -> str:
    """records.md: return whose delegation was refused, if any; the agent has the ``name``."""
    if "refused_chain" not in said:
        return f"agent:{name}"
    need(not lent, "a call that may run, or has a delegation, with one that was refused")
    if said["refused_chain"] is None:  # nothing proves the principal
        return str(said["principal"])
    return str(chain(said["refused_chain"], trust, (at,), ended=True)[0]["sub"])


def joint(subjects: list[str], payload: bytes) -> bytes:
    """records.md, "Joint signatures": return the statement that is signed in place of several."""
    fit = len({*subjects}) == len(subjects) in range(2, 65)
    need(fit and [*subjects] == subjects, "a joint signature of an unfit list")
    need(sha256(payload).hexdigest() in subjects, "a joint signature of other statements")
    said = {"_type": "https://in-toto.io/Statement/v1", "predicate": {}}
    said |= {"predicateType": "urn:agentguard:joint:v1"}
    return canonical({**said, "subject": [{"digest": {"sha256": one}} for one in subjects]})


def statement(envelope: Any, kind: str, jwk: Any, *, unsigned: bool = False) -> tuple[Any, ...]:
    """DSSE, in-toto: return a signed statement's digest, that of its subject, and its predicate."""
    payload = signed = decode(envelope["payload"])
    signatures = envelope["signatures"]
    if "joint" in envelope and kind in ("invocation", "outcome"):
        need(signatures == [], "a joint signature beside another")
        signatures, signed = [envelope["joint"]], joint(envelope["joint"]["subjects"], payload)
    if signatures or not unsigned:
        (sig,) = [s["sig"] for s in signatures if s["keyid"] == thumbprint(jwk)]
        head = b"DSSEv1 28 application/vnd.in-toto+json %d " % len(signed)
        check(jwk, decode(sig), head + signed)
    said = json.loads(payload)
    need(said["predicateType"] == f"urn:agentguard:{kind}:v1", "a statement of another kind")
    return sha256(payload).hexdigest(), said["subject"][0]["digest"]["sha256"], said["predicate"]


def approvals(call: Any, stated: Any, subject: str, requesters: Any, trust: Any) -> list[str]:
    """approvals.md: return who has answered, if the issuer's roster lets that be enough."""
    if call["roster_sha256"] is None:
        asked = call["requirements"] if call["enforced"] is True else []
        need(not call["approvals"] and not asked and not stated, "no roster")
        return []
    (entry,), allowed = stated, call["decision"] == "allow"
    kid = entry["statement"]["signatures"][0]["keyid"]
    issuer = trusted(trust, "issuer", kid, entry["seconds"])
    _, digest, roster = statement(entry["statement"], "roster", issuer)
    members = {name: roster[name] for name in ("approvers", "application", "application_roles")}
    named = (call["roster_sha256"], sha256(canonical(members)).hexdigest(), roster["trust_domain"])
    need(named == (digest, digest, trust["trust_domain"]), "another roster")
    need(entry["index"] < call["index"], "a later roster")
    keys, wanted = dict[str, Any](), sha256(canonical(call["requirements"])).hexdigest()
    for name, one in roster["approvers"].items():
        for jwk in one["keys"]:
            need(keys.setdefault(thumbprint(jwk), (name, jwk))[0] == name, "a key of two people")
    given = list[Any]()
    for sealed in call["approvals"]:
        kids = [signature["keyid"] for signature in sealed["signatures"]]
        name, jwk = keys[kids[0]] if kids else (None, None)
        _, of, said = statement(sealed, "approval", jwk, unsigned=roster["application"] is True)
        roles = {*said["roles"]} & {*roster["application_roles"]}  # by the application's word
        by_word = {"principal": said["approver"], "roles": roles}
        who = roster["approvers"][name] if name else by_word
        method = (1, "ed25519") if name else (0, "application")
        need(method == (len(kids), said["method"]), "another method")
        need((of, said["approver"]) == (subject, who["principal"]), "an answer to another call")
        need(said["not_before"] - 60 <= int(call["seconds"]) < said["expires_at"], "out of time")
        says = said["verdict"], said["requirement_sha256"]
        need(not allowed or says == ("approve", wanted), "no approval of what was asked for")
        rejected = call["code"] == "approval.rejected"
        need(not rejected or said["verdict"] == "reject", "an approval of what was rejected")
        given.append((name, who, said))
    need(len({said["approval_id"] for *_, said in given}) == len(given), "an answer given twice")
    to = {(s["request_id"], s["requirement_sha256"], s["displayed_sha256"]) for *_, s in given}
    need(len(to) == 1, "no answer, or answers to several requests")
    need(not allowed or call["requirements"], "nothing was asked for")
    for asked in call["requirements"] if allowed else ():
        enough = {
            who["principal"]
            for name, who, _ in given
            if (asked["allow_self"] or who["principal"] not in requesters)
            and (name or "roles" in asked or asked["quorum"] == 1)
            and ("approvers" not in asked or name in asked["approvers"])
            and ("roles" not in asked or {*asked["roles"]} & {*who["roles"]})
        }
        need(len(enough) >= asked["quorum"] > 0, "too few approvals")
    return [f"{said['verdict']} by {said['approver']}" for *_, said in given]


def verify(evidence: bytes, trust_document: bytes) -> dict[str, Any]:
    """Return what a file proves under a trust document; whatever is raised, it proves nothing."""
    # Longer than the project's 50 lines: an auditor reads the checks in one place, from top to
    # bottom, each with the values that an earlier check has established.
    file, trust = json.loads(evidence), json.loads(trust_document)
    kinds, ((size, top),) = entries(file, trust)
    (call,), (identity,), (config,) = kinds["call"], kinds["identity"], kinds["config"]

    # Who: the credential's key has signed the call. A refusal for want of a signer is unsigned.
    # One that is not enforced ran whatever the policy said: the policy was only observed.
    enforced = call["enforced"] is True  # in Python, 1 is true
    token = claims(identity["credential"], trust)
    allowed = call["decision"] == "allow" or not enforced
    name, jwk = token["urn:agentguard:agent"]["name"], token["cnf"]["jwk"]
    unsigned = not allowed and call["code"] == "signature.failed"
    digest, subject, said = statement(call["invocation"], "invocation", jwk, unsigned=unsigned)
    need(said["agent"] == uri_of(token, trust), "another agent")
    need(not allowed or token["iat"] <= call["seconds"] < token["exp"], "a call out of time")

    # For whom, and by which delegation.
    principal, actors, lent = (
        of_refused(said, allowed or "delegation" in kinds, trust, call["seconds"], name),
        list[str](),
        kinds.get("delegation", []),
    )
    if lent or said["chain_sha256"] is not None:
        (logged,) = lent
        hop, actors, named = chain(logged["chain"], trust, (logged["seconds"], call["seconds"]))
        need((hop["client_id"], named) == (said["agent"], said["chain_sha256"]), "another chain")
        need(hop["txn"] in (None, said["task_id"]), "a chain for another task")
        principal = hop["sub"]

    # What, and how it was decided.
    need(said["invocation_id"] == file["invocation_id"], "another call")
    digested = {"agent": name, "actors": actors, "tool": said["tool"]["digest"]}
    digested |= {n: said[n] for n in ("principal", "arguments", "resource", "task_id", "call_site")}
    need(sha256(canonical(digested)).hexdigest() == subject, "another call digest")
    need(said["principal"] == principal, "another principal")
    mode = config["config"].get("policy", {}).get("mode", "enforce")
    need(call["mode"] == mode in ("enforce", "observe"), "another mode than is configured")
    observed = call["enforced"] is False and mode == "observe" and call["engine"] is not None
    counts = enforced and mode == "enforce" and call["engine"] is not None
    need(observed or (enforced and call["decision"] == "deny") or (counts and allowed), "no answer")
    need(counts or call["roster_sha256"] is None, "people have answered what nobody asked them")
    asking = {principal, token["urn:agentguard:agent"].get("owner")}
    people = approvals(call, kinds.get("roster", []), subject, asking, trust)
    need(sha256(canonical(config["config"])).hexdigest() == call["config_sha256"], "another config")
    for name in ("engine", "policy_sha256"):
        need(call[name] == (kinds["policy"][0][name] if call["engine"] else None), "another policy")

    # With which outcome, and what is kept beside the log.
    outcome, held = None, {"arguments": said["arguments"], "input": call["input"], **call["copies"]}
    for entry in kinds.get("outcome", []):
        _, of, outcome = statement(entry["statement"], "outcome", jwk)
        need(allowed and of == digest and [entry] == kinds["outcome"], "another call's outcome")
        held |= {"result": outcome["result"], **entry["copies"]}
    for item in file["attachments"]:
        salt, data = decode(item["salt"]), item["data"].encode()
        hashed = (len(salt), sha256(salt + data).hexdigest())
        need((32, item["commitment"]) == hashed == (32, held[item["role"]]), "changed data")

    # The log has only grown since the checkpoint that the call carries.
    old, path = said["log"], [decode(text) for text in file["consistency"]["proof"]]
    known = trust["log"], (seen := decode(old["root"])), top
    need((old["origin"], *roots(old["size"], size, [seen], path)) == known, "a rewritten log")

    told = ["agent", "tool", "principal", "at", "decision", "code", "reasons", "policy_sha256"]
    told += ["mode", "enforced"]
    kept = {item["role"]: json.loads(item["data"]) for item in file["attachments"]}
    shown = {name: {**call, **said}[name] for name in told} | {"actors": actors}
    sealed = call["invocation"]
    shown["signed"] = sealed["signatures"] != [] or "joint" in sealed  # else only the log says it
    return {**shown, **kept, "approvals": people, "outcome": outcome}


if __name__ == "__main__":
    missing = "".join(f"no {name}; " for name in sys.argv[1:] if not Path(name).exists())
    if missing or sys.argv[3:] or not sys.argv[2:]:
        sys.exit(f"{missing}usage: python {sys.argv[0]} EVIDENCE TRUST")
    sys.excepthook = lambda _type, error, _trace: print(f"refused: {error!r}", file=sys.stderr)
    print(json.dumps(verify(*(Path(name).read_bytes() for name in sys.argv[1:])), indent=2))
