"""The codec of results (``agentguard_crewai.results``): values that come back, or are refused.

Runs that go on with kept results are in ``test_crewai_runs_results.py``.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, UserDict, defaultdict, deque, namedtuple
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import cached_property
from typing import Any

import pytest
from crewai.tools.tool_failure import ToolFailure, ToolFailureReason
from crewai_results import (
    OF_REPORTS,
    PLAIN,
    Colour,
    Number,
    Raising,
    Report,
    Text,
    Whole,
    Word,
    kept,
    same,
)
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    RootModel,
    SecretStr,
    computed_field,
    field_validator,
    model_validator,
)

from agentguard.errors import EncodeError
from agentguard_crewai.results import ToolResults


class Inner(BaseModel):
    name: str


# --- what can be kept ----------------------------------------------------------------------------


VALUES: dict[str, Any] = {
    "none": None,
    "true": True,
    "false": False,
    "zero": 0,
    "one": 1,
    "negative": -7,
    "large": 2**53 + 1,
    "largest": 2**64 - 1,
    "least": -(2**63),
    "float": 0.1,
    "whole float": 1.0,
    "negative zero": -0.0,
    "tiny": 5e-324,
    "huge": 1.7976931348623157e308,
    "empty": "",
    "text": "é\u202e\x00\n\U0001d538",
    "list": [1, [2, []], "a"],
    "tuple": (1, (2, ()), "a"),
    "list in a tuple": ([1], (2,), [(3,)]),
    "dict": {"b": 1, "a": {"": None}},
    "no keys": {},
    "dict that looks like a mark": {"list": [1], "tuple": (2,), "model": {"failure": {}}},
    "list that looks like a list": ["list", 1],
    "list that looks like a tuple": ["tuple", 1],
    "list that looks like a failure": ["failure", {"message": "m", "reason": "exception"}],
    "list that looks like a model": ["model", {"title": "t"}, ["title"]],
    "tuple that looks like one": ("model", {"title": "t"}, ["title"]),
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_plain_values_come_back_as_they_were(value):
    for codec in (PLAIN, OF_REPORTS):
        assert same(kept(codec, value), value)


FAILURES: dict[str, ToolFailure] = {
    "least": ToolFailure(message="m"),
    "all": ToolFailure(
        message="é",
        reason=ToolFailureReason.EXCEPTION,
        code="c",
        retryable=True,
        details={"a": [1, (2,), {"b": None}], "reason": "other"},
    ),
    **{reason.name: ToolFailure(message="m", reason=reason) for reason in ToolFailureReason},
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_failures_come_back_as_they_were(failure):
    for codec in (PLAIN, OF_REPORTS, ToolResults(ToolFailure)):
        back = kept(codec, [failure, {"a": failure}])
        assert same(back, [failure, {"a": failure}])
        assert back[0].as_agent_message() == failure.as_agent_message()


MODELS: dict[str, Report] = {
    "least": Report(title="t"),
    "given as the default": Report(title="t", pages=1),
    "all": Report(**{"title": "t", "ratio": 0.5, "tags": ["a"], "from": "x", "to": "y"}),
    "anything": Report(title="t", more={"a": (1, [2])}),
    "one in another": Report(title="t", more=[Report(title="u", pages=2)]),
    "unchecked": Report.model_construct(title=5, pages="many"),
    "changed since": Report(title="t").model_copy(update={"pages": 9}),
    "a failure in it": Report(title="t", more=ToolFailure(message="m")),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_models_of_the_schema_come_back_as_they_were(model):
    for value in (model, [model], {"a": (model,)}):
        assert same(kept(OF_REPORTS, value), value)


def test_what_was_not_given_is_still_not_given():
    back = kept(OF_REPORTS, Report(title="t"))
    assert back.model_dump(exclude_unset=True) == {"title": "t"}
    assert back.model_dump_json(by_alias=True) == Report(title="t").model_dump_json(by_alias=True)


# --- what is not kept ----------------------------------------------------------------------------


class Listed(list):  # type: ignore[type-arg]
    pass


Pair = namedtuple("Pair", "a b")  # noqa: PYI024  one of the plain kind


@dataclass
class Data:
    a: int = 1


class Like(BaseModel):
    title: str


class Child(Report):
    pass


cyclic: list[Any] = []
cyclic.append(cyclic)
deep: list[Any] = []
for _ in range(2000):
    deep = [deep]


REFUSED: dict[str, Any] = {
    "nan": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "bytes": b"b",
    "bytearray": bytearray(b"b"),
    "set": {1},
    "frozenset": frozenset(),
    "complex": 1j,
    "decimal": Decimal(1),
    "date": date(2026, 1, 2),
    "enum": Colour.RED,
    "int enum": Number.ONE,
    "str enum": Word.A,
    "str of one's own": Text("a"),
    "int of one's own": Whole(1),
    "list of one's own": Listed(),
    "list by its name": type("list", (list,), {})(),
    "tuple by its name": type("tuple", (tuple,), {})(),
    "named tuple": Pair(1, 2),
    "dataclass": Data(),
    "another model": Like(title="t"),
    "a subclass": Child(title="t"),
    "a class": Report,
    "a function": len,
    "object": object(),
    "exception": ValueError("a"),
    "generator": (n for n in "a"),
    "range": range(3),
    "deque": deque([1]),
    "default dict": defaultdict(int),
    "ordered dict": OrderedDict(a=1),
    "counter": Counter("a"),
    "user dict": UserDict(),
    "mapping of numbers": {1: "a"},
    "key of none": {None: 1},
    "key of one's own": {Text("a"): 1},
    "mixed keys": {"a": 1, 2: "b"},
    "too large": 2**64,
    "too small": -(2**63) - 1,
    "half a character": "\ud800",
    "half a character in a key": {"\udfff": 1},
    "cyclic": cyclic,
    "deep": deep,
    "a secret": SecretStr("s"),
}


@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize(
    "around",
    [
        lambda v: v,
        lambda v: [v],
        lambda v: (v,),
        lambda v: {"a": v},
        lambda v: Report(title="t", more=v),
    ],
    ids=["alone", "in a list", "in a tuple", "in a dict", "in a model"],
)
def test_all_else_is_refused(value, around):
    for codec in (PLAIN, OF_REPORTS):
        with pytest.raises(EncodeError):
            codec.dumps(around(value))


def test_a_refusal_tells_no_value():
    for value in ({"hunter2"}, Like(title="hunter2"), Text("hunter2"), {1: "hunter2"}):
        with pytest.raises(EncodeError) as refused:
            OF_REPORTS.dumps(value)
        assert "hunter2" not in str(refused.value)


def test_a_model_needs_its_schema():
    assert same(kept(OF_REPORTS, Report(title="t")), Report(title="t"))
    for codec in (PLAIN, ToolResults(Like), ToolResults(Child)):
        with pytest.raises(EncodeError):
            codec.dumps(Report(title="t"))


class Private(BaseModel):
    a: int = 1
    _hidden: int = PrivateAttr(default=1)


class Extra(BaseModel):
    model_config = ConfigDict(extra="allow")

    a: int = 1


class Cached(BaseModel):
    a: int = 1

    @cached_property
    def twice(self) -> int:
        return self.a * 2


class Counted(BaseModel):
    a: int = 1

    def model_post_init(self, context: Any) -> None:
        self.a += 1


class Swapped(BaseModel):
    a: int = Field(alias="b")
    b: int = Field(alias="a")


class Named(BaseModel):
    cls: int = 1
    self: int = 2


class Rooted(RootModel[list[int]]):
    pass


class Nested(BaseModel):
    inner: Inner


class Typed(BaseModel):
    colour: Colour = Colour.RED
    pair: tuple[int, int] = (1, 2)


extra = Extra.model_validate({"a": 1, "b": 2})
cached = Cached()
assert cached.twice == 2
raising = Raising()
raising.a = 2


@pytest.mark.parametrize(
    "model",
    [Private(), extra, cached, Counted(), raising, Rooted([1]), Typed()],
    ids=lambda model: type(model).__name__,
)
def test_a_model_that_holds_more_than_its_fields_show_is_refused(model):
    with pytest.raises(EncodeError) as refused:
        ToolResults(type(model)).dumps(model)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "model",
    [
        Extra(a=2),
        Cached(),
        Swapped.model_validate({"a": 1, "b": 2}),
        Named(),
        Raising(),
        Nested(inner=Inner(name="n")),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_model_comes_back_as_it_was_or_is_refused(model):
    codec = ToolResults(type(model))
    try:
        data = codec.dumps(model)
    except EncodeError:
        assert isinstance(model, Swapped | Named | Nested)
    else:
        assert same(codec.loads(data), model)


class Checked(BaseModel):
    """Validators run where somebody gives a value, and not where one is read again."""

    a: int

    @field_validator("a")
    @classmethod
    def once(cls, a: int) -> int:
        return a + 1

    @model_validator(mode="after")
    def twice(self) -> Checked:
        self.a *= 2
        return self

    @computed_field  # type: ignore[prop-decorator]
    @property
    def shown(self) -> str:
        return f"<{self.a}>"


def test_validators_do_not_run_again():
    model = Checked(a=1)
    assert model.a == 4
    assert same(kept(ToolResults(Checked), model), model)


def test_equality_of_the_authors_own_is_not_asked():
    class Equal(BaseModel):
        a: Any = None

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    assert kept(ToolResults(Equal), Equal(a=[1])).a == [1]
    with pytest.raises(EncodeError):
        ToolResults(Equal).dumps(Equal(a={1}))


def test_code_of_the_authors_may_raise_anything():
    class Odd(BaseModel):
        a: Any = None

        def __getattribute__(self, name: str) -> Any:
            if name == "__pydantic_private__":
                raise RuntimeError("hunter2")
            return super().__getattribute__(name)

    with pytest.raises(EncodeError) as refused:
        ToolResults(Odd).dumps(Odd())
    assert "hunter2" not in str(refused.value)


FORGED: dict[str, dict[str, Any]] = {
    "no message": {"message": 5},
    "no reason": {"message": "m", "reason": "exception"},
    "no truth": {"message": "m", "reason": ToolFailureReason.EXCEPTION, "retryable": 1},
    "no details": {"message": "m", "reason": ToolFailureReason.EXCEPTION, "details": [1]},
    "a set": {"message": "m", "reason": ToolFailureReason.EXCEPTION, "details": {"a": {1}}},
    "more": {"message": "m", "reason": ToolFailureReason.EXCEPTION, "shade": "dark"},
}


@pytest.mark.parametrize("fields", FORGED.values(), ids=FORGED)
def test_a_failure_that_is_none_is_refused(fields):
    forged = ToolFailure.model_construct(**fields)
    try:
        data = PLAIN.dumps(forged)
    except EncodeError:
        return
    assert same(PLAIN.loads(data), forged)
