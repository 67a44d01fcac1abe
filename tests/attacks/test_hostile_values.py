"""Every policy that a user is shown, and what a model may put into each argument that it reads.

A policy is found by the test itself: each block of Rego, Cedar or Python in README, the docs and
the examples' own pages, and each policy in a file of the examples, the templates, the demo and
``deploy``. For each action a call is looked for that the policy allows, or has people asked about.
Then one member that the model fills is changed at a time, into each hostile value.

The property: where a member matters (some value of it is denied), each value of another type than
the allowed one is denied; where the allowed one is a number, so is what is no number above 0, and
what is a number no more. ``FINE`` lists what is meant to be otherwise, and says why.
"""

from __future__ import annotations

import ast
import json
import random
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from agentguard.adapters import Arguments
from agentguard.errors import AgentguardError, ArgumentsError, PolicyError
from agentguard.policy.cedar import CedarEngine
from agentguard.policy.document import decide
from agentguard.policy.function import FunctionEngine
from agentguard.policy.rego import RegoEngine
from agentguard.signing.canonical import dumps

ROOT = Path(__file__).parents[2]
OTHERS = [
    path
    for part in ("examples", "integrations", "deploy")
    for path in ROOT.glob(f"{part}/**/README.md")
]
PAGES = [ROOT / "README.md", *ROOT.glob("docs/[!a]*/*.md"), *OTHERS]
FOLDERS = [
    ROOT / "examples",
    ROOT / "deploy",
    *ROOT.glob("src/**/template"),
    *ROOT.glob("integrations/*/src"),
]
MISSING = object()
HOSTILE: list[Any] = [
    MISSING,
    None,
    True,
    False,
    "-5",
    "5",
    "x",
    [],
    [5],
    ["x"],
    {},
    {"a": 5},
    0,
    -1,
    -(10**12),
    10**15,
    2**53,
    -(2**53),
    0.0,
    -0.5,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    Decimal(5),
    Decimal(-5),
    Decimal("NaN"),
    b"5",
    (5,),
    {5},
    5j,
    {"$decimal": "5"},
    {"$int": "5"},
    {"$made": True},
    {"$float": "nan"},
]
TRUSTED = frozenset(
    {"agent", "delegation", "caller", "tool", "approval", "action", "resource", "task_id", "paths"}
)
FACTS = frozenset({"account", "order", "repo", "freeze"})
"""Members that the pages' own text calls facts: the application looks them up, no model."""

TRIES = 3000
WHOLE = {(name,) for name in ("agent", "args", "delegation", "tool", "resource")}


@dataclass(frozen=True)
class Policy:
    """A policy as somebody reads it: where, in which language, and its text."""

    where: str
    language: str
    text: str
    folder: Path | None = None
    """The folder that is the policy, where data lies beside it."""

    @cached_property
    def engine(self) -> Any:
        if self.folder is not None:
            return RegoEngine.load(self.folder)
        if self.language == "rego":
            text = self.text if "package " in self.text else f"package agent.authz\n{self.text}"
            package = re.findall(r"^package\s+([\w.]+)", text, re.MULTILINE)[0]
            return RegoEngine.from_source(text, query=f"data.{package}")
        if self.language == "cedar":
            return CedarEngine.from_source(self.text)
        names: dict[str, Any] = {}
        exec("from agentguard import *\nfrom agentguard.call.decision import *", names)  # noqa: S102
        exec("from typing import *\nfrom collections.abc import *", names)  # noqa: S102
        exec(compile(self.text, self.where, "exec"), names)  # noqa: S102  a reader would paste it
        return FunctionEngine(names[self.where.rpartition(":")[2]])

    @cached_property
    def members(self) -> list[tuple[str, ...]]:
        """The members of the input that it reads, as paths."""
        if self.language == "python":
            chain = r"""(?:\[["']\w+["']\]|\.get\(["']\w+["'][^)]*\))+"""
            found = re.findall(rf"\b[a-z]\w*({chain})", self.text)
            paths = [tuple(re.findall(r"""["'](\w+)["']""", one)) for one in found]
        else:
            root = {"rego": "input", "cedar": "context"}[self.language]
            found = re.findall(rf"\b{root}((?:\.[A-Za-z_]\w*)+)", self.text)
            paths = [tuple(one[1:].split(".")) for one in found]
            if self.language == "cedar":
                paths += [("agent", name) for name in re.findall(r"principal\.(\w+)", self.text)]
                paths += [("agent", "roles")] if "Role::" in self.text else []
        acts = [("action",)] if "action" in self.text else []
        return sorted({path for path in [*paths, *acts] if path[0] != "approval"})

    @cached_property
    def candidates(self) -> dict[tuple[str, ...], list[Any]]:
        """For each member the constants that stand beside it, and then all others."""
        found: dict[tuple[str, ...], list[Any]] = {}
        far = constants(self.text)
        for path in self.members:
            beside = [line for line in self.text.splitlines() if path[-1] in line]
            near = constants("\n".join(beside))
            texts = [one for one in [*near * 3, *far] if isinstance(one, str)]
            if path[-1] in LISTS:
                found[path] = [[one] for one in texts]
            elif path == ("action",):
                found[path] = [one for one in texts if re.fullmatch(r"(mcp:)?[a-z_]\w*", one)]
            elif path[0] == "agent":
                found[path] = texts
            else:
                compared = any(isinstance(one, int) for one in near)
                switches = [] if compared else [True, False] * (1 + len(near))
                found[path] = [*near * 3, *far, "text", 1, *switches]
        return found


