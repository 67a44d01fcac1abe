"""What an embedded engine and a real OPA would decide differently is refused when it is loaded.

Negations, bodies that are comprehensions, imports of the own package, and rules in several files:
each refusal has a twin that both engines decide alike. What both evaluate is in
test_two_engines_agreement.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import regorus  # type: ignore[import-untyped]  # the binding has no annotations
from engine_agreement import evaluated, require_agreement
from two_engines import FAILED, answer, ungated

from agentguard import PolicyError
from agentguard.policy.document import decide
from agentguard.policy.opa import OpaEngine
from agentguard.policy.opa_server import Server
from agentguard.policy.rego import RegoEngine
from agentguard.signing import canonical

REFUSED = [
    ("bits.lsh(input.a, 3)", 1e21),
    ("bits.and(input.a, 7)", 1e21),
    ("format_int(input.a, 16)", 1e21),
    ("ceil(input.a)", -0.5),
    ("urlquery.encode(input.a)", "~"),
    ('urlquery.encode_object({"x": input.a})', "~"),
    ("floor(input.a)", -0.5),
    ('json.filter(input.a, ["y/z"])', {"y": 1}),
    ('json.remove(input.a, ["y/z"])', {"y": 1}),
    ("json.marshal(input.a)", ">"),
    ("json.marshal_with_options(input.a, {})", ">"),
    ("json.is_valid(input.a)", "1e400"),
    ('json.match_schema(input.a, {"type": "string"})', "1"),
    ("yaml.marshal(input.a)", "yes"),
    ("yaml.unmarshal(input.a)", "1_0"),
    ("urlquery.decode(input.a)", "a&b"),
    ("urlquery.decode_object(input.a)", "a "),
    ("base64.decode(input.a)", "Infinity"),
    ("base64url.decode(input.a)", "Infinity"),
    ("base64.is_valid(input.a)", "aGk=\n"),
    ("hex.decode(input.a)", "e3ac"),
    ("glob.quote_meta(input.a)", "a*b[c]"),
    ('graph.reachable_paths(input.a, {"a"})', {"a": ["a"]}),
    ("lower(input.a)", "ADM\u0130N"),
    ("lower(input.a)", "\u0391\u03a3"),
    ("upper(input.a)", "\u00df"),
    ('net.cidr_contains("10.0.0.0/8", input.a)', "::ffff:10.1.1.1"),
    ("opa.runtime()", None),
    ("regex.is_valid(input.a)", "a**"),
    ("regex.replace(input.a, `\\d`, `#`)", "\u0661"),
    ("regex.split(``, input.a)", "ab"),
    ("regex.find_n(`\\d`, input.a, 1)", "\u0661"),
    ("regex.find_all_string_submatch_n(`\\d`, input.a, 1)", "\u0661"),
    ("regex.template_match(`a{\\d}`, input.a, `{`, `}`)", "a\u0661"),
    ("semver.is_valid(input.a)", "v1.2.3"),
    ('strings.replace_n({"a": "b", "b": "c"}, input.a)', "a"),
    ('time.format([1700000000000000000, "UTC", input.a])', "RFC822"),
    ("time.add_date(input.a, 1, 2, 3)", -1),
    ("trace(input.a)", "x"),
    ("net.cidr_is_valid(input.a)", "10.0.0.0/+8"),
    ("to_number(input.a)", " 1"),
    ("time.parse_rfc3339_ns(input.a)", "2024-01-02 03:04:05Z"),
    ('time.parse_ns("2006-01-02", input.a)', "2024-1-2"),
    ("json.verify_schema(input.a)", True),
    ("uuid.parse(input.a)", "00000000-0000-0000-0000-000000000000"),
    ('object.subset(input.a, {"a": 1})', 1),
    ('indexof_n(input.a, "")', "ab"),
    ("yaml.is_valid(input.a)", "a: 1\n---\nb: 2\n"),
    ('substring("abc", 0, input.a)', 0.5),
    ("regex.match(`^a**$`, input.a)", "aa"),
    ("regex.match(`^a{2}{3}$`, input.a)", "aaaaaa"),
    ("regex.match(`^a{1001}$`, input.a)", "a" * 1001),
    ("regex.match(`^a{01}$`, input.a)", "a"),
    ("units.parse_bytes(input.a)", ".5"),
    # patterns, and texts with verbs
    ("regex.match(`^\\d+$`, input.a)", "\u0661"),
    ("regex.match(`^\\w+$`, input.a)", "\u0430dmin"),
    ("regex.match(`^\\S+$`, input.a)", "\u00a0"),
    ("regex.match(`\\bx`, input.a)", "\u00e9x"),
    ("regex.match(`[a&&b]`, input.a)", "a"),
    ("regex.match(`^[a~~b]$`, input.a)", "~"),
    ("regex.match(`^[a[bc]]$`, input.a)", "b"),
    ("regex.match(`\\<a`, input.a)", "a"),
    ("regex.match(`\\b{start}a`, input.a)", "a"),
    ("regex.match(input.a, `\u0661`)", "\\d"),
    ("regex.match(concat(``, [`\\`, `d`]), input.a)", "\u0661"),
    ("glob.match(`[^a]`, [], input.a)", "b"),
    ("glob.match(`[!a]`, [], input.a)", "\u00e9"),
    ("glob.match(`?`, [], input.a)", "\u00e9"),
    ("glob.match(`***`, [`/`], input.a)", "a/b"),
    ("glob.match(`a**b`, [`/`], input.a)", "a/b"),
    ("glob.match(`**/a`, [`/`], input.a)", "a"),
    ("glob.match(`a*`, [`:`], input.a)", "a:b"),
    ("glob.match(input.a, [], `b`)", "[^a]"),
    ("sprintf(`%5s`, [input.a])", "a"),
    ("sprintf(`%.1s`, [input.a])", "ab"),
    ("sprintf(`%x`, [input.a])", "ab"),
    ("sprintf(input.a, [`ab`])", "%x"),
]


@pytest.mark.parametrize(("expression", "value"), REFUSED)
def test_what_would_differ_in_silence_is_refused_at_load(on_opa, tmp_path, expression, value):
    source = f"package agent.authz\nvalue := {expression}\n"
    (tmp_path / "p.rego").write_text(source)
    with pytest.raises(PolicyError, match=r"p\.rego:2:10: .*OPA") as refused:
        RegoEngine.load(tmp_path / "p.rego")
    assert refused.value.code == "policy.invalid"
    document = canonical.dumps({"a": value})
    server = OpaEngine(Server(on_opa(tmp_path / "p.rego"), timeout=20.0))
    ours, theirs = ungated(source, document), answer(server, document)
    assert ours != theirs
    assert "value" in {ours[0], theirs[0]}


NEGATIONS = """package agent.authz
named := true if input.named
plain if is_number(input.x)
f(x) if x
table := {"a": {"z": 1}}
r01 if not is_number(input.x)
r02 if not f(input.x)
r03 if not input.x in {"a"}
r04 if not "a" in input.x
r05 if not startswith(input.x, "a")
r06 if not contains(lower(input.x), "a")
r07 if not input.x + 1 == 2
r08 if not data.agent.authz.f(input.x)
r09 if not [input.x][0]
r10 if not table[input.x]
r11 if not table[input.x].z
r12 if not input.x != 1
r13 if not input.x > 1
r14 if not f(named)
r15 if not {input.x: 1}
r16 if not regex.match("a", input.x)
r17 := [1 | not is_number(input.x)]
s01 if not plain
s02 if not input.x == 1
s03 if not input.x.y.z
s04 if not input.x == input.y
s05 if not named == true
s06 if not input.x
s07 if not startswith(input.action, "a")
s08 if not count([1 | input.x]) == 1
s09 if not f(1)
s10 if {
    some x in input.xs
    not is_number(x)
}
s11 if {
    is_string(input.x)
    not startswith(input.x, "b")
}
s12 if {
    x := input.x
    not is_number(x)
}
s13 if {
    some key in input.xs
    input.x == "a"
    [1 | not contains(input.x, key)] == []
}
s14 if {
    some x in input.things
    x.name != "d"
    not startswith(x.name, "c")
}
s15 if {
    plain == true
    not plain != true
}
s16 if {
    every x in input.xs { is_string(x) }
    not count(input.xs) == 0
}
r19 if {
    some x in input.things
    [1 | not startswith(x.name, "c")] == [1]
}
r22 if not given(1) > 1
r23 if not given(1) == 1
r24 if not f(given(1))
r25 := input.x in ["a"]
r26 if { (input.x in ["a"]) == false }
r27 if { y := "a" in input.x; is_boolean(y) }
r28 if is_boolean("a" in given(1))
given(_) := 5 if input.named
r29 if not is_number(data.agent.authz.held.k)
r30 := data.agent.authz.held.k in [1]
r31 if not is_number(data.agent.authz.parts.k)
held := {"k": input.named} if input.named
parts[k] := 1 if { k := input.named }
s24 if not is_number(data.agent.authz.always.k)
s25 if not is_string(data.agent.authz.parts)
always.k := 1
s17 if not given(1)
s18 if input.x in ["a"]
s19 if { y := input.action in ["a"]; y == false }
s20 if { input.x == "a"; (input.x in ["b"]) == false }
s21 if { some x in input.xs; (x in ["b"]) == false }
s22 if not 1 in [1]
s23 if {
    not startswith(input.action, "z")
    not startswith(input.action, "y")
    count([x | some x in input.xs; not startswith(x, "q")]) == 1
    x := 1
}
r20 if {
    not input.x
    not is_number(input.x)
}
r21 if {
    input.named
    not f(input.named.first)
}
"""


def refused_rules(folder: Path, source: str) -> set[str]:
    """The names of the rules in which the gate finds a negation that it refuses."""
    (folder / "p.rego").write_text(source)
    with pytest.raises(PolicyError, match="not on an OPA server") as refused:
        RegoEngine.load(folder / "p.rego")
    assert refused.value.code == "policy.invalid"
    places = [int(said.split(":")[1]) for said in str(refused.value).splitlines()]
    heads = re.finditer(r"^(\w+).*?(?=^\w|\Z)", source, re.DOTALL | re.MULTILINE)
    lines = {
        head[1]: (source[: head.start()].count("\n") + 1, head[0].count("\n")) for head in heads
    }
    return {
        name
        for name, (first, count) in lines.items()
        if any(first <= place < first + count for place in places)
    }


def test_a_negation_that_a_server_decides_otherwise_is_refused_and_no_other(on_opa, tmp_path):
    refused = refused_rules(tmp_path, NEGATIONS)
    server = OpaEngine(Server(on_opa(tmp_path / "p.rego"), timeout=20.0))
    differ: set[str] = set()
    for x in (
        {},
        {"x": 1},
        {"x": "a"},
        {"x": {"y": {"z": 1}}},
        {"x": "a", "things": [{"name": "c"}, {"name": "e"}]},
        {"things": [{"name": "c"}, {}]},
        {"named": True},
    ):
        document = canonical.dumps({"action": "abc", "xs": ["a"], **x})
        (kind, ours), (other, theirs) = ungated(NEGATIONS, document), answer(server, document)
        if FAILED in (kind, other):  # startswith(1, "a"): on both
            assert kind == other
            continue
        differ |= {rule for rule in {*ours, *theirs} if ours.get(rule) != theirs.get(rule)}
    assert differ == refused == set(re.findall(r"(?m)^r\d\d", NEGATIONS))


UNIONS = [
    'allow if {\n    input.a |\n    {"x"}\n    false\n}',
    'allow if { {"x"} | {"y"} == input.a }',
    'allow if { {"x"} | {"y"} | {"z"}; input.b }',
    'allow := true if { f(input.a) | {"x"}; input.b }\nf(x) := x',
    'deny_reasons contains "no" if { input.a[_] | {"x"}; input.b }',
    'allow if { {"x"} | {"y"} in input.a }',
]


@pytest.mark.parametrize("rule", UNIONS)
def test_a_body_that_is_a_comprehension_to_a_server_is_refused(on_opa, tmp_path, rule):
    source = f"package agent.authz\n{rule}\n"
    (tmp_path / "p.rego").write_text(source)
    with pytest.raises(
        PolicyError, match=r"p\.rego:\d:\d+: an OPA server reads an expression"
    ) as refused:
        RegoEngine.load(tmp_path / "p.rego")
    assert refused.value.code == "policy.invalid"
    document = canonical.dumps({"b": False})
    server = OpaEngine(Server(on_opa(tmp_path / "p.rego"), timeout=20.0))
    holds = answer(server, document)[1]
    assert holds.get("allow") == "True" or holds.get("deny_reasons")
    ours = ungated(source, document)[1] or {}
    assert not ours.get("allow")
    assert not ours.get("deny_reasons")


def test_a_set_is_no_condition_but_may_be_compared_or_have_a_name(on_opa, tmp_path):
    with pytest.raises(PolicyError, match="such a condition always holds"):
        RegoEngine.from_source('package agent.authz\nallow if { input.a | {"x"} }\n')
    (tmp_path / "p.rego").write_text(
        """package agent.authz
