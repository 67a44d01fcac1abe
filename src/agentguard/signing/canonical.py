"""Strict JSON in, RFC 8785 (JCS) out, and the encodings around them: base64 and SHA-256.

All JSON that arrives (tokens, records, requests) is decoded by ``loads``, and every digest is
taken over ``dumps``. What the bytes mean stands elsewhere: how the arguments of a call become
JSON in ``call/arguments.py``, signatures in ``jws.py`` and ``dsse.py``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from math import isinf
from typing import Final, NoReturn, TypeAlias, TypeGuard

import orjson
import rfc8785

from agentguard.errors import DecodeError, EncodeError

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
"""A decoded JSON value (RFC 8259)."""

Fragment = orjson.Fragment
"""Canonical bytes, made once, that ``dumps_record`` embeds as they are."""

MAX_BYTES: Final = 256 * 1024
"""The longest text that ``loads`` reads, in bytes of UTF-8."""

MAX_DEPTH: Final = 64
"""How many arrays and objects may stand inside one another."""

MAX_INTEGER: Final = 2**53 - 1
"""The largest integer that every JSON implementation holds exactly (RFC 7493, 2.2)."""

_BOM: Final = "\ufeff"
# The tail is possessive and the closing quote optional: an unterminated string is consumed in
# one go, so that the scan stays linear on hostile text.
_STRING_OR_BRACKET: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)
_SURROGATE_ESCAPE: Final = re.compile(r"\\u[dD][89a-fA-F]")
# Between these orjson and RFC 8785 write a float alike, unless it is integral: orjson appends
# ".0", and changes to exponents at smaller magnitudes. The upper bound keeps infinity out.
_SMALLEST_SIMPLE: Final = 1e-5
_LARGEST_SIMPLE: Final = 1e16
_SORTED: Final = orjson.OPT_SORT_KEYS
_STRICT: Final = _SORTED | orjson.OPT_STRICT_INTEGER
_RECORD_OPTIONS: Final = (
    _SORTED
    | orjson.OPT_STRICT_INTEGER
    | orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_SUBCLASS
)


def loads(data: object, *, limit: int = MAX_BYTES) -> JSON:
    """Decode one JSON text, refusing all that two decoders could read differently.

    Takes at most ``limit`` bytes of UTF-8 (or the same as text), at most ``MAX_DEPTH`` deep. An
    integer beyond ``MAX_INTEGER`` becomes a float, because RFC 8785 writes the float 1e17 as
    digits. Raises ``DecodeError`` (``json.malformed``, ``json.duplicate_key``, ``json.number``,
    ``json.surrogate``, ``json.depth``, ``json.size``, ``json.utf8``). RFC 8259, RFC 7493.
    """
    text = _text(data, limit)
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _check_depth(text)
    try:
        value: JSON = _DECODER.decode(text)
    except ValueError as error:
        raise DecodeError(f"not JSON: {error}", code="json.malformed") from None
    except RecursionError:  # the caller's own stack was nearly full
        raise _too_deep() from None
    if _SURROGATE_ESCAPE.search(text):
        _check_surrogates(value)
    return value


def loads_object(data: object) -> dict[str, JSON]:
    """Decode one JSON object with ``loads``.

    Raises ``DecodeError``, with the code ``json.not_object`` for any other JSON value.
    """
    value = loads(data)
    if not isinstance(value, dict):
        raise DecodeError("expected a JSON object, found another value", code="json.not_object")
    return value


def loads_canonical(data: object) -> JSON:
    """Decode a JSON text that must be what ``dumps`` gives for its value, byte for byte.

    Raises ``DecodeError``: as ``loads`` does, and ``json.not_canonical`` for another spelling.
    """
    if isinstance(data, bytes) and len(data) <= MAX_BYTES:
        try:
            value: JSON = orjson.loads(data)
            # A simple value that comes out as it went in is the one that the text stands for: of a
            # key that stands twice, or a number that is read otherwise, something would be lost.
            simple = (data.isascii() and _is_plain(value)) or _is_simple(value, 0)
            if simple and orjson.dumps(value, option=_STRICT) == data:
                return value
        except (orjson.JSONDecodeError, orjson.JSONEncodeError, EncodeError, RecursionError):
            pass  # the strict decoder, which is slower, says what is wrong
    value = loads(data)
    if dumps(value) != data:
        raise DecodeError("JSON in another form than its canonical one", code="json.not_canonical")
    return value


def dumps(value: object) -> bytes:
    """Encode a JSON value in its one canonical form (RFC 8785).

    Takes None and exact ``bool, int, float, str, list, dict``. Raises ``EncodeError``
    (``json.unencodable``) for any other type, subclasses included, and for NaN, infinities,
    integers beyond ``MAX_INTEGER``, lone surrogates, keys that are no strings, cycles, and more
    than ``MAX_DEPTH`` levels.
    """
    try:
        if _is_simple(value, 0):
            return b"%b" % orjson.dumps(value, option=_SORTED)  # a copy: see dumps_record
        return rfc8785.dumps(value)  # type: ignore[arg-type]  # _is_simple has seen every type
    except (TypeError, ValueError) as error:  # a lone surrogate, in either encoder's words
        raise _unencodable(str(error)) from None
    except RecursionError:
        raise _unencodable("the value is nested too deeply") from None


def dumps_record(value: object) -> bytes:
    """Encode one of agentguard's own records: the same bytes as ``dumps``, without its checks.

    The caller sees to it that keys are ASCII, that there are no floats, and that each
    ``Fragment`` holds canonical bytes. Raises ``EncodeError`` (``json.unencodable``).
    """
    try:
        # A copy takes the memory that its length says. What orjson returns keeps its buffer, of
        # 4 KiB and more, for as long as it lives.
        return b"%b" % orjson.dumps(value, option=_RECORD_OPTIONS)
    except TypeError as error:
        raise _unencodable(str(error)) from None


def is_integer(value: object) -> TypeGuard[int]:
    """Tell a decoded JSON integer; ``true``, which Python's ``int`` takes in, is none."""
    return type(value) is int


