"""Rules that the embedded engine evaluates otherwise than an OPA server does: each is refused.

Each is shown to differ on a real OPA, mostly so that a denial does not fire, or an allow holds,
embedded. Its twin says what its author meant, is taken, and has one value on both.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import regorus  # type: ignore[import-untyped]  # the binding has no annotations
from two_engines import FAILED, Ungated, answer, ungated

from agentguard import PolicyError
from agentguard.policy.opa import OpaEngine
from agentguard.policy.opa_server import Server
from agentguard.policy.rego import RegoEngine, builtin_functions
from agentguard.signing import canonical

ITEMS = [{"closed": True, "name": "a"}, {"closed": True}]


class Case(NamedTuple):
    """A policy's rules, of what they are refused, and a call that shows why."""

    rules: str
    said: str
    call: dict[str, Any]
    instead: str
    head: str = ""
    differs: bool = True


CASES = {
    # a value in a rule's head that one of several ways of its body lacks
    "a reason that the last item lacks": Case(
        "deny_reasons contains x.name if { some x in input.items; x.closed }",
        "where x.name is missing for one of the elements",
        {"items": ITEMS},
        "deny_reasons contains name if { some x in input.items; x.closed; name := x.name }",
    ),
    "within a text": Case(
        'deny_reasons contains sprintf("%v", [x.name]) if { some x in input.items; x.closed }',
        "where x.name is missing for one",
        {"items": ITEMS},
        'deny_reasons contains sprintf("%v", [name]) if { some x in input.items; name := x.name }',
    ),
    "by an index": Case(
        "deny_reasons contains x.name if { x := input.items[_]; x.closed }",
        "where x.name is missing for one",
        {"items": ITEMS},
        "deny_reasons contains x.name if { x := input.items[_]; is_string(x.name) }",
    ),
    "by a declared variable": Case(
        "deny_reasons contains input.items[i].name if { some i; input.items[i].closed }",
        r"where input.items\[...\] is missing for one",
        {"items": ITEMS},
        "deny_reasons contains name if { some i; name := input.items[i].name }",
    ),
    "by a variable that a comprehension has as well": Case(
        "deny_reasons contains input.items[i].name if {\n"
        "    input.items[i].closed\n    count([i | i := 1]) == 1\n}",
        r"where input.items\[...\] is missing for one",
        {"items": ITEMS},
        "deny_reasons contains name if { some i; name := input.items[i].name }",
    ),
    "by walk": Case(
        "deny_reasons contains x.name if { walk(input.items, [_, x]); x.closed }",
        "where x.name is missing for one",
        {"items": ITEMS},
        "deny_reasons contains name if { walk(input.items, [_, x]); x.closed; name := x.name }",
    ),
    "a function's result": Case(
        "deny_reasons contains named(x) if { some x in input.items; x.closed }\nnamed(x) := x.name",
        "where named is missing for one",
        {"items": ITEMS},
        "deny_reasons contains n if { some x in input.items; n := named(x) }\nnamed(x) := x.name",
    ),
    "a key": Case(
        "closed[x.name] := true if { some x in input.items; x.closed }",
        "where x.name is missing for one",
        {"items": ITEMS},
        "closed[name] := true if { some x in input.items; x.closed; name := x.name }",
    ),
    "a value behind else": Case(
        "first := 1 if input.none else := x.name if { some x in input.items }",
        "where x.name is missing for one",
        {"items": ITEMS},
        "first := 1 if input.none else := name if { some x in input.items; name := x.name }",
    ),
    "elements in the head itself": Case(
        "deny_reasons contains input.items[_].name",
        r"`\[_\]` in the head",
        {"items": ITEMS},
        "deny_reasons contains name if { some x in input.items; name := x.name }",
    ),
    # forms of heads
    "a set with a key": Case(
        "over[input.team] contains 1 if input.none",
        "a set with a computed key",
        {"team": "a"},
        "over.all contains 1 if input.none",
    ),
    "two keys": Case(
        'limits[x].of := 1 if { some x in ["a"]; input.none }',
        "a rule with several keys",
        {},
        'limits[x] := {"of": 1} if { some x in ["a"]; input.none }',
    ),
    "a key beside computed ones": Case(
        'deny_reason := "closed" if blocked["a"]\n'
        'blocked[k] := v if some k, v in input.table\nblocked["a"] := true if input.none',
        "blocked has this key and computed keys",
        {"table": {"a": True}},
        'deny_reason := "closed" if blocked["a"]\nblocked[k] := v if some k, v in input.table\n'
        'blocked[k] := true if { k := "a"; input.none }',
    ),
    # `every`, whose variables the engine takes for unbound
    "= within every": Case(
        'allow if { every x in input.tags { x = "ok" } }',
        "`=` does not always compare",
        {"tags": ["bad"]},
        'allow if { every x in input.tags { x == "ok" } }',
    ),
    "= with the constant first": Case(
        'allow if { every x in input.tags { "ok" = x } }',
        "`=` does not always compare",
        {"tags": ["ok", "bad"]},
        'allow if { every x in input.tags { "ok" == x } }',
    ),
    "a pattern within every": Case(
        "allow if { every x in input.tags { seen[[x, y]]; y } }\n"
        "seen contains [k, true] if some k in input.ok",
        "x of `every` or `walk` has no value in this place",
        {"tags": ["bad"], "ok": ["ok"]},
        "allow if { every x in input.tags { known(x) } }\nknown(x) if { seen[[x, y]]; y }\n"
        "seen contains [k, true] if some k in input.ok",
    ),
    "a negated index within every": Case(
        'deny_reason := "unknown" if { every x in input.tags { not input.known[x] } }',
        "x of `every` or `walk` has no value in this place",
        {"tags": ["bad"], "known": {}},
        'deny_reason := "unknown" if { every x in input.tags { not known(x) } }\n'
        "known(x) if input.known[x]",
    ),
    "a negated index of what walk finds": Case(
        'deny_reason := "unknown" if { walk(input.tag, [_, x]); not input.known[x] }',
        "x of `every` or `walk` has no value in this place",
        {"tag": "bad", "known": {}},
        'deny_reason := "unknown" if { walk(input.tag, [_, x]); not known(x) }\n'
        "known(x) if input.known[x]",
    ),
    # expressions
    "a key with a value": Case(
        'allow if { input.role, input.name in ["alice"] }',
        "`key, value in collection` holds",
        {},
        'allow if { ["alice"][input.role] == input.name }',
    ),
    "with, of the policy's own": Case(
        "allow if { wanted with input.other as wanted }\nwanted := input.name",
        "sometimes ignores `with`",
        {"name": "a"},
        "allow if wanted\nwanted := input.name",
    ),
    "with, in a test that a rule reads": Case(
        "allow if test_named\ntest_named if { wanted with input.other as wanted }\n"
        "wanted := input.name",
        "sometimes ignores `with`",
        {"name": "a"},
        "allow if wanted\n"
        "test_named if { not is_number(input.x) with input.name as 1; input.none }\n"
        "wanted := input.name",
    ),
    "an object with a key twice": Case(
        'limits := {"a": input.none, "a": 1}',
        "an object with one key twice",
        {},
        'limits := {"a": 1}',
    ),
    "a key twice, in other quotes": Case(
        'limits := {"a": input.none, `a`: 1}',
        "an object with one key twice",
        {},
        'limits := {"a": 1}',
    ),
    "a computed key that is another's": Case(
        'limits := {input.team: 1, "a": 2}',
        "an object with one key twice",
        {"team": "a"},
        'limits := object.union({input.team: 1}, {"a": 2})',
    ),
    "the least of nothing": Case(
        'deny_reason := "none" if { not min(found) in [1] }\nfound contains 1 if input.none',
        "where min is missing",
        {},
        'deny_reason := "none" if not least\nleast if min(found) in [1]\n'
        "found contains 1 if input.none",
    ),
    "a set in the order of values": Case(
        "allow if input.table < {1}",
        "an OPA server orders sets differently",
        {"table": {}},
        "allow if count(input.table) < count({1})",
    ),
    "a set by its name in the order": Case(
        "allow if input.table < given\ngiven contains 1",
        "an OPA server orders sets differently",
        {"table": {}},
        "allow if count(input.table) < count(given)\ngiven contains 1",
    ),
    "a set with computed elements": Case(
        "both := count([x | some x in {input.a, input.b}])",
        "a set that is written with a computed element",
        {"a": 1, "b": 1},
        "both := count([x | some x in {y | some y in [input.a, input.b]}])",
    ),
    "a set with computed elements, in a function": Case(
        "both := sum_of({input.a, 1})\nsum_of(xs) := sum([x | some x in xs])",
        "a set that is written with a computed element",
        {"a": 1},
        "both := sum_of({x | some x in [input.a, 1]})\nsum_of(xs) := sum([x | some x in xs])",
    ),
    "a number with a point": Case(
        "limits := {1.0: true}", "1.0 may be another number", {}, "limits := {1: true}"
    ),
    "a number with an exponent": Case(
        "limits := {1e3: true}", "1e3 may be another number", {}, "limits := {1000: true}"
    ),
    "a fraction with a zero": Case(
        "limits := {-1.50: true}", "-1.50 may be another number", {}, "limits := {-1.5: true}"
    ),
    "minus zero": Case(
        "limits := {-0: true}", "-0 may be another number", {}, "limits := {0: true}"
    ),
    # names
    "a variable that is a rule as well": Case(
        'allow if { some name; input.table[name] }\nname := "other" if input.none == 1',
        "name is also the rule at",
        {"table": {"a": True}},
        'allow if { some key; input.table[key] }\nname := "other" if input.none == 1',
    ),
    # what may be missing, by whatever name it is read
    "an imported argument": Case(
        'deny_reasons contains "x" if not startswith(p, "docs/")',
        "where input.args.path is missing|where p is missing",
        {"args": {}},
        'deny_reasons contains "x" if not fits\nfits if startswith(p, "docs/")',
        head="import input.args.path as p\n",
    ),
    "a member of a rule by its whole path": Case(
        'deny_reasons contains "x" if not startswith(data.agent.authz.held.path, "docs/")\n'
        "held := input.args",
        "where data.agent.authz.held.path is missing",
        {"args": {}},
        'deny_reasons contains "x" if not fits\n'
        'fits if startswith(data.agent.authz.held.path, "docs/")\n'
        "held := input.args",
    ),
    "a member of a rule of parts by its whole path": Case(
        'deny_reasons contains "x" if not startswith(data.agent.authz.held.path, "docs/")\n'
        "held[k] := v if some k, v in input.args",
        "where data.agent.authz.held.path is missing",
        {"args": {}},
        'deny_reasons contains "x" if not fits\n'
        'fits if startswith(data.agent.authz.held.path, "docs/")\n'
        "held[k] := v if some k, v in input.args",
    ),
    "membership of such a member": Case(
        'allow if (data.agent.authz.held.path in {"a"}) == false\nheld := input.args',
        "where data.agent.authz.held.path is missing",
        {"args": {}},
        'allow if not known\nknown if data.agent.authz.held.path in {"a"}\nheld := input.args',
    ),
    "the value of a function with else": Case(
        'deny_reasons contains "x" if f(input.args)\nf(i) := i.n if i.a else := true',
        "where i.n is missing, an OPA server evaluates `else`",
        {"args": {"a": 1}},
        'deny_reasons contains "x" if f(input.args)\nf(i) := n if { i.a; n := i.n } else := true',
    ),
    "a parameter that is a rule as well": Case(
        'deny_reasons contains "x" if not named(input.args.role)\n'
        'named(role) if role == "a"\nrole := "b" if input.none',
        "role is also the rule at",
        {"args": {"role": "b"}},
        'deny_reasons contains "x" if not fits\nfits if named(input.args.role)\n'
        'named(it) if it == "a"\nrole := "b" if input.none',
        differs=False,
    ),
    # unions
    "a set that begins with a union": Case(
        "limits := [1 | ({input.none} | {2})]",
        "an expression that begins with a union",
        {},
        "limits := [1 | all := {input.none} | {2}; all]",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_differs_is_refused_and_what_it_says_to_write_agrees(on_opa, tmp_path, name):
    rules, said, call, instead, imports, differs = CASES[name]
    document = canonical.dumps(call)
    file = tmp_path / "p.rego"
    head = f"package agent.authz\n{imports}\nlast := input.last\n"

    source = f"{head}{rules}\n"
    file.write_text(source)
    with pytest.raises(PolicyError, match=rf"p\.rego:\d:\d+: .*({said})") as refused:
        RegoEngine.load(file)
    assert refused.value.code == "policy.invalid"
    server = OpaEngine(Server(on_opa(file), timeout=20.0))
    ours, theirs = ungated(source, document), answer(server, document)
    assert theirs[0] == "value"
    assert ours[0] == FAILED or (ours != theirs) == differs

    file.write_text(f"{head}{instead}\n")
    embedded = RegoEngine.load(file)
    server = OpaEngine(Server(on_opa(file), timeout=20.0))
    assert answer(embedded, document) == answer(server, document)
    assert answer(embedded, document)[0] == "value"


DATA = {
    "stages": [{"open": True}, {"open": False}],
    "grants": {"acme": ["read", "write"]},
    "table": {"0": {"open": True}},
}


@pytest.mark.parametrize(
    ("rules", "instead"),
    [
        (
            "allow if data.stages[input.stage].open",
            "allow if stages[input.stage].open\nstages := data.stages",
        ),
        (
            "allow if { i := input.stage; data.stages[i] }",
            "allow if { i := input.stage; stages := data.stages; stages[i] }",
        ),
        (
            "import data.stages\nallow if stages[input.stage].open",
            "allow if known[input.stage].open\nknown := data.stages",
        ),
        (
            "allow if data.grants[input.tenant][input.stage]",
            "allow if { ops := data.grants[input.tenant]; ops[input.stage] }",
        ),
        (
            'deny_reason := "x" if { n := input.stage; not data.stages[n] }',
            'deny_reason := "x" if not found\nfound if stages[input.stage]\nstages := data.stages',
        ),
        ("open(i) if data.stages[i].open\nallow if open(input.stage)", "allow if input.none"),
    ],
)
def test_a_list_of_data_is_not_indexed_by_a_text(opa, tmp_path, rules, instead):
    """To a server "0" is its first element."""
    (tmp_path / "data.json").write_text(json.dumps(DATA))
    document = canonical.dumps({"stage": "0", "tenant": "acme"})
    file = tmp_path / "p.rego"
    file.write_text(f"package agent.authz\n{rules}\n")
    with pytest.raises(
        PolicyError, match=r"p\.rego:\d:\d+: an OPA server also takes the text"
    ) as refused:
        RegoEngine.load(tmp_path)
    assert refused.value.code == "policy.invalid"
    server = OpaEngine(Server(opa("--bundle", tmp_path).url, timeout=20.0))
    ours = Ungated(file.read_text(), data=DATA).answer(document)
    assert ours != answer(server, document)

    file.write_text(f"package agent.authz\n{instead}\n")
    embedded = RegoEngine.load(tmp_path)
    server = OpaEngine(Server(opa("--bundle", tmp_path).url, timeout=20.0))
    for stage in ("0", 0, 1, "1", None, 7):
        document = canonical.dumps({"stage": stage, "tenant": "acme"})
        assert answer(embedded, document) == answer(server, document)


@pytest.mark.parametrize(
    "rule",
    [
        "allow if data.table[input.stage].open",
        "allow if data.stages[0].open",
        "allow if data.stages[_].open",
        "allow if { some i; data.stages[i].open }",
        "allow if { some stage in data.stages; stage.open }",
        "allow if input.stage in data.grants[input.tenant]",
    ],
)
def test_tables_of_data_and_loops_over_its_lists_are_taken(opa, tmp_path, rule):
    (tmp_path / "data.json").write_text(json.dumps(DATA))
    (tmp_path / "p.rego").write_text(f"package agent.authz\n{rule}\n")
    embedded = RegoEngine.load(tmp_path)
    server = OpaEngine(Server(opa("--bundle", tmp_path).url, timeout=20.0))
    for stage in ("0", 0, 1, "read", None, 7):
        document = canonical.dumps({"stage": stage, "tenant": "acme"})
        assert answer(embedded, document) == answer(server, document)


@pytest.mark.parametrize("name", ["equal", "gte", "or", "minus"])
def test_a_function_with_an_operators_name_is_refused(on_opa, tmp_path, name):
    """To a server the operator is this function then."""
    forms = {"equal": "input.a == input.b", "gte": "input.a >= input.b", "or": "count(x | y) == 2"}
    use = forms.get(name, "input.a - input.b == 1")
    rules = f"x := {{1}}\ny := {{2}}\n{name}(a, b) := false if is_string(a)\nallow if {use}\n"
    file = tmp_path / "p.rego"
    file.write_text(f"package agent.authz\n{rules}")
    with pytest.raises(PolicyError, match=rf"p\.rego:4:1: {name} is the name of an operator"):
        RegoEngine.load(file)
    (tmp_path / "two").mkdir()
    imports = f"import data.lib.same as {name}\nallow if {use}\nx := {{1}}\ny := {{2}}\n"
    (tmp_path / "two" / "a.rego").write_text(f"package agent.authz\n{imports}")
    (tmp_path / "two" / "b.rego").write_text("package lib\nsame(a, b) if a == b\n")
    with pytest.raises(PolicyError, match=rf"a\.rego:2:1: {name} is the name of an operator"):
        RegoEngine.load(tmp_path / "two")
    file.write_text(f"package agent.authz\n{rules.replace(name + '(', 'my_' + name + '(')}")
    embedded = RegoEngine.load(file)
    server = OpaEngine(Server(on_opa(file), timeout=20.0))
    for a, b in ((1, 1), (2, 1), (1, 2)):
        document = canonical.dumps({"a": a, "b": b})
        assert answer(embedded, document) == answer(server, document)


def test_numbers_of_data_are_as_plain(tmp_path):
    (tmp_path / "p.rego").write_text("package agent.authz\nallow if input.n == data.limit\n")
    for written in ("1.0", "1e3", "1.50", "-0", "0.1234567890123456", "9223372036854775808"):
        (tmp_path / "data.json").write_text(f'{{"limit": {written}}}')
        message = (
            rf"^data\.json: {re.escape(written)} may be another number, .* write 1 instead of 1\.0"
        )
        with pytest.raises(PolicyError, match=message) as refused:
            RegoEngine.load(tmp_path)
        assert refused.value.code == "policy.invalid"
    for written in ("1", "-7", "0", "0.5", "1234567890123456789", "0.123456789012345"):
        (tmp_path / "data.json").write_text(f'{{"limit": {written}}}')
        assert RegoEngine.load(tmp_path).evaluate(b'{"n": 2}') == {}


def test_an_error_tells_its_reason_on_every_line():
    for lines in (0, 5, 50, 500):
        source = "package agent.authz\n" + "\n" * lines + "allow if { x == }\n"
        with pytest.raises(PolicyError, match=rf":{lines + 2}:17: expecting expression"):
            RegoEngine.from_source(source)


OPERATORS = Path(__file__).parents[1] / "policies" / "operators.rego"


def builtins() -> set[str]:
    """What the engine has, without the names that it keeps for itself."""
    native = regorus.Engine()
    native.add_policy("p.rego", "package p\nnames := opa.runtime().builtins")
    (found,) = json.loads(native.eval_query_as_json("data.p.names"))["result"]
    names = {*found["expressions"][0]["value"]}
    return {name for name in names if not name.startswith("__")}


def test_each_builtin_is_refused_or_compared_with_opas():
    refused, compared = builtin_functions.REFUSED.keys(), builtin_functions.COMPARED
    assert builtins() | {"print"} == compared | refused
    assert not refused & compared
    called = set(re.findall(r"\b([a-z][a-z0-9_.]*)\(", OPERATORS.read_text()))
    assert compared <= called


@pytest.mark.parametrize("name", ["__builtin_sets.union", "__builtin_sets.intersection"])
def test_a_builtin_that_nobody_compared_is_refused(name):
    with pytest.raises(PolicyError, match=rf":2:10: {name} has not been compared with") as refused:
        RegoEngine.from_source(f"package agent.authz\nvalue := {name}({{{{1}}, {{2}}}})\n")
    assert refused.value.code == "policy.invalid"
    same = name.rpartition(".")[2]
    engine = RegoEngine.from_source(f"package agent.authz\nvalue := {same}({{{{1}}, {{2}}}})\n")
    assert engine.evaluate(b"{}") == {"value": [1, 2] if same == "union" else []}
