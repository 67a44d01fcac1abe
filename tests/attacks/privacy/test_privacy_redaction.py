"""What is redacted is nowhere, and what is erased is nowhere any more; the log verifies.

Whoever reads the state's files looks for the bytes themselves, and then for what would let them be
guessed: with the salt of a call, a PIN of four digits is found from what the agent has signed.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import json
import logging
import os
import random
import re
import sqlite3
import subprocess
import sys
import tomllib
import traceback
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agentguard import ConfigError, Decision, Denied, Requirement, StorageError, adapters
from agentguard.audit.calls import Authorization, read_authorization
from agentguard.audit.entry import parse_entry
from agentguard.audit.evidence import verify_evidence
from agentguard.audit.prove import prove_call
from agentguard.call.tool import ToolSpec
from agentguard.domain import administration, config, domain, keystore
from agentguard.domain.verify import examine
from agentguard.errors import CallError
from agentguard.guard.guard import Guard
from agentguard.policy.function import FunctionEngine
from agentguard.policy.rego import RegoEngine
from agentguard.signing import canonical
from agentguard.storage import erasure, sqlite
from agentguard.storage.reader import StateReader

PASSPHRASE = b"correct horse battery staple"
SECRET = "hunter2-4711-\u20ac"
CLEAR = "nothing-to-hide"


def allow(_document: Any) -> Decision:
    return Decision.allow()


@dataclasses.dataclass
class Scene:
    """A durable domain in a folder, with or without a ``[redact]`` table."""

    settings: config.Config
    entropy: list[bytes] = dataclasses.field(default_factory=list)

    def redacting(self, **redact: list[str]) -> Scene:
        """The same domain, whose configuration redacts; ``every`` stands for ``*``."""
        tables = {
            "trust_domain": "acme.example",
            "state": str(self.settings.state),
            "anchor": str(self.settings.anchor),
            "policy": {"engine": "function", "path": "unused:unused"},
            "agents": {"reader": {"authority": "own", "max_scope": []}},
            "redact": {"*" if name == "every" else name: told for name, told in redact.items()},
        }
        base = self.settings.base
        return Scene(config.parse(tables, source="agentguard.toml", base=base), self.entropy)

    def open(self, policy: Any = allow) -> Guard:
        engine = FunctionEngine(policy) if callable(policy) else RegoEngine.from_source(policy)
        guard = Guard(self.settings, engine, domain.take_up(self.settings, PASSPHRASE))
        assert guard._runtime._line is not None

        def draw(size: int) -> bytes:
            self.entropy.append(os.urandom(size))
            return self.entropy[-1]

        guard._runtime._line = dataclasses.replace(guard._runtime._line, entropy=draw)
        return guard

    @property
    def salts(self) -> list[bytes]:
        """The salt of each call: the first 32 of the 48 bytes that it draws."""
        return [drawn[:32] for drawn in self.entropy if len(drawn) == 48]

    def holds(self, *needles: str | bytes) -> list[str]:
        """The files, under the whole folder, in which any of the needles stands as bytes."""
        spelled = [
            form
            for needle in needles
            for form in spellings(needle.encode() if isinstance(needle, str) else needle)
        ]
        files = [path for path in self.settings.base.rglob("*") if path.is_file()]
        assert {"0.sqlite", "registry.json"} <= {path.name for path in files}
        return [path.name for path in files if any(form in path.read_bytes() for form in spelled)]

    def verify(self) -> Any:
        with closing(StateReader(self.settings.state)) as reader:
            trust = keystore.load_trust(self.settings.state)
            return examine(reader, trust, anchor=self.settings.anchor)

    def calls(self) -> list[tuple[int, Authorization]]:
        with closing(StateReader(self.settings.state)) as reader:
            return [
                (index, read_authorization(parsed))
                for index, body in reader.entries(0)
                if (parsed := parse_entry(body)).kind == "authorization"
            ]

    def newest(self) -> str:
        invocation_id = self.calls()[-1][1].invocation_id
        assert invocation_id is not None
        return invocation_id

    def rows(self, statement: str, *parameters: Any) -> list[Any]:
        with closing(sqlite3.connect(sqlite.shard_path(self.settings.state, 0))) as connection:
            found = connection.execute(statement, parameters).fetchall()
            connection.commit()
            return found

    def copies(self) -> dict[str, Any]:
        """What is kept of all calls, by role; the newest call wins."""
        kept = self.rows("SELECT role, data FROM attachments ORDER BY idx")
        return {role: json.loads(data) for role, data in kept}


def spellings(needle: bytes) -> list[bytes]:
    """How bytes may lie in a file: as they are, in hex, in base64 (at any offset), escaped."""
    inner = [base64.b64encode(b"\0" * pad + needle)[4 if pad else 0 : -4] for pad in range(3)]
    escaped = json.dumps(needle.decode("utf-8", "replace")).strip('"').encode()
    return [needle, needle.hex().encode(), needle.hex().upper().encode(), *inner, escaped]


@pytest.fixture
def scene(place) -> Scene:
    return Scene(place.config).redacting()


def login(guard: Guard, **options: Any) -> Any:
    def login(user: str, password: Any) -> dict[str, Any]:
        return {"user": user, "token": password}

    return guard.tool(**options)(login)


def call(guard: Guard, tool: Any, *args: Any) -> Any:
    with guard:
        return guard.new_agent("reader").call(tool, *args)


# --- redaction ------------------------------------------------------------------------------------

REGO = """
package agent.authz
default allow := false
allow if input.action == "login"
obligations contains {"redact": pointer} if { some pointer in ["/args/password", "/result/token"] }
"""


def by_function(_document: Any) -> Decision:
    return Decision.allow().redacted("/args/password", "/result/token")


WAYS = {
    "every tool": ({"every": ["/args/password", "/result/token"]}, allow),
    "this tool": ({"login": ["/args/password", "/result/token"]}, allow),
    "both": ({"every": ["/args/password"], "login": ["/result/token"]}, allow),
    "arguments and result as a whole": ({"login": ["/args", "/result"]}, allow),
    "a Rego policy": ({}, REGO),
    "a Python policy": ({}, by_function),
    "configuration and policy": ({"login": ["/args/password"]}, by_function),
}


@pytest.mark.parametrize(("redact", "policy"), WAYS.values(), ids=WAYS)
def test_what_is_redacted_is_nowhere(scene, redact, policy, caplog):
    caplog.set_level(logging.DEBUG)
    redacting = scene.redacting(**redact)
    guard = redacting.open(policy)
    tool = login(guard)
    assert call(guard, tool, CLEAR, SECRET) == {"user": CLEAR, "token": SECRET}  # it got it whole
    assert redacting.holds(SECRET) == []
    assert SECRET not in caplog.text
    report = redacting.verify()
    assert (report.ok, report.anchored, report.problems) == (True, True, ())
    whole = "as a whole" in str(redact) or redact.get("login") == ["/args", "/result"]
    assert (redacting.holds(CLEAR) == []) is whole  # and nothing else was


def test_what_is_not_redacted_is_there(scene):
    """The twin: the same call in the same domain, and another tool's redaction."""
    redacting = scene.redacting(other=["/args/password", "/result/token"])
    guard = redacting.open()
    call(guard, login(guard), CLEAR, SECRET)
    assert redacting.holds(SECRET) == ["0.sqlite"]
    assert redacting.verify().ok


