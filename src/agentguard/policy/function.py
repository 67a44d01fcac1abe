"""A Python function as a policy engine, for tests and special cases.

The function takes the policy's input and returns a ``Decision``; the engine turns that into the
document that ``document.decide`` reads, so that one rule decides for every engine.

In the function's input, a name that no input has raises, instead of being None: a condition on
``call["delegation"].get("user")`` would never hold. ``in``, iteration and what ``json`` writes are
those of a ``dict``.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import orjson

from agentguard.call import redaction, vocabulary
from agentguard.call.decision import Decision
from agentguard.call.plain import discarded, is_coroutine_function
from agentguard.errors import ConfigError, PolicyError
from agentguard.signing import canonical
from agentguard.storage import files

_LOGGER = logging.getLogger("agentguard")

_CODES: Final = {"allow": "", "deny": "policy.denied", "approval": "approval.required"}
"""The reason codes of what ``Decision.allow``, ``deny`` and ``require_approval`` return."""


class FunctionEngine:
    """A policy written as a Python function (``engine.Engine``).

    ``decide`` gets the policy's input (policy-document.md, Input), a new copy for each call,
    and may be called from many threads at once. Raises ``ConfigError`` for a coroutine function.

    ``policy_files`` names the file that defines the function, and ``policy_sha256`` is its digest.
    The digest does not cover what the function imports, closes over or reads, and is None for a
    function without a file (of an interactive session, a builtin).
    """

    name: Final = "function"
    waits: Final = False
    warnings: Final[tuple[str, ...]] = ()

    def __init__(self, decide: Callable[[Mapping[str, Any]], Decision]) -> None:
        self._decide = decide
        self._function_name = _name(decide)
        if is_coroutine_function(decide):
            message = (
                f"{self._function_name} is a coroutine function; a policy's function must be plain"
            )
            raise ConfigError(message)
        self._files = MappingProxyType(_files(decide))
        self.policy_sha256: Final = canonical.digest(dict(self._files)) if self._files else None
        self.version: Final = metadata.version("agentguard")

    @property
    def policy_files(self) -> Mapping[str, str]:
        """``{path: sha256 hex}`` of the defining file, or empty."""
        return self._files

    def evaluate(self, document: bytes) -> object:
        """Call the function and return its decision as a policy's document.

        Raises ``PolicyError``: ``policy.error`` when the function raises an ``Exception`` or
        returns anything but a ``Decision``, ``policy.malformed`` for a ``Decision`` with an outcome
        or a reason code that no policy gives, or an allow with reasons or requirements. The
        function's exception is logged by the logger ``agentguard`` and is the error's cause; the
        message, which reaches the model and the record, leaves it out.
        """
        try:
            members = orjson.loads(document)
        except orjson.JSONDecodeError as error:
            raise PolicyError("the policy's input is not JSON") from error
        try:
            decision: object = self._decide(StrictMembers(members))
        except Exception as error:
            _LOGGER.exception(
                "the policy's function %s failed: the call is denied", self._function_name
            )
            message = f"the policy's function {self._function_name} raised {type(error).__name__}"
            if isinstance(error, UnknownNameError):
                message = (
                    f"the policy's function {self._function_name} reads a name that no input has; "
                    "the program's log names it"
                )
            raise PolicyError(message) from error
        if not isinstance(decision, Decision):
            result = discarded(decision)
            message = (
                f"the policy's function {self._function_name} returned a {result}: return "
                "Decision.allow() or Decision.deny(...)"
            )
            raise PolicyError(message)
        self._refuse_foreign_outcomes(decision)
        if not decision.redactions:
            return _document(decision)
        obligations = [{"redact": redaction.dumps(path)} for path in decision.redactions]
        return {**_document(decision), "obligations": obligations}

    def close(self) -> None:
        """Do nothing: the engine holds nothing open."""

    def _refuse_foreign_outcomes(self, decision: Decision) -> None:
        """Refuse a decision that no constructor of ``Decision`` for policies returns."""
        if decision.code != _CODES.get(decision.outcome):
            result = "an outcome or a reason code of its own"
            advice = "Decision.allow, deny or require_approval, and say why in the reasons"
        elif decision.allowed and (decision.reasons or decision.requirements):
            # Dropped silently, the condition that the author meant would not apply.
            result = "an allow with reasons or requirements"
            advice = "Decision.allow() for no condition at all, Decision.require_approval for one"
        else:
            return
        message = f"the policy's function {self._function_name} returned {result}: use {advice}"
        raise PolicyError(message, code="policy.malformed")


def _document(decision: Decision) -> dict[str, Any]:
    match decision.outcome:
        case "allow":
            return {"allow": True}
        case "deny":
            return {"allow": False, "deny_reasons": list(decision.reasons)}
        case "approval":
            return {
                "allow": False,
                "approval": [needed.as_json() for needed in decision.requirements],
            }


def _name(decide: Callable[..., Any]) -> str:
    named: Any = decide.func if isinstance(decide, partial) else decide
    return f"{named.__module__}:{getattr(named, '__qualname__', type(named).__qualname__)}"


def _files(decide: Callable[..., Any]) -> dict[str, str]:
    """Digest the file that defines ``decide``, under its module's path."""
    defining: Any = inspect.unwrap(decide.func if isinstance(decide, partial) else decide)
    if not (inspect.isfunction(defining) or inspect.ismethod(defining)):
        defining = type(defining)
    try:
        path = inspect.getsourcefile(defining)
        content = files.read(Path(path)) if path else b""
    except (TypeError, OSError):  # a builtin; a session's input, which is no file
        return {}
    module = str(defining.__module__).replace(".", "/")
    return {f"{module}.py": canonical.sha256_hex(content)} if content else {}


