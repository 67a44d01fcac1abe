"""Rego policies that deny nothing, never end or kill the process: the gate refuses each at load.

Every refusal here has its twin: the same policy, put right, is accepted and gives the right answer.
"""

from __future__ import annotations

import sys

import pytest
from rego_policies import ask, folder, policy, refused

from agentguard.errors import PolicyError
from agentguard.policy.document import decide

# --- a deny rule that can not fire


def test_a_misspelt_builtin_in_a_deny_rule_is_refused_at_load():
    rule = 'deny_reason := "another net" if {{ net := input.net; not {}(net, "10.") }}'

    refused(rule.format("startswth"), r"policy\.rego:2:\d+: .*did you mean startswith\?")
    engine = policy(rule.format("startswith"))
    assert ask(engine, net="192.168.2.3") == {"deny_reason": "another net"}
    assert ask(engine, net="10.1.2.0/24") == {}


def test_no_builtin_that_is_refused_is_advised():
    refused("x := net.cidr_expan(input.ip)", "no function net.cidr_expan; define it, or correct")


@pytest.mark.parametrize(
    "call",
    [
        "http.send({})",
        'http["send"]({})',
        "data.http.send({})",
        'io.jwt.decode_verify("", {})',
        'io.jwt.verify_eddsa("", "")',
        'crypto.sha256("x")',
        'graphql.is_valid("", "")',
        'net.cidr_merge(["10.0.0.0/8"])',
        "internal.member_2(1, [1])",
        "input.f(1)",
        "data.agent.authz.g(1)",
        "data.agent[input.x].f(1)",
        "input.functions[0](1)",
        "print(1)",
        "x(1)",
        "F(1)",
    ],
)
@pytest.mark.parametrize("form", ["{}", "not {}", "x := {}", "count([1 | {}]) == 0", "f({})"])
def test_a_call_of_what_the_engine_lacks_is_refused_wherever_it_stands(call, form):
    body = f'f(v) := v\ndeny_reason := "d" if {{ input.never; {form.format(call)} }}'

    refused(body, r"policy\.rego:3:\d+: ")


@pytest.mark.parametrize(
    "place",
    [
        "head",
        "else",
        "comprehension",
        "every",
        "set",
        "some",
        "object",
        "index",
        "head index",
        "result",
    ],
)
def test_calls_are_found_in_every_part_of_a_rule(place):
    bodies = {
        "head": "x := {} if input.a",
        "else": "x if input.a else := {} if input.b",
        "comprehension": "x := {{y | some z in input.a; y := {}}}",
        "every": "x if every y in input.a {{ {} == y }}",
        "set": "s contains {} if input.a",
        "some": "x if {{ some i; input.a[i] == {} }}",
        "object": 'x := {{"a": [{{{}}}]}} if input.a',
        "index": "x := input.a[{}].b",
        "head index": "x[{}] := 1 if input.a",
        "result": "x := {}.b if input.a",
    }
    body = bodies[place]

    refused(body.format("no.such(1)"), r"there is no function no\.such")
    policy(body.format("abs(1)"))


def test_a_stubbed_builtin_under_not_would_deny_nothing_or_everything():
    refused(
        'allow if not http.send({"method": "get", "url": input.url}).body.blocked', "only a stub"
    )


def test_calls_through_imports_are_resolved(tmp_path):
    main = "package agent.authz\nimport {}\nallow if {}(input.x)"
    lib = "package lib\nsmall(x) if x < 10"

    for imported, call in [
        ("data.lib", "lib.small"),
        ("data.lib as l", "l.small"),
        ("data.lib.small", "small"),
        ("data.lib.small as tiny", "tiny"),
        ("data.lib", 'lib["small"]'),
        ("rego.v1", "data.lib.small"),
    ]:
        engine = folder(tmp_path, main=main.format(imported, call), lib=lib)
        assert ask(engine, x=1) == {"allow": True}
        assert ask(engine, x=10) == {}
    for imported, call in [
        ("data.lib", "lib.smal"),
        ("data.lib as l", "lib.small"),
        ("data.libb", "libb.small"),
        ("data.lib as time", "time.now_ns"),
    ]:
        with pytest.raises(PolicyError, match=r"main\.rego:3:10: there is no function") as refusal:
            folder(tmp_path, main=main.format(imported, call), lib=lib)
        assert refusal.value.code == "policy.invalid"