def test_a_redacted_call_can_be_proved_and_its_evidence_tells_nothing(scene):
    redacting = scene.redacting(login=["/args/password", "/result/token"])
    guard = redacting.open()
    call(guard, login(guard), CLEAR, SECRET)
    trust = keystore.load_trust(redacting.settings.state)
    with closing(StateReader(redacting.settings.state)) as reader:
        data = prove_call(reader, trust, redacting.newest())
    verify_evidence(data, trust)
    assert not any(form in data for form in spellings(SECRET.encode()))
    assert not any(form in data for form in spellings(redacting.salts[-1]))
    assert CLEAR.encode() in data or base64.b64encode(CLEAR.encode())[:-4] in data


def test_an_attribute_is_redacted_with_its_argument(scene):
    for pointer in ("/args/password", "/secret"):
        redacting = scene.redacting(login=[pointer, "/result"])
        guard = redacting.open()
        call(guard, login(guard, attributes={"secret": "password"}), CLEAR, SECRET)
        assert redacting.holds(SECRET) == []
        assert redacting.copies()["input"]["secret"] == {"$redacted": True}
        assert redacting.verify().ok


def test_a_fact_is_redacted(scene):
    guard = scene.redacting(login=["/account/number", "/result", "/args"]).open()
    tool = login(guard, facts=lambda _arguments: {"account": {"number": SECRET, "of": CLEAR}})
    call(guard, tool, CLEAR, SECRET)
    assert scene.holds(SECRET) == []
    assert scene.copies()["input"]["account"] == {"number": {"$redacted": True}, "of": CLEAR}


@dataclasses.dataclass
class Credentials:
    user: str
    password: str


