"""A durable domain with people, agents and a clock of its own, whose state is copied at moments.

``state_history.py`` has it live; what somebody who can write the state may then try is made from
the copies (``state_mutations.py``, ``state_rows.py``), and what must not come of it is told by
``state_probes.py``.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from login_provider import Provider

from agentguard import ApprovalRequest, Decision, Guard, Requirement, adapters, secret
from agentguard.adapters import Arguments, CallOptions, CallSite, Invocation
from agentguard.audit.state import EXPIRY_SLACK
from agentguard.domain import config, domain
from agentguard.domain.config import Config
from agentguard.errors import EncodeError
from agentguard.guard.agent import Agent
from agentguard.guard.callbacks import Functions
from agentguard.guard.embedded import Embedded
from agentguard.policy.function import FunctionEngine
from agentguard.proof import prove_request
from agentguard.proof.presentation import note_receipt
from agentguard.proof.receipt import Answer, VerifiedReceipt, mint
from agentguard.signing.canonical import sha256_hex
from agentguard.signing.keys import Ed25519Signer

PASSPHRASE = b"correct horse battery staple"
PEOPLE = ("bob", "carol")
SECRET = "DOOR_CODE"
SERVER = "https://door.example"
BRIEFLY = 600
"""Seconds for which some requests and delegations last; the others outlive the history."""

BEFORE = BRIEFLY + EXPIRY_SLACK + 60
"""Seconds after which nothing counts that lasts briefly; the history begins so long ago."""


class LeftError(Exception):
    """A tool was left behind: nobody knows what it does."""


class Crash(BaseException):
    """The process dies here."""


class TextCodec:
    """Keeps text, as an adapter keeps its framework's results."""

    def dumps(self, result: Any) -> bytes:
        if not isinstance(result, str):
            raise EncodeError("no text")
        return result.encode()

    def loads(self, data: bytes) -> str:
        return data.decode()


class Call(NamedTuple):
    """A call that can be made again: by whom, of which tool, for whom, and whether it is kept."""

    agent: str
    tool: str
    what: str
    lent: str = ""
    kept: bool = False


def policy(document: Any) -> Decision:
    """Ask a person before a merge, two before a refund; forbid one tool, allow the others.

    Once somebody has approved a refund, it asks no more: it relies on what it has asked for.
    """
    match document["action"]:
        case "refund" if "approval" in document:
            return Decision.allow()
        case "merge" | "refund" as action:
            ttl = BRIEFLY if document["args"]["what"] == "late" else 24 * 3600
            needed = Requirement("a person", quorum=2 if action == "refund" else 1, ttl=ttl)
            return Decision.require_approval(needed).redacted("/args/token")
        case "forbidden":
            return Decision.deny("never")
    return Decision.allow()


def tables(folder: Path, people: dict[str, Ed25519Signer], provider: Provider) -> dict[str, Any]:
    return {
        "trust_domain": "acme.example",
        "state": str(folder / "state"),
        "anchor": str(folder / "anchor"),
        "policy": {"engine": "function", "path": "unused:unused"},
        "agents": {
            "robot": {"authority": "own", "max_scope": ["act"]},
            "clerk": {"authority": "own", "max_scope": ["act"], "owner": "user:olga"},
            "twin": {"authority": "own", "max_scope": ["act"]},
            "worker": {"max_scope": ["act"]},
        },
        "issuers": {"acme": provider.table(longest=24 * 3600)},
        "secrets": {SECRET: {"file": "secret", "tools": ["unlock"]}},
        "approvers": {
            name: {"principal": f"user:{name}", "keys": [key.public_key.openssh()]}
            for name, key in people.items()
        },
    }


@dataclass
class Clock:
    """The wall clock of the history; nobody but the history moves it."""

    now: datetime = field(default_factory=lambda: datetime.now(UTC) - timedelta(seconds=BEFORE))

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **delta: float) -> None:
        self.now += timedelta(**delta)