def test_text_that_looks_like_a_function_does_not_define_one():
    refused(
        'note := "check(x) := true"\n# check(x) := true\nallow if check(1)', "no function check"
    )
    assert ask(policy("check(x) := true\nallow if check(1)")) == {"allow": True}


def test_a_misspelt_output_is_refused_unless_something_reads_it():
    refused('deny contains "no" if input.bad', "reads deny, directly or")
    refused('deny_reson := "no" if input.bad', "reads deny_reson, directly or")
    refused("approvals contains {} if input.bad", "reads approvals, directly or")
    engine = policy('deny contains "no" if input.bad\nallow if count(deny) == 0')
    assert ask(engine, bad=True) == {"deny": ["no"]}
    assert ask(engine) == {"allow": True, "deny": []}


@pytest.mark.parametrize(
    "name",
    [
        "dney_reasons",
        "deny_reason_s",
        "Deny_reasons",
        "DENY",
        "denies",
        "Violations",
        "Approval",
        "aproval",
        "obligatons",
        "limits.deny_reasons",
        "limits.Allow",
    ],
)
def test_a_rule_like_an_output_that_no_output_reads_is_refused(name):
    rule = f'{name} contains "no" if input.bad\n'

    refused(rule, rf"^policy\.rego:2:1: no output \(allow, .*\) reads {name}, directly or")
    refused(f"{rule}unused if count({name}) > 5", "no output")
    refused(f"{rule}unused if count({name}) > 5\nmore if unused", "no output")
    engine = policy(f"{rule}deny_reasons contains said if some said in {name}")
    assert engine.warnings == ()
    assert decide(ask(engine, bad=True)).reasons == ("no",)
    indirect = "found := {said | some said in names}\ndeny_reasons := found"
    engine = policy(f"{rule}names := {name}\n{indirect}")
    assert decide(ask(engine, bad=True)).reasons == ("no",)


@pytest.mark.parametrize("name", ["block", "Reject", "forbidden", "reasons", "allowed", "Allow"])
def test_a_rule_that_may_be_meant_as_an_output_is_warned_of(name):
    rule = f"{name} if input.bad\n"

    (warning,) = policy(rule).warnings
    assert warning.startswith("policy.rego:2:1: no output (allow, ")
    assert f") reads {name}, directly or through another rule; " in warning
    assert policy(f'{rule}deny_reasons contains "no" if {name}').warnings == ()


@pytest.mark.parametrize("name", ["listed", "user", "limit", "shallow_copy", "in_order", "kind"])
def test_a_helper_with_a_name_of_its_own_is_not_warned_of(name):
    assert policy(f"{name} if input.x").warnings == ()


def test_an_output_below_a_name_that_nothing_reads_is_refused():
    for output in ("allow", "approval", "deny_reason", "deny_reasons", "obligations"):
        refused(
            f"limits.{output} := 5 if input.n > 100",
            rf":2:1: no output .* reads limits\.{output}, directly",
        )
    read = "deny_reasons contains said if some said in limits.deny_reasons"
    engine = policy(f'allow if input.ok\n{read}\nlimits.deny_reasons := ["no"] if input.n == 100')
    assert engine.warnings == ()
    assert decide(ask(engine, ok=True, n=100)).reasons == ("no",)
    assert decide(ask(engine, ok=True, n=1)).allowed


