"""The embedded Rego engine: regorus, evaluated in this process.

In this process only this module calls the native engine, and turns each result into a value or a
``PolicyError``. The gate evaluates a new policy in a child process first (``dry_run.py``).
``source.py`` reads the files of a policy, and ``gate.py`` checks them. The binding
(``agentguard[rego]``) is imported when a policy is loaded.
"""

from __future__ import annotations

import importlib
import json
import re
import threading
import traceback
from collections import OrderedDict
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Protocol

import orjson

from agentguard.call.decision import Requirement
from agentguard.errors import ConfigError, PolicyError
from agentguard.policy.document import DEFAULT_QUERY, QUERY, UNDEFINED
from agentguard.policy.rego import gate
from agentguard.policy.rego.source import RegoSource, invalid
from agentguard.policy.rego.syntax_tree import Names

CHECK_TIMEOUT: Final = 20.0
"""How long the check of a new policy may take, in seconds; a check usually takes 0.1 s."""

MAX_ENGINES_PER_THREAD: Final = 8
"""How many native engines a thread keeps, one per policy; the least recently used is dropped."""

# A message of the engine may quote an argument or a fact, and an error's message reaches the model
# and the log. A message that begins with one of these texts quotes only the policy.
_VALUE_FREE_ERRORS: Final = re.compile(
    r"divide by zero"
    r"|could not find function [\w.]+"
    r"|rule conflicts with rule at .+:\d+:\d+"
    r"|(?:rules|functions) must not produce multiple outputs"
    r"|`[\w.]+` (?:expects|requires) [^.`\"]+"
    r"|invalid (?:regex|glob|semver)"
    r"|could not (?:parse string as number|deserialize (?:json|yaml))"
)


class _Native(Protocol):
    """The methods of ``regorus.Engine`` in use; an instance works only in its own thread."""

    def add_policy(self, path: str, rego: str) -> str: ...
    def add_data_json(self, data: str) -> None: ...
    def set_input_json(self, input: str) -> None: ...  # noqa: A002  the binding's own name
    def eval_query_as_json(self, query: str) -> str: ...


class _Engines(threading.local):
    """A thread's native engines by policy digest.

    No ``RegoEngine`` holds a native engine: another thread may drop the last reference to the
    ``RegoEngine``, and the binding then panics and leaks the memory.
    """

    def __init__(self) -> None:
        self.by_policy: OrderedDict[str, _Native] = OrderedDict()


_engines: Final = _Engines()
# What the gate has found in the policies that have passed, by policy digest and query.
_findings_by_policy: Final[dict[tuple[str, str], gate.Findings]] = {}


class RegoEngine:
    """A loaded Rego policy (``engine.Engine``); safe to use from many threads."""

    name: Final = "rego"
    waits: Final = False

    def __init__(self, source: RegoSource, query: str, *, check_timeout: float) -> None:
        if not QUERY.fullmatch(query):
            raise invalid(
                f"the query {query!r} is not the path of a package; write one such as "
                f"{DEFAULT_QUERY}"
            )
        self._native_engine = _binding()
        self._source = source
        self._data = json.dumps(source.data)
        self._query = query
        self.version: Final = metadata.version("gordon-to-regorus")
        findings = _findings_by_policy.get((source.sha256, query))
        if findings is None:
            findings = gate.check(source, query, timeout=check_timeout)
            _findings_by_policy[source.sha256, query] = findings
        self._findings = findings

    @classmethod
    def load(
        cls, path: Path, *, query: str = DEFAULT_QUERY, check_timeout: float = CHECK_TIMEOUT
    ) -> RegoEngine:
        """Load a Rego file, or a folder laid out as an OPA bundle (``RegoSource.read``).

        ``check_timeout`` is in seconds. Raises ``PolicyError`` (``policy.invalid``) for a policy
        that can't be read, does not compile, could fail open, or crashes the engine; the error's
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
        """The gate's warnings about the policy: sentences with ``file:line:column``."""
        return self._findings.warnings

    @property
    def requirements(self) -> tuple[Requirement, ...]:
        """The requirements for an approval that the rule ``approval`` writes out."""
        return self._findings.requirements

    @property
    def reads(self) -> Mapping[Names, str]:
        """The paths below ``input`` that the policy reads, each with its first place."""
        return self._findings.reads

    def evaluate(self, document: bytes) -> object:
        """Return the package's document for this input, or ``UNDEFINED``.

        Raises ``PolicyError``: ``policy.error``, with ``file:line:column`` where the engine names a
        place, and ``policy.panic`` when the native code panicked. The engine's full message, which
        may quote arguments, is the exception's cause.
        """
        engine: _Native | None = None
        try:
            engine = self._take_engine()
            engine.set_input_json(document.decode())
            value = _value(engine.eval_query_as_json(self._query))
            self._return_engine(engine)
        except BaseException as error:
            # An interrupted evaluation may leave the engine in any state: this thread drops the
            # engine. No frame of the traceback must hold the engine either, because another thread
            # may drop the last reference to the traceback.
            engine = None
            traceback.clear_frames(error.__traceback__)
            if isinstance(error, Exception):
                raise PolicyError(_failure(error)) from error
            if type(error).__name__ == "PanicException":  # the binding does not export the class
                message = (
                    "the policy engine panicked on the input of this call, and there is no "
                    "decision; report the policy and the input as a bug"
                )
                raise PolicyError(message, code="policy.panic") from error
            raise
        return value

    def close(self) -> None:
        """Do nothing: each thread keeps its native engines."""

    def _take_engine(self) -> _Native:
        """Take this thread's native engine for the policy out of the cache, or load one.

        While this call runs, no other call can use the engine. Otherwise a signal handler that
        makes a call between the input and the query would replace this call's input.
        """
        engine = _engines.by_policy.pop(self._source.sha256, None)
        if engine is None:
            engine = self._native_engine()
            for path, text in self._source.modules:
                engine.add_policy(path, text)
            engine.add_data_json(self._data)
        return engine

    def _return_engine(self, engine: _Native) -> None:
        engines = _engines.by_policy
        engines[self._source.sha256] = engine
        if len(engines) > MAX_ENGINES_PER_THREAD:
            engines.popitem(last=False)


def _binding() -> Any:
    try:
        return importlib.import_module("regorus").Engine
    except ModuleNotFoundError as error:
        raise ConfigError.without_extra(
            "rego", what="a Rego policy", brings="gordon-to-regorus"
        ) from error


def _value(answer: str) -> object:
    """Return the value in the engine's answer; an answer without rows is ``UNDEFINED``."""
    match orjson.loads(answer):
        case {"result": [{"expressions": [{"value": value}]}]}:
            return value
        case {"result": []}:
            return UNDEFINED
        case dict() as members if not members:
            return UNDEFINED
    raise ValueError(
        "the engine's answer has a form that this version of agentguard does not know; install the "
        "version of the engine that agentguard[rego] requires"
    )


def _failure(error: Exception) -> str:
    """Describe where the evaluation failed, and why, if the reason can't quote a value."""
    place, text = gate.locate(str(error))
    why = _VALUE_FREE_ERRORS.match(text)
    failed = "the policy's evaluation failed" + (f": {why.group()}" if why else "")
    return f"{place}: {failed}" if place else failed
