"""Reads requests strictly: headers, forms and JSON, each in one form and of a bounded size.

The functions here work on values. ``application.py`` receives the request itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote_to_bytes

from agentguard.errors import DecodeError
from agentguard.service.answers import RefusedError, invalid_request
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON

MAX_BODY: Final = 192 * 1024
"""The longest body, in bytes: two tokens of 16 KiB, and a chain of 64 KiB in percent-encoding."""

MAX_HEADERS: Final = 32 * 1024
"""The most bytes of all headers of a request."""

MAX_PARAMETERS: Final = 64
"""The most parameters of a form."""

FORM: Final = "application/x-www-form-urlencoded"

_ONCE: Final = frozenset(
    {
        "authorization",
        "content-encoding",
        "content-length",
        "content-type",
        "dpop",
        "workload-identity-token",
        "x-request-id",
    }
)
"""The headers that are read; each comes once at most."""

_ENCODED: Final = re.compile(r"[!-%'-~]*")
_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_TYPE: Final = re.compile(
    r"([!-:<-~]+)(?:[ \t]*;[ \t]*charset=(?:utf-8|\"utf-8\"))?", re.IGNORECASE
)

Form = Mapping[str, tuple[str, ...]]
"""The parameters of a form that have a value, or limit; only those that may repeat have several."""

LIMITS: Final = frozenset({"audience", "resource", "scope"})
"""The parameters that limit what is asked for: an empty one is none that is omitted."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request: ``headers`` has those that are read, with names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


def read_headers(raw: Iterable[tuple[bytes, bytes]]) -> Mapping[str, str]:
    """Return the headers that are read. Raises ``RefusedError``.

    A gateway may turn ``_`` into ``-``, so that a header with an underscore counts as the other.
    """
    found: dict[str, str] = {}
    size = 0
    for written, value in raw:
        size += len(written) + len(value)
        if size > MAX_HEADERS:
            raise invalid_request(f"the headers take more than {MAX_HEADERS} bytes", 431)
        name = written.decode("latin-1").lower().replace("_", "-")
        if name not in _ONCE:
            continue
        if name in found or b"_" in written:
            raise invalid_request(
                f"the header {name} comes twice, or is written with an underscore"
            )
        text = value.decode("latin-1")
        if not text.isascii() or not text.isprintable():
            raise invalid_request(f"the header {name} has other characters than printable ASCII")
        found[name] = text
    return found


def require_type(headers: Mapping[str, str], expected: str) -> None:
    """Raise ``RefusedError`` unless the body has the expected media type, in plain UTF-8."""
    match = _TYPE.fullmatch(headers.get("content-type", ""))
    if match is None or match[1].lower() != expected:
        message = f"the body has to be {expected}, and the header Content-Type has to say so"
        raise RefusedError(415, "invalid_request", message)
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise RefusedError(415, "invalid_request", "send the body without a Content-Encoding")


def read_form(request: Request, repeated: frozenset[str] = frozenset()) -> Form:
    """Return the parameters of a form; those in ``repeated`` alone may come more than once.

    A parameter without a value counts as omitted (RFC 6749, 3.2), but for those of ``LIMITS``:
    "nothing" would be "all". Raises ``RefusedError``.
    """
    require_type(request.headers, FORM)
    if not request.body.isascii():
        raise invalid_request("a form is ASCII; other characters are percent-encoded")
    pairs = [pair for pair in request.body.decode("ascii").split("&") if pair]
    if len(pairs) > MAX_PARAMETERS:
        raise invalid_request(f"a form has at most {MAX_PARAMETERS} parameters")
    form: dict[str, tuple[str, ...]] = {}
    seen: set[str] = set()
    for pair in pairs:
        written, _equals, encoded = pair.partition("=")
        name, value = _decoded(written), _decoded(encoded)
        if name in seen and name not in repeated:
            raise invalid_request("a parameter comes twice")
        seen.add(name)
        if value or name in LIMITS:
            form[name] = (*form.get(name, ()), value)
    return form


def one(form: Form, name: str) -> str | None:
    """Return the value of a parameter that comes once at most, None where it is missing."""
    return form[name][0] if name in form else None


def required(form: Form, name: str) -> str:
    """Return the value of a parameter; raises ``RefusedError`` where it is missing."""
    value = one(form, name)
    if value is None:
        raise invalid_request(f"the parameter {name} is missing")
    return value


def read_json(request: Request) -> dict[str, JSON]:
    """Return the object in the body; raises ``RefusedError``."""
    require_type(request.headers, "application/json")
    try:
        return canonical.loads_object(request.body)
    except DecodeError as error:
        raise invalid_request(f"the body is not strict JSON: {error}") from error


def _decoded(text: str) -> str:
    """Return a name or a value of a form (WHATWG URL, 5.1), of printable characters alone."""
    if _PERCENT.search(text) or not _ENCODED.fullmatch(text):
        raise invalid_request("a form has printable ASCII and whole percent-encodings")
    try:
        decoded = unquote_to_bytes(text.replace("+", " ")).decode("utf-8")
    except UnicodeDecodeError as error:
        raise invalid_request("a parameter is not UTF-8") from error
    if not decoded.isprintable():
        raise invalid_request("a parameter has a control character")
    return decoded
