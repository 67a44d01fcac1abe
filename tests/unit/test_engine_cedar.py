"""The Cedar engine: what a call is to it, what denies, how an approval is asked for.

The policies of docs/how-to/cedar.md are held against the page in e2e/test_policy_page.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cedarpy
import docs_pages
import pytest

from agentguard import ConfigError, Denied, Guard, PolicyError
from agentguard.domain import config
from agentguard.domain.config.engine_loader import configured_engine
from agentguard.policy.cedar import CedarEngine
from agentguard.policy.document import decide
from agentguard.policy.engine import Explains
from agentguard.signing import canonical

CALL: dict[str, Any] = {
    "agent": {
        "id": "spiffe://acme.example/agent/code-reviewer/q8",
        "name": "code-reviewer",
        "type": "code-agent",
        "instance": "q8",
        "roles": ["reviewer"],
    },
    "delegation": None,
    "action": "open_pr",
    "resource": "repo:payments-api",
    "task_id": None,
    "args": {"branch": "agent/fix", "title": None},
    "tool": {"name": "open_pr", "schema_sha256": "0" * 64},
    "branch": "agent/fix",
    "repo": {"visibility": "internal"},
}
AUTHZ = """
permit(principal, action == Action::"open_pr", resource)
when { principal.type == "code-agent" && context.repo.visibility == "internal" };

permit(principal, action == Action::"trigger_ci", resource)
when { principal.type == "code-agent" && context.branch != "main" };

