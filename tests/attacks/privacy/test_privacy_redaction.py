"""What is redacted is nowhere in the state, and the log verifies.

Whoever reads the state's files looks for the bytes themselves, and then for what would let them be
guessed: with the salt of a call, a PIN of four digits is found from what the agent has signed.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import logging
import re
import tomllib
import traceback
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from private_calls import CLEAR, SECRET, Scene, allow, call, erase, login, spellings

from agentguard import ConfigError, Decision, Denied, Requirement, adapters
from agentguard.audit.evidence import verify_evidence
from agentguard.audit.prove import prove_call
from agentguard.call.tool import ToolSpec
from agentguard.domain import config, keystore
from agentguard.guard.guard import Guard
from agentguard.policy.rego import RegoEngine
from agentguard.signing import canonical
from agentguard.store.reader import StoredLog

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
    assert redacting.holds(SECRET) == ["log.sqlite"]
    assert redacting.verify().ok


def test_a_redacted_call_can_be_proved_and_its_evidence_tells_nothing(scene):
    redacting = scene.redacting(login=["/args/password", "/result/token"])
    guard = redacting.open()
    call(guard, login(guard), CLEAR, SECRET)
    trust = keystore.load_trust(redacting.settings.state)
    with closing(StoredLog.of(redacting.settings.state)) as reader:
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
    account = {"number": SECRET, "of": CLEAR}
    tool = login(guard, facts=lambda _arguments: {"account": account}, gives=["account"])
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
    assert scene.holds(CLEAR) == ["log.sqlite"]
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
    assert scene.holds(CLEAR) == ["log.sqlite"]
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
        f"obligations := made\nmade := {obligations}\n"  # a slip in a literal is refused at load
    )
    with pytest.raises(Denied) as caught:
        call(guard, login(guard), CLEAR, SECRET)
    assert caught.value.code == code
    assert scene.holds(SECRET, CLEAR) == []
    assert scene.copies()["arguments"] == {"$redacted": True}
    assert scene.verify().ok


def test_where_the_policy_fails_only_the_configuration_redacts(scene):
    """Nobody knows what a policy would have asked for that did not answer: privacy.md."""

    def broken(_document: Any) -> Decision:
        raise LookupError(SECRET)

    for redact, held in (({}, ["log.sqlite"]), ({"login": ["/args/password"]}, ["log.sqlite"])):
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
    assert {row[0] for row in scene.rows("SELECT role FROM attachment")} == {
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
    """It is signed before the policy is asked: docs/how-to/privacy.md says so."""
    guard = scene.open(by_function)
    call(guard, login(guard, resource="vault:{password}"), CLEAR, "plain")
    assert scene.copies()["arguments"]["password"] == {"$redacted": True}
    assert scene.calls()[-1][1].predicate["resource"] == "vault:plain"


# --- the salt -------------------------------------------------------------------------------------


def guess_the_pin(scene: Scene) -> str | None:
    """Try every PIN against what the agent has signed, with every salt that the state holds."""
    _index, authorization = scene.calls()[-1]
    committed = authorization.predicate["arguments"]
    salts = {bytes(salt) for (salt,) in scene.rows("SELECT salt FROM attachment")}
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
    assert scene.holds(*scene.salts) == ["log.sqlite"]
    scene.rows("UPDATE attachment SET data = x'7b7d'")
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

CHANGE = "UPDATE attachment SET {} WHERE role = ?"


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
    index = redacting.rows("SELECT idx FROM attachment WHERE role = ?", role)[0][0]
    problems = redacting.verify().problems
    assert [found.index for found in problems] == [index]
    assert role in problems[0].what


def test_a_copy_can_not_be_passed_off_as_the_whole(scene):
    """With a salt and a commitment that fit each other, but not the entry."""
    guard = scene.redacting(login=["/args/password"]).open()
    call(guard, login(guard), CLEAR, SECRET)
    salt, data = bytes(32), canonical.dumps({"password": "invented", "user": CLEAR})
    forged = hashlib.sha256(salt + data).hexdigest()
    scene.rows(
        "UPDATE attachment SET salt = ?, data = ?, commitment = ? WHERE role = 'arguments'",
        salt,
        data,
        forged,
    )
    assert "not what it commits to" in scene.verify().problems[0].what


PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "privacy.md"


def test_the_examples_in_the_documentation_run(tmp_path):
    text = PAGE.read_text(encoding="utf-8")
    (python,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(python, str(PAGE), "exec"), {})  # noqa: S102  a reader would paste it
    (toml,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    parsed = config.parse(tomllib.loads(toml), source="privacy.md", base=tmp_path)
    assert parsed.redact["charge_card"] == (
        ("args", "card"),
        ("result", "receipt", "number"),
    )
    (rego,) = re.findall(r"```rego\n(.*?)```", text, re.DOTALL)
    policy = f"package agent.authz\ndefault allow := false\nallow if true\n{rego}"
    document = canonical.dumps({"args": {"kind": "medical", "diagnosis": "x"}})
    answer = RegoEngine.from_source(policy).evaluate(document)
    assert answer == {"allow": True, "obligations": [{"redact": "/args/diagnosis"}]}
