"""Inputs, imports, unbound variables and loops with which an embedded Rego engine would fail open.

Every refusal here has its twin: the same policy or input, put right, is accepted and gives the
right answer.
"""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest
from rego_policies import ask, folder, policy, refused

from agentguard.errors import PolicyError
from agentguard.policy.rego import RegoEngine, builtin_functions

# --- inputs


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{",
        b"\xff",
        b'{"a": "\xed\xa0\x80"}',
        b'{"a": "\\ud800"}',
        b'{"a": "x\x00"}',
        b'{"a": 1e400}',
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a": ' + b"[" * 100_000,
        b'{"a": NaN}',
        b'{"a": 1} trailing',
    ],
    ids=lambda document: document[:12].hex() or "empty",
)
def test_a_hostile_input_is_an_error_and_the_engine_goes_on(document):
    engine = policy('allow := true\ndeny_reason := "d" if input.a != "fine"')

    with pytest.raises(PolicyError) as failure:
        engine.evaluate(document)
    assert failure.value.code == "policy.error"
    assert ask(engine, a="fine") == {"allow": True}


def test_a_nul_byte_and_astral_characters_reach_the_rules_unharmed():
    engine = policy('deny_reason := "exact" if input.a == "x\\u0000y🦀"')

    assert ask(engine, a="x\0y🦀") == {"deny_reason": "exact"}
    assert ask(engine, a="x") == {}


def test_an_input_as_deep_as_the_guard_admits_is_evaluated_on_a_small_stack():
    engine = policy("n := count([1 | walk(input, [_, _])])")
    value: object = 1
    for _ in range(62):
        value = [value]
    answers: list[dict] = []
    previous = threading.stack_size(512 * 1024)
    try:
        thread = threading.Thread(target=lambda: answers.append(ask(engine, a=value)))
        thread.start()
        thread.join()
    finally:
        threading.stack_size(previous)

    assert answers == [{"n": 64}]


def test_a_panic_of_the_native_code_denies_and_the_next_call_gets_a_fresh_engine(
    capfd, monkeypatch
):
    text = 'allow if strings.count("abc", input.needle) == 1'
    refused(text, "strings.count panics on an empty text")  # as does all that is known to
    monkeypatch.delitem(builtin_functions.REFUSED, "strings.count")
    monkeypatch.setattr(
        builtin_functions, "COMPARED", builtin_functions.COMPARED | {"strings.count"}
    )
    engine = policy(text)

    with pytest.raises(PolicyError, match="panicked") as failure:
        ask(engine, needle="")
    assert failure.value.code == "policy.panic"
    assert not isinstance(failure.value.__cause__, Exception)
    assert ask(engine, needle="b") == {"allow": True}
    capfd.readouterr()  # Rust's own report


def test_an_interrupt_passes_through_and_leaves_no_engine_behind(monkeypatch):
    from agentguard.policy.rego import engine as rego  # noqa: PLC0415

    engine = policy("x := input.n  # interrupted")
    ask(engine, n=1)
    kept = rego._engines.by_policy

    class Interrupted:
        def set_input_json(self, document):
            raise KeyboardInterrupt

    monkeypatch.setitem(kept, engine.policy_sha256, Interrupted())
    with pytest.raises(KeyboardInterrupt):
        ask(engine, n=2)
    assert engine.policy_sha256 not in kept
    assert ask(engine, n=3) == {"x": 3}


@pytest.mark.parametrize("user", ["mallory", "bob"])
def test_a_call_that_a_signal_handler_makes_leaves_the_interrupted_one_its_input(user):
    """It comes between the input and the query, on the same thread."""
    from agentguard.policy.rego import engine as rego  # noqa: PLC0415

    engine = policy('allow if input.user in {"alice", "bob"}  # in a handler')
    assert ask(engine, user="alice") == {"allow": True}
    kept: Any = rego._engines.by_policy
    within: list[object] = []

    class Interrupted:
        def __init__(self, native):
            self.native = native
            self.eval_query_as_json = native.eval_query_as_json

        def set_input_json(self, document):
            self.native.set_input_json(document)
            if not within:
                within.append(None)
                within.append(ask(engine, user="alice"))

    kept[engine.policy_sha256] = Interrupted(kept[engine.policy_sha256])
    assert ask(engine, user=user) == ({"allow": True} if user == "bob" else {})
    assert within == [None, {"allow": True}]
    assert ask(engine, user="mallory") == {}


