"""Random rules in Rego, and inputs for them: what a policy's author may write, and more.

Names come from a small vocabulary, so that values often meet and often lack. What a variable is
called is fresh, or one of few names that others have as well. Nothing here knows what either engine
makes of a rule: many are refused by both.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias, TypeVar

DATA: Final[dict[str, Any]] = {
    "t": {"xs": ["a", "b", 1], "o": {"a": 1, "b": {"c": "a"}}, "n": 2, "e": {}, "l": []}
}
"""The data beside the rules."""

OTHER: Final = """package lib

x1 if input.a == 1
x2 := input.o
x3[k] := v if some k, v in input.o
x4 contains x if some x in input.xs
x5 := {"k": input.x}
y1(x) := y if { y := x.a } else := "none"
"""
"""Another package, which rules read by its path, or by an import."""

PRELUDE: Final = """package p

import data.lib
import data.lib.x2 as held
import data.lib.x5
import input.o as given
import input.x as it

default d1 := false
d1 if input.a == 1
default d2 := {"k": 1}
d2 := {"k": 2} if input.b
h1 if input.x
h2 := input.x
h3 := false if input.a
h3 := false if input.b
ps contains x if some x in input.xs
ps contains input.a
pk contains [k, v] if some k, v in input.o
po[k] := v if some k, v in input.o
pq.s := input.n
pq.t := input.b
pq.u contains x if some x in input.xs
e1 := "one" if input.a == 1 else := "two" if input.b else := "three" if input.n > 1
e2 := 1 if input.x else := 2
f1(x) := x
f2(x) if x
f3(x) := "s" if is_string(x)
f3(x) := "n" if is_number(x)
f4([x, y]) := {"l": x, "r": y}
f4("a") := "is a"
default f5(_) := "other"
f5(x) := y if { y := input.o[x] }
g1(x, y) if x == y
g2(x, y) := z if { z := x + y } else := "no"
g3(1, y) := y
g3(x, "b") := x if x != 1