def test_a_field_of_an_object_is_redacted(scene):
    guard = scene.redacting(login=["/args/password/password", "/result/token/password"]).open()
    call(guard, login(guard), CLEAR, Credentials(CLEAR, SECRET))
    assert scene.holds(SECRET) == []
    assert scene.copies()["arguments"]["password"]["fields"]["user"] == CLEAR


DENYING = {
    "a Python policy's denial": lambda _d: Decision.deny("no").redacted("/args/password"),
    "a Python policy that asks for an approval": lambda _d: Decision.require_approval(
        Requirement("two eyes")
    ).redacted("/args/password"),
    "a Rego policy's denial": """
package agent.authz
default allow := false
deny_reason := "no"
obligations := [{"redact": "/args/password"}]
""",
    "a Rego policy that asks for an approval": """
package agent.authz
default allow := false
approval := true
obligations := [{"redact": "/args/password"}]
""",
}


@pytest.mark.parametrize("policy", DENYING.values(), ids=DENYING)
def test_a_denied_call_is_redacted_too(scene, policy):
    guard = scene.open(policy)
    with pytest.raises(Denied):
        call(guard, login(guard), CLEAR, SECRET)
    assert scene.holds(SECRET) == []
    assert scene.holds(CLEAR) == ["0.sqlite"]
    assert scene.verify().ok


def test_a_call_whose_signer_fails_is_redacted_too(scene):
    """The policy was asked, and its obligations hold for the refusal that stands in its place."""

    class Broken:
        def __init__(self, inner: Any) -> None:
            self.key_id, self.public_key = inner.key_id, inner.public_key

        def sign(self, _data: bytes) -> bytes:
            raise OSError("no token in the slot")

    guard = scene.open(by_function)
    agent = guard.new_agent("reader")
    assert agent._caller.instance() is not None
    agent._caller.instance().actor = dataclasses.replace(
        agent._caller.instance().actor,
        signer=Broken(agent._caller.instance().actor.signer),
    )
    with pytest.raises(Denied) as caught:
        agent.call(login(guard), CLEAR, SECRET)
    guard.close()
    assert caught.value.code == "signature.failed"
    assert scene.holds(SECRET) == []
    assert scene.holds(CLEAR) == ["0.sqlite"]
    assert scene.verify().ok


UNMET = {
    "unknown": ('[{"notify": "ops"}]', "obligation.unknown"),
    "unknown beside a redaction": (
        '[{"redact": "/args/password"}, {"notify": "ops"}]',
        "obligation.unknown",
    ),
    "with a member too many": (
        '[{"redact": "/args/password", "unless": "admin"}]',
        "obligation.unknown",
    ),
    "no pointer": ('[{"redact": "args/password"}]', "policy.malformed"),
    "an escape that is none": ('[{"redact": "/args/pass~word"}]', "policy.malformed"),
    "what the log tells anyway": ('[{"redact": "/resource"}]', "policy.malformed"),
    "every root": ('[{"redact": "/*/password"}]', "policy.malformed"),
    "no string": ('[{"redact": ["/args/password"]}]', "obligation.unknown"),
    "no object": ('["/args/password"]', "obligation.unknown"),
    "no set": ('{"redact": "/args/password"}', "policy.malformed"),
    "nothing": ("null", "policy.malformed"),
}


@pytest.mark.parametrize(("obligations", "code"), UNMET.values(), ids=UNMET)
def test_an_obligation_that_can_not_be_met_denies_and_keeps_no_arguments(scene, obligations, code):
    guard = scene.open(
        "package agent.authz\ndefault allow := false\nallow if true\n"
        f"obligations := {obligations}\n"
    )
    with pytest.raises(Denied) as caught:
        call(guard, login(guard), CLEAR, SECRET)
    assert caught.value.code == code
    assert scene.holds(SECRET, CLEAR) == []
    assert scene.copies()["arguments"] == {"$redacted": True}
    assert scene.verify().ok


def test_where_the_policy_fails_only_the_configuration_redacts(scene):
    """Nobody knows what a policy would have asked for that did not answer: docs/privacy.md."""

    def broken(_document: Any) -> Decision:
        raise LookupError(SECRET)

    for redact, held in (({}, ["0.sqlite"]), ({"login": ["/args/password"]}, ["0.sqlite"])):
        redacting = scene.redacting(**redact)
        guard = redacting.open(broken)
        with pytest.raises(Denied) as caught:
            call(guard, login(guard), CLEAR, SECRET if not redact else SECRET[::-1])
        assert caught.value.code == "policy.error"
        assert redacting.holds(SECRET if not redact else SECRET[::-1]) == ([] if redact else held)
        assert SECRET not in str(caught.value)
    assert scene.verify().ok