LENT = {
    "subject": "user:a",
    "actor": "user:a",
    "via": None,
    "chain": ["user:a", "spiffe://a/agent/a/i"],
    "scope": [],
    "depth": 1,
    "assurance": "application",
    "roles": [],
}
LISTS = frozenset({"roles", "scope", "chain"})
"""Members whose values are lists of texts."""


def constants(text: str) -> list[Any]:
    texts = {one[1:-1] for one in re.findall(r"""("[^"\n]{0,60}"|'[^'\n]{0,60}')""", text)}
    numbers = {int(one.replace("_", "")) for one in re.findall(r"\b\d[\d_]*\b", text)}
    return [*sorted(texts), *sorted({number + step for number in numbers for step in (-1, 0, 1)})]


def blocks(page: Path) -> Iterator[Policy]:
    text = page.read_text(encoding="utf-8")
    where = page.relative_to(ROOT).as_posix()
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        line = text[: text.index(block)].count("\n") + 1
        yield from policies_in(f"{where}:{line}", language, textwrap.dedent(block))


def policies_in(where: str, language: str, text: str) -> Iterator[Policy]:
    if language in ("rego", "cedar"):
        if "package " in text or re.search(r"^allow|^approval|^permit", text, re.MULTILINE):
            yield Policy(where, language, text)  # what neither allows nor asks people is no policy
    elif language == "python":
        try:
            tree = ast.parse(text)
        except SyntaxError:  # a block with an ellipsis in it, which is no policy
            assert "Decision." not in text
            return
        shared = [
            node
            for node in tree.body
            if isinstance(node, ast.FunctionDef)
            or (isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant | ast.List))
        ]
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and "package agent" in str(node.value):
                yield Policy(f"{where}:{node.lineno}", "rego", str(node.value))
            if isinstance(node, ast.FunctionDef) and is_policy(node):
                plain = [*(one for one in shared if one is not node), node]
                for one in plain:
                    if isinstance(one, ast.FunctionDef):
                        one.decorator_list = []
                source = "from __future__ import annotations\n" + "\n".join(map(ast.unparse, plain))
                yield Policy(f"{where}:{node.name}", "python", source)


def is_policy(node: ast.FunctionDef) -> bool:
    returns = [one for one in ast.walk(node) if isinstance(one, ast.Return) and one.value]
    asks = any(re.search(r"Decision\.(allow|require)", ast.unparse(one)) for one in returns)
    return asks and len(node.args.args) == 1 and node.args.args[0].arg != "self"


def files() -> Iterator[Policy]:
    for folder in FOLDERS:
        for path in sorted(folder.rglob("*")):
            language = {".rego": "rego", ".cedar": "cedar", ".py": "python"}.get(path.suffix)
            if language and not path.name.endswith("_test.rego"):
                where, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
                if language == "rego" and any(path.parent.rglob("data.json")):
                    data = " ".join(one.read_text() for one in path.parent.rglob("data.json"))
                    text += "# " + " ".join(data.split())  # its names may be those that are allowed
                    yield Policy(where, language, text, path.parent)
                else:
                    yield from policies_in(where, language, text)