"""
"""What the rules refer to: rules, sets, objects and functions of all forms."""

KEYS: Final = ("a", "b", "c", "x", "y", "n", "xs", "o")
RULES: Final = ("d1", "d2", "d2.k", "h1", "h2", "h3", "ps", "pk", "po", "pq", "pq.s", "pq.t")
BY_PATH: Final = (
    "data.p.h1",
    "data.p.h2.a",
    "data.p.po.a",
    "data.p.d2.k",
    "data.p.pq.s",
    "data.p.ps",
    "data.lib.x1",
    "data.lib.x2.a",
    "data.lib.x3.a",
    "data.lib.x4",
    "data.lib.x5.k",
    "data.lib.x3",
    "lib.x1",
    "lib.x2.b",
    "lib.x3",
    "held",
    "held.a",
    "x5",
    "x5.k",
    "given",
    "given.a",
    "it",
)
MORE_RULES: Final = ("e1", "e2", "data.t", "data.t.xs", "data.t.o", "data.t.o.b", "data.t.n")
SCALARS: Final = ("0", "1", "2", "-1", "0.5", '"a"', '"b"', '"ab"', '""', "true", "false", "null")
COLLECTIONS: Final = (
    "input.xs",
    "input.o",
    "input.c",
    "data.t.xs",
    "data.t.o",
    "ps",
    "po",
    "pk",
    "pq",
    "[]",
    "{}",
    '[1, 2, "a"]',
    '{"a": 1, "b": 2}',
    "{1, 2}",
    "set()",
)
INDEXED: Final = ("input.xs", "input.o", "po", "ps", "pk", "pq", "data.t.o", "data.t.xs", "input")
SHADOWS: Final[tuple[tuple[str, ...], ...]] = (
    (),
    (),
    ("x", "y"),
    ("x", "h1", "ps", "f1", "count", "e1", "p", "t", "contains"),
)
VALUES: Final[tuple[Any, ...]] = (
    0,
    1,
    2,
    -1,
    0.5,
    "a",
    "b",
    "ab",
    "",
    True,
    False,
    None,
    [],
    {},
    ["a"],
    ["a", "b"],
    [1, [1]],
    {"a": 1},
    {"a": {"b": 2}},
    {"b": "a", "k": False},
    ["b", 1],
)
UNARY: Final = (
    "count({})",
    "is_string({})",
    "is_number({})",
    "is_boolean({})",
    "is_null({})",
    "is_array({})",
    "is_object({})",
    "is_set({})",
    "type_name({})",
    "object.keys({})",
    "abs({})",
    "round({})",
    "array.reverse({})",
    "product({})",
    "max({})",
    "min({})",
    "sum({})",
    "sort({})",
    'endswith({}, "a")',
    'contains({}, "a")',
    'split({}, "a")',
    'replace({}, "a", "b")',
    'sprintf("%v", [{}])',
    'indexof({}, "b")',
    'trim({}, "a")',
    "regex.match(`^a`, {})",
    "array.slice({}, 0, 1)",
    "substring({}, 0, 1)",
    'concat(",", {})',
    'object.get(input.o, ["a", "b"], {})',
    "f1({})",
    "f2({})",
    "f3({})",
    "f4({})",
    "f5({})",
    "lib.y1({})",
)
BINARY: Final = (
    "startswith({}, {})",
    "array.concat({}, {})",
    "object.union({}, {})",
    "g1({}, {})",
    "object.remove({}, {})",
    "object.filter({}, {})",
    "g2({}, {})",
    "g3({}, {})",
    "object.get({}, {}, 1)",
)

Variables: TypeAlias = list[str]
T = TypeVar("T")


class Grammar:
    """Makes rules; ``chance`` is all that they depend on."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._count = 0
        self._shadows: tuple[str, ...] = ()

    def rule(self, name: str) -> str:
        """Return one rule, or one with what belongs to it, in lines of its own."""
        self._shadows = self._of(SHADOWS)
        depth = self._of((1, 2, 2, 3))
        body, bound = self._body([], depth, self._of((1, 1, 2, 2, 3, 4)))
        value, small = self._term(bound, depth), self._term(bound, 0)
        given = self._weighted(
            (25, lambda: f"{name} if {{ {body} }}"),
            (25, lambda: f"{name} := {value} if {{ {body} }}"),
            (6, lambda: f"{name} := {self._term([], depth)}"),
            (12, lambda: f"{name} contains {self._term(bound, 1)} if {{ {body} }}"),
            (7, lambda: f"{name}[{self._term(bound, 1)}] := {small} if {{ {body} }}"),
            (2, lambda: f"{name}[{small}] if {{ {body} }}"),
            (2, lambda: f"{name}.k := {small} if {{ {body} }}\n{name}.l := 1"),
            (1, lambda: f"{name}[{small}].z := {small} if {{ {body} }}"),
            (1, lambda: f"{name}[{small}] := 1\n{name}.k := {small} if {{ {body} }}"),
            (7, lambda: f"{name} := {value} if {{ {body} }} else := {self._alternative(depth)}"),
            (3, lambda: f"{name} := 1 if {{ {body} }}\n{name} := {self._alternative(depth)}"),
            (
                2,
                lambda: f"default {name} := {self._of(SCALARS)}\n{name} := {small} if {{ {body} }}",
            ),
            (7, lambda: self._function(name, depth)),
        )
        return given()

    def _alternative(self, depth: int) -> str:
        body, bound = self._body([], depth, self._of((1, 2)))
        return f"{self._term(bound, 1)} if {{ {body} }}"

    def _function(self, name: str, depth: int) -> str:
        patterns: list[str] = []
        bound: Variables = []
        for _ in range(self._of((1, 2))):
            pattern, more = self._pattern([]) if self._is(0.8) else (self._of(SCALARS), [])
            patterns.append(pattern)
            bound += more
        body, bound = self._body(bound, depth, self._of((1, 2)))
        call = f"{name}f({', '.join(self._value([]) for _ in patterns)})"
        head = f"{name}f({', '.join(patterns)})"
        if self._is(0.3):
            other = f"else := {self._term(bound[:1], 1)}"
            return f"{head} := {self._term(bound, 1)} if {{ {body} }} {other}\n{name} := {call}"
        if self._is(0.5):
            return f"{head} := {self._term(bound, 1)} if {{ {body} }}\n{name} := {call}"
        return f"{head} if {{ {body} }}\n{name} if not {call}"

    def _body(self, bound: Variables, depth: int, length: int) -> tuple[str, Variables]:
        """Return conditions, and the variables that they leave bound."""
        said: list[str] = []
        for _ in range(length):
            statement, bound = self._statement(bound, depth)
            said.append(statement)
        for name in bound:  # OPA refuses a variable that nothing uses
            if sum(one.count(name) for one in said) < 2 and self._is(0.8):
                uses = (name, f"f1({name})", f"not is_number({name})", f"{name} != {{}}")
                said.append(self._of(uses).format(self._value(bound)))
        if self._is(0.08):
            self._chance.shuffle(said)
        return "; ".join(said), bound

    def _statement(self, bound: Variables, depth: int) -> tuple[str, Variables]:
        return self._weighted(
            (12, lambda: (self._term(bound, depth), bound)),
            (18, lambda: (self._comparison(bound, depth), bound)),
            (20, lambda: self._assignment(bound, depth)),
            (1, lambda: (f"{self._term(bound, depth)} = {self._term(bound, depth)}", bound)),
            (14, lambda: self._loop(bound, depth)),
            (6, lambda: self._lookup_loop(bound)),
            (13, lambda: (f"not {self._negated(bound, depth)}", bound)),
            (6, lambda: (self._every(bound, depth), bound)),
            (6, lambda: (f"{self._term(bound, depth - 1)} in {self._collection(bound)}", bound)),
            (1, lambda: (f"{self._term(bound, 1)} with input.a as {self._term(bound, 1)}", bound)),
            (3, lambda: (self._call(bound, depth), bound)),
        )()

    def _assignment(self, bound: Variables, depth: int) -> tuple[str, Variables]:
        pattern, more = self._pattern(bound)
        return f"{pattern} := {self._term(bound, depth)}", [*bound, *more]

    def _loop(self, bound: Variables, depth: int) -> tuple[str, Variables]:
        pattern, more = self._pattern(bound)
        collection = self._collection(bound) if self._is(0.8) else self._literal(bound, depth)
        if self._is(0.6):
            return f"some {pattern} in {collection}", [*bound, *more]
        key = self._fresh()
        return f"some {key}, {pattern} in {collection}", [*bound, key, *more]

    def _lookup_loop(self, bound: Variables) -> tuple[str, Variables]:
        name, base = self._fresh(), self._of(INDEXED)
        forms = (
            f"{base}[{name}]",
            f"{base}[{name}].a",
            f"{base}[_][{name}]",
            f"{name} := {base}[_]",
            f"some {name}; {base}[{name}]",
            f"walk({base}, [_, {name}])",
            f"pk[[{name}, _]]",
            f"{base}[{name}] == {self._term(bound, 1)}",
        )
        return self._of(forms), [*bound, name]

    def _every(self, bound: Variables, depth: int) -> str:
        name, key = self._fresh(), self._fresh()
        names = f"{key}, {name}" if self._is(0.3) else name
        body, _ = self._body([*bound, name], depth - 1, self._of((1, 2)))
        return f"every {names} in {self._collection(bound)} {{ {body} }}"

    def _negated(self, bound: Variables, depth: int) -> str:
        return self._of(
            (
                lambda: self._term(bound, depth),
                lambda: self._comparison(bound, depth),
                lambda: f"{self._term(bound, depth - 1)} in {self._collection(bound)}",
                lambda: self._call(bound, depth),
                lambda: self._of(UNARY).format(self._of(BY_PATH)),
                self._input,
            )
        )()

    def _pattern(self, bound: Variables) -> tuple[str, Variables]:
        name, other = self._fresh(), self._fresh()
        return self._weighted(
            (60, lambda: (name, [name])),
            (15, lambda: (f"[{name}, {other}]", [name, other])),
            (10, lambda: (f"[{name}, {self._of(('_', self._term(bound, 1)))}]", [name])),
            (5, lambda: (f'{{"a": {name}}}', [name])),
            (10, lambda: (f"[{name}, [_]]", [name])),
        )()

    def _comparison(self, bound: Variables, depth: int) -> str:
        if self._is(0.35):
            return f"{self._ordered()} {self._of(('<', '<=', '>', '>='))} {self._ordered()}"
        operator = self._of(("==", "!="))
        return f"{self._term(bound, depth - 1)} {operator} {self._term(bound, depth - 1)}"

    def _ordered(self) -> str:
        """Return what has one place in the order of values: no set, and nothing with one in it."""
        more = ("1", '"a"', "true", "null", "[]", '{"a": 1}', "[1, 2]", "count(input.xs)", "h2")
        return self._of((self._input(), self._input(), "input.xs[0]", "data.t.n", *more))

    def _term(self, bound: Variables, depth: int) -> str:
        if depth <= 0:
            return self._of((self._of(SCALARS), self._input(), *(bound[-3:] or ["1"])))
        return self._weighted(
            (7, lambda: self._of(SCALARS)),
            (21, self._input),
            (24, lambda: self._of((*bound[-3:], *bound[-1:])) if bound else self._input()),
            (9, lambda: self._of((*RULES, *MORE_RULES))),
            (6, lambda: self._of(BY_PATH)),
            (3, lambda: self._lookup(bound, depth)),
            (6, lambda: self._literal(bound, depth)),
            (
                4,
                lambda: f"({self._number(bound)} {self._of(tuple('+-*/%'))} {self._number(bound)})",
            ),
            (
                3,
                lambda: (
                    f"({self._set(bound, depth)} {self._of(tuple('|&-'))} {self._set(bound, 1)})"
                ),
            ),
            (4, lambda: f"({self._comparison(bound, depth)})"),
            (3, lambda: f"({self._term(bound, depth - 1)} in {self._collection(bound)})"),
            (1, lambda: f"({self._input()}, {self._input()} in {self._collection(bound)})"),
            (10, lambda: self._call(bound, depth)),
            (7, lambda: self._comprehension(bound, depth)),
        )()

    def _input(self) -> str:
        path = f"input.{self._of(KEYS)}"
        return f"{path}.{self._of(KEYS)}" if self._is(0.3) else path

    def _value(self, bound: Variables) -> str:
        """Return what may be anything: OPA refuses a call that its types say must fail."""
        more = ("input.n", "input.a", "input.x", "input.xs", "input.o", "input.o.a", "h2")
        return self._of((*more, "f1(input.a)", "po[input.a]", *bound[-4:], *bound[-2:]))

    def _number(self, bound: Variables) -> str:
        more = ("input.n", "input.a", "input.x", "1", "2", "h2", "data.t.n", "count(input.xs)")
        return self._of((*more, *bound[-2:]))

    def _set(self, bound: Variables, depth: int) -> str:
        made = f"{{{self._term(bound, depth - 1)}, {self._term(bound, depth - 1)}}}"
        loop = f"{{w | some w in {self._collection(bound)}}}"
        return self._of(("ps", "pk", '{1, "a"}', "{input.a}", "set()", made, loop, *bound[-1:]))

    def _collection(self, bound: Variables) -> str:
        pair = f"[{self._value(bound)}, {self._value(bound)}]"
        return self._of((*COLLECTIONS, pair, *bound[-2:]))

    def _lookup(self, bound: Variables, depth: int) -> str:
        index = self._of(('"a"', "0", self._term(bound, depth - 1), "input.a", *bound[-2:]))
        base = self._of(("input.o", "input.xs", "po", *bound[-2:]))
        return f"{base}[{index}]" + self._of(("", "", ".a", "[0]", '["k"]'))

    def _literal(self, bound: Variables, depth: int) -> str:
        items = [self._term(bound, depth - 1) for _ in range(self._of((1, 2, 3)))]
        key = self._of(('"a"', '"k"', "1", self._input()))
        return self._weighted(
            (4, lambda: f"[{', '.join(items)}]"),
            (3, lambda: f"{{{', '.join(items)}}}"),
            (2, lambda: f'{{{key}: {items[0]}, "z": {items[-1]}}}'),
            (1, lambda: f'{{"a": {items[0]}, {key}: {items[-1]}}}'),
        )()

    def _call(self, bound: Variables, depth: int) -> str:
        form = self._of(UNARY) if self._is(0.75) else self._of(BINARY)
        return form.format(
            *(
                self._value(bound) if self._is(0.7) else self._term(bound, depth - 1)
                for _ in range(form.count("{}"))
            )
        )

    def _comprehension(self, bound: Variables, depth: int) -> str:
        body, inner = self._body(bound, depth - 1, self._of((1, 2)))
        return self._weighted(
            (4, lambda: f"[{self._term(inner, 1)} | {body}]"),
            (4, lambda: f"{{{self._term(inner, 1)} | {body}}}"),
            (2, lambda: f"{{{self._term(inner, 1)}: {self._term(inner, 1)} | {body}}}"),
        )()

    def _fresh(self) -> str:
        if self._shadows and self._is(0.6):
            return self._of(self._shadows)
        self._count += 1
        return f"v{self._count}"

    def _is(self, likely: float) -> bool:
        return self._chance.random() < likely

    def _of(self, choices: Sequence[T]) -> T:
        return self._chance.choice(choices)

    def _weighted(self, *choices: tuple[int, Callable[[], T]]) -> Callable[[], T]:
        (made,) = self._chance.choices([one for _, one in choices], [n for n, _ in choices])
        return made


def documents(chance: random.Random, number: int) -> list[dict[str, Any]]:
    """Return inputs, an empty one first."""
    made: list[dict[str, Any]] = [{}]
    for _ in range(number - 1):
        document = {key: chance.choice(VALUES) for key in KEYS if chance.random() < 0.6}
        if "xs" in document and chance.random() < 0.8:
            document["xs"] = chance.choices(VALUES, k=chance.randint(0, 3))
        if "o" in document and chance.random() < 0.8:
            names = chance.sample(("a", "b", "c", "k", "0"), chance.randint(0, 3))
            document["o"] = {name: chance.choice(VALUES) for name in names}
        made.append(document)
    return made
