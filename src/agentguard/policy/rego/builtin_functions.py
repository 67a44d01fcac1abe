"""Builtin functions: which a policy may call, which are refused, and with which arguments.

A builtin is refused where OPA gives another value, or where a call can exhaust this process. The
two engines read most patterns of ``regex.match``, ``glob.match`` and ``sprintf`` alike: a policy
must write these patterns as literals in the call, where the gate checks them. The same holds for
numbers, separators and replacements of a few other builtins.
tests/properties/test_two_engines_agreement.py compares all of them with a real OPA server.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from agentguard.policy.rego.syntax_tree import Reader, name_of, objects

FACTS: Final = "let the application do it (facts)"
"""The advice where no builtin can be used."""


def _names(names: str) -> list[str]:
    return names.split()


def _each(names: str, why: str) -> dict[str, str]:
    return dict.fromkeys(_names(names), why)


REFUSED: Final = {
    **_each(
        "bits.and bits.or bits.xor bits.negate bits.lsh bits.rsh",
        "is undefined here for large numbers, where OPA has a value",
    ),
    **_each("ceil floor", "has another value in OPA between -1 and 0; compare numbers as they are"),
    "format_int": "writes large numbers otherwise than OPA does; compare numbers as they are",
    **_each(
        "json.filter json.remove",
        "leaves other members than OPA does; make the object by a comprehension",
    ),
    **_each(
        "json.marshal json.marshal_with_options yaml.marshal",
        "writes some characters otherwise than OPA does; compare values as they are",
    ),
    **_each(
        "json.is_valid json.match_schema json.unmarshal json.verify_schema yaml.unmarshal "
        "net.cidr_is_valid to_number time.parse_rfc3339_ns time.parse_ns uuid.parse",
        f"takes some texts otherwise than OPA does; {FACTS}",
    ),
    **_each(
        "urlquery.encode urlquery.encode_object",
        "writes ~ otherwise than OPA does; compare texts as they are",
    ),
    **_each(
        "urlquery.decode urlquery.decode_object",
        f"drops characters, & among them, that OPA keeps; {FACTS}",
    ),
    **_each(
        "base64.decode base64.is_valid base64url.decode hex.decode",
        f"takes other texts than OPA does, and bytes that are no UTF-8 otherwise; {FACTS}",
    ),
    "glob.quote_meta": "leaves characters as they are that OPA quotes; write the pattern out",
    **_each(
        "lower upper",
        "knows other letters than OPA does (İ, Σ, ß); compare by regex.match with (?i), or "
        f"{FACTS}",
    ),
    "net.cidr_contains": (
        f"takes IPv4-mapped IPv6 addresses for no part of an IPv4 network, where OPA does; {FACTS}"
    ),
    "object.subset": ("has a value for what is no object, where OPA has none; compare the members"),
    "indexof_n": "has a value for an empty text, where OPA has none; use contains",
    **_each(
        "rand.intn uuid.rfc4122",
        "has another value each time, so that no decision can be made again; let the application "
        "draw it (facts)",
    ),
    "opa.runtime": "tells of the engine, which is another one on an OPA server; remove it",
    **_each(
        "regex.find_all_string_submatch_n regex.find_n regex.is_valid regex.replace regex.split "
        "regex.template_match",
        f"takes some patterns otherwise than OPA does; ask regex.match, or {FACTS}",
    ),
    "semver.is_valid": "takes no v1.2.3, which OPA takes; compare by semver.compare",
    "strings.replace_n": (
        "replaces again in what it has put in, which OPA does not; use replace, one after another"
    ),
    # They deny, by a panic, of which native code tells on the standard error.
    "strings.count": "panics on an empty text; write count(split(x, y)) - 1",
    "time.parse_duration_ns": f"panics on texts such as `1.`; {FACTS}",
    "time.format": f"reads some layouts otherwise than OPA does; {FACTS}",
    "time.add_date": "counts months otherwise than OPA does; add nanoseconds, or take a date apart",
    "graph.reachable_paths": "ends cycles otherwise than OPA does; use graph.reachable",
    # One argument of a call takes all memory, or all time, and nothing can stop it.
    **_each(
        "numbers.range numbers.range_step",
        "makes as many numbers as an argument says, which can end this process; compare the bounds",
    ),
    "net.cidr_expand": (
        f"lists as many addresses as an argument says, which can end this process; {FACTS}"
    ),
    "json.patch": (
        "doubles a document as often as an argument says, which can end this process; make the "
        "object by a comprehension"
    ),
    "yaml.is_valid": (
        f"takes very long for some texts, and has another answer in OPA for several; {FACTS}"
    ),
    **_each(
        "units.parse units.parse_bytes",
        "can hold this process for good, and rounds otherwise than OPA does; take a number",
    ),
    "http.send": "is only a stub here, and undefined; let the application look it up (facts)",
    "trace": "has another value in OPA, and nobody reads the note; remove it",
    "print": "would write arguments of calls to the standard error; remove it",
}
"""By name, what is wrong with a builtin, and what to write instead."""

COMPARED: Final = frozenset(
    _names(
        "abs array.concat array.reverse array.slice base64.encode base64url.encode "
        "base64url.encode_no_pad concat contains count endswith glob.match graph.reachable "
        "hex.encode indexof intersection is_array is_boolean is_null is_number "
        "is_object is_set is_string max min object.filter object.get object.keys "
        "object.remove object.union object.union_n product regex.match replace round "
        "semver.compare sort split sprintf startswith strings.any_prefix_match "
        "strings.any_suffix_match strings.reverse substring sum time.clock "
        "time.date time.diff time.now_ns time.weekday trim trim_left "
        "trim_prefix trim_right trim_space trim_suffix type_name union walk"
    )
)
"""The builtins that were held against OPA's, and are taken."""

