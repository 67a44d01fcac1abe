"""Numbers that are none to Rego: a tagged one passes every lower bound, so the author is warned.

A policy that is written as the warning, and langchain-arguments.md say denies them; what is a
number within the bounds is allowed all the same.
"""

from __future__ import annotations

import logging
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from agentguard import Denied, Guard
from agentguard.policy.rego import RegoEngine

HEAD = "package agent.authz\ndefault allow := false\n"
NAIVE = """
allow if input.args.amount >= 0
deny_reasons contains "negative" if input.args.amount < 0
"""
ADVISED = {
    "a number that allows, and a reason for what is none": """
allow if { is_number(input.args.amount); input.args.amount >= 0; input.args.amount <= 1000 }
deny_reasons contains "no number" if not plain
plain if is_number(input.args.amount)
""",
    "bounds by one name": """
small if { is_number(input.args.amount); input.args.amount >= 0; input.args.amount <= 1000 }
allow if small
deny_reasons contains "not small" if not small
""",
    "only what denies": """
allow if true
deny_reasons contains "negative" if { is_number(input.args.amount); input.args.amount < 0 }
deny_reasons contains "large" if { is_number(input.args.amount); input.args.amount > 1000 }
deny_reasons contains "no number" if not plain
plain if is_number(input.args.amount)
""",
    "an attribute": """
allow if { amount := input.sum; is_number(amount); amount >= 0; amount <= 1000 }
""",
    "a function": """
within(x, most) if { is_number(x); x >= 0; x <= most }
allow if within(input.args.amount, 1000)
""",
    "a rule of its own, without the check once more": """
plain if is_number(input.args.amount)
allow if { plain; input.args.amount >= 0; input.args.amount <= 1000 }
deny_reasons contains "large" if { plain; input.args.amount > 1000 }
deny_reasons contains "no number" if not plain
""",
    "a rule with a default, of a rule of its own": """
default plain := false
plain if numeric
numeric if is_number(input.args.amount)
allow if { plain; input.args.amount >= 0; input.args.amount <= 1000 }
""",
    "a function that checks, and one that compares": """
numeric(x) if is_number(x)
within(x, most) if { numeric(x); x >= 0; x <= most }
allow if { numeric(input.args.amount); input.args.amount >= 0; input.args.amount <= 1000 }
allow if within(input.args.amount, 1000)
""",
    "a function with the check as its value": """
numeric(call) := is_number(call.amount)
allow if { numeric(input.args); input.args.amount >= 0; input.args.amount <= 1000 }
""",
    "items": """
allow if { every x in [input.args.amount] { is_number(x); x >= 0; x <= 1000 } }
""",
}
NO_NUMBERS: list[Any] = [
    Decimal(-5),
    Decimal(5),
    Decimal("1e9"),
    Decimal("-0"),
    -(10**20),
    10**20,
    2**53,
    -(2**53),
    "-5",
    "5",
    [-5],
    {"a": 1},
    (5,),
]
NUMBERS: list[Any] = [0, 5, 1000, 999.5, -0.0]
OUT_OF_BOUNDS: list[Any] = [-1, 1001, -0.5, -(2**53 - 1), 2**53 - 1, 1e300, True, None]


def policy(folder: Path, body: str) -> Path:
    path = folder / "authz.rego"
    path.write_text(HEAD + body)
    return path


def paid(path: Path, amount: Any) -> bool:
    def pay(amount: object) -> None:
        ran.append(amount)

    ran: list[object] = []
    codes: list[str] = []
    with Guard.ephemeral(path) as guard:
        tool = guard.tool(attributes={"sum": "amount"})(pay)
        try:
            guard.new_agent("a").call(tool, amount=amount)
        except Denied as denied:
            codes.append(denied.code)
    assert (ran, codes) in (([amount], []), ([], ["policy.denied"]))
    return ran == [amount]


@pytest.mark.parametrize("body", ADVISED.values(), ids=ADVISED)
def test_a_policy_as_advised_denies_what_is_no_number_to_rego(tmp_path, body):
    path = policy(tmp_path, body)
    assert RegoEngine.load(path).warnings == ()
    assert [amount for amount in NO_NUMBERS if paid(path, amount)] == []
    assert [amount for amount in OUT_OF_BOUNDS if paid(path, amount)] == []


@pytest.mark.parametrize("body", ADVISED.values(), ids=ADVISED)
def test_a_policy_as_advised_allows_a_number(tmp_path, body):
    path = policy(tmp_path, body)
    assert [amount for amount in NUMBERS if not paid(path, amount)] == []


def test_the_policy_in_the_docs_is_as_advised(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "langchain-arguments.md").read_text()
    (block,) = (text for text in page.split("```rego\n")[1:] if "is_number" in text)
    path = policy(tmp_path, block.partition("```")[0])
    assert RegoEngine.load(path).warnings == ()
    assert [amount for amount in [*NO_NUMBERS, *OUT_OF_BOUNDS] if paid(path, amount)] == []
    assert [amount for amount in NUMBERS if paid(path, amount)] == [5, 1000, 999.5]


def test_without_it_a_negative_decimal_passes_and_the_policy_is_warned_of(tmp_path, caplog):
    path = policy(tmp_path, NAIVE)
    with caplog.at_level(logging.WARNING, "agentguard"):
        assert paid(path, Decimal(-5))
    allows, denies = [record.getMessage() for record in caplog.records]
    assert "authz.rego:4:28: input.args.amount is compared by order" in allows
    assert "write is_number(input.args.amount) in this rule" in allows
    assert "authz.rego:5:" in denies
    assert (
        "write is_number(input.args.amount) in this rule, and also in a rule of its own" in denies
    )
    assert not paid(path, -5)