@pytest.mark.parametrize(
    ("package", "rule"),
    [
        ("agent.auth", "deny_reasons"),
        ("agent", "deny"),
        ("other", "Allow"),
        ("other", "violation"),
    ],
)
def test_an_output_of_another_package_may_be_meant_and_is_warned_of(tmp_path, package, rule):
    main = "package agent.authz\nallow if input.ok\n"
    more = f'package {package}\n{rule} contains "no"'

    (warning,) = folder(tmp_path, main=main, more=more).warnings
    assert warning.startswith("more.rego:2:1: no output of data.agent.authz (allow, ")
    assert f") reads data.{package}.{rule}, directly or through another rule; " in warning
    assert "of data.agent.authz" in warning
    read = f"deny_reasons contains said if some said in data.{package}.{rule}"
    assert folder(tmp_path, main=main + read, more=more).warnings == ()


def test_a_name_that_nothing_defines_is_refused(tmp_path):
    main = "package agent.authz\nallow if not data.blocked[input.action]"

    with pytest.raises(PolicyError, match=r"main\.rego:2:14: no module defines data\.blocked"):
        folder(tmp_path, main=main)
    engine = folder(tmp_path, main=main, data={"blocked": {"mallory": True}})
    assert ask(engine, action="mallory") == {}
    assert ask(engine, action="alice") == {"allow": True}


@pytest.mark.parametrize(
    ("imported", "name"),
    [
        ("", "data.lists.blocked"),
        ("import data.lists", "lists.blocked"),
        ("import data.lists.blocked", "blocked"),
        ("import data.lists as held", 'held["blocked"]'),
    ],
)
def test_a_name_that_data_has_not_is_refused_at_any_depth(tmp_path, imported, name):
    main = f"package agent.authz\n{imported}\nallow if not {name}[input.action]"

    for lists in ({"blockd": {"mallory": True}}, {}, ["blocked"], "blocked"):
        with pytest.raises(PolicyError, match=r"no module defines data\.lists\.blocked, and no"):
            folder(tmp_path, main=main, data={"lists": lists})
    engine = folder(tmp_path, main=main, data={"lists": {"blocked": {"mallory": True}}})
    assert ask(engine, action="mallory") == {}
    assert ask(engine, action="alice") == {"allow": True}


def test_a_name_of_a_module_is_no_less_refused_for_data_beside_it(tmp_path):
    more = 'package agent.lists\nblocked contains "mallory"'
    for name, is_refused in (("blocked", False), ("blockd", True), ("given", False)):
        main = f"package agent.authz\nallow if not input.action in data.agent.lists.{name}"
        data = {"agent": {"lists": {"given": ["mallory"]}}}
        if is_refused:
            with pytest.raises(PolicyError, match=r"no module defines data\.agent\.lists\.blockd"):
                folder(tmp_path, main=main, more=more, data=data)
        else:
            assert ask(folder(tmp_path, main=main, more=more, data=data), action="mallory") == {}


def test_data_can_not_stand_in_a_rules_place(tmp_path):
    main = "package agent.authz\ndefault allow := false\nallow if input.ok"
    for members in [{"allow": True}, {"deny_reason": None}, {"allow": {}}]:
        with pytest.raises(PolicyError, match=r"a data\.json also defines data\.agent\.authz"):
            folder(tmp_path, main=main, data={"agent": {"authz": members}})
    with pytest.raises(PolicyError, match=r"not an object on the path data\.agent\.authz\.allow"):
        folder(tmp_path, main=main, data={"agent": [1]})

    engine = folder(tmp_path, main=main, data={"agent": {"authz": {"limit": 3}}})
    assert ask(engine) == {"allow": False, "limit": 3}


def test_a_builtin_that_fails_denies_instead_of_skipping_the_deny_rule():
    engine = policy(
        'default allow := true\ndeny_reason := "x" if semver.compare(input.version, "2.0.0") < 0'
    )

    with pytest.raises(PolicyError) as failure:
        ask(engine, version="no version")
    assert failure.value.code == "policy.error"
    assert decide(ask(engine, version="1.9.0")).outcome == "deny"
    assert decide(ask(engine, version="2.0.0")).outcome == "allow"


@pytest.mark.parametrize("value", ["false", "null", '""', "[]", "{}", "0"])
def test_any_defined_deny_reason_denies(value):
    engine = policy(f"allow := true\ndeny_reason := {value} if input.bad")

    assert decide(ask(engine, bad=True)).outcome == "deny"
    assert decide(ask(engine)).outcome == "allow"