def test_no_exception_and_no_log_tells_what_is_redacted(scene, caplog):
    caplog.set_level(logging.DEBUG)
    guard = scene.redacting(every=["/args", "/result"]).open()

    @guard.tool
    def fail(password):
        raise ValueError(password)  # it is the tool's own, and goes to the caller

    @guard.tool
    def refuse(password):
        return password

    with guard:
        agent = guard.new_agent("reader")
        with pytest.raises(ValueError, match="hunter2"):
            agent.call(fail, SECRET)
        for hostile in (
            {"password": object(), "x": SECRET},
            {SECRET: 1, 2: object()},
            SECRET + "\ud800",
            [SECRET, float("nan")],
        ):
            with pytest.raises(Denied) as caught:
                agent.call(refuse, hostile)
            told = "".join(traceback.format_exception(caught.value)) + repr(caught.value.decision)
            assert SECRET not in told.replace(repr(hostile), "")
    assert scene.holds(SECRET) == []
    assert SECRET not in caplog.text


def test_an_interrupted_call_is_redacted_too(scene):
    """Cancelled while its authorization is written: what is recorded then is a copy as well."""
    guard = scene.redacting(every=["/args/password"]).open()

    async def cancel() -> None:
        agent = guard.new_agent("reader")
        running = asyncio.create_task(agent.acall(login(guard), CLEAR, SECRET))
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(cancel())
    guard.close()
    assert scene.holds(SECRET) == []
    assert scene.verify().ok


def test_arguments_that_change_meanwhile_are_redacted_too(scene):
    given = {"pin": SECRET}

    def meddling(_document: Any) -> Decision:
        given["pin"] = SECRET[::-1]
        return Decision.allow().redacted("/args/password")

    guard = scene.open(meddling)
    with pytest.raises(Denied) as caught:
        call(guard, login(guard), CLEAR, given)
    assert caught.value.code == "arguments.changed"
    assert scene.holds(SECRET, SECRET[::-1]) == []
    assert scene.verify().in_doubt == ()


def test_long_arguments_and_results_are_redacted_and_recorded(scene):
    """Past what JSON from outside may have: the input holds the arguments and more."""
    guard = scene.redacting(login=["/args/password", "/result/token"]).open()
    text = "x" * (canonical.MAX_BYTES - 200)
    tool = login(guard, attributes={"name": "user"})
    assert call(guard, tool, text, SECRET)["token"] == SECRET
    assert scene.holds(SECRET) == []
    report = scene.verify()
    assert (report.ok, report.in_doubt) == (True, ())
    assert {row[0] for row in scene.rows("SELECT role FROM attachments")} == {
        "arguments",
        "input",
        "result",
    }


# --- resources ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pointer", ["/args/password", "/args/*", "/args", "/key"])
@pytest.mark.parametrize("tool", ["every", "login"])
def test_a_resource_may_not_tell_what_the_configuration_redacts(scene, tool, pointer):
    guard = scene.redacting(**{tool: [pointer]}).open()
    told = r"redacts the argument '(user|password)'"
    with guard, pytest.raises(ConfigError, match=told) as caught:
        login(guard, resource="vault:{user}/{password}", attributes={"key": "password"})
    assert str(caught.value).startswith(f"agentguard.toml: redact: {pointer} redacts")


def test_a_pointer_into_an_argument_of_the_resource_redacts_nothing_that_it_tells(scene):
    """A resource takes strings and numbers only, and they have no parts."""
    with scene.redacting(login=["/args/password/x"]).open() as guard:
        tool = login(guard, resource="vault:{password}")
        agent = guard.new_agent("reader")
        agent.call(tool, CLEAR, "plain")
        with pytest.raises(Denied) as caught:
            agent.call(tool, CLEAR, {"x": SECRET})
    assert scene.calls()[0][1].predicate["resource"] == "vault:plain"
    assert caught.value.code == "arguments.resource"
    assert scene.holds(SECRET) == []


def test_a_resource_may_name_other_arguments(scene):
    guard = scene.redacting(login=["/args/password", "/result"], other=["/args/user"]).open()
    call(guard, login(guard, resource="user:{user}"), CLEAR, SECRET)
    assert scene.calls()[-1][1].predicate["resource"] == f"user:{CLEAR}"
    assert scene.holds(SECRET) == []


