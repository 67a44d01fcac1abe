"""A policy that reads a name which no input has: refused at load, or before the first call.

The cases are the rows of ``agentguard.call.vocabulary``, each in every form in which a policy can
read it. A rule over a misspelt name would never fire, and a denial would not deny.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from input_members import input_members

from agentguard import Decision, Denied, Guard, PolicyError
from agentguard.call import vocabulary
from agentguard.call.vocabulary import Path
from agentguard.policy.cedar import CedarEngine
from agentguard.policy.function import FunctionEngine, StrictMembers, UnknownNameError
from agentguard.policy.names import Names
from agentguard.policy.rego import RegoEngine

MEMBERS = [path for path, _member in input_members() if len(path) > 1]
"""The members whose names are fixed below an object of the input."""

FORMS: dict[str, Callable[[str, str, int], str]] = {
    "dots": lambda around, name, at: f"r{at} if input.{around}.{name} == 1",
    "brackets": lambda around, name, at: f'r{at} if input["{around}"]["{name}"] == 1'.replace(
        ".", '"]["'
    ),
    "a variable": lambda around, name, at: f"r{at} if {{ v := input.{around}; v.{name} == 1 }}",
    "a rule": lambda around, name, at: f"v{at} := input.{around}\nr{at} if v{at}.{name} == 1",
    "a function": lambda around, name, at: (
        f"f{at}(v) := w if {{ w := v.{name} }}\nr{at} if f{at}(input.{around}) == 1"
    ),
    "object.get": lambda around, name, at: (
        f'r{at} if {{ is_object(input.{around}); object.get(input.{around}, "{name}", 0) == 1 }}'
    ),
    "object.get with a path": lambda around, name, at: (
        f"r{at} if object.get(input, {json.dumps([*around.split('.'), name])}, 0) == 1"
    ),
    "a loop": lambda around, name, at: (
        f"r{at} if {{ is_array(input.{around}.{name}); some x in input.{around}.{name}; x == 1 }}"
    ),
    "a function's result": lambda around, name, at: (
        f"f{at}(v) := v.{around}\nr{at} if f{at}(input).{name} == 1"
    ),
    "an array": lambda around, name, at: f"r{at} if [input.{around}][_].{name} == 1",
    "an object": lambda around, name, at: f'r{at} if {{"a": input.{around}}}.a.{name} == 1',
    "an object in a variable": lambda around, name, at: (
        f'r{at} if {{ v := {{"a": [input.{around}]}}; some w in v.a; w.{name} == 1 }}'
    ),
    "a set": lambda around, name, at: (
        f"s{at} contains input.{around}\nr{at} if {{ some v in s{at}; v.{name} == 1 }}"
    ),
    "a default": lambda around, name, at: (
        f"r{at} if object.get(input, {json.dumps(around.split('.'))}, {{}}).{name} == 1"
    ),
    "another object": lambda around, name, at: (
        f'default v{at} := {{"none": true}}\nv{at} := input.{around} if input.{around}\n'
        f"r{at} if v{at}.{name} == 1"
    ),
    "a negation": lambda around, name, at: f"r{at} if not input.{around}.{name}",
}
"""The rules that read a member, by the form in which they do."""


def rules(form: str, spell: Callable[[str], str]) -> Iterator[str]:
    for at, (*around, name) in enumerate(MEMBERS):
        yield FORMS[form](".".join(around), spell(name), at)
    calls = "\n".join(f"allow if r{at}" for at in range(len(MEMBERS)))
    yield calls


def rego(text: str) -> RegoEngine:
    return RegoEngine.from_source(f"package agent.authz\n{text}")


@pytest.mark.parametrize("form", FORMS)
def test_rego_that_reads_a_misspelt_member_is_refused_at_load(form):
    with pytest.raises(PolicyError) as refused:
        rego("\n".join(rules(form, lambda name: f"{name}x")))
    assert refused.value.code == "policy.invalid"
    for *around, name in MEMBERS:
        said = rf"policy.rego:\d+:\d+: no input has input.{'.'.join(around)}.{name}x"
        meant = rf"{said}; did you mean input.{'.'.join(around)}.{name}\?"
        assert re.search(meant, str(refused.value)), said
    rego("\n".join(rules(form, str)))  # the twin


@pytest.mark.parametrize(
    "text",
    [
        "import input.delegation\nallow if delegation.user",
        "import input.delegation as who\nallow if who.user",
        "import input as call\nallow if call.delegation.user",
        "allow if { some x in [1]; input.args[x] == input.delegation.user }",
        "allow if count([1 | input.delegation.user]) > 0",
        "allow if { every x in [1] { input.delegation.user == x } }",
        "allow if input.args.x\nelse := true if input.delegation.user",
        'deny_reasons contains sprintf("%s", [input.delegation.user])',
        'approval := {"reason": input.delegation.user}',
    ],
)
def test_so_is_it_through_an_import_and_anywhere_in_a_rule(text):
    with pytest.raises(PolicyError, match=r"did you mean input\.delegation\.subject\?"):
        rego(text)
    rego(text.replace(".user", ".subject"))


@pytest.mark.parametrize(
    "text",
    [
        "allow if { v := input.delegation; v.subject }\nelse if { v := input.args; v.amount }",
        "r if [1 | v := input.delegation; v.subject] == [1 | v := input.args; v.amount]",
        "allow if { count({v.amount | v := input.args}) > 0; v := input.delegation; v.subject }",
        "allow if { every v in input.args.all { v.amount > 1 }; v := input.delegation; v.subject }",
        "allow if { v := input.args; v.amount; count({1 | v := input.delegation; v.subject}) > 0 }",
        "r := v.subject if { v := input.delegation } else := v.amount if { v := input.args }",
    ],
)
def test_a_variable_has_the_meaning_of_its_own_body(text):
    rego(text)
    with pytest.raises(PolicyError, match=r"did you mean input\.delegation\.subject\?"):
        rego(text.replace(".subject", ".user"))


@pytest.mark.parametrize(
    "text",
    [
        'm[k] := input.delegation if some k in ["x"]\nallow if m.x.subject',
        "f([a, b]) if a.x == b\nallow if f(input.delegation.chain)",
    ],
)
def test_a_member_of_what_a_rule_gathers_is_no_member_of_the_input(text):
    rego(text)


MIXED = {
    "else": 'who := input.delegation if input.delegation != null else := {"MISSING": "none"}',
    "default": 'default who := {"MISSING": "none"}\nwho := input.delegation if input.delegation',
    "object.get": 'who := object.get(input, "delegation", {"MISSING": "none"})',
    "a function": (
        'or_none(d) := d if is_object(d) else := {"MISSING": "none"}\n'
        "who := or_none(input.delegation)"
    ),
    "two definitions": (
        'w.who := input.delegation if input.delegation\nw.who := {"MISSING": "none"} if '
        "not input.delegation\nwho := w.who"
    ),
    "a fact": "who := input.delegation if input.delegation else := input.person",
    "an argument": "who := input.delegation if input.delegation else := input.args.person",
    "what is not followed": (
        'who := object.union(input.delegation, {"kind": "a"}) if is_object(input.delegation)'
    ),
}
"""A value that may be the delegation, and may be another object with a member of its own."""


@pytest.mark.parametrize("form", MIXED)
def test_a_member_of_what_may_also_be_another_object_is_no_slip(form):
    text = MIXED[form].replace("MISSING", "kind")
    rego(f'{text}\nallow if who.kind == "none"\nallow if who.subject == "user:a"')


@pytest.mark.parametrize("form", ["else", "default", "object.get", "a function"])
def test_it_is_one_where_the_other_object_lacks_it_as_well(form):
    with pytest.raises(PolicyError, match=r"no input has input\.delegation\.kind"):
        rego(f'{MIXED[form].replace("MISSING", "other")}\nallow if who.kind == "none"')


@pytest.mark.parametrize(
    "text",
    [
        (
            'label(x) := object.get(x, "name", "-") if is_object(x)\n'
            "allow if { label(input.agent); label(WHAT) }"
        ),
        "named(x) if x.name\nnamed(x) if x.subject\nallow if { named(input.agent); named(WHAT) }",
        "f(x) := g(x)\ng(x) := x.name\nallow if { f(input.agent); f(WHAT) }",
        "allow if { some x in [input.agent, WHAT]; x.name }",
        "allow if { who.name }\nwho := input.agent if input.args.x\nwho := WHAT if input.args.y",
        (
            'f("a", x) if x.name\nf("d", x) if x.subject\n'
            'allow if { f("a", input.agent); f("d", WHAT) }'
        ),
    ],
)
def test_a_helper_for_two_objects_may_read_what_one_of_them_has(text):
    rego(text.replace("WHAT", "input.delegation"))
    with pytest.raises(PolicyError, match=r"no input has input\.(agent|tool)\.nam"):
        rego(text.replace("WHAT", "input.tool").replace("name", "namx"))


def test_what_is_read_of_a_value_without_members_is_refused():
    with pytest.raises(PolicyError, match=r"input\.agent\.name is a value without members"):
        rego("allow if input.agent.name.first")
    rego("allow if input.agent.roles[0]")
    rego("allow if input.args.name.first")


@pytest.mark.parametrize("name", sorted(vocabulary.UNUSED))
def test_a_name_that_nothing_has_at_the_top_is_refused(name):
    with pytest.raises(PolicyError, match=rf"no input has input\.{name}; did you mean input\."):
        rego(f"allow if input.{name}")


def cedar(spell: Callable[[str], str]) -> CedarEngine:
    conditions = []
    for root, *path in MEMBERS:
        *around, name = path
        where = "principal" if root == "agent" else f"context.{root}"
        where = ".".join((where, *around))
        conditions += [f"{where}.{spell(name)} == 1", f"{where} has {spell(name)}"]
    return CedarEngine.from_source(
        f"permit(principal, action, resource) when {{ {' && '.join(conditions)} }};"
    )


def test_cedar_that_reads_a_misspelt_member_is_refused_at_load():
    with pytest.raises(PolicyError) as refused:
        cedar(lambda name: f"{name}x")
    for *around, name in MEMBERS:
        where = ".".join(around)
        root = where.replace("agent", "principal", 1) if around[0] == "agent" else None
        assert f"did you mean {root or f'context.{where}'}.{name}?" in str(refused.value)
    cedar(str)


@pytest.mark.parametrize(
    ("policy", "meant"),
    [
        ("permit(principal, action, resource) when { context has principal };", "delegation"),
        ('permit(principal, action, resource) when { context.agent.name == "a" };', "principal"),
        ('permit(principal, action, resource) when { resource.name == "a" };', "without members"),
        ('permit(principal in Rol::"a", action, resource);', "Agent, Role, Action, Resource"),
        ("permit(principal is Agnt, action, resource);", "Agent, Role, Action, Resource"),
        (
            'permit(principal, action, resource) when { principal in Rol::"a" };',
            "Agent, Role, Action, Resource",
        ),
    ],
)
def test_cedar_that_names_what_no_request_has_is_refused(policy, meant):
    with pytest.raises(PolicyError, match=meant):
        CedarEngine.from_source(policy)


@pytest.mark.parametrize("root", ["principal", "context.delegation", "context.tool"])
@pytest.mark.parametrize("method", ["hasTag", "getTag"])
def test_a_tag_in_cedar_is_refused_since_no_request_has_tags(root, method):
    held = f'{root}.{method}("user")' + (' == "x"' if method == "getTag" else "")
    with pytest.raises(PolicyError, match=f"no input has {root}.user") as refused:
        CedarEngine.from_source(f"forbid(principal, action, resource) when {{ {held} }};")
    assert f"{method}: nothing in a request has tags; write has" in str(refused.value)
    for name in ("name", "subject"):  # the twin is `has`
        if (root == "principal") == (name == "name") and root != "context.tool":
            CedarEngine.from_source(
                f"forbid(principal, action, resource) when {{ {root} has {name} }};"
            )


def test_a_role_and_an_attribute_of_a_tool_are_no_slips_in_cedar():
    CedarEngine.from_source(
        'permit(principal in Role::"a", action, resource == Resource::"r") '
        "when { context.order.paid };"
    )


# --- a Python function ----------------------------------------------------------------------------


def given(path: Path) -> Any:
    """Return an object of the input, with all its members."""
    whole: dict[str, Any] = {}
    for one, member in input_members():
        inner = whole
        for name in one[:-1]:
            inner = inner[name]
        inner[one[-1]] = {} if member.kind in ("object", "free") else "x"
    value: Any = StrictMembers(whole)
    for name in path:
        value = value[name]
    return value


@pytest.mark.parametrize("path", MEMBERS, ids=".".join)
def test_a_function_that_reads_a_misspelt_member_raises(path):
    *around, name = path
    inner = given(tuple(around))
    assert inner[name] == inner.get(name)
    assert name in inner
    del inner[name]  # one that this input lacks
    assert inner.get(name, 7) == 7
    with pytest.raises(KeyError):
        inner[name]
    misspelt = f"{name}x"
    assert misspelt not in inner
    for read in (inner.get, inner.pop, inner.setdefault, inner.__getitem__):
        with pytest.raises(UnknownNameError, match=f"did you mean .*{name}"):
            read(misspelt)


COPIES: dict[str, Callable[[Any], Any]] = {
    "a copy": lambda members: members.copy(),
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "or": lambda members: members | {},
    "or from the right": lambda members: {"kind": 1} | members,
}


@pytest.mark.parametrize("form", COPIES)
def test_a_copy_of_the_input_is_as_strict(form):
    copied = COPIES[form](given(()))
    for members in (copied["delegation"], COPIES[form](given(("delegation",)))):
        assert members.get("subject") == "x"
        assert dict(members).items() >= dict(given(("delegation",))).items()
        with pytest.raises(UnknownNameError, match=r"did you mean input\.delegation\.subject"):
            members.get("user")


@pytest.mark.parametrize("name", [member.name for member in vocabulary.INPUT])
def test_a_name_at_the_top_that_looks_like_the_guards_own_raises(name):
    whole = given(())
    assert whole.get(name) is not None
    misspelt = name[:-2] + name[-1] if len(name) > 6 else f"{name}{name[-1]}"
    for read in (whole.get, whole.pop, whole.setdefault, whole.__getitem__):
        with pytest.raises(UnknownNameError, match=rf"did you mean input\.{name}\?"):
            read(misspelt)
    assert whole.get("branch") is None


def test_such_a_call_is_denied_and_the_log_names_the_slip(caplog, ran):
    def policy(call: Any) -> Decision:
        return Decision.allow() if call["agent"].get("typ") == "x" else Decision.deny("no")

    with Guard.ephemeral(policy) as guard, pytest.raises(Denied) as denied:
        guard.new_agent("a").call(guard.tool(name="note")(ran.append), "x")
    assert denied.value.code == "policy.error"
    assert "reads a name that no input has; the program's log names it" in denied.value.reason
    assert "did you mean input.agent.type?" in caplog.text
    assert ran == []


def test_attributes_facts_and_arguments_are_a_plain_dictionary():
    seen = []

    def policy(call: Any) -> Decision:
        seen.append((call["args"].get("x"), call.get("branch"), call["repo"].get("y")))
        return Decision.allow()

    FunctionEngine(policy).evaluate(b'{"args": {}, "repo": {}}')
    assert seen == [(None, None, None)]


# --- attributes and facts -------------------------------------------------------------------------

READS = 'allow if input.action == "pay"\ndeny_reasons contains "no" if input.payeee == "mallory"\n'


@pytest.fixture
def written(tmp_path):
    """Write a policy in Rego and return its path."""

    def write(text):
        path = tmp_path / "authz.rego"
        path.write_text(f"package agent.authz\n{text}")
        return path

    return write


def pay(payee):
    return payee


def test_one_look_up_does_not_silence_a_slip_in_another_name(written):
    with Guard.ephemeral(written(READS)) as guard:
        tool = guard.tool(facts=lambda _call: {"payee": "bob"}, gives=["payee"])(pay)
        agent = guard.new_agent("a")
        with pytest.raises(Denied) as denied:
            agent.call(tool, "bob")
    assert denied.value.code == "policy.invalid"
    assert "authz.rego:3:31: no tool gives input.payeee" in denied.value.reason
    assert "did you mean input.payee?" in denied.value.reason


@pytest.mark.parametrize("how", ["attribute", "fact", "configuration", "configured fact"])
def test_a_name_that_a_tool_gives_is_no_slip(written, how):
    tables: dict[str, dict[str, Any]] = {
        "configuration": {"attributes": {"payee": "payee"}},
        "configured fact": {"facts": {"look_up": f"{__name__}:payee_of", "gives": ["payee"]}},
    }
    config = {"tools": {"pay": tables[how]}} if how in tables else None
    policy = written(READS.replace("payeee", "payee"))
    with Guard.ephemeral(policy, config=config) as guard:
        agent = guard.new_agent("a")
        given: dict[str, Any] = {}
        if how == "attribute":
            given = {"attributes": {"payee": "payee"}}
        elif how == "fact":
            given = {"facts": payee_of, "gives": ["payee"]}
        tool = guard.tool(**given)(pay)
        assert agent.call(tool, "bob") == "bob"
        with pytest.raises(Denied) as denied:
            agent.call(tool, "mallory")
    assert denied.value.code == "policy.denied"


def payee_of(call: Any) -> dict[str, Any]:
    return {"payee": call["payee"]}


def test_a_tool_that_comes_later_ends_the_refusal(written):
    with Guard.ephemeral(written(READS.replace("payeee", "payee"))) as guard:
        agent, plain = guard.new_agent("a"), guard.tool(name="pay")(pay)
        with pytest.raises(Denied, match=r"no tool gives input\.payee"):
            agent.call(plain, "bob")
        guard.tool(name="refund", attributes={"payee": "payee"})(pay)
        assert agent.call(plain, "bob") == "bob"


def test_a_path_that_has_no_folder_is_a_slip(written, tmp_path):
    text = 'allow if startswith(input.paths.file, "a")\n'
    for argument, code in (("path", "policy.invalid"), ("file", "policy.denied")):
        config = {"paths": {argument: str(tmp_path)}}
        with Guard.ephemeral(written(text), config=config) as guard:
            tool = guard.tool(name="read")(lambda file: file)
            with pytest.raises(Denied) as denied:
                guard.new_agent("a").call(tool, "x")
        assert denied.value.code == code


def test_what_nobody_gives_is_found_in_cedar_as_well():
    engine = CedarEngine.from_source(
        'permit(principal, action, resource) unless { context.payeee == "mallory" };'
    )
    (said,) = Names(engine, [("payee",)]).unknown.values()
    assert "policy.cedar: the policy policy0: no tool gives input.payeee; did you mean" in said
    assert Names(engine, [("payeee",)]).unknown == {}


# --- what a policy returns ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "meant"),
    [
        ('approval := {"role": ["lead"]} if input.args.x', "approval has no member role; did you"),
        ('approval contains {"rols": ["lead"]} if input.args.x', "did you mean roles?"),
        ('approval := [{"roles": []}, {"quorom": 2}] if input.args.x', "did you mean quorum?"),
        (
            'approval := {"roles": []} if { input.args.x } else := {"role": []}',
            "did you mean roles?",
        ),
        ('obligations contains {"redacts": "/args/x"}', "did you mean redact?"),
        ('deny_reson := "no" if input.args.x', "did you mean deny_reason?"),
        ('deny_reasns contains "no" if input.args.x', "did you mean deny_reasons?"),
        ("aproval := true if input.args.x", "did you mean approval?"),
        ('obligatons contains {"redact": "/args/x"}', "did you mean obligations?"),
    ],
)
def test_a_slip_in_what_rego_answers_is_refused_at_load(rule, meant):
    with pytest.raises(PolicyError) as refused:
        rego(f"allow if input.args.x\n{rule}")
    assert refused.value.code == "policy.invalid"
    assert meant in str(refused.value)