@pytest.mark.parametrize("operator", ["<", "<=", ">", ">="])
@pytest.mark.parametrize("form", ["{0} {1} 5", "5 {1} {0}", "{0} != 1; not {0} {1} 5"])
def test_every_comparison_by_order_is_warned_of(operator, form):
    (warning,) = warned("allow if { " + form.format("input.args.n", operator) + " }")
    assert warning.startswith("policy.rego:2:")


def warned(body: str) -> tuple[str, ...]:
    """What is said of comparisons by order."""
    said = RegoEngine.from_source(f"package agent.authz\n{body}").warnings
    return tuple(warning for warning in said if "by order" in warning)


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ("allow if input.amount > input.limit", ["input.amount", "input.limit"]),
        # a helper that does not check, or not always, or not this value
        ("h if is_number(input.args.m)\nallow if { h; input.args.n > 1 }", ["input.args.n"]),
        ("h if is_number(input.args.n)\nallow if { not h; input.args.n > 1 }", ["input.args.n"]),
        (
            "h if is_number(input.args.n)\nallow if { h == false; input.args.n > 1 }",
            ["input.args.n"],
        ),
        (
            "default h := true\nh if is_number(input.args.n)\nallow if { h; input.args.n > 1 }",
            ["input.args.n"],
        ),
        (
            "h if is_number(input.args.n)\nh if input.args.x\nallow if { h; input.args.n > 1 }",
            ["input.args.n"],
        ),
        (
            "h if is_number(input.args.n)\nelse if input.args.x\nallow if { h; input.args.n > 1 }",
            ["input.args.n"],
        ),
        ("h(x) if is_number(x)\nallow if { h(input.args.m); input.args.n > 1 }", ["input.args.n"]),
        (
            "h(x) if is_number(x)\nallow if { y := h(input.args.n); input.args.n > 1 }",
            ["input.args.n"],
        ),
        (
            "h(x) if is_number(x)\nh(x) if x.y\nallow if { h(input.args.n); input.args.n > 1 }",
            ["input.args.n"],
        ),
        (
            "h if { some x in input.args.n; is_number(x) }\nallow if { h; input.args.n[0] > 1 }",
            ["input.args.n[...]"],
        ),
        ('allow if input["args"]["n"] > 1', ["input.args.n"]),
        ("allow if input.args.n[0] > 1", ["input.args.n[...]"]),
        ("allow if input.args[input.action] > 1", ["input.args[...]"]),
        ("allow if input[input.action] > 1", ["input[...]"]),
        ("allow if { n := input.args.n; n > 1 }", ["input.args.n"]),
        ("allow if { n := input.args; n.m > 1 }", ["input.args.m"]),
        ("allow if { [n, _] := input.args.n; n > 1 }", ["input.args.n[...]"]),
        ("allow if { some n in input.args.n; n > 1 }", ["input.args.n[...]"]),
        ("allow if { every n in input.args.n { n > 1 } }", ["input.args.n[...]"]),
        ("allow if count([1 | input.args.n > 1]) > 0", ["input.args.n"]),
        ("allow := input.args.n > 1", ["input.args.n"]),
        ("allow if false else := input.args.n > 1", ["input.args.n"]),
        ('allow if object.get(input.args, "n", 0) > 1', ["input.args.n"]),
        ("n := input.args.n\nallow if n > 1", ["input.args.n"]),
        ("n := 1 if input.x else := input.args.n\nallow if n > 1", ["input.args.n"]),
        ("args := input.args\nallow if data.agent.authz.args.n > 1", ["input.args.n"]),
        ("big(n) if n > 1\nallow if big(input.args.n)", ["input.args.n"]),
        ("big(o) if o.n > 1\nallow if big(input.args)", ["input.args.n"]),
        ("f(n) if big(n)\nbig(n) if n > 1\nallow if f(input.args.n)", ["input.args.n"]),
        ("import input.args as a\nallow if a.n > 1", ["input.args.n"]),
        # a check of something else, or of what is not the case
        ("allow if { is_number(input.args.m); input.args.n > 1 }", ["input.args.n"]),
        ("allow if { not is_number(input.args.n); input.args.n > 1 }", ["input.args.n"]),
        ("allow if input.args.n > 1\nother if is_number(input.args.n)", ["input.args.n"]),
        # in a rule that denies, the check alone would let it through
        (
            'allow := 1\ndeny_reasons contains "" if { is_number(input.args.n); input.args.n < 1 }',
            ["input.args.n"],
        ),
    ],
)
def test_what_is_compared_is_followed(body, names):
    warnings = warned(body)
    assert [warning.split()[1] for warning in warnings] == names
    assert all(f"is_number({name})" in said for name, said in zip(names, warnings, strict=True))


@pytest.mark.parametrize(
    "body",
    [
        "allow if input.args.n == 1",
        "allow if input.args.n in {1, 2}",
        "allow if count(input.args.n) < 3",
        "allow if input.args.n + 1 > 3",
        "allow if time.now_ns() > 5",
        'allow if input.agent.name < "b"',
        "n := 5\nallow if n > 1",
        "big(n) if n > 1\nallow if big(5)",
        'allow if { is_string(input.args.day); input.args.day < "2027" }',
        "big(n) if n > 1\nallow if { is_number(input.args.n); big(input.args.n) }",
        "n := input.args.n\nallow if { is_number(n); n > 1 }",
        """allow if is_number(input.args.n)
        deny_reason := "" if { is_number(input.args.n); input.args.n < 1 }""",
    ],
)
def test_what_can_not_be_fooled_is_not_warned_of(body):
    assert warned(body) == ()