_ESCAPED: Final = r"\\[-!\"#$%&'()*+,./:;=?@\[\\\]^_`{|}~]"
_COUNT: Final = "(?:0|[1-9][0-9]{0,2}|1000)"  # OPA takes 01 for a text, and no more than 1000
_OFTEN: Final = rf"(?: (?: [*+?] | \{{ {_COUNT} (?:,{_COUNT}?)? \}} ) \?? )?"
_REGEX: Final = re.compile(
    rf"""(?:
        (?:
            [^\\\[\](){{}}?*+^$|]                       # a character, or .
          | {_ESCAPED}
          | \[ \^? (?: (?!&&|--|~~) [^\\\[\]] | {_ESCAPED} )+ \]
          | \)
        ) {_OFTEN}
      | [\^$|]
      | \( (?: \?[ims]*: | \?[ims]+\) | (?!\?) )
    )*""",
    re.VERBOSE | re.DOTALL,
)
_FOLDS: Final = re.compile(r"\(\?[ms]*i")
_GLOB: Final = re.compile(r"(?:[\w ./:@-]|\*(?!\*))+")
_BELOW: Final = "/**"
_VERBS: Final = re.compile(r"(?:[^%]|%[%dsv])*", re.DOTALL)

_PORTABLE_ARGUMENTS: Final = {
    "regex.match": (
        "characters, classes such as [a-z0-9_] in the place of \\d, \\w and \\s, groups, |, *, +, "
        "?, {n}, ^, $, and (?i) before ASCII alone"
    ),
    "glob.match": (
        "letters, digits and marks, *, and /** at the end for what lies below, with the separators "
        '[], ["/"] or ["."]'
    ),
    "sprintf": "%s, %v, %d and %%, without width or precision",
    "walk": "two arguments, as in walk(x, [path, value])",
    "substring": "whole numbers below 2^31 in the last two places",
    "array.slice": "whole numbers below 2^31 in the last two places",
}
"""Builtins with arguments that are checked, and the arguments that both engines read alike."""

_BOUNDED: Final = {"replace": "a text in the last place", "concat": "a text in the first place"}
"""Builtins whose result grows with the product of two arguments, unless one is a literal."""


def mistakes(reader: Reader) -> Iterator[str]:
    """Yield a sentence for each call in a module with an argument that must be a literal."""
    for node in objects(reader.rules):
        match node:
            case {"Call": {"fcn": function, "params": [first, *more]}}:
                reference = name_of(function)
                name, at = ".".join(reference.path), reader.at(reference.span)
                if name in _PORTABLE_ARGUMENTS and not _is_portable(name, first, more):
                    yield (
                        f"{at}: OPA reads what {name} is given here "
                        f"otherwise, or may; write it out here: {_PORTABLE_ARGUMENTS[name]}"
                    )
                if name in _BOUNDED and not _is_bounded(name, first, more):
                    yield (
                        f"{at}: what {name} makes of two arguments of a call can end this process; "
                        f"write one out here: {_BOUNDED[name]}"
                    )


def _is_portable(name: str, first: Any, more: Sequence[Any]) -> bool:
    match name:
        case "walk":
            return len(more) == 1
        case "substring" | "array.slice":
            return all(map(_is_small, more))
    text = _literal(first)
    return text is not None and _is_portable_text(name, text, more)


def _is_portable_text(name: str, text: str, more: Sequence[Any]) -> bool:
    if name == "glob.match":
        separators = _separators(more[0]) if more else None
        if text.endswith(_BELOW) and separators == ["/"]:
            text = text.removesuffix(_BELOW)
        return separators in ([], ["/"], ["."]) and _GLOB.fullmatch(text) is not None
    if name == "sprintf":
        return _VERBS.fullmatch(text) is not None
    # The meaning of (?i) for other letters depends on the version of Unicode.
    folded = _FOLDS.search(text) is not None and not text.isascii()
    return _REGEX.fullmatch(text) is not None and not folded


def _literal(node: Any) -> str | None:
    match node:
        case {"String": {"value": str(text)}} | {"RawString": {"value": str(text)}}:
            return text
    return None


def _is_bounded(name: str, first: Any, more: Sequence[Any]) -> bool:
    operand = first if name == "concat" else more[-1] if more else None
    return _literal(operand) is not None


def _is_small(node: Any) -> bool:
    match node:
        case {"Number": {"value": number}}:
            return re.fullmatch("-?[0-9]{1,9}", str(number)) is not None
    return False


def _separators(node: Any) -> list[str | None] | None:
    match node:
        case {"Array": {"items": items}}:
            return [_literal(item) for item in items]
    return None