@pytest.mark.parametrize(
    "body",
    [
        "x := 1 + input.secret",
        'x := semver.compare("1.0.0", input.secret)',
        "x := sum({1: input.secret, 2: 1})",
        'x := {k: v | some k in ["a"]; some v in [input.secret, 1]}',
    ],
)
def test_an_error_does_not_repeat_an_argument(body):
    engine = policy(body + " if input.secret")

    with pytest.raises(PolicyError, match="evaluation failed") as failure:
        ask(engine, secret="hunter2")
    assert "hunter2" not in str(failure.value)


@pytest.mark.parametrize(
    "rules",
    [
        'allow if { {"a": y} := input.x; y == 1 }',
        'allow if { [{"a": y}] := [input.x]; y == 1 }',
        'allow if { {"b": {"a": y}} := {"b": input.x}; y == 1 }',
        'allow if { some {"a": y} in [input.x]; y == 1 }',
        'allow if { [y | {"a": y} := input.x][0] == 1 }',
        'allow if f(input.x)\nf({"a": y}) if y == 1',
        'allow if f(input.x)\nf({"a": 1}) := true',
        'allow if { [{"a": 1}, y] := [input.x, 1]; y == 1 }',
        'allow if { [[{"a": y}], _] := [[input.x], 1]; y == 1 }',
        'allow if { some {"a": 1} in [input.x] }',
        'allow if { some [{"a": 1}] in [[input.x]] }',
        'allow if { some {"a": 1}, _ in {input.x: 1} }',
        'allow if seen[[{"a": 1}, _]]\nseen contains [input.x, 1]',
    ],
)
def test_an_object_as_a_pattern_is_refused(rules):
    """The engine would take ``{"a": 1, "b": 2}`` for it, which Rego does not."""
    with pytest.raises(
        PolicyError, match=r"policy\.rego:\d+:\d+: an object as a pattern also matches"
    ):
        policy(rules)


@pytest.mark.parametrize(
    "rule",
    [
        'allow if { {"a": 1} == input.x }',
        'allow if { y := 1; {"a": y} == input.x }',
        'allow if { x := input.x; x == {"a": 1} }',
        'allow if { {"a": 1} in [input.x] }',
        'allow if { [{"a": 1}] == [input.x] }',
        'allow if { [{"a": 1}] in [[input.x]] }',
        'allow if { [y, _] := [input.x, 1]; y == {"a": 1} }',
        'allow if { some [y] in [[input.x]]; y == {"a": 1} }',
        'allow if seen[{"a": 1}]\nseen contains input.x',
        'allow if { [[y]] := [[1 | input.x.a == 1; object.keys(input.x) == {"a"}]]; y == 1 }',
    ],
)
def test_what_compares_whole_objects_is_exact(rule):
    engine = policy(rule)
    assert ask(engine, x={"a": 1})["allow"]
    assert "allow" not in ask(engine, x={"a": 1, "b": 2})


@pytest.mark.parametrize(
    "rule",
    [
        'allow if { x := {"a": input.y}; x.a == 1 }',
        'allow if { some x in [{"a": y} | y := input.y]; x.a == 1 }',
        "allow if { some [y] in [[input.y]]; y == 1 }",
        "allow if f([input.y])\nf([y]) if y == 1",
        'allow if f({"a": input.y})\nf(x) if x.a == 1',
    ],
)
def test_an_object_that_is_made_is_no_pattern(rule):
    assert ask(policy(rule), y=1)["allow"]
    assert "allow" not in ask(policy(rule), y=2)


# --- imports: one table for each package of the engine


def test_files_of_different_packages_have_their_own_imports(tmp_path):
    engine = folder(
        tmp_path,
        a="package agent.authz\nimport input.args as a\nimport data.lib\nallow if a.x\n"
        'deny_reasons contains "z" if lib.z\n',
        d="package lib\nimport input.more as a\nz if a.z\n",
    )
    assert ask(engine, args={"x": 1, "z": 1}, more={}) == {"allow": True, "deny_reasons": []}
    assert ask(engine, args={}, more={"x": 1, "z": 1}) == {"deny_reasons": ["z"]}


