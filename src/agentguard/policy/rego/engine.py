"""The embedded Rego engine: regorus, evaluated in this process.

In this process this file alone calls the native engine, and turns whatever it does into a value or
a ``PolicyError``; a new policy is tried in a child process first (``dry_run.py``). Reading files
stands in ``source.py``; what a policy must not contain, in ``gate.py``. The binding
(``agentguard[rego]``) is imported when a policy is loaded.
"""

from __future__ import annotations

import importlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Protocol

import orjson

from agentguard.errors import ConfigError, PolicyError
from agentguard.policy.document import DEFAULT_QUERY, QUERY, UNDEFINED
from agentguard.policy.rego import gate
from agentguard.policy.rego.source import RegoSource, invalid

CHECK_TIMEOUT: Final = 20.0
"""How long the trial of a new policy may take, in seconds; it usually takes a tenth of one."""

MAX_ENGINES_PER_THREAD: Final = 8
"""How many policies' engines a thread keeps; the one used longest ago makes room."""

# What the engine says may quote an argument or a fact, and an error's message reaches the model
# and the record. These texts quote the policy only.
_QUOTES_NO_VALUE: Final = re.compile(
    r"divide by zero"
    r"|could not find function [\w.]+"
    r"|rule conflicts with rule at .+:\d+:\d+"
    r"|(?:rules|functions) must not produce multiple outputs"
    r"|`[\w.]+` (?:expects|requires) [^.`\"]+"
    r"|invalid (?:regex|glob|semver)"
    r"|could not (?:parse string as number|deserialize (?:json|yaml))"
)


class _Native(Protocol):
    """What is used of ``regorus.Engine``; an instance serves only the thread that made it."""

    def add_policy(self, path: str, rego: str) -> str: ...
    def add_data_json(self, data: str) -> None: ...
    def set_input_json(self, input: str) -> None: ...  # noqa: A002  the binding's own name
    def eval_query_as_json(self, query: str) -> str: ...


class _Engines(threading.local):
    """A thread's native engines by policy digest.

    They stand here and not in a ``RegoEngine``, whose last reference may be dropped by another
    thread: the binding neither forgives that nor frees the memory.
    """

    def __init__(self) -> None:
        self.by_policy: OrderedDict[str, _Native] = OrderedDict()


_engines: Final = _Engines()
# What is fit for use, by policy digest and query, with what the gate warned of.
_checked: Final[dict[tuple[str, str], tuple[str, ...]]] = {}


class RegoEngine:
    """A loaded Rego policy (``engine.Engine``); safe to use from many threads."""

    name: Final = "rego"
    waits: Final = False

    def __init__(self, source: RegoSource, query: str, *, check_timeout: float) -> None:
        if not QUERY.fullmatch(query):
            raise invalid(f"the query {query!r} is not a package's path, such as {DEFAULT_QUERY}")
        self._make = _binding()
        self._source = source
        self._data = json.dumps(source.data)
        self._query = query
        self.version: Final = metadata.version("gordon-to-regorus")
        self._warnings = _checked.get((source.sha256, query))
        if self._warnings is None:
            self._warnings = gate.check(source, query, timeout=check_timeout)
            _checked[source.sha256, query] = self._warnings

    @classmethod
    def load(
        cls, path: Path, *, query: str = DEFAULT_QUERY, check_timeout: float = CHECK_TIMEOUT
    ) -> RegoEngine:
        """Load a Rego file, or a folder laid out as an OPA bundle (``RegoSource.read``).

        ``check_timeout`` is in seconds. Raises ``PolicyError`` (``policy.invalid``) for a policy
        that can't be read, does not compile, could fail open, or brings the engine down; its
        message has ``file:line:column``. Raises ``ConfigError`` without ``agentguard[rego]``.
        """
        return cls(RegoSource.read(path), query, check_timeout=check_timeout)

    @classmethod
    def from_source(
        cls, source: str, *, query: str = DEFAULT_QUERY, check_timeout: float = CHECK_TIMEOUT
    ) -> RegoEngine:
        """Load one module from its text, named ``policy.rego`` in messages; raises as ``load``."""
        texts = {"policy.rego": source.encode(errors="surrogatepass")}
        return cls(RegoSource.from_texts(texts), query, check_timeout=check_timeout)

    @property
    def policy_sha256(self) -> str:
        """SHA-256 (hex) of the canonical ``{path: sha256}`` of modules and data."""
        return self._source.sha256

    @property
    def policy_files(self) -> Mapping[str, str]:
        """``{path: sha256 hex}``; paths are relative to the policy's folder."""
        return self._source.files

    @property
    def warnings(self) -> tuple[str, ...]:
        """What may be a mistake in the policy: a sentence each, with ``file:line:column``."""
        return self._warnings or ()

    def evaluate(self, document: bytes) -> object:
        """Return the package's document for this input, or ``UNDEFINED``.

        Raises ``PolicyError``: ``policy.error`` with ``file:line:column`` where the engine gives
        it, ``policy.panic`` when native code panicked. The engine's whole text, which may quote
        arguments, is the exception's cause.
        """
        engine: _Native | None = None
        try:
            engine = self._taken()
            engine.set_input_json(document.decode())
            value = _value(engine.eval_query_as_json(self._query))
        except BaseException as error:
            # An interrupted evaluation may leave anything in the engine: it is not given back. Nor
            # does it live on in the traceback, which another thread may be the last to hold.
            engine = None
            if isinstance(error, Exception):
                raise PolicyError(_failure(error)) from error
            if type(error).__name__ == "PanicException":  # the binding does not export the class
                message = "the policy engine panicked on this call's input; it was not decided"
                raise PolicyError(message, code="policy.panic") from error
            raise
        self._give_back(engine)
        return value

    def close(self) -> None:
        """Nothing is held open: threads keep their native engines."""

    def _taken(self) -> _Native:
        """Take this thread's native engine for the policy, or load one.

        Nobody else has it meanwhile: a signal handler that makes a call of its own between the
        input and the query would put its input in the place of this call's.
        """
        engine = _engines.by_policy.pop(self._source.sha256, None)
        if engine is None:
            engine = self._make()
            for path, text in self._source.modules:
                engine.add_policy(path, text)
            engine.add_data_json(self._data)
        return engine

    def _give_back(self, engine: _Native) -> None:
        kept = _engines.by_policy
        kept[self._source.sha256] = engine
        if len(kept) > MAX_ENGINES_PER_THREAD:
            kept.popitem(last=False)


def _binding() -> Any:
    try:
        return importlib.import_module("regorus").Engine
    except ModuleNotFoundError as error:
        raise ConfigError.without_extra(
            "rego", what="a Rego policy", brings="gordon-to-regorus"
        ) from error


def _value(answer: str) -> object:
    """Return the one value in the engine's answer; no rows mean undefined."""
    match orjson.loads(answer):
        case {"result": [{"expressions": [{"value": value}]}]}:
            return value
        case {"result": []}:
            return UNDEFINED
        case dict() as members if not members:
            return UNDEFINED
    raise ValueError("the engine's answer has a form that this version does not know")


def _failure(error: Exception) -> str:
    """Say where evaluation failed and, unless that could quote a value, why."""
    place, text = gate.locate(str(error))
    why = _QUOTES_NO_VALUE.match(text)
    failed = "the policy's evaluation failed" + (f": {why.group()}" if why else "")
    return f"{place}: {failed}" if place else failed
