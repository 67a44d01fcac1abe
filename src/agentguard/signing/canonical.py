"""Strict JSON decoding, canonical JSON (RFC 8785, JCS), base64 and SHA-256.

``loads`` decodes all JSON that arrives (tokens, records, requests), and every digest is taken over
``dumps``. ``call/arguments.py`` turns a call's arguments into JSON values; ``jws.py`` and
``dsse.py`` sign.
"""

from __future__ import annotations

import binascii
import hashlib
import json
import re
from math import isinf
from typing import Any, Final, NoReturn, TypeAlias, TypeGuard

import orjson
import rfc8785

from agentguard.errors import DecodeError, EncodeError

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
"""A decoded JSON value (RFC 8259)."""

Fragment = orjson.Fragment
"""Canonical bytes that ``dumps_record`` embeds unchanged."""

MAX_BYTES: Final = 256 * 1024
"""The longest text that ``loads`` decodes by default, in bytes of UTF-8."""

MAX_DEPTH: Final = 64
"""The deepest nesting of arrays and objects."""

MAX_INTEGER: Final = 2**53 - 1
"""The largest integer that every JSON implementation can represent exactly (RFC 7493, 2.2)."""

_BOM: Final = "\ufeff"
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_SURROGATE_ESCAPE: Final = re.compile(r"\\u[dD][89a-fA-F]")
# Between these bounds orjson and RFC 8785 encode a float alike, unless it is integral: orjson
# appends ".0", and uses exponents at smaller magnitudes. The upper bound excludes infinity.
_SMALLEST_SIMPLE: Final = 1e-5
_LARGEST_SIMPLE: Final = 1e16
_SHORT: Final = 16
"""Characters of the shortest text of an integer that may be beyond ``MAX_INTEGER``."""

_TO_URL: Final = bytes.maketrans(b"+/", b"-_")
_FROM_URL: Final = bytes.maketrans(b"-_", b"+/")
_PADDING: Final = (b"", b"===", b"==", b"=")
"""The padding of base64 by the length of the text, modulo 4."""

_SORTED: Final = orjson.OPT_SORT_KEYS
_STRICT: Final = _SORTED | orjson.OPT_STRICT_INTEGER
_RECORD_OPTIONS: Final = (
    _SORTED
    | orjson.OPT_STRICT_INTEGER
    | orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_SUBCLASS
)


def loads(
    data: object, *, limit: int = MAX_BYTES, depth: int = MAX_DEPTH, exact: bool = False
) -> JSON:
    """Decode one JSON text; refuse a text that two decoders could read differently.

    ``data`` is bytes or text, of at most ``limit`` bytes in UTF-8, nested at most ``depth`` deep.
    An integer beyond ``MAX_INTEGER`` becomes a float, because RFC 8785 encodes the float 1e17
    as digits. With ``exact``, it stays the integer, which ``dumps`` refuses: whoever passes a value
    on changes no digit. Raises ``DecodeError`` (``json.malformed``, ``json.duplicate_key``,
    ``json.number``, ``json.surrogate``, ``json.depth``, ``json.size``, ``json.utf8``). RFC 8259,
    RFC 7493.
    """
    text = _text(data, limit)
    try:
        value: JSON = (_EXACT_DECODER if exact else _DECODER).decode(text)
    except ValueError as error:
        raise DecodeError(f"not JSON: {error}", code="json.malformed") from None
    except RecursionError:
        raise _too_deep(depth) from None
    if text.count("[") + text.count("{") > depth:
        _check_depth(value, depth)
    if _SURROGATE_ESCAPE.search(text):
        _check_surrogates(value)
    return value


def loads_object(data: object) -> dict[str, JSON]:
    """Decode one JSON object with ``loads``.

    Raises ``DecodeError`` as ``loads`` does, and ``json.not_object`` for another JSON value.
    """
    value = loads(data)
    if not isinstance(value, dict):
        raise DecodeError("expected a JSON object, found another value", code="json.not_object")
    return value


def loads_canonical(data: object) -> JSON:
    """Decode a JSON text in canonical form: exactly the bytes of ``dumps`` for its value.

    Raises ``DecodeError`` as ``loads`` does, and ``json.not_canonical`` for another form.
    """
    if isinstance(data, bytes) and len(data) <= MAX_BYTES:
        try:
            value: JSON = orjson.loads(data)
            # If a simple value has the text as its encoding, the text has this one meaning: the
            # encoding would differ after a repeated key, or a number that was decoded inexactly.
            is_simple = (data.isascii() and _is_plain(value)) or _is_simple(value, 0)
            if is_simple and orjson.dumps(value, option=_STRICT) == data:
                return value
        except (orjson.JSONDecodeError, orjson.JSONEncodeError, EncodeError, RecursionError):
            pass  # the strict decoder below, which is slower, raises the right error
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
    """Encode a record of agentguard's own as ``dumps`` does, without the checks of ``dumps``.

    The caller guarantees that keys are ASCII, that no value is a float, and that each ``Fragment``
    has canonical bytes. Raises ``EncodeError`` (``json.unencodable``).
    """
    try:
        # The bytes that orjson returns keep their buffer of 4 KiB or more as long as they live; a
        # copy takes no more memory than its length.
        return b"%b" % orjson.dumps(value, option=_RECORD_OPTIONS)
    except TypeError as error:
        raise _unencodable(str(error)) from None