def test_a_resource_of_the_configuration_and_an_adapters_tool_are_held_to_it_too(scene):
    tables = {
        "agents": {"reader": {"authority": "own"}},
        "tools": {"login": {"resource": "vault:{password}"}},
        "redact": {"login": ["/args/password"]},
    }
    with Guard.ephemeral(allow, config=tables) as guard:
        with pytest.raises(ConfigError, match="is signed and logged"):
            login(guard)
        spec = ToolSpec("login", "", {}, "elsewhere:login")
        with pytest.raises(ConfigError, match="is signed and logged"):
            adapters.configure_tool(guard.new_agent("reader"), spec)


def test_a_resource_tells_what_only_the_policy_redacts(scene):
    """It is signed before the policy is asked: docs/privacy.md says so."""
    guard = scene.open(by_function)
    call(guard, login(guard, resource="vault:{password}"), CLEAR, "plain")
    assert scene.copies()["arguments"]["password"] == {"$redacted": True}
    assert scene.calls()[-1][1].predicate["resource"] == "vault:plain"


# --- the salt -------------------------------------------------------------------------------------


def guess_the_pin(scene: Scene) -> str | None:
    """Try every PIN against what the agent has signed, with every salt that the state holds."""
    _index, authorization = scene.calls()[-1]
    committed = authorization.predicate["arguments"]
    salts = {bytes(salt) for (salt,) in scene.rows("SELECT salt FROM attachments")}
    for number in range(10_000):
        guess = canonical.dumps({"password": f"{number:04}", "user": CLEAR})
        for salt in salts:
            if hashlib.sha256(salt + guess).hexdigest() == committed:
                return f"{number:04}"
    return None


def test_a_short_secret_can_not_be_guessed_from_what_is_signed(scene):
    redacting = scene.redacting(login=["/args/password", "/result"])
    guard = redacting.open()
    call(guard, login(guard), CLEAR, "4711")
    assert guess_the_pin(redacting) is None
    assert redacting.holds(*redacting.salts) == []
    assert len(redacting.salts) == 1


def test_with_its_salt_it_could_be(scene):
    """The twin: the attack finds the PIN of a call that was not redacted, data or no data."""
    guard = scene.open()
    call(guard, login(guard), CLEAR, "4711")
    assert scene.holds(*scene.salts) == ["0.sqlite"]
    scene.rows("UPDATE attachments SET data = x'7b7d'")
    assert guess_the_pin(scene) == "4711"


def test_of_a_call_that_is_erased_the_pin_can_not_be_guessed_any_more(scene):
    guard = scene.open()
    call(guard, login(guard), CLEAR, "4711")
    assert guess_the_pin(scene) == "4711"
    erase(scene)
    assert guess_the_pin(scene) is None
    assert scene.holds(*scene.salts) == []


@pytest.mark.parametrize("pointer", ["/args/password", "/result/token", "/args/nobody"])
def test_a_call_with_any_redaction_keeps_no_salt(scene, pointer):
    """What is kept whole (here the input or the result) would bring it along otherwise."""
    redacting = scene.redacting(login=[pointer])
    guard = redacting.open()
    call(guard, login(guard), CLEAR, "4711")
    assert redacting.holds(*redacting.salts) == []
    assert redacting.verify().ok


# --- a changed copy -------------------------------------------------------------------------------


CHANGE = "UPDATE attachments SET {} WHERE role = ?"


@pytest.mark.parametrize("role", ["arguments", "input", "result"])
@pytest.mark.parametrize(
    "change",
    [
        "data = x'7b7d'",
        "salt = zeroblob(32)",
        "data = CAST(x'20' || data AS BLOB)",
        "commitment = ?",
    ],
)
def test_a_copy_that_somebody_changed_is_found(scene, role, change):
    redacting = scene.redacting(login=["/args/password", "/result/token"])
    guard = redacting.open()
    call(guard, login(guard), CLEAR, SECRET)
    assert redacting.verify().ok
    parameters = ["0" * 64] if "?" in change else []
    redacting.rows(CHANGE.format(change), *parameters, role)
    index = redacting.rows("SELECT idx FROM attachments WHERE role = ?", role)[0][0]
    problems = redacting.verify().problems
    assert [(found.shard, found.index) for found in problems] == [(0, index)]
    assert role in problems[0].what


def test_a_copy_can_not_be_passed_off_as_the_whole(scene):
    """With a salt and a commitment that fit each other, but not the entry."""
    guard = scene.redacting(login=["/args/password"]).open()
    call(guard, login(guard), CLEAR, SECRET)
    salt, data = bytes(32), canonical.dumps({"password": "invented", "user": CLEAR})
    forged = hashlib.sha256(salt + data).hexdigest()
    scene.rows(
        "UPDATE attachments SET salt = ?, data = ?, commitment = ? WHERE role = 'arguments'",
        salt,
        data,
        forged,
    )
    assert "not what it commits to" in scene.verify().problems[0].what