@id("main") @reason("direct merges to main require human approval")
forbid(principal, action == Action::"merge_pr", resource)
when { context.branch == "main" };
"""
SCHEMA = """
entity Role;
entity Agent in [Role] = {
    id: String, name: String, type: String, instance: String, roles: Set<String>,
};
entity Resource;
type Context = {
    args: { branch: String, title?: String },
    tool: { name: String, schema_sha256: String },
    branch: String,
    repo: { visibility: String },
    task_id?: String,
    approval?: { approvers: Set<String> },
};
action open_pr, trigger_ci, merge_pr appliesTo {
    principal: Agent, resource: Resource, context: Context,
};
"""


def policy(text: str, schema: str | None = None) -> CedarEngine:
    return CedarEngine.from_source(text, schema)


def decision(engine: CedarEngine, **changes: Any):
    return decide(engine.evaluate(canonical.dumps({**CALL, **changes})))


def refusal(engine: CedarEngine, **changes: Any) -> str:
    with pytest.raises(PolicyError) as raised:
        engine.evaluate(canonical.dumps({**CALL, **changes}))
    return raised.value.code


def invalid(text: str, schema: str | None = None) -> str:
    with pytest.raises(PolicyError) as raised:
        policy(text, schema)
    assert raised.value.code == "policy.invalid"
    return str(raised.value)


@pytest.mark.parametrize(
    ("changes", "outcome", "reasons"),
    [
        ({}, "allow", ()),
        ({"repo": {"visibility": "public"}}, "deny", None),
        ({"action": "trigger_ci"}, "allow", ()),
        ({"action": "trigger_ci", "branch": "main"}, "deny", None),
        (
            {"action": "merge_pr", "branch": "main"},
            "deny",
            ("direct merges to main require human approval",),
        ),
        ({"action": "merge_pr"}, "deny", None),
        ({"agent": CALL["agent"] | {"type": "chat"}}, "deny", None),
    ],
)
@pytest.mark.parametrize("schema", [None, SCHEMA], ids=["without", "with schema"])
def test_the_policy_of_the_design_in_cedar(schema, changes, outcome, reasons):
    made = decision(policy(AUTHZ, schema), **changes)
    assert made.outcome == outcome
    assert made.code in ("", "policy.denied")
    assert reasons is None or made.reasons == reasons


def test_what_a_call_is_to_cedar():
    text = """
        permit(
            principal == Agent::"code-reviewer", action == Action::"open_pr",
            resource == Resource::"repo:payments-api"
        ) when {
            principal in Role::"reviewer" && principal.roles.contains("reviewer") &&
            principal.instance == "q8" && principal.id like "spiffe://acme.example/*" &&
            context.args.branch == "agent/fix" && context.tool.name == "open_pr" &&
            !(context has delegation) && !(context has task_id) && !(context.args has title)
        };
    """
    engine = policy(text)
    assert decision(engine).allowed
    for changes in (
        {"agent": CALL["agent"] | {"name": "other"}},
        {"agent": CALL["agent"] | {"roles": []}},
        {"action": "merge_pr"},
        {"resource": None},
        {"resource": 'repo:x"\n'},
        {"delegation": {"subject": "user:alice"}},
        {"task_id": "t"},
    ):
        assert decision(engine, **changes).outcome == "deny"
    assert decision(policy('permit(principal, action, resource == Resource::"");'), resource=None)


# --- fail closed


def test_a_forbid_that_fails_denies():
    """Cedar itself skips it, and would allow."""
    text = """permit(principal, action, resource);
        @id("closed") forbid(principal, action, resource) when { context.account.closed };"""
    engine = policy(text)
    answer = cedarpy.is_authorized(
        {"principal": 'Agent::"a"', "action": 'Action::"b"', "resource": 'Resource::"c"'}, text, []
    )
    assert answer.allowed
    assert refusal(engine) == "policy.error"
    with pytest.raises(PolicyError, match="the policy closed can't be evaluated"):
        engine.evaluate(canonical.dumps(CALL))
    assert decision(engine, account={"closed": False}).allowed
    assert decision(engine, account={"closed": True}).reasons == ("the policy closed forbids it",)


def test_a_permit_that_fails_denies_whatever_else_permits():
    text = """permit(principal, action, resource);
        permit(principal, action, resource) when { context.n > 1 };"""
    assert refusal(policy(text)) == "policy.error"
    assert refusal(policy(text), n="s3cret") == "policy.error"
    assert decision(policy(text), n=2).allowed


def test_what_the_schema_does_not_know_is_not_decided():
    engine = policy("permit(principal, action, resource);", SCHEMA)
    assert decision(engine).allowed
    assert refusal(engine, action="other") == "policy.undecided"
    assert refusal(engine, args={"branch": 1}) == "policy.undecided"
    assert refusal(engine, args={}) == "policy.undecided"
    assert refusal(engine, more=1) == "policy.undecided"


def test_who_tries_a_policy_is_told_what_cedar_finds():
    text = '@id("big") permit(principal, action, resource) when { context.n > 1 };'
    engine: Explains = policy(text)
    asked = canonical.dumps(CALL | {"n": "s3cret"})
    said = engine.explain(asked, "policy.error")
    assert said is not None
    assert "the policy big" in said
    assert "type error: expected long, got string" in said
    assert engine.explain(canonical.dumps(CALL | {"n": 2}), "policy.denied") is None


@pytest.mark.parametrize(
    "value",
    [
        1.5,
        [None],
        {"__entity": {"type": "Agent", "id": "admin"}},
        {"x": [{"__extn": {"fn": "ip", "arg": "10.0.0.1"}}]},
        {"__expr": "1"},
    ],
)
def test_what_cedar_has_not_or_would_take_for_more_than_data_denies(value):
    engine = policy("permit(principal, action, resource);")
    assert refusal(engine, args={"x": value}) == "policy.error"
    assert decision(engine, args={"x": str(value), "$int": 2**53 - 1, "\u0000": "\U0001f600"})


def test_an_argument_can_not_be_taken_for_the_agent():
    text = "permit(principal, action, resource) when { context.args.owner == principal };"
    engine = policy(text)
    assert decision(engine, args={"owner": "code-reviewer"}).outcome == "deny"
    entity = {"__entity": {"type": "Agent", "id": "code-reviewer"}}
    assert refusal(engine, args={"owner": entity}) == "policy.error"


def test_no_message_quotes_an_argument():
    engine = policy("permit(principal, action, resource) when { context.args.x > 1 };")
    with pytest.raises(PolicyError) as raised:
        engine.evaluate(canonical.dumps({**CALL, "args": {"x": "s3cret"}}))
    assert "s3cret" not in str(raised.value)


def test_a_panic_denies(monkeypatch):
    class PanicException(BaseException):
        pass

    def panic(*_args: object) -> None:
        raise PanicException

    engine = policy(AUTHZ)
    monkeypatch.setattr(cedarpy, "is_authorized", panic)
    assert refusal(engine) == "policy.panic"


# --- what is refused when it is loaded


def test_what_does_not_fit_the_schema_is_named_with_its_file(tmp_path):
    good = "permit(principal, action, resource); " * 2
    bad = '@id("misspelt") permit(principal, action, resource) when { context.brunch == "a" };'
    (tmp_path / "a.cedar").write_text(good)
    (tmp_path / "b.cedar").write_text(good + bad)
    (tmp_path / "schema.cedarschema").write_text(SCHEMA)
    with pytest.raises(PolicyError) as raised:
        CedarEngine.load(tmp_path)
    assert str(raised.value).startswith("b.cedar: the policy misspelt: ")
    (tmp_path / "b.cedar").write_text(good + bad.replace("brunch", "branch"))
    assert CedarEngine.load(tmp_path).warnings == ()


def test_what_is_no_cedar_or_does_not_fit_the_schema_is_refused():
    assert invalid("permit(principal, action,").startswith("policy.cedar: ")
    assert "no policy" in invalid("// nothing")
    assert invalid(AUTHZ, "entity Agent = {").startswith("schema.cedarschema: ")
    misspelt = AUTHZ.replace("principal.type", "principal.tipe")
    assert "tipe" in invalid(misspelt, SCHEMA)
    assert "the policy main" in invalid(
        AUTHZ.replace("context.branch ==", "context.brunch =="), SCHEMA
    )
    assert "brunch" not in str(policy(AUTHZ.replace("branch", "brunch")).warnings)
    assert policy(AUTHZ, SCHEMA).warnings == ()
    assert "no schema" in policy(AUTHZ).warnings[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("permit(principal == ?principal, action, resource);", "template"),
        ('@aproval("x") permit(principal, action, resource);', "@aproval"),
        ('@Approval("x") permit(principal, action, resource);', "@Approval"),
        ('@approval("x") forbid(principal, action, resource);', "on a permit"),
        ('@roles("x") permit(principal, action, resource);', "on a permit"),
        ('@reason("x") permit(principal, action, resource);', "@reason"),
        ('@approval("x") @roles("a,,b") permit(principal, action, resource);', "@roles"),
        ('@approval("x") @roles permit(principal, action, resource);', "@roles"),
        ('@approval("x") @quorum("0") permit(principal, action, resource);', "@quorum"),
        ('@approval("x") @quorum("two") permit(principal, action, resource);', "@quorum"),
        ('@approval("x") @ttl("1.5") permit(principal, action, resource);', "@ttl"),
    ],
)
def test_what_would_mean_something_else_is_refused(text, said):
    assert said in invalid(text)


# --- approvals


def test_a_permit_may_ask_for_an_approval():
    engine = policy(
        """@approval("a merge into main") @approvers("bob, carol") @roles("lead") @quorum("2")
        @ttl("60") permit(principal, action == Action::"merge_pr", resource);
        permit(principal, action == Action::"open_pr", resource);
        @approval permit(principal, action == Action::"trigger_ci", resource);
        @id("frozen") forbid(principal, action, resource) when { context has frozen };"""
    )
    asked = decision(engine, action="merge_pr")
    assert (asked.outcome, asked.code) == ("approval", "approval.required")
    (needed,) = asked.requirements
    assert needed.as_json() == {
        "reason": "a merge into main",
        "approvers": ["bob", "carol"],
        "roles": ["lead"],
        "quorum": 2,
        "ttl": 60,
        "allow_self": False,
    }
    assert decision(engine).allowed
    (plain,) = decision(engine, action="trigger_ci").requirements
    assert plain.reason == "approval required"
    assert decision(engine, action="merge_pr", frozen=True).outcome == "deny"


def test_of_two_permits_the_stricter_counts():
    both = (
        '@approval("x") permit(principal, action, resource); permit(principal, action, resource);'
    )
    assert decision(policy(both)).outcome == "approval"


# --- files, configuration, a guard


def folder(tmp_path: Path, **texts: str) -> Path:
    made = tmp_path / "policies"
    made.mkdir()
    for name, text in texts.items():
        (made / name.replace("_", ".", 1)).write_text(text)
    return made


def test_a_folder_is_its_policies_and_their_schema(tmp_path):
    one, _, two = AUTHZ.partition("\n\n")
    made = folder(
        tmp_path,
        a_cedar=one + " // no line feed",
        b_cedar=two,
        schema_cedarschema=SCHEMA,
        c_txt="x",
    )
    (made / ".hidden.cedar").write_text("permit(principal, action, resource);")
    engine = CedarEngine.load(made)
    assert sorted(engine.policy_files) == ["a.cedar", "b.cedar", "schema.cedarschema"]
    assert engine.policy_sha256 == canonical.digest(dict(engine.policy_files))
    assert decision(engine).allowed
    assert decision(engine, action="trigger_ci").allowed
    assert decision(engine, branch="main", action="merge_pr").reasons[0].startswith("direct")
    (made / "b.cedar").write_text("permit(")
    with pytest.raises(PolicyError, match=r"b\.cedar: "):
        CedarEngine.load(made)
    (made / "b.cedar").write_bytes(b"\xff")
    with pytest.raises(PolicyError, match=r"b\.cedar: not UTF-8"):
        CedarEngine.load(made)
    with pytest.raises(PolicyError, match=r"nothing\.cedar: can't be read"):
        CedarEngine.load(made / "nothing.cedar")


@pytest.mark.parametrize("below", ["more", "more/still"])
def test_a_policy_in_a_folder_below_is_not_passed_over(tmp_path, below):
    made = folder(tmp_path, a_cedar=AUTHZ)
    (made / below).mkdir(parents=True)
    assert decision(CedarEngine.load(made)).allowed
    (made / below / "deny.cedar").write_text("forbid(principal, action, resource);")
    with pytest.raises(PolicyError, match=rf"{below}/deny\.cedar: .* move it up"):
        CedarEngine.load(made)
    (made / below / "deny.cedar").rename(made / below / "deny.txt")
    (made / ".git").mkdir()
    (made / ".git" / "deny.cedar").write_text("forbid(principal, action, resource);")
    assert decision(CedarEngine.load(made)).allowed


def test_the_configuration_names_it(tmp_path):
    made = folder(tmp_path, a_cedar=AUTHZ)
    toml = tmp_path / "agentguard.toml"
    toml.write_text('[policy]\nengine = "cedar"\npath = "policies"\n')
    engine = configured_engine(config.load(toml))
    assert (engine.name, engine.version) == ("cedar", "4.12.2")
    (made / "a.cedar").chmod(0o666)
    with pytest.raises(ConfigError) as raised:
        configured_engine(config.load(toml))
    assert raised.value.code == "config.exposed"


def test_a_guard_decides_by_it(tmp_path):
    made = folder(tmp_path, a_cedar=AUTHZ)
    agents = {"coder": {"type": "code-agent", "authority": "own"}}
    for source in (made, made / "a.cedar"):
        with Guard.ephemeral(source, config={"agents": agents}) as guard:

            @guard.tool(
                attributes={"branch": "branch"},
                facts=lambda _: {"repo": {"visibility": "internal"}},
                gives=["repo"],
            )
            def open_pr(branch: str) -> str:
                return branch

            @guard.tool(attributes={"branch": "branch"})
            def merge_pr(branch: str) -> str:
                return branch

            coder = guard.new_agent("coder")
            assert coder.call(open_pr, "agent/fix") == "agent/fix"
            with pytest.raises(Denied, match="direct merges") as denied:
                coder.call(merge_pr, "main")
            assert denied.value.code == "policy.denied"


def test_many_threads():
    engine = policy(AUTHZ, SCHEMA)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: decision(engine).allowed, range(400)))
    assert answers == [True] * 400


def test_without_the_extra_it_says_what_to_install():
    script = (
        "import sys\nsys.modules['cedarpy'] = None\n"
        "from agentguard.policy.cedar import CedarEngine\n"
        "CedarEngine.from_source('permit(principal, action, resource);')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "pip install '.[cedar]'" in ran.stderr
    assert "ConfigError" in ran.stderr.splitlines()[-1]


def test_the_page_s_policy_and_schema_are_good():
    page = docs_pages.text("reference/policy-document", "how-to/cedar")
    text = page.partition("```cedar\n")[2].partition("```")[0]
    schema = page.partition("```cedarschema\n")[2].partition("```")[0]
    engine = policy(text, schema)
    document = json.loads(page.partition("```json\n")[2].partition("```")[0])

    def outcome(**changes: Any) -> str:
        return decide(engine.evaluate(canonical.dumps(document | changes))).outcome

    assert outcome() == "allow"
    assert outcome(amount=60_000) == "approval"
    assert outcome(amount=0) == "deny"
    assert outcome(account={"closed": True}) == "deny"
    assert outcome(agent=document["agent"] | {"type": "assistant"}) == "deny"