# --- a policy that does not mean what it says


def test_an_unsafe_variable_is_refused_also_in_a_rule_that_nothing_reaches():
    refused("allow if { y > 1 }", r"policy\.rego:2:12: .*undefined variable `y` is unsafe")
    refused("allow := true\nf(a) if { input.never; y > a }", r"policy\.rego:3:\d+: .*unsafe")
    policy("allow if { y := input.n; y > 1 }")


def test_two_values_of_one_rule_are_an_error():
    engine = policy('allow := true\nkind := "a" if input.a\nkind := "b" if input.b')

    with pytest.raises(PolicyError, match=r"policy\.rego:4:1: .*conflicts with rule at"):
        ask(engine, a=True, b=True)
    assert ask(engine, a=True) == {"allow": True, "kind": "a"}
    refused('kind := "a"\nkind := "b"', r"policy\.rego:3:1: .*conflicts")


def test_a_syntax_error_says_where():
    refused("allow if {", r"^policy\.rego:2:\d+: .*expect")
    refused("allow { input.x }", r"^policy\.rego:2:7: `if` keyword is required")


# --- a policy that kills the process, or never ends


@pytest.mark.parametrize(
    "body",
    [
        "f(x) := f(x) if input.never\nallow if f(1)",
        "f(x) := g(x)\ng(x) := f(x)",
        "f(x) := data.agent.authz.g(x)\ng(x) := [y | some y in f(x)]",
        "a := b\nb := a",
        "a if not b\nb if not a",
        "a := count(data.agent.authz)",
        "a := data.agent.authz[input.name]",
        "a := data[input.name]",
        "f(x) := y if { y := x } else := f(x)",
        "default f(x) := 1\nf(x) := f(x) if input.x",
        "p[x] := 1 if some x in q\nq contains x if p[x]",
    ],
)
def test_recursion_is_refused_before_anything_reaches_it(body):
    refused(body, r"policy\.rego:\d+:1: Rego allows no recursion; .*: data\.agent\.authz\.\w+ -> ")


def test_recursion_across_modules_and_through_an_import_is_refused(tmp_path):
    lib = "package lib\nimport data.agent.authz as policy\ng(x) := {}"
    main = "package agent.authz\nimport data.lib\nf(x) := lib.g(x)\nk(x) := x"

    with pytest.raises(
        PolicyError, match=r"no recursion; .*: data\.\S+ -> data\.\S+ -> data\.\S+$"
    ):
        folder(tmp_path, main=main, lib=lib.format("policy.f(x)"))
    folder(tmp_path, main=main, lib=lib.format("policy.k(x)"))


def test_what_only_looks_like_recursion_is_accepted():
    engine = policy(
        "user := role(input.user)\n"
        'role(name) := concat("-", [name, "role"])\n'
        "listed := [name | name := input.users[_]]\n"
        "tree.left := 1\n"
        "tree.right := tree.left + 1\n"
        "positive if every one in input.users { one > 0 }\n"
    )

    assert ask(engine, user="alice", users=[1, 2]) == {
        "user": "alice-role",
        "listed": [1, 2],
        "tree": {"left": 1, "right": 2},
        "positive": True,
    }


@pytest.mark.parametrize(
    "rule",
    [
        'role(user) := concat("-", [user, "role"])',
        "listed := [name | user := input.users[_]; name := user]",
        "listed := [user | some user in input.users]",
        "positive if every user in input.users { user > 0 }",
        "first := user if { [user, _] := input.users }",
    ],
)
def test_a_variable_with_a_rules_name_is_refused(rule):
    refused(f"user := input.user\n{rule}", r":3:\d+: user is also the rule at policy\.rego:2:1")
    policy(f"caller := input.user\n{rule}")