# --- erasure --------------------------------------------------------------------------------------


def erase(scene: Scene, invocation_id: str | None = None) -> administration.Erased:
    return administration.erase(
        scene.settings,
        PASSPHRASE,
        invocation_id or scene.newest(),
        note="asked for by the data subject",
        now=datetime.now(UTC),
    )


SHAPES = {
    "small": (CLEAR, SECRET),
    "many pages": (CLEAR * 5000, SECRET * 4000),
    "in the middle of a page": (CLEAR, {"deep": [SECRET] * 40}),
}


@pytest.mark.parametrize("values", SHAPES.values(), ids=SHAPES)
def test_what_is_erased_is_nowhere_any_more(scene, values):
    guard = scene.open()
    tool = login(guard)
    with guard:
        agent = guard.new_agent("reader")
        agent.call(tool, "somebody", "else before")
        agent.call(tool, *values)
        wanted = scene.newest()
        agent.call(tool, "somebody", "else after")
    assert scene.holds(SECRET) == ["0.sqlite"]
    assert scene.holds(scene.salts[1]) == ["0.sqlite"]
    done = erase(scene, wanted)
    assert (done.attachments, done.call.invocation_id) == (3, wanted)
    assert scene.holds(SECRET, CLEAR, scene.salts[1]) == []
    assert scene.holds(scene.salts[0]) == scene.holds(scene.salts[2]) == ["0.sqlite"]
    assert scene.holds("else before") == scene.holds("else after") == ["0.sqlite"]
    report = scene.verify()
    assert (report.ok, report.anchored, report.in_doubt) == (True, True, ())