@pytest.mark.parametrize(
    "rule", ["off := 1", 'deny_reasons contains "x" if { some off; input.args[off] == 1 }']
)
def test_an_import_that_its_own_file_hides_is_refused(rule):
    text = "import input.flags.off\nallow if off\n"

    refused(text + rule, r"policy\.rego:4:\d+: off is also the import at policy\.rego:2:1")
    renamed = text.replace("off\n", "off as gone\n", 1).replace("if off", "if gone")
    assert ask(policy(renamed + rule), flags={"off": True})["allow"]


@pytest.mark.parametrize("name", ["input", "data"])
def test_an_import_named_as_a_root_is_refused(tmp_path, name):
    text = "package agent.authz\nimport data.lib as {}\nallow if {}.q\n"
    lib = "package lib\nq if input.w\n"

    with pytest.raises(PolicyError, match=rf"a\.rego:2:1: an import can't have the name {name}"):
        folder(tmp_path, a=text.format(name, name), b=lib)
    assert ask(folder(tmp_path, a=text.format("lib", "lib"), b=lib), w=True) == {"allow": True}


@pytest.mark.parametrize(
    ("rules", "name"),
    [
        ("allow if same(input.x, input.y)\nsame(x, x) := true", "x"),
        ("allow if same([input.x], input.y)\nsame([x], x) := true", "x"),
        ("allow if { some k, k in [input.y]; input.x == 0 }", "k"),
        ("allow if { some k, [k, _] in [[input.y, 1]]; input.x == 0 }", "k"),
        ("allow if { every k, k in [input.y] { k == input.x } }", "k"),
    ],
)
def test_a_name_that_stands_for_two_values_is_refused(rules, name):
    """Named apart, they are compared."""
    refused(rules, rf"policy\.rego:\d:\d+: {name} is written twice, .* use two names")
    engine = policy(
        "allow if { same(input.x, input.y); some k, v in [input.y]; k == v }\n"
        "same(x, y) if x == y\nany_two(_, _) := true\n"
        "deny_reason := 1 if { not any_two(1, 2); some _, _ in [1] }\n"
    )
    assert ask(engine, x=0, y=0) == {"allow": True}
    assert ask(engine, x=0, y=1) == {}


def test_rules_that_read_each_other_are_followed_once():
    """By each of two definitions the way doubles: without an end, if each were gone."""
    steps = "".join(
        f"v{n} := v{n - 1} if input.a == 1\nv{n} := v{n - 1} if input.a == 2\n"
        for n in range(1, 41)
    )
    (warning,) = policy(f"v0 := input.args.n\n{steps}allow if v40 < 5").warnings
    assert "input.args.n is compared by order" in warning


# --- variables that no condition binds


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        ("allow if not input.args.steps[j].bad", "j"),
        ("allow if { some i; input.args.steps[i].ok; not input.args.steps[j].bad }", "j"),
        ('allow if not input.args.tags[_] == "public"', "_"),
        ("allow if { some j; not input.args.steps[j].bad }", "j"),
        ("allow if count([1 | not input.args.steps[j].bad]) == 0", "j"),
        ("allow if { every x in input.args.xs { x == 1; not input.args.steps[j].bad } }", "j"),
        ("allow if { not f(j); [j | some j in [1]] }\nf(x) if x == 1", "j"),
        ("allow := [1 | not input.args.steps[j].bad] if input.action", "j"),
    ],
)
def test_a_negation_of_what_nothing_binds_is_refused(rule, name):
    """It is unsafe to OPA; embedded an allow by it holds, whatever the elements are."""
    refused(rule, rf":2:\d+: {name} has no value in this `not`, which an OPA server refuses")


@pytest.mark.parametrize(
    "rule",
    [
        "allow := input.action if { not true }",
        "allow if { not (true) }",
        "allow if count([input.action | not true]) == 1",
    ],
)
def test_a_negation_of_true_is_refused(rule):
    """An OPA server gives the first rule its value."""
    refused(rule, r":2:\d+: `not true` never holds, and an OPA server may give the rule its value")
    policy(rule.replace("true", "false"))
    policy(rule.replace("true", "closed") + "\nclosed if input.args.x")


