"""Texts and JSON that no honest caller sends in the place of a signed token.

``texts`` are changes of the token as a text. ``payloads`` are JSON that the right key
may have signed: two readers could read each of them differently, or run out of stack or memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def texts(good: str) -> dict[str, str]:
    """Return texts that are no token, by name; ``good`` is a compact JWS."""
    head, body, signature = good.split(".")
    return {
        "nothing": "",
        "a dot": ".",
        "two dots": "..",
        "many dots": "." * 100_000,
        "one part": head,
        "two parts": f"{head}.{body}",
        "no header": f".{body}.{signature}",
        "no payload": f"{head}..{signature}",
        "no signature": f"{head}.{body}.",
        "four parts": f"{good}.{signature}",
        "five parts": f"{good}.a.b",
        "twice": good + good,
        "a NUL": f"{head}\0.{body}.{signature}",
        "a NUL behind": f"{good}\0",
        "a line feed": f"{good}\n",
        "a space": f" {good}",
        "padding": f"{good}=",
        "a plus": good.replace(".", "+.", 1),
        "not ASCII": good.replace(".", "\u00e9.", 1),
        "other digits": good.replace(".", "\u0661.", 1),
        "a surrogate": f"{good}\ud800",
        "a bidi mark": f"\u202e{good}",
        "JSON": json.dumps({"protected": head, "payload": body, "signature": signature}),
        "long": "A" * 1_000_000,
        "a long part": f"{head}.{'A' * 1_000_000}.{signature}",
        "a long signature": f"{head}.{body}.{'A' * 1_000_000}",
        "another signature": f"{head}.{body}.{'A' * len(signature)}",
    }


def payloads(claims: Mapping[str, Any]) -> dict[str, bytes]:
    """Return what is no strict JSON object, by name; ``claims`` are those of a good token."""
    good = json.dumps(claims, separators=(",", ":"))
    open_end = good[:-1].encode()
    escaped = "".join(f"\\u{ord(each):04x}" for each in next(iter(claims)))
    return {
        "nothing": b"",
        "null": b"null",
        "a list": b"[]",
        "a number": b"7",
        "a NUL": b"\0",
        "half": open_end,
        "two objects": good.encode() * 2,
        "a BOM": b"\xef\xbb\xbf" + good.encode(),
        "UTF-16": good.encode("utf-16"),
        "not UTF-8": open_end + b',"x":"\xff"}',
        "an overlong form": open_end + b',"x":"\xc0\x80"}',
        "a surrogate": open_end + b',"x":"\\ud800"}',
        "a raw NUL": open_end + b',"x":"\0"}',
        "NaN": open_end + b',"x":NaN}',
        "infinity": open_end + b',"x":-Infinity}',
        "a large exponent": open_end + b',"x":1e999}',
        "a long number": open_end + b',"x":' + b"9" * 10_000 + b"}",
        "deep": open_end + b',"x":' + b"[" * 100_000,
        "deep and closed": open_end + b',"x":' + b"[" * 2000 + b"]" * 2000 + b"}",
        "deep objects": open_end + b',"x":' + b'{"a":' * 1000 + b"1" + b"}" * 1001,
        "a comment": open_end + b"/**/}",
        "a comma too many": open_end + b",}",
        "twice": open_end + b"," + open_end[1:] + b"}",
        **{
            f"{name} twice": open_end + f",{json.dumps(name)}:{json.dumps(value)}}}".encode()
            for name, value in claims.items()
        },
        "twice, in escapes": open_end + f',"{escaped}":1}}'.encode(),
    }


WRONG: dict[str, Any] = {
    "null": None,
    "true": True,
    "a negative number": -1,
    "a fraction": 1.5,
    "a large number": 2**64,
    "an empty text": "",
    "a NUL": "\0",
    "a long text": "a" * 12_000,
    "a list": [],
    "a list of lists": [[[]]],
    "an object": {},
}
"""Values that no claim has which a verifier needs."""