SIZES = {
    "many to a page": (10, 100, 200),
    "some to a page": (10, 400, 900, 1500, 3000),
    "far more than a page": (300, 6000),
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_of_hundreds_of_calls_each_that_is_erased_is_nowhere(scene, monkeypatch, sizes):
    """With SQLite's own default, which keeps what is freed; here it may be built with another.

    Nor does SQLite leave copies of the others in free space, where it would divide or merge pages:
    no later erasure would reach them.
    """
    connect = sqlite3.connect

    def connect_as_by_default(*args: Any, **options: Any) -> Any:
        connection = connect(*args, **options)
        connection.execute("PRAGMA secure_delete=OFF")
        return connection

    monkeypatch.setattr(sqlite3, "connect", connect_as_by_default)
    chance = random.Random(len(sizes))  # noqa: S311  the same calls each time
    erased: set[int] = set()
    with scene.open() as guard:
        tool = guard.tool(lambda a, b: {"a": a, "b": b}, name="login")
        agent = guard.new_agent("reader")
        for number in range(200):
            mark = f"<{number:06}>"  # so long that no digest or salt has the same bytes by chance
            agent.call(tool, mark, mark * (chance.choice(sizes) // len(mark)))
            if number % 50 == 49:  # while the guard goes on writing
                guard.reader().close()  # with the newest outcome in the log
                erased |= erase_some(scene, chance)
    file = sqlite.shard_path(scene.settings.state, 0).read_bytes()
    assert {number for number in range(200) if b"<%06d>" % number not in file} == erased
    copies = [file.count(b'{"a":"<%06d>"' % number) for number in range(200)]
    assert max(copies) == 3  # arguments, input, result
    assert 100 < len(erased) < 190


def erase_some(scene: Scene, chance: random.Random) -> set[int]:
    """Erase a half of the calls, of the oldest and of the newest too; return their numbers."""
    kept = scene.rows("SELECT idx, data FROM attachments WHERE role = 'arguments' AND data <> x''")
    numbers = {index: int(json.loads(data)["a"][1:-1]) for index, data in kept}
    chosen = {min(numbers), max(numbers), *chance.sample(sorted(numbers), len(numbers) // 2)}
    for index in chance.sample(sorted(chosen), len(chosen)):
        erasure.erase(scene.settings.state, 0, [index, index + 1])
    return {numbers[index] for index in chosen}


def test_no_erasure_leaves_a_copy_of_what_is_erased_later(scene):
    """Rows that are deleted one by one have SQLite merge pages: with these, a copy would stay."""
    chance = random.Random(1)  # noqa: S311  the same rows each time
    path = sqlite.shard_path(scene.settings.state, 0)
    with scene.open():
        pass  # makes the file
    with closing(sqlite3.connect(path)) as connection:
        for index in range(1000, 1150):
            mark = b"<%d>" % index
            data = mark * (chance.choice((600, 700)) // len(mark) + 1)
            connection.execute(
                "INSERT INTO attachments VALUES (?, 'result', ?, ?, ?)",
                (index, "c" * 64, bytes(32), data),
            )
        connection.commit()
    order = list(range(1000, 1150))
    chance.shuffle(order)
    for number, index in enumerate(order, start=1):
        erasure.erase(scene.settings.state, 0, [index])
        if number % 25 == 0:
            file = path.read_bytes()
            assert [one for one in order if b"<%d>" % one not in file] == order[:number]


def test_the_proof_of_an_erased_call_holds_before_and_after(scene):
    guard = scene.open()
    call(guard, login(guard), CLEAR, SECRET)
    trust = keystore.load_trust(scene.settings.state)

    def prove() -> bytes:
        with closing(StateReader(scene.settings.state)) as reader:
            return prove_call(reader, trust, scene.newest())

    before = prove()
    erase(scene)
    after = prove()
    assert any(form in before for form in spellings(SECRET.encode()))
    assert not any(form in after for form in spellings(SECRET.encode()))
    verify_evidence(before, trust)  # a file that somebody has kept is out of the erasure's reach
    verify_evidence(after, trust)


def test_a_redacted_call_can_be_erased_as_well(scene):
    guard = scene.redacting(login=["/args/password", "/result/token"]).open()
    call(guard, login(guard), CLEAR, SECRET)
    assert scene.holds(CLEAR) == ["0.sqlite"]
    assert erase(scene).attachments == 3
    assert scene.holds(CLEAR) == []
    assert scene.verify().ok


def test_a_crash_between_the_entry_and_the_erasure_is_made_good_by_doing_it_again(
    scene, monkeypatch
):
    guard = scene.open()
    call(guard, login(guard), CLEAR, SECRET)
    with monkeypatch.context() as patched:
        patched.setattr(erasure, "erase", lambda *_args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            erase(scene)
    assert scene.holds(SECRET) == ["0.sqlite"]
    assert scene.verify().ok
    assert erase(scene).attachments == 3
    assert scene.holds(SECRET) == []
    assert erase(scene).attachments == 0  # and again is no harm
    assert scene.verify().ok


def test_a_call_with_nothing_to_erase(scene):
    guard = scene.open()
    with pytest.raises(Denied):
        call(guard, login(guard), CLEAR, object())
    assert erase(scene).attachments == 0
    report = scene.verify()
    assert (report.ok, report.in_doubt) == (True, ())


def test_an_unknown_call_is_not_erased_and_nothing_is_logged(scene):
    guard = scene.open()
    call(guard, login(guard), CLEAR, SECRET)
    before = scene.verify().entries
    for unknown in ("0" * 32, "", scene.newest()[:16], scene.newest().upper(), "%"):
        with pytest.raises(CallError) as caught:
            erase(scene, unknown or " ")
        assert caught.value.code == "call.unknown"
    assert scene.verify().entries == before
    assert scene.holds(SECRET) == ["0.sqlite"]


def test_a_column_that_lies_does_not_have_another_calls_result_erased(scene):
    guard = scene.open()
    tool = login(guard)
    with guard:
        agent = guard.new_agent("reader")
        agent.call(tool, "a", "what the first one said")
        agent.call(tool, "b", "what the second one said")
    (_, first), (_, second) = scene.calls()
    scene.rows(
        "UPDATE summaries SET invocation_id = ? WHERE kind = 'outcome' AND invocation_id = ?",
        first.invocation_id,
        second.invocation_id,
    )
    assert erase(scene, first.invocation_id).attachments == 3
    assert scene.holds("what the second one said") == ["0.sqlite"]
    assert scene.holds("what the first one said") == []


def test_while_somebody_reads_the_old_bytes_it_says_that_they_are_still_there(scene, monkeypatch):
    monkeypatch.setitem(sqlite.OPTIONS, "timeout", 0.2)
    guard = scene.open()
    call(guard, login(guard), CLEAR, SECRET)
    path = sqlite.shard_path(scene.settings.state, 0)
    with closing(sqlite3.connect(path, isolation_level=None)) as reading:
        reading.execute("BEGIN")
        assert reading.execute("SELECT count(*) FROM attachments").fetchone() == (3,)
        with pytest.raises(StorageError, match=r"is being read: .* try again") as caught:
            erase(scene)
        assert caught.value.code == "storage.locked"
        reading.execute("COMMIT")
    assert erase(scene).attachments == 0
    assert scene.holds(SECRET) == []
    assert scene.verify().ok


WRITER = """
import sys, time
from agentguard import Decision, Guard
from agentguard.domain import config
from agentguard.domain import domain
from agentguard.policy.function import FunctionEngine
from pathlib import Path

folder = Path(sys.argv[1])
tables = {"trust_domain": "acme.example", "state": str(folder / "state"),
          "anchor": str(folder / "anchor"), "policy": {"path": "unused:unused"},
          "agents": {"reader": {"authority": "own"}}}
settings = config.parse(tables, source="agentguard.toml", base=folder)
home = domain.take_up(settings, b"correct horse battery staple")
with Guard(settings, FunctionEngine(lambda _d: Decision.allow()), home) as guard:
    agent = guard.new_agent("reader")

    @guard.tool
    def login(user: str, password: str) -> str:
        return password

    agent.call(login, "nothing-to-hide", sys.argv[2])
    print("ready", flush=True)
    count = 1
    while not (folder / "stop").exists():
        agent.call(login, "somebody", f"else {count}")
        count += 1
    print(count, flush=True)
"""


def erased_at_last(scene: Scene, wanted: str) -> Any:
    """Erase a call's content, again where the writer was just reading, as the error says."""
    for _ in range(100):
        try:
            return erase(scene, wanted)
        except StorageError as error:
            assert error.code == "storage.locked"  # noqa: PT017  the others are findings
    raise AssertionError("the writer never stops reading")


def test_the_shards_writer_may_be_at_work_meanwhile(scene):
    """In another process, which has the call's own pages in its cache and in its -wal."""
    folder = scene.settings.base
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), SECRET],
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        try:
            wanted = scene.calls()[0][1].invocation_id
            done = erased_at_last(scene, wanted)
            held = scene.holds(SECRET)
            before = scene.verify().entries  # while it writes on
        finally:
            (folder / "stop").touch()
        count = int(writer.stdout.readline())
        assert writer.wait(timeout=120) == 0
    assert done.attachments in (3, 0)  # none, where only the -wal file was left to be emptied
    assert done.recorded.shard == 1  # its own shard is the writer's
    assert held == []
    assert scene.holds(SECRET) == []
    report = scene.verify()
    assert (report.ok, report.anchored, report.in_doubt) == (True, True, ())
    assert report.entries >= before
    assert len(scene.calls()) == count


def test_a_fork_does_not_erase_past_its_parents_connection(scene):
    """SQLite in the fork believes that it has the parent's locks on the file."""
    guard = scene.open()
    tool = login(guard)
    guard.new_agent("reader").call(tool, CLEAR, SECRET)
    guard._runtime._line.log.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            erasure.erase(scene.settings.state, 0, [0])
        except StorageError as error:
            code = 0 if error.code == "storage.locked" else 2
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    guard.close()
    assert erase(scene).attachments == 3


def test_without_the_admin_key_nothing_is_erased(scene):
    guard = scene.open()
    call(guard, login(guard), CLEAR, SECRET)
    (scene.settings.state / "keys" / "admin").unlink()
    with pytest.raises(Exception, match="admin"):
        erase(scene)
    assert scene.holds(SECRET) == ["0.sqlite"]


def test_files_stay_private(scene):
    guard = scene.redacting(every=["/args"]).open()
    call(guard, login(guard), CLEAR, SECRET)
    erase(scene)
    kept = [path for path in scene.settings.state.rglob("*") if path.is_file()]
    modes = {Path(path).name: path.stat().st_mode & 0o077 for path in kept}
    assert not any(modes.values()), modes


PAGE = Path(__file__).parents[2] / "docs" / "privacy.md"


def test_the_examples_in_the_documentation_run(tmp_path):
    text = PAGE.read_text(encoding="utf-8")
    (python,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(python, str(PAGE), "exec"), {})  # noqa: S102  a reader would paste it
    (toml,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    parsed = config.parse(tomllib.loads(toml), source="privacy.md", base=tmp_path)
    assert parsed.redactions["charge_card"] == (
        ("args", "card"),
        ("result", "receipt", "number"),
    )
    (rego,) = re.findall(r"```rego\n(.*?)```", text, re.DOTALL)
    policy = f"package agent.authz\ndefault allow := false\nallow if true\n{rego}"
    document = canonical.dumps({"args": {"kind": "medical", "diagnosis": "x"}})
    answer = RegoEngine.from_source(policy).evaluate(document)
    assert answer == {"allow": True, "obligations": [{"redact": "/args/diagnosis"}]}