def is_integer(value: object) -> TypeGuard[int]:
    """Whether a decoded JSON value is an integer; ``True`` is an ``int`` in Python, and is not."""
    return type(value) is int


def digest(value: object) -> str:
    """Return the hex SHA-256 of a JSON value's canonical form; raises as ``dumps`` does."""
    return sha256_hex(dumps(value))


def sha256_hex(data: bytes) -> str:
    """Return the hex SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def is_sha256(value: object) -> TypeGuard[str]:
    """Whether a value has the form of a SHA-256 in hex, as ``sha256_hex`` returns it."""
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def b64url_encode(data: bytes) -> str:
    """Encode as base64url without padding (RFC 7515, 2)."""
    return binascii.b2a_base64(data, newline=False).translate(_TO_URL).rstrip(b"=").decode("ascii")


def b64url_decode(text: object) -> bytes:
    """Decode base64url without padding (RFC 7515, 2).

    Raises ``DecodeError`` (``base64.malformed``) unless ``text`` is the encoding of the result:
    padding, another alphabet, white space and non-zero unused bits are refused.
    """
    if not isinstance(text, str):
        raise DecodeError("base64url is text", code="base64.malformed")
    try:
        encoded = text.encode("ascii").translate(_FROM_URL)
        data = binascii.a2b_base64(encoded + _PADDING[len(encoded) % 4])
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
    if binascii.b2a_base64(data, newline=False).decode("ascii") != text:
        raise DecodeError("not canonical base64 with padding", code="base64.malformed")
    return data


def _text(data: object, limit: int) -> str:
    """Return ``data`` as text; raise unless its size is within the limit and it is valid UTF-8."""
    if not isinstance(data, str | bytes):
        raise DecodeError("JSON is text, or its bytes", code="json.malformed")
    # A text never has more characters than bytes, so this cheap check can come first.
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


def _check_depth(value: JSON, depth: int) -> None:
    """Raise ``DecodeError`` if arrays and objects are nested more than ``depth`` deep."""
    level: list[Any] = [[value]]
    for _ in range(depth + 1):
        level = [
            member
            for one in level
            for member in (one.values() if type(one) is dict else one)
            if type(member) is dict or type(member) is list
        ]
        if not level:
            return
    raise _too_deep(depth)


def _check_surrogates(value: JSON) -> None:
    """Raise ``DecodeError`` if a string of ``value`` has a lone surrogate, from an escape."""
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
    if len(text) < _SHORT:
        return int(text)
    number = _float(text)
    # Beyond 2^53-1 the digits may stand for a float. Below, the text is short enough for int().
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
_EXACT_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_float, parse_constant=_constant
)


def _is_plain(value: JSON) -> bool:
    """A quick check of a value that orjson decoded from ASCII: True implies ``_is_simple``.

    False says nothing about ``_is_simple``. The encoder checks integers.
    """
    containers: list[Any] = [[value]]
    for container in containers:  # the list grows in the loop
        for member in container:
            kind = type(member)
            if kind is str:  # the usual case
                continue
            if kind is dict:
                if member:
                    containers.append(member.values())
            elif kind is list:
                if member:
                    containers.append(member)
            elif kind is float:
                return False
    return len(containers) < MAX_DEPTH  # so few containers can't be nested too deeply


def _is_simple(value: object, depth: int) -> bool:
    """Whether orjson encodes ``value`` as RFC 8785 does.

    Raises ``EncodeError`` if any part of ``value`` has no canonical form. Both encoders refuse lone
    surrogates themselves.
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
        if type(member) is not str:  # the usual case
            simple &= _is_simple(member, depth)
    return simple


def _unencodable(problem: str) -> EncodeError:
    return EncodeError(f"no canonical JSON: {problem}", code="json.unencodable")


def _too_long(limit: int) -> DecodeError:
    return DecodeError(f"JSON of more than {limit} bytes", code="json.size")


def _too_deep(depth: int) -> DecodeError:
    return DecodeError(f"JSON of more than {depth} levels", code="json.depth")


def _lone_surrogate() -> DecodeError:
    return DecodeError("a JSON string holds a lone surrogate", code="json.surrogate")