allow if { all := {"x"} | {input.a}; "y" in all }
deny_reasons contains "z" if { {x | x := input.a} == {"z"} }
"""
    )
    embedded = RegoEngine.load(tmp_path / "p.rego")
    server = OpaEngine(Server(on_opa(tmp_path / "p.rego"), timeout=20.0))
    for call, allows in (({"a": "y"}, True), ({"a": "z"}, False), ({}, False)):
        document = canonical.dumps(call)
        assert require_agreement(embedded, server, document) == ("allow" if allows else "deny")


LATE = [
    'deny_reasons contains "no" if { not data.agent.authz.members[user]; input.users[user] }',
    "allow if { not members[y]; input.users[y] }",
    "allow if { some y; not members[y]; input.users[y] }",
]


@pytest.mark.parametrize("rule", LATE)
def test_a_variable_that_a_negation_uses_before_it_has_a_value_is_refused(on_opa, tmp_path, rule):
    """Embedded it holds for nothing: a denial would never fire."""
    source = f'package agent.authz\nmembers := {{"alice"}}\n{rule}\n'
    (tmp_path / "p.rego").write_text(source)
    with pytest.raises(PolicyError, match=r"p\.rego:3:\d+: this `not` uses (user|y) before"):
        RegoEngine.load(tmp_path / "p.rego")
    before, _, after = rule.partition("not ")
    negated, _, binds = after.partition("; ")
    ordered = f"{before}{binds.removesuffix(' }')}; not {negated} }}"
    (tmp_path / "p.rego").write_text(source.replace(rule, ordered))
    embedded = RegoEngine.load(tmp_path / "p.rego")
    server = OpaEngine(Server(on_opa(tmp_path / "p.rego"), timeout=20.0))
    outcomes = {
        require_agreement(embedded, server, canonical.dumps(call))
        for call in ({"user": "bob", "users": {"bob": 1}}, {"user": "alice"}, {})
    }
    assert outcomes <= {"allow", "deny"}


OWN = [
    ("agent.authz", "import data.agent.authz as self", "self.closed", "closed"),
    ("agent.authz", "import data.agent.authz", "authz.closed", "data.agent.authz.closed"),
    ("agent.authz", "import data.agent", "agent.authz.closed", "data.agent.authz.closed"),
    ("agent.authz", "import data as all", "all.agent.authz.closed", "closed"),
    ("lib", "import data.lib as self", "self.closed", "closed"),
]


@pytest.mark.parametrize(("package", "line", "through", "instead"), OWN)
def test_an_import_of_the_own_package_is_refused_and_what_it_says_to_write_agrees(
    opa, tmp_path, package, line, through, instead
):
    """Through it the embedded engine misses what stands further down: the denial never fires."""
    folder = tmp_path / "policies"
    folder.mkdir()
    asked = {"agent.authz": "data.agent.authz.blocked", "lib": "data.lib.blocked"}[package]
    file = folder / "x.rego"
    rules = 'blocked if {}\nclosed if input.account == "A-13"\n'
    outputs = f'allow if input.action\ndeny_reasons contains "closed" if {asked}\n'
    if package == "agent.authz":  # it has imports, and therefore one file
        rules += outputs
    else:
        (folder / "authz.rego").write_text(f"package agent.authz\n{outputs}")
    file.write_text(f"package {package}\n{line}\n{rules.format(through)}")
    with pytest.raises(PolicyError, match=r"x\.rego:2:1: .* own package, .* bare name") as refused:
        RegoEngine.load(folder)
    assert refused.value.code == "policy.invalid"
    # an import of a rule, or of another package, is right
    file.write_text(
        f"package {package}\nimport data.{package}.closed as other\nimport data.more\n"
        f"{rules.format(instead)}blocked if more.closed\nblocked if {{ other; input.b }}\n"
    )
    (folder / "more.rego").write_text('package more\nclosed if input.account == "A-14"\n')
    embedded = RegoEngine.load(folder)
    server = OpaEngine(Server(opa("--bundle", folder).url, timeout=20.0))
    for account, wanted in (("A-13", "deny"), ("A-14", "deny"), ("A-1", "allow")):
        document = canonical.dumps({"action": "pay", "account": account})
        assert require_agreement(embedded, server, document) == wanted


DENY = 'deny_reasons contains "closed" if {}\n'
TOGETHER: list[tuple[dict[str, str], dict[str, str]]] = [
    # a rule that is defined behind what reads it, from the second file on
    (
        {
            "a": "agent.authz\nallow if input.action\n",
            "b": f"agent.authz\n{DENY}closed if input.x\n",
        },
        {"a": f"agent.authz\nallow if input.action\n{DENY}closed if input.x\n"},
    ),
    (
        {
            "a": "agent.authz\n# nothing\n",
            "b": f"agent.authz\nallow if input.action\n{DENY}",
            "c": "agent.authz\nclosed if input.x\n",
        },
        {"b": f"agent.authz\nallow if input.action\n{DENY}closed if input.x\n"},
    ),
    # a rule of two files that is read in between
    (
        {
            "a": "agent.authz\nclosed if input.y\n",
            "b": f"agent.authz\nallow if input.action\n{DENY}",
            "c": "agent.authz\nclosed if input.x\n",
        },
        {"b": f"agent.authz\nallow if input.action\n{DENY}closed if input.y\nclosed if input.x\n"},
    ),
    # an import in the second file
    (
        {
            "a": "agent.authz\nimport input.agent as a\nallow if a.type\n",
            "b": 'agent.authz\nimport input.args as b\ndeny_reasons contains "closed" if b.ok\n',
        },
        {
            "a": "agent.authz\nimport input.agent as a\nallow if a.type\n"
            'deny_reasons contains "closed" if input.args.ok\n'
        },
    ),
    # a function of two files, in whatever package
    (
        {
            "a": 'lib\ncan("p") if input.x == 2\n',
            "b": 'lib\ncan("q") if input.x == 1\n',
            "c": 'agent.authz\nallow if data.lib.can("p")\n',
        },
        {
            "a": 'lib\ncan("p") if input.x == 2\ncan("q") if input.x == 1\n',
            "c": 'agent.authz\nallow if data.lib.can("p")\n',
        },
    ),
    # a package below the one that is asked, between its files
    (
        {
            "a": "agent.authz\nallow if input.action\n",
            "b": "agent.authz.two\nclosed if shut\nshut if input.x\n",
            "c": f"agent.authz\n{DENY}",
        },
        {
            "a": f"agent.authz\nallow if input.action\n{DENY}",
            "b": "two\nclosed if shut\nshut if input.x\n",
        },
    ),
    # a rule in the place of a package
    (
        {
            "a": "agent.authz\nsub.k := 1\nallow if input.action\n"
            'deny_reasons contains "bad" if { some n, _ in sub; n == "bad" }\n',
            "b": "agent.authz.sub\nbad if input.x\n",
        },
        {
            "a": "agent.authz\nallow if input.action\n"
            'deny_reasons contains "bad" if data.sub.bad\n',
            "b": "sub\nbad if input.x\n",
        },
    ),
]


@pytest.mark.parametrize(("apart", "together"), TOGETHER)
def test_files_that_the_engine_misses_rules_of_are_refused_and_one_file_agrees(
    opa, tmp_path, apart, together
):
    call = {"action": "pay", "agent": {"type": "b"}, "args": {"ok": True}}
    document = canonical.dumps(call | {"x": 1})
    engine = regorus.Engine()
    read = {"agent.authz.two": "data.agent.authz.two.closed", "two": "data.two.closed"}
    for name, files in (("apart", apart), ("together", together)):
        (tmp_path / name).mkdir()
        packages = {text.partition("\n")[0] for text in files.values()}
        (closed,) = {read[one] for one in packages if one in read} or {"closed"}
        for file, text in files.items():
            whole = "package " + text.replace("{}", closed)
            (tmp_path / name / f"{file}.rego").write_text(whole)
            if name == "apart":
                engine.add_policy(f"{file}.rego", whole)
    with pytest.raises(PolicyError, match=r"misses rules of|the engine merges the two") as refused:
        RegoEngine.load(tmp_path / "apart")
    assert refused.value.code == "policy.invalid"
    engine.set_input_json(document.decode())
    (ours,) = json.loads(engine.eval_query_as_json("data.agent.authz"))["result"]
    del engine  # else the frame and ``refused`` keep one another, until some thread collects both
    server = OpaEngine(Server(opa("--bundle", tmp_path / "apart").url, timeout=20.0))
    ours, theirs = (
        decide(one) for one in (ours["expressions"][0]["value"], evaluated(server, document))
    )
    assert ours.allowed
    assert not theirs.allowed

    embedded = RegoEngine.load(tmp_path / "together")
    server = OpaEngine(Server(opa("--bundle", tmp_path / "together").url, timeout=20.0))
    assert require_agreement(embedded, server, document) == "deny"
    require_agreement(embedded, server, canonical.dumps(call | {"x": False}))


LOOSE = [
    (
        "same(x, x) := true\nallow if same(input.a, input.b)",
        "same(x, y) if x == y",
        "same(x, x) := true",
    ),
    (
        "allow if { some k, k in [input.b, 5]; input.a == 0 }",
        "some k, v in [input.b, 5]; k == v",
        "some k, k in [input.b, 5]",
    ),
    (
        'allow if { [{"r": x}, _] := [input.o, 1]; x == 0 }',
        '[o, _] := [input.o, 1]; o == {"r": 0}',
        '[{"r": x}, _] := [input.o, 1]; x == 0',
    ),
    (
        'allow if { some {"r": 0} in [input.o] }',
        '{"r": 0} in [input.o]',
        'some {"r": 0} in [input.o]',
    ),
]


@pytest.mark.parametrize(("rules", "strict", "loose"), LOOSE)
def test_what_is_matched_more_loosely_embedded_is_refused(on_opa, tmp_path, rules, strict, loose):
    source = f"package agent.authz\n{rules}\n"
    file = tmp_path / "p.rego"
    file.write_text(source)
    with pytest.raises(
        PolicyError, match=r"p\.rego:2:\d+: (an object as|\w is written twice)"
    ) as refused:
        RegoEngine.load(file)
    assert refused.value.code == "policy.invalid"
    other = canonical.dumps({"a": 0, "b": 9, "o": {"r": 0, "revoked": True}})
    assert ungated(source, other)[1] == {"allow": "True"}
    file.write_text(source.replace(loose, strict))
    embedded = RegoEngine.load(file)
    server = OpaEngine(Server(on_opa(file), timeout=20.0))
    alike = canonical.dumps({"a": 0, "b": 0, "o": {"r": 0}})
    assert require_agreement(embedded, server, alike) == "allow"
    assert require_agreement(embedded, server, other) == "deny"