def test_a_policy_that_hangs_the_parser_is_refused_in_time():
    # The parser's time doubles with each bracket; this process must not be the one that waits.
    refused(f"x := {'[' * 60}{']' * 60}", r"no answer within 0\.5 s", check_timeout=0.5)
    assert ask(policy(f"x := {'[' * 6}{']' * 6}")) == {"x": [[[[[[]]]]]]}


def test_a_policy_that_kills_the_engine_is_refused():
    # Asks for more memory than the trial may have: the native code aborts.
    def growing(levels: int) -> str:
        rules = [f'l{n} := concat("", [{", ".join([f"l{n - 1}"] * 16)}])' for n in range(1, levels)]
        return "\n".join(['l0 := "aaaaaaaaaaaaaaaa"', *rules, f"x := count(l{levels - 1})"])

    refused(growing(9), "crashes the engine")
    assert ask(policy(growing(3)))["x"] == 4096


@pytest.mark.parametrize(
    ("expression", "instead", "argument"),
    [
        ("count(numbers.range(1, input.a)) < 9", "input.a < 9", 2**52),
        ("count(numbers.range_step(1, input.a, 1)) < 9", "input.a < 9", 2**52),
        (
            "count(net.cidr_expand(input.a)) < 9",
            "endswith(input.a, `/32`)",
            "0.0.0.0/0",
        ),
        ("units.parse(input.a) < 9", "regex.match(`^[0-8]$`, input.a)", "1e999999"),
        ("units.parse_bytes(input.a) < 9", "regex.match(`^[0-8]$`, input.a)", "1e999999"),
        ("json.patch(input.a, []) == 3", "input.a == 3", 4),
    ],
)
def test_a_builtin_that_one_argument_lets_run_out_of_bounds_is_refused(
    expression, instead, argument
):
    name = expression.removeprefix("count(").partition("(")[0]
    refused(f"allow if {expression}", rf"{name} .*can (exhaust|block) this process")
    engine = policy(f"allow if {{ {instead} }}")
    assert ask(engine, a=argument) == {}
    small: dict[type, object] = {int: 3, str: "10.0.0.1/32" if "cidr" in name else "3"}
    assert ask(engine, a=small[type(argument)]) == {"allow": True}


@pytest.mark.parametrize(
    ("grows", "bounded", "value"),
    [
        ("replace(input.a, ` `, input.a)", "replace(input.a, ` `, `-`)", "a-b"),
        ("concat(input.a, split(input.a, ` `))", "concat(`-`, split(input.a, ` `))", "a-b"),
    ],
)
def test_a_result_as_long_as_two_arguments_together_is_refused(grows, bounded, value):
    name = grows.partition("(")[0]
    refused(f"x := {grows}", rf"{name} with two computed arguments can exhaust this process")
    assert ask(policy(f"x := {bounded}"), a="a b") == {"x": value}


def test_places_in_a_text_are_whole_numbers_that_are_written_out():
    refused("x := substring(input.a, 0, input.n)", r"these arguments of substring .*whole numbers")
    assert ask(policy("x := substring(input.a, 1, -1)"), a="abc") == {"x": "bc"}


def test_a_relation_is_asked_with_both_arguments():
    """As a value, walk is a relation to OPA, and here an array: a denial by it would not fire."""
    refused(
        "deny_reasons contains `a secret` if { [_, value] := walk(input.args); value == `secret` }",
        r"these arguments of walk .*walk\(x, \[path, value\]\)",
    )
    engine = policy("deny_reason := `no` if { walk(input.args, [_, value]); value == `secret` }")
    assert ask(engine, args={"a": ["secret"]}) == {"deny_reason": "no"}
    assert ask(engine, args={"a": ["open"]}) == {}


def test_a_policy_nested_beyond_reading_is_refused():
    refused("x := " + "[\n" * 5000 + "]" * 5000, "nested too deeply|crashes the engine")
    if sys.version_info < (3, 12):  # later versions read deeper JSON
        refused("x := 1" + " +\n1" * 1200, "nested too deeply|crashes the engine")
    assert ask(policy("x := 1" + " +\n1" * 100)) == {"x": 101}
