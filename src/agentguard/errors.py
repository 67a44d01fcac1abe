"""The exceptions of agentguard.

Every error has a stable reason code, ``noun.problem``, and a message for the person who reads it.
``Denied`` and ``ApprovalPending`` steer a guarded call; they live beside the values that they carry
(``call/decision.py``, ``approvals/request.py``).

    AgentguardError
    ├── DecodeError          bytes from outside do not have the form that they must have
    ├── EncodeError          a value has no canonical form
    │   └── ArgumentsError   a call's arguments can't be bound or encoded
    ├── VerificationError    a well-formed signature, proof or credential is not valid
    ├── KeyMaterialError     a key can't be read, written or used
    ├── PolicyError          a policy can't be loaded or evaluated
    ├── DelegationError      a delegation is malformed, or asks for more than the delegator has
    ├── ApprovalError        a request or an answer for an approval is not acceptable
    ├── FactsError           a look-up of facts failed, or a fact has a name that is reserved
    ├── StorageError         the log can't be opened, read or written
    ├── CallError            a call is not in the log, or not in the expected condition
    ├── ConfigError          agentguard.toml or an argument of the API has a mistake
    ├── ServerError          the guard server can't be reached, or refuses a client
    ├── UnguardedCallError   a guarded tool was called without an agent
    ├── SecretError          a secret is not released to the running call
    ├── ProofError           a request does not prove who calls, or a call gets no proof
    ├── Denied               the call was denied
    └── ApprovalPending      the call waits for a person
"""

from __future__ import annotations

from typing import ClassVar


class AgentguardError(Exception):
    """Base of every exception that agentguard raises on purpose.

    ``code`` is the reason code (``noun.problem``); ``str(error)`` is the message. ``delegation`` is
    the delegation that the error refuses, None for none: a ``Delegation``, what its ``dumps``
    wrote, or the principal's name. The denial of a call under the delegation names the principal.
    """

    default_code: ClassVar[str] = "agentguard.error"
    delegation: object = None

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code or self.default_code


class DecodeError(AgentguardError):
    """Bytes from outside do not have the form that they must have."""

    default_code = "decode.malformed"


class EncodeError(AgentguardError):
    """A value has no canonical form."""

    default_code = "encode.unencodable"


class ArgumentsError(EncodeError):
    """A call's arguments can't be bound to the tool, or have no encoding."""

    default_code = "arguments.unencodable"


class VerificationError(AgentguardError):
    """A well-formed signature, proof or credential is not valid."""

    default_code = "signature.invalid"


class KeyMaterialError(AgentguardError):
    """A key can't be read, written or used."""

    default_code = "key.unusable"


class PolicyError(AgentguardError):
    """A policy can't be loaded, or its evaluation failed."""

    default_code = "policy.error"


class DelegationError(AgentguardError):
    """A delegation is malformed, or asks for more than the delegator has."""

    default_code = "delegation.refused"

    def __init__(self, message: str, *, code: str | None = None, delegation: object = None) -> None:
        super().__init__(message, code=code)
        self.delegation = delegation


class ApprovalError(AgentguardError):
    """A request or an answer for an approval is not acceptable."""

    default_code = "approval.refused"


class FactsError(AgentguardError):
    """A look-up of facts failed, or a fact has a name that is reserved in the policy's input."""

    default_code = "facts.failed"


class StorageError(AgentguardError):
    """The audit log can't be opened, read or written."""

    default_code = "storage.failed"


class CallError(AgentguardError):
    """A call is not in the log, or not in the condition that the operation needs."""

    default_code = "call.unknown"


class ConfigError(AgentguardError):
    """The configuration or an argument of the API has a mistake."""

    default_code = "config.invalid"

    @classmethod
    def without_extra(cls, name: str, *, what: str, brings: str) -> ConfigError:
        """Return the error that ``what`` needs an extra (``config.extra_missing``).

        ``name`` is the extra, ``brings`` the packages in it.
        """
        message = (
            f"{what} needs the extra '{name}', which brings {brings}: install agentguard with it, "
            f"from your clone: pip install '.[{name}]'"
        )
        return cls(message, code="config.extra_missing")


class ServerError(AgentguardError):
    """The guard server can't be reached, or refuses a client."""

    default_code = "server.failed"


class UnguardedCallError(AgentguardError):
    """A guarded tool was called directly, without an agent, and did not run."""

    default_code = "tool.unguarded"


class SecretError(AgentguardError):
    """A secret is not released to the running call. The message never holds the secret's value.

    ``code`` is ``secret.unknown``, ``secret.refused`` or ``secret.failed``.
    """

    default_code = "secret.refused"


class ProofError(AgentguardError):
    """A request does not prove who calls with which authority, or a running call gets no proof."""

    default_code = "proof.refused"
