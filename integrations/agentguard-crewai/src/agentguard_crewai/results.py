"""Codecs that turn a tool's result into the journal's bytes and back.

A decoded result equals the encoded one, and has the same types at each level. The codec accepts
plain values, lists, tuples, dictionaries, and models of the tool's ``result_schema``; the codec
refuses all other values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

import orjson
from crewai.tools.tool_failure import ToolFailure, ToolFailureReason
from pydantic import BaseModel

from agentguard.adapters import DecodeError, EncodeError, ResultBudget, dumps_checked
from agentguard_crewai.runs import Key, Place, Run

_PLAIN: Final = frozenset({str, int, float, bool, type(None)})


class ToolResults:
    """The ``ResultCodec`` of a tool; ``schema`` is the model of its results, if it has one."""

    __slots__ = ("_schema",)

    def __init__(self, schema: type[BaseModel] | None) -> None:
        self._schema = schema

    def dumps(self, result: Any) -> bytes:
        """Encode a result; raises ``EncodeError`` where the bytes would not decode to an equal."""
        return dumps_checked(
            lambda value: orjson.dumps(self._node(value, ResultBudget())), self.loads, result
        )

    def loads(self, data: bytes) -> Any:
        """Decode a result; raises ``DecodeError``."""
        try:
            return self._value(orjson.loads(data))
        except Exception as error:
            raise DecodeError(f"no result of a tool ({type(error).__name__})") from error

    def _node(self, value: Any, budget: ResultBudget) -> Any:
        budget.spend(len(value) if type(value) is str else 4)
        kind = type(value)
        if kind in _PLAIN:
            if kind is float and not math.isfinite(value):
                raise EncodeError("a number that is none can't be kept")
            return value
        if kind is list or kind is tuple:
            return [kind.__name__, *(self._node(item, budget) for item in value)]
        if kind is dict and all(type(key) is str for key in value):
            budget.spend(sum(map(len, value)))
            return {key: self._node(item, budget) for key, item in value.items()}
        if kind is ToolFailure:
            return ["failure", self._fields(value, budget, reason=value.reason.value)]
        # pydantic leaves these two away where a model has a model_post_init of its own
        if kind is self._schema and not getattr(value, "__pydantic_private__", None):
            fields_set = sorted(value.__pydantic_fields_set__)
            return ["model", _fingerprint(kind), self._fields(value, budget), fields_set]
        raise EncodeError(f"a {kind.__module__}:{kind.__qualname__} can't be kept")

    def _fields(self, value: BaseModel, budget: ResultBudget, **instead: str) -> dict[str, Any]:
        if getattr(value, "__pydantic_extra__", None):
            raise EncodeError(f"a {type(value).__name__} with further members can't be kept")
        return {name: self._node(item, budget) for name, item in {**vars(value), **instead}.items()}

    def _value(self, node: Any) -> Any:
        if isinstance(node, dict):
            return {key: self._value(item) for key, item in node.items()}
        if not isinstance(node, list):
            return node
        match node:
            case ["list", *items]:
                return list(map(self._value, items))
            case ["tuple", *items]:
                return tuple(map(self._value, items))
            case ["failure", fields]:
                return self._failure(self._value(fields))
            case ["model", fingerprint, fields, fields_set] if (
                self._schema is not None and fingerprint == _fingerprint(self._schema)
            ):
                return self._schema.model_construct(set(fields_set), **self._value(fields))
        raise DecodeError("no result of a tool")

    def _failure(self, fields: Mapping[str, Any]) -> ToolFailure:
        return ToolFailure(**{**fields, "reason": ToolFailureReason(fields["reason"])})


class RunResults:
    """The ``ResultCodec`` of a call in a run: encodes the result and the places of nested calls.

    ``places`` grows as nested calls are completed. Decoding claims the stored places again, so that
    a later equal call gets a later place.
    """

    __slots__ = ("_places", "_results", "_run")

    def __init__(self, results: ToolResults, run: Run, places: list[Place]) -> None:
        self._results = results
        self._run = run
        self._places = places

    def dumps(self, result: Any) -> bytes:
        """Encode a result and its places; raises what ``ToolResults.dumps`` raises."""
        places = [[*place.key, place.ordinal] for place in self._places]
        encoded = orjson.Fragment(self._results.dumps(result))
        return orjson.dumps({"places": places, "result": encoded})

    def loads(self, data: bytes) -> Any:
        """Decode a result and claim its places; raises ``DecodeError``."""
        try:
            entry = orjson.loads(data)
            places = [Place(self._run, Key(*key), ordinal) for *key, ordinal in entry["places"]]
            encoded = orjson.dumps(entry["result"])
        except Exception as error:
            raise DecodeError(f"no result of a tool ({type(error).__name__})") from error
        result = self._results.loads(encoded)
        self._run.reclaim(places)
        self._places.extend(places)
        return result


def _fingerprint(schema: type[BaseModel]) -> str:
    """Return the SHA-256 of a model's name, fields and types of fields."""
    fields = {name: repr(field.annotation) for name, field in schema.model_fields.items()}
    description = f"{schema.__module__}:{schema.__qualname__} {sorted(fields.items())}"
    return sha256(description.encode()).hexdigest()
