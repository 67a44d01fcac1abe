"""Which builtin functions a policy may call, and with which arguments.

The gate refuses a builtin that has another value in OPA, or by which a call can exhaust this
process. The two engines read most patterns of ``regex.match``, ``glob.match`` and ``sprintf``
alike. A policy must write these patterns as literals in the call, so that the gate can check them.
The same holds for numbers, separators and replacements of a few other builtins.
tests/properties/test_two_engines_agreement.py compares every builtin with a real OPA server.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from agentguard.policy.rego.syntax_tree import Reader, name_of

FACTS: Final = "let the application compute the value and pass it as a fact"
"""The advice where a policy can use no builtin."""


def _names(names: str) -> list[str]:
    return names.split()


def _each(names: str, why: str) -> dict[str, str]:
    return dict.fromkeys(_names(names), why)


REFUSED: Final = {
    **_each(
        "bits.and bits.or bits.xor bits.negate bits.lsh bits.rsh",
        "is undefined in the embedded engine for large numbers, and has a value in OPA; " + FACTS,
    ),
    **_each(
        "ceil floor",
        "has another value in OPA for numbers between -1 and 0; compare the numbers themselves",
    ),
    "format_int": "writes large numbers differently than OPA does; compare the numbers themselves",
    **_each(
        "json.filter json.remove",
        "keeps other members than OPA does; build the object with a comprehension",
    ),
    **_each(
        "json.marshal json.marshal_with_options yaml.marshal",
        "writes some characters differently than OPA does; compare the values themselves",
    ),
    **_each(
        "json.is_valid json.match_schema json.unmarshal json.verify_schema yaml.unmarshal "
        "net.cidr_is_valid to_number time.parse_rfc3339_ns time.parse_ns uuid.parse",
        f"reads some texts differently than OPA does; {FACTS}",
    ),
    **_each(
        "urlquery.encode urlquery.encode_object",
        "writes ~ differently than OPA does; compare the texts themselves",
    ),
    **_each(
        "urlquery.decode urlquery.decode_object",
        f"drops characters that OPA keeps, such as &; {FACTS}",
    ),
    **_each(
        "base64.decode base64.is_valid base64url.decode hex.decode",
        f"accepts other texts than OPA does, and reads invalid UTF-8 differently; {FACTS}",
    ),
    "glob.quote_meta": (
        "does not quote some characters that OPA quotes; write the quoted pattern as a literal"
    ),
    **_each(
        "lower upper",
        "converts some letters (İ, Σ, ß) differently than OPA does; use regex.match with (?i), or "
        f"{FACTS}",
    ),
    "net.cidr_contains": (
        "does not find an IPv4-mapped IPv6 address in an IPv4 network, and OPA does; " + FACTS
    ),
    "object.subset": (
        "has a value for an argument that is not an object, and OPA has none; compare the members"
    ),
    "indexof_n": "has a value for an empty text, and OPA has none; use contains",
    **_each(
        "rand.intn uuid.rfc4122",
        "has another value in each evaluation, so that nobody can repeat a decision; let the "
        "application draw the value and pass it as a fact",
    ),
    "opa.runtime": "describes the engine, and an OPA server is another engine; remove the call",
    **_each(
        "regex.find_all_string_submatch_n regex.find_n regex.is_valid regex.replace regex.split "
        "regex.template_match",
        f"reads some patterns differently than OPA does; use regex.match, or {FACTS}",
    ),
    "semver.is_valid": "rejects v1.2.3, which OPA accepts; use semver.compare",
    "strings.replace_n": (
        "replaces also in the texts that it inserted, and OPA does not; call replace several times"
    ),
    # A panic denies the call. The native code also writes about the panic to standard error.
    "strings.count": "panics on an empty text; write count(split(x, y)) - 1",
    "time.parse_duration_ns": f"panics on texts such as `1.`; {FACTS}",
    "time.format": f"reads some layouts differently than OPA does; {FACTS}",
    "time.add_date": (
        "counts months differently than OPA does; add nanoseconds, or calculate with the year, "
        "month and day of time.date"
    ),
    "graph.reachable_paths": "ends cycles differently than OPA does; use graph.reachable",
    # With one argument such a call uses all memory or runs forever, and nothing can stop the call.
    **_each(
        "numbers.range numbers.range_step",
        "can exhaust this process, because an argument decides how many numbers there are; compare "
        "the bounds",
    ),
    "net.cidr_expand": (
        "can exhaust this process, because an argument decides how many addresses there are; "
        + FACTS
    ),
    "json.patch": (
        "can exhaust this process, because an argument decides how often a document is doubled; "
        "build the object with a comprehension"
    ),
    "yaml.is_valid": (
        f"takes very long for some texts, and answers differently than OPA for several; {FACTS}"
    ),
    **_each(
        "units.parse units.parse_bytes",
        "can block this process forever, and rounds differently than OPA does; pass a number",
    ),
    "http.send": (
        "is only a stub in the embedded engine, and undefined; let the application send the "
        "request and pass the answer as a fact"
    ),
    "trace": "has another value in OPA, and nobody reads the note; remove the call",
    "print": "would write arguments of calls to standard error; remove the call",
}
"""By a builtin's name, why the gate refuses the builtin, and what to write instead."""

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
"""The builtins that a policy may call: tests have compared them with OPA's."""

_ESCAPED: Final = r"\\[-!\"#$%&'()*+,./:;=?@\[\\\]^_`{|}~]"
_COUNT: Final = "(?:0|[1-9][0-9]{0,2}|1000)"  # OPA reads 01 as a text, and refuses more than 1000
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
        "characters, classes such as [a-z0-9_] instead of \\d, \\w and \\s, groups, |, *, +, "
        "?, {n}, ^, $, and (?i) in a pattern of ASCII"
    ),
    "glob.match": (
        "letters, digits, punctuation, *, and /** at the end for everything below a path, with the "
        'separators [], ["/"] or ["."]'
    ),
    "sprintf": "%s, %v, %d and %%, without width or precision",
    "walk": "two arguments, as in walk(x, [path, value])",
    "substring": "whole numbers below 2^31 in the last two places",
    "array.slice": "whole numbers below 2^31 in the last two places",
}
"""Builtins with arguments that are checked, and the arguments that both engines read alike."""

_BOUNDED: Final = {
    "replace": "the last argument as a literal text",
    "concat": "the first argument as a literal text",
}
"""Builtins whose result grows with the product of two arguments, unless one is a literal."""


def mistakes(reader: Reader) -> Iterator[str]:
    """Yield a sentence for each call in a module with an argument that must be a literal."""
    for node in reader.parts("Call"):
        match node:
            case {"Call": {"fcn": function, "params": [first, *more]}}:
                reference = name_of(function)
                name, at = ".".join(reference.path), reader.at(reference.span)
                if name in _PORTABLE_ARGUMENTS and not _is_portable(name, first, more):
                    yield (
                        f"{at}: OPA may read these arguments of {name} differently; "
                        f"write in the call only {_PORTABLE_ARGUMENTS[name]}"
                    )
                if name in _BOUNDED and not _is_bounded(name, first, more):
                    yield (
                        f"{at}: {name} with two computed arguments can exhaust this process; "
                        f"write {_BOUNDED[name]}"
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
