"""Mistakes: lists of ``data.json`` with an index that may be a text.

OPA reads ``data.stages[input.args.stage]`` from its store as a path, and the text "0" in a path is
the index of a list's first element. The embedded engine finds no element for a text. Both engines
agree about a list that is assigned to a variable before (``stages := data.stages``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from agentguard.policy.rego.syntax_tree import Reader, name_of


def mistakes(readers: list[Reader], data: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each computed index of a list; ``data`` is the content of data.json."""
    for reader in readers:
        for tree in reader.rules:
            loops = {"_"} | {
                reader.text_of(span)
                for node in tree.parts("SomeVars")
                for span in node["SomeVars"]["vars"]
            }
            for node in tree.parts("RefBrack"):
                match node:
                    case {"RefBrack": {"index": index, "refr": inner, "span": span}}:
                        if not _is_number_or_loop(index, loops) and any(
                            isinstance(value, list) for value in _data_values(reader, inner, data)
                        ):
                            yield (
                                f'{reader.at(span)}: an OPA server also takes the text "0" as an '
                                "index of this list of data.json; assign the list to a variable "
                                "first (`xs := data.xs`), and write the index after the variable "
                                "(`xs[i]`)"
                            )


def _is_number_or_loop(index: Mapping[str, Any], loops: set[str]) -> bool:
    match index:
        case {"Number": _}:
            return True
        case {"Var": {"value": name}}:
            return name in loops
    return False


def _data_values(reader: Reader, node: Mapping[str, Any], data: Mapping[str, Any]) -> list[Any]:
    """Return the values of data.json that a reference may name."""
    match node:
        case {"Var": _}:
            path = reader.reference(name_of(node), call=False).path
            if path[0] != "data":
                return []
            values: list[Any] = [data]
            for name in path[1:]:
                values = _members(values, name)
            return values
        case {"RefDot": {"refr": inner, "field": [_, name]}}:
            return _members(_data_values(reader, inner, data), name)
        case {"RefBrack": {"refr": inner, "index": {"String": {"value": name}}}}:
            return _members(_data_values(reader, inner, data), name)
        case {"RefBrack": {"refr": inner}}:
            return [
                child
                for value in _data_values(reader, inner, data)
                for child in (value.values() if isinstance(value, dict) else value)
                if isinstance(child, dict | list)
            ]
    return []


def _members(values: list[Any], name: str) -> list[Any]:
    members = [value[name] for value in values if isinstance(value, dict) and name in value]
    return [member for member in members if isinstance(member, dict | list)]
