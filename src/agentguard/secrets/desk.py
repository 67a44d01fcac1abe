"""The desk of a guard: releases secrets to running calls, and has requests of the calls proved.

A release has four steps: the right of the call, the look-up of the value, the durable entry in the
log, and the hand-over. The proof of a request takes the same steps, with a signature in the place
of the look-up. Any failure before the hand-over is a ``SecretError`` or a ``ProofError``, which
holds no value. No frame on the way has a variable with the value as text, because a traceback can
show variables.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Final

from agentguard.audit.entry import Record
from agentguard.audit.kinds.running import ProofEntry, ReceiptEntry, SecretEntry
from agentguard.audit.log import AuditLog
from agentguard.call.invocation import timestamp
from agentguard.call.releases import ProofRecord, Prover, Releases, ReleaseSubject, RequestProof
from agentguard.errors import AgentguardError, ProofError, SecretError
from agentguard.identity.revocation import require_unrevoked
from agentguard.secrets.rule import SecretRule
from agentguard.signing.canonical import sha256_hex
from agentguard.signing.keys import Secret

_LOGGER: Final = logging.getLogger("agentguard")

_REFUSALS: Final = (
    "delegation.revoked",
    "delegation.logged_out",
    "delegation.surrendered",
    "domain.frozen",
)

_Proving = Callable[[Prover, str], tuple[RequestProof, ProofRecord]]
"""Proves a request, with the prover and the digest of the call's invocation."""

_PATIENCE: Final = 60.0
"""Seconds after which the end of a call no longer waits for the entry of a release or a proof."""


class Desk:
    """Releases the configured secrets, and puts each release on record in ``log``."""

    def __init__(
        self,
        secrets: Mapping[str, SecretRule],
        log: AuditLog,
        clock: Callable[[], datetime],
    ) -> None:
        self._secrets = secrets
        self._log = log
        self._clock = clock

    def begin(self, subject: ReleaseSubject, around: Releases | None) -> RunningReleases:
        """Return the releases of a call that begins to run."""
        return RunningReleases(self, subject, around)

    def permit(self, name: str, subject: ReleaseSubject) -> SecretRule:
        """Return the rule of a secret that the call may have; raises ``SecretError``."""
        rule = self._secrets.get(name)
        if rule is None:
            message = f"there is no secret {name!r}: add [secrets.{name}] to the configuration"
            raise SecretError(message, code="secret.unknown")
        refusal = rule.refusal(subject.tool, subject.scope)
        if refusal is not None:
            raise _refused(refusal)
        try:
            require_unrevoked(self._log, subject.names)
        except AgentguardError as error:
            is_refused = error.code in _REFUSALS
            code = "secret.refused" if is_refused else "secret.failed"
            raise SecretError(f"the secret {name} is not released: {error}", code=code) from error
        return rule

    def prove(self, subject: ReleaseSubject, proving: _Proving) -> RequestProof:
        """Have a request of a running call proved, and put the proof on record.

        ``proving`` takes the prover and the digest of the call's invocation. Raises ``ProofError``.
        """
        if subject.prover is None:
            message = "only a call under a delegation proves its requests: use guard.delegate"
            raise ProofError(message)
        try:
            require_unrevoked(self._log, subject.names)
            made, record = proving(subject.prover, subject.invocation_sha256)
        except ProofError:
            raise
        except AgentguardError as error:
            is_refused = error.code.startswith("delegation.") or error.code == "domain.frozen"
            code = "proof.refused" if is_refused else "proof.failed"
            raise ProofError(f"the request is not proved: {error}", code=code) from error
        try:
            self._append(lambda at: ProofEntry.new(record, subject, at=at))
        except Exception as error:
            message = f"the request is not proved, because the log can't say so: {_problem(error)}"
            raise ProofError(message, code="proof.failed") from error
        return made

    def note_receipt(
        self, subject: ReleaseSubject, proof_sha256: str, receipt: str, key_id: str
    ) -> None:
        """Put the receipt of a request of a running call on record; raises ``ProofError``."""
        try:
            self._append(lambda at: ReceiptEntry.new(proof_sha256, receipt, key_id, subject, at=at))
        except Exception as error:
            message = f"the receipt of an answer can't be put on record: {_problem(error)}"
            raise ProofError(message, code="proof.failed") from error

    def record(self, name: str, subject: ReleaseSubject) -> None:
        """Make the entry of a release durable; raises ``SecretError`` (``secret.failed``)."""
        try:
            self._append(lambda at: SecretEntry.new(name, subject, at=at))
        except Exception as error:
            reason = f"because the log can't say so: {_problem(error)}"
            message = f"the secret {name} is not released, {reason}"
            raise SecretError(message, code="secret.failed") from error

    def _append(self, build: Callable[[str], Record]) -> None:
        self._log.append(build(timestamp(max(self._clock(), self._log.last_at))))