POLICIES = [policy for page in dict.fromkeys(PAGES) for policy in blocks(page)] + list(files())


def put(document: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Return a copy in which the member at this path has this value."""
    copy = dict(document)
    if len(path) > 1:
        inner = copy.get(path[0])
        copy[path[0]] = put(inner if isinstance(inner, dict) else {}, path[1:], value)
    elif value is MISSING:
        copy.pop(path[0], None)
    else:
        copy[path[0]] = value
    return copy


def outcome(policy: Policy, document: Mapping[str, Any]) -> str:
    engine = policy.engine  # what can't be loaded is no denial
    try:
        return decide(engine.evaluate(dumps(document))).outcome
    except PolicyError:
        return "deny"


def let_through(policy: Policy) -> Iterator[dict[str, Any]]:
    """Yield one call for each action that the policy does not deny."""
    chance = random.Random(policy.text)  # noqa: S311  the same each time
    actions: set[Any] = set()
    agent = {"id": "spiffe://a/agent/a/i", "name": "a", "type": "a", "instance": "i", "roles": []}
    for _ in range(TRIES):
        document: dict[str, Any] = {
            "agent": agent,
            "delegation": LENT,
            "action": "a",
            "resource": None,
            "task_id": None,
            "args": {},
            "tool": {"name": "a", "schema_sha256": "0" * 64},
        }
        for path in policy.members:
            if path not in WHOLE and policy.candidates[path]:
                document = put(document, path, chance.choice(policy.candidates[path]))
        if str(document["action"]) not in actions and outcome(policy, document) != "deny":
            actions.add(str(document["action"]))
            yield document


def encoded(value: Any) -> Any:
    """Return a value as the policy sees it, or MISSING where no call with it is made."""
    if value is MISSING:
        return MISSING
    try:
        return json.loads(Arguments.of({"value": value}).encoded)["value"]
    except (ArgumentsError, AgentguardError):
        return MISSING


def is_hostile(value: Any, allowed: Any) -> bool:
    if type(value) is not type(allowed):
        return not (isinstance(allowed, int | float) and type(value) in (int, float) and value > 0)
    return isinstance(allowed, int) and not isinstance(allowed, bool) and value <= 0


def at(document: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    here: Any = document
    for name in path:
        here = here.get(name, MISSING) if isinstance(here, dict) else MISSING
    return here


def let_in(policy: Policy) -> set[str]:
    """Return the hostile values that the policy does not deny, as ``action: member = value``."""
    values = [encoded(value) for value in HOSTILE]
    found = set()
    calls = list(let_through(policy))
    assert calls, "no call is found that it lets through: the test would show nothing"
    for call in calls:
        for path in policy.members:
            if path[0] in TRUSTED | FACTS or at(call, path) is MISSING:
                continue
            tried = [(value, outcome(policy, put(call, path, value))) for value in values]
            others = [outcome(policy, put(call, path, value)) for value in policy.candidates[path]]
            if "deny" not in [*others, *(said for _, said in tried)]:
                continue  # no value of it is denied: of this action it is no argument
            found |= {
                f"{call['action']}: {'.'.join(path)} = "
                f"{'missing' if value is MISSING else json.dumps(value)}"
                for value, said in tried
                if said != "deny" and is_hostile(value, at(call, path))
            }
    return found


DEMO = "integrations/agentguard-demo/src/agentguard_demo/authz.rego"
FINE: dict[str, tuple[str, str]] = {
    DEMO: (
        r"^trigger_ci: branch = ",
        "a team's own rule, shown as it stands; the tool's schema takes a text alone",
    ),
    "examples/jaeger/main.py:decide": (
        r"args\.name = missing",
        "the tool that publishes has no such argument, and the other is not run without one",
    ),
}
"""What may be let in, by policy, and why."""


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.where)
def test_no_hostile_value_is_let_in(policy):
    fine, _why = FINE.get(policy.where, ("(?!)", ""))
    assert [one for one in sorted(let_in(policy)) if not re.search(fine, one)] == []


def test_what_is_fine_is_still_there():
    """A policy that is gone, or was mended, has no line in the table."""
    for where, (fine, _why) in FINE.items():
        (policy,) = (policy for policy in POLICIES if policy.where == where)
        assert any(re.search(fine, one) for one in let_in(policy))