class Scene:
    """A durable domain in ``folder``, with what its tools have done, and what was ever shown."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.folder = folder
        self.clock = clock
        self.people = {name: Ed25519Signer.from_seed(os.urandom(32)) for name in PEOPLE}
        (folder / "secret").touch(mode=0o600)
        (folder / "secret").write_text("open sesame", encoding="utf-8")
        self.provider = Provider(folder)
        source = tables(folder, self.people, self.provider)
        self.settings: Config = config.parse(source, source="agentguard.toml", base=folder)
        self.ran: list[Call] = []
        self.shown: set[bytes] = set()
        self.lent: dict[str, bytes] = {}
        self.hops: dict[str, str] = {}
        self.written: set[bytes] = set()
        self.moments: dict[str, Path] = {}

    @property
    def state(self) -> Path:
        return self.settings.state

    def found(self) -> None:
        def nearly(_trust: object) -> None:
            self.keep("founding", self.state.with_name("state.founding"))

        domain.found(self.settings, PASSPHRASE, now=self.clock(), ready=nearly)
        self.keep("founded")

    def open(self) -> Guard:
        home = domain.take_up(self.settings, PASSPHRASE)
        functions = Functions(on_request=self._showing)
        return Guard(Embedded(self.settings, FunctionEngine(policy), home, functions))

    def _showing(self, request: ApprovalRequest) -> None:
        self.shown.add(request.dumps())

    def agent(self, guard: Guard, name: str) -> Agent:
        return guard.new_agent(name)

    def make(
        self,
        guard: Guard,
        call: Call,
        *,
        agent: Agent | None = None,
        ending: BaseException | None = None,
    ) -> str:
        """Make a call; return its result. Raises what refuses it, or ``ending`` within its tool."""
        spec = guard.tool(name=call.tool, requires=["act"])(_unused).spec

        def effect() -> str:
            self.ran.append(call)
            if ending is not None:
                raise ending
            if call.tool == "unlock":
                secret(SECRET)
            if call.tool == "send":
                proof = prove_request("POST", SERVER, b"").proof
                answer = Answer(sha256_hex(proof.encode()), 200, "0" * 64, "0" * 64)
                key = self.people["bob"]
                token = mint(answer, key, server=SERVER, at=1)
                note_receipt(VerifiedReceipt(token, key.public_key.thumbprint, answer.proof_sha256))
            return f"{call.tool} {call.what}: done {self.ran.count(call)}"

        bound = {"what": call.what, "token": "s3cret"}
        site = CallSite(f"{call.tool} {call.what}", thread="thread", turn="turn")
        invocation = Invocation.bind(spec, lambda: Arguments.of(bound), site)
        acting = agent or self.agent(guard, call.agent)
        if call.lent:
            acting = acting.under(guard.resume(self.lent[call.lent]))
        codec = TextCodec() if call.kept else None
        return adapters.run(
            acting, invocation, effect, CallOptions(outcome_unknown=(LeftError,), codec=codec)
        )

    def keep(self, name: str, state: Path | None = None) -> None:
        """Copy the state, and what its anchor has seen by now."""
        self.moments[name] = self.folder / "moments" / name
        shutil.copytree(state or self.state, self.moments[name] / "state", symlinks=True)
        shutil.copytree(self.folder / "anchor", self.moments[name] / "anchor")

    def restore(self, name: str, *parts: str) -> None:
        """Have the state be as it was, with its anchor, whatever was laid in its place."""
        for part in parts or ("state", "anchor"):
            _alike(self.moments[name] / part, self.folder / part)


def _alike(source: Path, target: Path) -> None:
    """Have a folder be like another; what was not written to since is left as it is."""
    if target.is_symlink() or not target.is_dir():
        target.unlink(missing_ok=True)
        target.mkdir(mode=0o700)
    wanted = {entry.name: entry for entry in os.scandir(source)}
    for there in list(os.scandir(target)):
        if there.name not in wanted or there.is_symlink():
            remove(Path(there.path))
    for name, entry in wanted.items():
        place = target / name
        if entry.is_dir():
            _alike(Path(entry.path), place)
        elif not _untouched(entry.stat(), place):
            remove(place)
            shutil.copy2(entry.path, place)


def _untouched(then: os.stat_result, place: Path) -> bool:
    if place.name.endswith("-shm") or not place.is_file():  # it is written through memory
        return False
    now = place.stat()
    return (then.st_size, then.st_mtime_ns) == (now.st_size, now.st_mtime_ns)


def remove(place: Path) -> None:
    """Remove whatever lies there."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def _unused(what: str, token: str) -> str:
    """Do what was asked for."""
    raise AssertionError("an adapter runs the effect in its place")