class RunningReleases:
    """The secrets and the proofs of one running call (``call.releases.Releases``)."""

    __slots__ = (
        "_around",
        "_desk",
        "_has_ended",
        "_held",
        "_may_warn",
        "_process",
        "_proofs",
        "_recording",
        "_subject",
    )

    def __init__(self, desk: Desk, subject: ReleaseSubject, around: Releases | None) -> None:
        self._desk = desk
        self._subject = subject
        self._around = around
        self._held: list[Secret] = []
        self._proofs: set[str] = set()
        self._recording: set[threading.Event] = set()
        self._has_ended = False
        self._process = os.getpid()
        self._may_warn: Callable[[], bool] = _always

    def release(self, name: str) -> str:
        """Return the value of a secret, once the release is durably on record."""
        try:
            value = self._value(name)
        except SecretError as error:
            self._warn(error)
            raise
        return value.reveal().decode()

    def _value(self, name: str) -> Secret:
        self._require_running(name)
        value = _fetch(self._desk.permit(name, self._subject))
        with self._on_record():
            self._require_running(name)
            self._desk.record(name, self._subject)
            self.hold(value)
            self._require_running(name)
        return value

    @contextmanager
    def _on_record(self) -> Iterator[None]:
        """Let the end of the call wait for the entry that the block makes.

        The block begins with a look whether the call still runs.
        """
        recorded = threading.Event()
        try:
            self._recording.add(recorded)
            yield
        finally:
            recorded.set()
            self._recording.discard(recorded)

    def prove(self, method: str, url: str, body_sha256: str) -> RequestProof:
        """Return the proof of a request that the running tool makes, durably on record before.

        Raises ``ProofError``.
        """
        return self._proved(
            lambda prover, invocation: prover.prove(
                method, url, body_sha256=body_sha256, invocation_sha256=invocation
            )
        )

    def prove_call(self, audience: str, method: str, params_sha256: str) -> RequestProof:
        """Return the proof of an MCP request of the running tool, durably on record before.

        Raises ``ProofError``.
        """
        return self._proved(
            lambda prover, invocation: prover.prove_call(
                audience, method, params_sha256=params_sha256, invocation_sha256=invocation
            )
        )

    def _proved(self, proving: _Proving) -> RequestProof:
        try:
            self._require_provable()
            with self._on_record():
                self._require_provable()
                proof = self._desk.prove(self._subject, proving)
                self._proofs.add(sha256_hex(proof.proof.encode()))
            self._require_provable()
        except ProofError as error:
            self._warn(error)
            raise
        return proof

    def limit_warnings(self, may_warn: Callable[[], bool]) -> None:
        """Log a refusal only where ``may_warn`` returns True."""
        self._may_warn = may_warn

    def _warn(self, error: SecretError | ProofError) -> None:
        if self._may_warn():
            _LOGGER.warning("%s (%s, tool %s)", error, error.code, self._subject.tool)

    def note_receipt(self, proof_sha256: str, receipt: str, key_id: str) -> None:
        """Put the receipt of a request that this call has proved on record, durably.

        Raises ``ProofError``: ``proof.refused`` for a request of another call.
        """
        with self._on_record():
            self._require_provable()
            if proof_sha256 not in self._proofs:
                raise ProofError("the receipt is for a request that this call has not proved")
            self._desk.note_receipt(self._subject, proof_sha256, receipt, key_id)

    def _require_provable(self) -> None:
        obstacle = self._obstacle()
        if obstacle is not None:
            raise ProofError(f"a proof is for a request of a running call, and {obstacle}")

    def _require_running(self, name: str) -> None:
        obstacle = self._obstacle()
        if obstacle is not None:
            raise _refused(f"the secret {name} is for a running call, and {obstacle}")

    def _obstacle(self) -> str | None:
        """Return why the call does not run any more in this process; None where the call runs."""
        if self._has_ended:
            return "this call has ended: ask before the tool returns"
        if self._process != os.getpid():
            return "a forked process runs no call of its parent: ask before the fork"
        return None

    @property
    def held(self) -> Sequence[Secret]:
        """The values that were released to the call, to calls inside, and to the calls around."""
        around = () if self._around is None else self._around.held
        return (*self._held, *around)

    def hold(self, value: Secret) -> None:
        """Note a value that was released to the call, or to a call inside.

        An ended call notes nothing: its result can't hold a value that is released only now.
        """
        if not self._has_ended and all(value.reveal() != one.reveal() for one in tuple(self._held)):
            self._held.append(value)
        if self._around is not None:
            self._around.hold(value)

    def end(self) -> bool:
        """End the call; return True while a release or a proof is being put on record."""
        self._has_ended = True
        return bool(self._recording)

    def settle(self) -> None:
        """Wait until no release and no proof is being put on record.

        A forked process does not wait.
        """
        if self._process == os.getpid():
            for recorded in tuple(self._recording):
                recorded.wait(_PATIENCE)

    def forget(self) -> None:
        """Drop the values: a thread or a task that outlives the call may keep this object."""
        self._held.clear()

    def __repr__(self) -> str:
        return f"<releases to the call {self._subject.invocation_id}>"


def _always() -> bool:
    return True


def _fetch(rule: SecretRule) -> Secret:
    try:
        return rule.source.fetch()
    except SecretError:
        raise
    except Exception as error:  # noqa: BLE001  the text of a foreign error may hold the value
        problem = type(error).__name__
    message = f"the secret {rule.name} can't be had from its source ({problem})"
    raise SecretError(message, code="secret.failed")


def _problem(error: Exception) -> str:
    """Return an error in words; the text of a foreign error may hold anything."""
    return str(error) if isinstance(error, AgentguardError) else type(error).__name__


def _refused(message: str) -> SecretError:
    return SecretError(message, code="secret.refused")