class UnknownNameError(LookupError):
    """A policy's function has read a name that no input has; the message says which."""


class StrictMembers(dict[str, Any]):
    """An object of the policy's input at ``path``, whose names are fixed (``vocabulary.py``).

    ``[]``, ``get``, ``pop`` and ``setdefault`` raise ``UnknownNameError`` for a name that no input
    has there; at the top, for a name that is very close to a member's. A copy of the object, and
    what ``|`` returns, raise in the same way. A name of the vocabulary that this input lacks is
    missing, as in a ``dict``.
    """

    __slots__ = ("_path",)

    def __init__(self, members: dict[str, Any], path: vocabulary.Path = ()) -> None:
        super().__init__({name: _strict(value, (*path, name)) for name, value in members.items()})
        self._path = path

    def __missing__(self, name: object) -> Any:
        self._require_known(name)
        raise KeyError(name)

    def get(self, name: Any, default: Any = None, /) -> Any:
        """Return the member, or ``default`` where this input lacks a member of this name."""
        self._require_known(name)
        return super().get(name, default)

    def pop(self, name: Any, *default: Any) -> Any:
        """Remove the member, and return the value."""
        self._require_known(name)
        return super().pop(name, *default)

    def setdefault(self, name: Any, default: Any = None, /) -> Any:
        """Return the member, which is set to ``default`` where this input lacks it."""
        self._require_known(name)
        return super().setdefault(name, default)

    def copy(self) -> StrictMembers:
        """Return a copy that is as strict."""
        return StrictMembers(self, self._path)

    __copy__ = copy

    def __or__(self, other: Any, /) -> Any:
        """Return the members of both, as strict as this object."""
        merged = super().__or__(other)
        return merged if merged is NotImplemented else StrictMembers(merged, self._path)

    def __ror__(self, other: Any, /) -> Any:
        """Return the members of both, as strict as this object."""
        merged = super().__ror__(other)
        return merged if merged is NotImplemented else StrictMembers(merged, self._path)

    def _require_known(self, name: object) -> None:
        if name not in self:
            path = (*self._path, str(name))
            problem = vocabulary.slip(path)
            if problem is None and not self._path:
                problem = vocabulary.misspelt(str(name))
            if problem is not None:
                raise UnknownNameError(problem)


def _strict(value: Any, path: vocabulary.Path) -> Any:
    if isinstance(value, dict) and vocabulary.members_of(path):
        return StrictMembers(value, path)
    return value
