"""No value hides from the policy: not one that is left out, not one that a validator puts in.

Attacks: a model leaves an argument out, for which a default factory then gives what the policy
forbids; and validators that write past pydantic's own note of what was supplied. The twins are the
same calls without the trick, and schemas whose code can't do it.
"""

from __future__ import annotations

import dataclasses
import re
import uuid
from pathlib import Path
from typing import Annotated, Any

import pydantic
import pytest
from langchain_core.tools import StructuredTool
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    PrivateAttr,
    WrapValidator,
    create_model,
)
from pydantic.v1 import BaseModel as BaseModelV1
from pydantic.v1 import Field as FieldV1
from pydantic.v1 import root_validator as root_validator_v1
from pydantic.v1 import validator as validator_v1

from agentguard import ConfigError, Decision, Denied
from agentguard.policy.rego import RegoEngine
from agentguard.signing import canonical
from agentguard_langchain import bind_ahead, evaluate, guard_tools

MADE = {"$made": True}


def unpredictable() -> str:
    return f"made-{uuid.uuid4()}"


def tool_with(schema: Any, received: list[Any] | None = None) -> StructuredTool:
    """A tool that keeps what it receives."""

    def keep(**given: Any) -> str:
        if received is not None:
            received.append(given)
        return "done"

    return StructuredTool.from_function(keep, name="push", description="P.", args_schema=schema)


# --- left out -------------------------------------------------------------------------------------


class Push(BaseModel):
    repo: str
    branch: str = Field(default_factory=lambda: "main")


class Nested(BaseModel):
    jobs: list[dict[str, Push]]


def branches(call: Any) -> list[Any]:
    """What a policy finds under the name ``branch``, wherever it stands."""
    args = call["args"]
    if "jobs" not in args:
        return [args["branch"]]
    return [push["fields"]["branch"] for job in args["jobs"] for push in job.values()]


def no_main(call: Any) -> Decision:
    """A rule that denies, written as langchain-arguments.md says."""
    for branch in branches(call):
        if branch in ("main", MADE):
            return Decision.deny("main is protected")
    return Decision.allow()


def only_fixes(call: Any) -> Decision:
    """A rule that allows by value: it need not know of marks."""
    fixes = all(branch == "fix" for branch in branches(call))
    return Decision.allow() if fixes else Decision.deny("not a fix")


SHAPES = {
    "top": (Push, lambda push: push),
    "nested": (Nested, lambda push: {"jobs": [{"monday": push}]}),
}


@pytest.mark.parametrize("policy", [no_main, only_fixes])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_left_out_is_seen_to_be_left_out(make, shape, policy):
    schema, around = SHAPES[shape]
    received: list[Any] = []
    setup = make(policy)
    (guarded,) = guard_tools([tool_with(schema, received)], setup.agent)
    for hostile in ({"repo": "r", "branch": "main"}, {"repo": "r"}):
        assert not evaluate(guarded, around(hostile)).allowed
        with pytest.raises(Denied):
            guarded.invoke(around(hostile))
    assert received == []
    assert guarded.invoke(around({"repo": "r", "branch": "fix"})) == "done"
    explicit, omitted, allowed = setup.log.calls()
    bound = [branches({"args": call.values}) for call in (explicit, omitted, allowed)]
    assert bound == [["main"], [MADE], ["fix"]]
    assert omitted.encoded == bind_ahead(guarded, around({"repo": "r"})).encoded


def test_no_argument_can_pretend_to_be_a_mark(allowing):
    schema = create_model("Args", branch=(Any, Field(default_factory=unpredictable)))
    (guarded,) = guard_tools([tool_with(schema)], allowing.agent)
    assert bind_ahead(guarded, {}).values == {"branch": MADE}
    assert bind_ahead(guarded, {"branch": MADE}).values == {"branch": {"$$made": True}}


def test_null_is_not_the_same_as_left_out(allowing):
    schema = create_model("Args", branch=(str | None, Field(default_factory=lambda: None)))
    (guarded,) = guard_tools([tool_with(schema)], allowing.agent)
    assert bind_ahead(guarded, {}).values == {"branch": MADE}
    assert bind_ahead(guarded, {"branch": None}).values == {"branch": None}


def test_what_is_always_the_same_is_bound_as_it_is(allowing):
    @dataclasses.dataclass
    class Options:
        force: bool = False

    schema = create_model(
        "Args",
        names=(list[str], Field(default_factory=list)),
        options=(Options, Field(default_factory=Options)),
        push=(Push | None, Field(default_factory=lambda: None)),
    )
    (guarded,) = guard_tools([tool_with(schema)], allowing.agent)
    bound: Any = bind_ahead(guarded, {}).values
    assert (bound["names"], bound["push"]) == ([], MADE)
    assert bound["options"]["fields"] == {"force": False}


