"""The exceptions of agentguard.

Every error has a stable reason code, ``noun.problem``, and a message written for the person
who will read it. The two exceptions that *steer* a guarded call, ``Denied`` and
``ApprovalPending``, are errors too, and stand beside the values that they carry
(``call/decision.py``, ``approvals/request.py``).

    AgentguardError
    ├── DecodeError          bytes that arrived are not what their format says
    ├── EncodeError          a value has no canonical form
    │   └── ArgumentsError   a call's arguments can't be bound or encoded
    ├── VerificationError    well formed, but a signature, proof or credential does not hold
    ├── KeyMaterialError     a key can't be read, written or used
    ├── PolicyError          a policy can't be loaded or evaluated
    ├── DelegationError      what is to be delegated is more than there is, or malformed
    ├── ApprovalError        an approval can't be asked for or given so
    ├── FactsError           a look-up of facts failed or collides with the policy's input
    ├── StorageError         the log can't be opened, read or written
    ├── CallError            a call is not in the log, or not in the state that was expected
    ├── ConfigError          a mistake in agentguard.toml or in what was passed to the API
    ├── UnguardedCallError   a guarded tool was called past any agent
    ├── Denied               the call was refused
    └── ApprovalPending      the call waits for a person
"""

from __future__ import annotations

from typing import ClassVar


class AgentguardError(Exception):
    """Base of every exception that agentguard raises on purpose.

    ``code`` is the reason code (``noun.problem``); ``str(error)`` is the message.
    """

    default_code: ClassVar[str] = "agentguard.error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code or self.default_code


class DecodeError(AgentguardError):
    """Bytes that arrived are not what their format says."""

    default_code = "decode.malformed"


class EncodeError(AgentguardError):
    """A value has no canonical form."""

    default_code = "encode.unencodable"


class ArgumentsError(EncodeError):
    """A call's arguments can't be bound to the tool, or have no encoding."""

    default_code = "arguments.unencodable"


class VerificationError(AgentguardError):
    """Something well formed does not verify: a signature, a proof, a credential."""

    default_code = "signature.invalid"


class KeyMaterialError(AgentguardError):
    """A key can't be read, written or used."""

    default_code = "key.unusable"


class PolicyError(AgentguardError):
    """A policy can't be loaded, or its evaluation failed."""

    default_code = "policy.error"


class DelegationError(AgentguardError):
    """What is to be delegated is malformed, or more than whoever delegates it has."""

    default_code = "delegation.refused"


class ApprovalError(AgentguardError):
    """An approval can't be asked for, or given, in this way."""

    default_code = "approval.refused"


class FactsError(AgentguardError):
    """A look-up of facts failed, or its result collides with the policy's input."""

    default_code = "facts.failed"


class StorageError(AgentguardError):
    """The audit log can't be opened, read or written."""

    default_code = "storage.failed"


class CallError(AgentguardError):
    """A call that is asked for is not in the log, or not in the state that was expected."""

    default_code = "call.unknown"


class ConfigError(AgentguardError):
    """A mistake in the configuration or in what was passed to the API."""

    default_code = "config.invalid"

    @classmethod
    def without_extra(cls, name: str, *, what: str, brings: str) -> ConfigError:
        """Say that ``what`` needs an extra that is not installed (``config.extra_missing``)."""
        message = (
            f"{what} needs the extra '{name}', which brings {brings}: install agentguard with it, "
            f"from your clone: pip install '.[{name}]'"
        )
        return cls(message, code="config.extra_missing")


class UnguardedCallError(AgentguardError):
    """A guarded tool was called directly, past any agent; it did not run."""

    default_code = "tool.unguarded"