def digest(value: object) -> str:
    """Return the hex SHA-256 of a JSON value's canonical form; raises as ``dumps`` does."""
    return sha256_hex(dumps(value))


def sha256_hex(data: bytes) -> str:
    """Return the hex SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def b64url_encode(data: bytes) -> str:
    """Encode as base64url without padding (RFC 7515, 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def b64url_decode(text: object) -> bytes:
    """Decode base64url without padding (RFC 7515, 2).

    Raises ``DecodeError`` (``base64.malformed``) unless ``text`` is exactly what encoding the
    result gives: padding, other alphabets, white space and non-zero unused bits are refused.
    """
    if not isinstance(text, str):
        raise DecodeError("base64url is text", code="base64.malformed")
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        data = b""
    if b64url_encode(data) != text:
        raise DecodeError("not canonical base64url without padding", code="base64.malformed")
    return data


def b64_encode(data: bytes) -> str:
    """Encode as standard base64 with padding (RFC 4648, 4)."""
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def b64_decode(text: object) -> bytes:
    """Decode standard base64 with padding (RFC 4648, 4), as strictly as ``b64url_decode``.

    Raises ``DecodeError`` (``base64.malformed``).
    """
    if not isinstance(text, str):
        raise DecodeError("base64 is text", code="base64.malformed")
    try:
        data = binascii.a2b_base64(text)
    except ValueError:
        data = b""
    if b64_encode(data) != text:
        raise DecodeError("not canonical base64 with padding", code="base64.malformed")
    return data


def _text(data: object, limit: int) -> str:
    """Return ``data`` as text, having checked its size and that it is valid UTF-8."""
    if not isinstance(data, str | bytes):
        raise DecodeError("JSON is text, or its bytes", code="json.malformed")
    # A str never has more characters than bytes: the cheap check comes before the encoding.
    if len(data) > limit:
        raise _too_long(limit)
    if isinstance(data, str):
        try:
            size = len(data.encode())
        except UnicodeEncodeError:
            raise _lone_surrogate() from None
        if size > limit:
            raise _too_long(limit)
        text = data
    else:
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise DecodeError(f"not UTF-8 at byte {error.start}", code="json.utf8") from None
    if text.startswith(_BOM):
        raise DecodeError("JSON must not begin with a byte order mark", code="json.utf8")
    return text


def _check_depth(text: str) -> None:
    """Raise if brackets outside strings are nested too deeply."""
    depth = 0
    for token in _STRING_OR_BRACKET.findall(text):
        if token in ("[", "{"):
            depth += 1
            if depth > MAX_DEPTH:
                raise _too_deep()
        elif token in ("]", "}"):
            depth -= 1


def _check_surrogates(value: JSON) -> None:
    """Raise if an escape has put a lone surrogate into a string of ``value``."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _lone_surrogate() from None


def _object(pairs: list[tuple[str, JSON]]) -> dict[str, JSON]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise DecodeError("a JSON object has the same key twice", code="json.duplicate_key")
    return members


def _integer(text: str) -> int | float:
    number = _float(text)
    # Beyond 2^53-1 the digits may be a float's; below, the text is short enough for int().
    return int(text) if abs(number) <= MAX_INTEGER else number


def _float(text: str) -> float:
    number = float(text)
    if isinf(number):
        raise DecodeError("a number is beyond the range of a double", code="json.number")
    return number


def _constant(name: str) -> NoReturn:
    raise DecodeError(f"{name} is not a JSON number", code="json.number")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant
)


def _is_plain(value: JSON) -> bool:
    """Whether ``_is_simple`` holds of what orjson has read of ASCII, by a quicker look.

    Integers are left to the encoder. Where this is False, ``_is_simple`` may hold nevertheless.
    """
    values: list[JSON] = [value]
    inner = 0
    for one in values:  # which grows
        if type(one) is str or one is None:  # most are
            continue
        if type(one) is dict:
            values += one.values()
            inner += 1
        elif type(one) is list:
            values += one
            inner += 1
        elif type(one) is float:
            return False
    return inner <= MAX_DEPTH  # so many can't stand too deep inside one another


def _is_simple(value: object, depth: int) -> bool:
    """Whether orjson writes ``value`` as RFC 8785 does.

    Looks at all of it, and raises ``EncodeError`` for what has no canonical form. The text of
    strings is left to the encoders, which both refuse lone surrogates.
    """
    if type(value) is str or value is None or type(value) is bool:
        return True
    if type(value) is int:
        if abs(value) > MAX_INTEGER:
            raise _unencodable("an integer is beyond 2^53-1")
        return True
    if type(value) is float:
        return _SMALLEST_SIMPLE <= abs(value) < _LARGEST_SIMPLE and not value.is_integer()
    if depth >= MAX_DEPTH:
        raise _unencodable(f"more than {MAX_DEPTH} levels, or a cycle")
    if type(value) is dict:
        return _is_simple_object(value, depth + 1)
    if type(value) is list:
        simple = True
        for item in value:
            if type(item) is not str:
                simple &= _is_simple(item, depth + 1)
        return simple
    raise _unencodable(f"the type {type(value).__name__} has no JSON form")


def _is_simple_object(members: dict[object, object], depth: int) -> bool:
    simple = True
    for key, member in members.items():
        if type(key) is not str:
            raise _unencodable(f"a key is of the type {type(key).__name__}, not str")
        # orjson sorts by code point, RFC 8785 by UTF-16 unit: the same for ASCII.
        if not key.isascii():
            simple = False
        if type(member) is not str:  # most are
            simple &= _is_simple(member, depth)
    return simple


def _unencodable(problem: str) -> EncodeError:
    return EncodeError(f"no canonical JSON: {problem}", code="json.unencodable")


def _too_long(limit: int) -> DecodeError:
    return DecodeError(f"JSON of more than {limit} bytes", code="json.size")


def _too_deep() -> DecodeError:
    return DecodeError(f"JSON of more than {MAX_DEPTH} levels", code="json.depth")


def _lone_surrogate() -> DecodeError:
    return DecodeError("a JSON string holds a lone surrogate", code="json.surrogate")