def test_a_resource_can_not_name_what_is_left_out(make):
    setup = make(lambda _call: Decision.allow(), tools={"push": {"resource": "branch:{branch}"}})
    (guarded,) = guard_tools([tool_with(Push)], setup.agent)
    with pytest.raises(Denied) as denied:
        guarded.invoke({"repo": "r"})
    assert denied.value.code == "arguments.resource"
    assert guarded.invoke({"repo": "r", "branch": "fix"}) == "done"
    refused, allowed = setup.log.calls()
    assert (refused.decision, refused.predicate["resource"]) == ("deny", None)
    assert (allowed.decision, allowed.predicate["resource"]) == ("allow", "branch:fix")


def test_the_rule_in_the_documentation_finds_both():
    page = Path(__file__).parents[3] / "docs" / "how-to" / "langchain-arguments.md"
    rules = re.findall(r"```rego\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (rule,) = [rule for rule in rules if "protected" in rule]
    policy = f"package agent.authz\ndefault allow := false\nallow if not protected\n{rule}"
    engine = RegoEngine.from_source(policy)
    for branch, allowed in (("main", False), (MADE, False), ("fix", True)):
        answer: Any = engine.evaluate(canonical.dumps({"args": {"branch": branch}}))
        assert answer["allow"] is allowed


# --- put in by a validator ------------------------------------------------------------------------


class Raw(BaseModel):
    raw: str = ""
    branch: str = Field(default_factory=unpredictable)


def move(model: Any) -> Any:
    """Put what was supplied into the other field, and leave no trace of it."""
    if model.raw:
        model.__dict__.update(branch=model.raw, raw="")
    return model


class After(Raw):
    @pydantic.model_validator(mode="after")
    def moved(self) -> After:
        return move(self)


class Frozen(Raw):
    model_config = ConfigDict(frozen=True)

    @pydantic.model_validator(mode="after")
    def moved(self) -> Frozen:
        if self.raw:
            object.__setattr__(self, "branch", self.raw)
            object.__setattr__(self, "raw", "")
        return self


class Wrapped(Raw):
    @pydantic.model_validator(mode="wrap")
    @classmethod
    def moved(cls, raw: Any, validate: Any) -> Any:
        return move(validate(raw))


class PostInit(Raw):
    def model_post_init(self, _context: Any) -> None:
        move(self)


class PostInitAndPrivate(Raw):
    _seen: int = PrivateAttr(default=0)

    def model_post_init(self, _context: Any) -> None:
        move(self)


class Init(Raw):
    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        move(self)


class Informed(BaseModel):
    branch: str = Field(default_factory=unpredictable)
    raw: str = ""

    @pydantic.field_validator("raw")
    @classmethod
    def moved(cls, raw: str, info: pydantic.ValidationInfo) -> str:
        if raw:
            info.data["branch"] = raw
        return ""


class RootV1(BaseModelV1):
    raw: str = ""
    branch: str = FieldV1(default_factory=unpredictable)

    @root_validator_v1(skip_on_failure=True)
    def moved(cls, values: Any) -> Any:  # noqa: N805  pydantic v1's form
        return {"raw": "", "branch": values["raw"]} if values["raw"] else values


class FieldOfV1(BaseModelV1):
    branch: str = FieldV1(default_factory=unpredictable)
    raw: str = ""

    @validator_v1("raw")
    def moved(cls, raw: str, values: Any) -> str:  # noqa: N805  pydantic v1's form
        if raw:
            values["branch"] = raw
        return ""


def wrapping(value: Any, validate: Any) -> Any:
    return move(validate(value))


class Outer(BaseModel):
    inner: Raw

    @pydantic.model_validator(mode="after")
    def moved(self) -> Outer:
        move(self.inner)
        return self


class ByField(BaseModel):
    inner: list[Raw]

    @pydantic.field_validator("inner")
    @classmethod
    def moved(cls, inner: list[Raw]) -> list[Raw]:
        return [move(raw) for raw in inner]


@dataclasses.dataclass
class ByPostInit:
    inner: Raw

    def __post_init__(self) -> None:
        move(self.inner)


@dataclasses.dataclass
class Annotating:
    inner: Annotated[Raw, AfterValidator(move)]


TOP = [
    After,
    Frozen,
    Wrapped,
    PostInit,
    PostInitAndPrivate,
    Init,
    Informed,
    RootV1,
    FieldOfV1,
]
HELD = {
    **{schema.__name__: (schema, {"raw": "main"}) for schema in TOP[:-2]},
    "annotation": (Annotated[Raw, AfterValidator(move)], {"raw": "main"}),
    "wrap annotation": (Annotated[Raw, WrapValidator(wrapping)], {"raw": "main"}),
    "plain annotation": (
        Annotated[Any, PlainValidator(lambda raw: move(Raw(**raw)))],
        {"raw": "main"},
    ),
    "outer model": (Outer, {"inner": {"raw": "main"}}),
    "field of the outer model": (ByField, {"inner": [{"raw": "main"}]}),
    "outer dataclass": (ByPostInit, {"inner": {"raw": "main"}}),
    "annotation in a dataclass": (Annotating, {"inner": {"raw": "main"}}),
}


def denies_main(call: Any) -> Decision:
    """Takes marks for harmless, and looks for the value anywhere."""
    found = b'"main"' in canonical.dumps(call["args"])
    return Decision.deny("main is protected") if found else Decision.allow()


def check_nothing_hides(setup: Any, schema: Any, hostile: Any, harmless: Any) -> None:
    received: list[Any] = []
    (guarded,) = guard_tools([tool_with(schema, received)], setup.agent)
    with pytest.raises(Denied, match="main is protected"):
        guarded.invoke(hostile)
    assert received == []
    assert guarded.invoke(harmless) == "done"
    assert "made-" in repr(received)
    denied, allowed = setup.log.calls()
    assert (denied.decision, allowed.decision) == ("deny", "allow")
    assert b'"$made"' not in allowed.encoded  # what could have been put in is told as it is


@pytest.mark.parametrize("schema", TOP, ids=lambda schema: schema.__name__)
def test_a_value_that_a_validator_puts_in_unseen_is_bound(make, schema):
    check_nothing_hides(make(denies_main), schema, {"raw": "main"}, {})


@pytest.mark.parametrize("name", HELD)
def test_the_same_in_what_the_arguments_hold(make, name):
    annotation, hostile = HELD[name]
    schema = create_model("Args", value=(annotation, ...))
    harmless = eval(repr(hostile).replace("'raw': 'main'", ""))  # noqa: S307  of our own literals
    check_nothing_hides(make(denies_main), schema, {"value": hostile}, {"value": harmless})


@pytest.mark.filterwarnings("ignore:Pydantic V1 style")
def test_validators_in_the_style_of_version_1_are_the_authors_too(make):
    class Shimmed(Raw):
        @pydantic.root_validator(skip_on_failure=True)
        def moved(cls, values: Any) -> Any:  # noqa: N805  pydantic v1's form
            return {"raw": "", "branch": values["raw"]} if values["raw"] else values

    check_nothing_hides(make(denies_main), Shimmed, {"raw": "main"}, {})


# --- the twins: code that can't -------------------------------------------------------------------


class Checked(Raw):
    model_config = ConfigDict(frozen=True)
    at: Path = Path("here")
    tags: Annotated[list[str], AfterValidator(sorted)] = []
    serial: uuid.UUID = Field(default_factory=uuid.uuid4)
    type: Annotated[str, BeforeValidator(str)] = "t"
    _seen: int = PrivateAttr(default=0)

    @pydantic.field_validator("raw")
    @classmethod
    def stripped(cls, raw: str) -> str:
        return raw.strip()

    @pydantic.model_validator(mode="before")
    @classmethod
    def named(cls, raw: Any) -> Any:
        return {"branch": raw["name"]} if "name" in raw else raw


class RawV1(BaseModelV1):
    raw: str = ""
    branch: str = FieldV1(default_factory=unpredictable)


@pytest.mark.parametrize("schema", [Raw, Checked, RawV1])
@pytest.mark.parametrize("nested", [False, True])
def test_what_no_code_reaches_is_marked(allowing, schema, nested):
    if nested and schema is RawV1:
        schema = type("Args", (BaseModelV1,), {"__annotations__": {"value": RawV1}})
    elif nested:
        schema = create_model("Args", value=(schema, ...))
    (guarded,) = guard_tools([tool_with(schema)], allowing.agent)
    args = {"value": {"raw": "x"}} if nested else {"raw": "x"}
    bound: Any = bind_ahead(guarded, args)
    guarded.invoke(args)
    (call,) = allowing.log.calls()
    assert call.encoded == bound.encoded
    values = bound.values["value"]["fields"] if nested else bound.values
    assert (values["raw"], values["branch"]) == ("x", MADE)


@pytest.mark.parametrize("nested", [False, True])
def test_what_a_validator_supplies_ahead_is_bound(allowing, nested):
    schema = create_model("Args", value=(Checked, ...)) if nested else Checked
    (guarded,) = guard_tools([tool_with(schema)], allowing.agent)
    given = {"name": "main"}
    bound: Any = bind_ahead(guarded, {"value": given} if nested else given).values
    assert (bound["value"]["fields"] if nested else bound)["branch"] == "main"


@pytest.mark.parametrize("name", ["config", "default", "metadata", "serialization", "function"])
def test_a_factory_is_found_in_a_field_of_any_name(allowing, name):
    """Fields may have the names that pydantic's core schemas use for what holds no schema."""

    @dataclasses.dataclass
    class Numbered:
        id: uuid.UUID = dataclasses.field(default_factory=uuid.uuid4)

    inner = dataclasses.make_dataclass("Inner", [(name, Numbered)])
    schema = create_model("Args", value=(inner, ...))
    with pytest.raises(ConfigError, match=r"Numbered\.id has a default factory"):
        guard_tools([tool_with(schema)], allowing.agent)