@pytest.mark.parametrize(
    "rule",
    [
        "allow if { some step in input.args.steps; not step.bad }",
        "allow if { input.args.steps[j].ok; not input.args.steps[j].bad }",
        "allow if { every x in input.args.xs { not x.bad } }",
        "allow if { some i in [1]; count([1 | not input.args.xs[i]]) == 0 }",
        "allow if { some i in [1]; every x in input.args.xs { not x[i] == 1 } }",
        "f(x) if not x.bad\nallow if f(input.args)",
        "allow := [1 | not x.bad] if { x := input.args }",
        "allow if not closed\nclosed if input.args.x",
        "allow if { walk(input.args, [_, x]); not x.bad }",
    ],
)
def test_a_negation_of_what_is_bound_is_taken(rule):
    policy(rule)


@pytest.mark.parametrize("call", ["f(1)", "f(1, 2, 3)", "not f(1)", "data.agent.authz.f(1)"])
def test_a_call_with_another_number_of_arguments_is_refused(call):
    refused(
        f"f(a, b) if a == b\nallow if {call}", r":3:\d+: .*f takes 2 arguments, and this call has"
    )
    policy("f(a, b) if a == b\nallow if f(1, 2)")


# --- arguments that are gone through, and may be no lists


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        ('deny_reasons contains "x" if { some r in input.args.cc; r == "x" }', "input.args.cc"),
        ("allow if { every r in input.args.cc { r == 1 } }", "input.args.cc"),
        ("allow if count([r | some r in input.cc]) == 0", "input.cc"),
        ("allow if { some k, v in input.args; k == v }", "input.args"),
        ("allow if { some r in cc; is_array(input.args.to); r == 1 }", "input.args.cc"),
    ],
)
def test_a_loop_over_an_argument_of_any_type_is_warned_of(rule, name):
    text = f"package agent.authz\nimport input.args.cc\n{rule}\nwith_cc if cc\n"
    (warning,) = RegoEngine.from_source(text).warnings
    assert re.match(rf"policy\.rego:3:\d+: where {re.escape(name)} is not a list, the", warning)


@pytest.mark.parametrize(
    "rule",
    [
        'deny_reasons contains "x" if { is_array(input.args.cc); some r in input.args.cc; r == 1 }',
        "allow if { some r in input.agent.roles; r == 1 }",
        "allow if { some r in listed; r == 1 }\nlisted contains 1",
        "allow if { x := input.args.cc; some r in x; r == 1 }",
    ],
)
def test_a_loop_over_a_list_is_not(rule):
    assert policy(rule).warnings == ()


# --- an output without a value, though its conditions hold


@pytest.mark.parametrize(
    ("rule", "missing"),
    [
        (
            'deny_reasons contains sprintf("%v", [input.args.account]) if input.closed',
            "input.args.account",
        ),
        ("deny_reason := input.args.why if input.closed", "input.args.why"),
        ("deny_reason := 1 if input.none else := input.args.why if input.closed", "input.args.why"),
        ('approval := {"roles": [roles[input.args.kind]]} if input.args.kind', "roles[...]"),
        ('obligations contains {"redact": input.args.path}', "input.args.path"),
        ("deny_reasons contains said(input.closed) if input.closed", "said"),
        ("deny_reason := why if input.closed", "why"),
    ],
)
def test_an_output_that_may_say_nothing_though_its_rule_holds_is_warned_of(rule, missing):
    rest = 'roles := {"a": "lead"}\nsaid(x) := x.text\nwhy := input.args.why\nallow if input.ok\n'

    (warning,) = policy(f"{rule}\n{rest}").warnings
    assert re.match(rf"policy\.rego:2:\d+: where {re.escape(missing)} is missing, ", warning)


@pytest.mark.parametrize(
    "rule",
    [
        'deny_reasons contains "closed" if input.closed',
        "deny_reason := input.agent.name if input.closed",
        "deny_reasons contains why if { why := input.args.why }",
        "deny_reason := input.args.why if is_string(input.args.why)",
        'deny_reason := object.get(input.args, "why", "closed") if input.closed',
        "allow := input.args.ok",
        "limit := input.args.limit",
    ],
)
def test_an_output_that_says_what_is_there_is_not(rule):
    assert policy(f"{rule}\nallow if input.ok").warnings == ()
