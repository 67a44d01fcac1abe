"""``CallOptions``: what an adapter says of a call beside what is called with which arguments.

The call itself is an ``Invocation`` (``invocation.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from agentguard.call.journal import ResultCodec

Exceptions = tuple[type[BaseException], ...]

_NONE: Final[Mapping[str, str]] = MappingProxyType({})


class CallOptions(NamedTuple):
    """How a call ends in its framework, and how the framework makes the call again.

    An exception of the function is an error, except for three kinds, which leave the outcome
    unknown: ``outcome_unknown`` (the work goes on unseen), ``suspends`` (the framework pauses) and
    ``hands_on`` (the framework goes on elsewhere).

    With a ``codec``, the journal keeps the result of a call at a stable site. A framework that
    resumes a run and makes the call again gets that result; the function does not run again, unless
    the call was suspended. A ``reentrant`` call, the work of a sub-agent, also runs again where it
    was cut short, and while a call within it waits for people.

    With ``asks_people`` False, ``evaluate`` asks nobody for an approval and looks at no answers:
    the decision is then the policy's ``approval``, and no request is left. ``run`` ignores this.

    With ``conceals``, the secrets that the call got are taken out of what the function returns or
    raises, before the result is recorded and handed over (``concealing.py``): for a result that a
    model sees. ``[agents.NAME] conceals_secrets = false`` turns it off.

    ``remedies`` say, by reason code, what a developer who uses the framework does about a refusal.
    The log has them in the place of the general remedies (docs/reference/reason-codes.md).
    """

    codec: ResultCodec | None = None
    reentrant: bool = False
    outcome_unknown: Exceptions = ()
    suspends: Exceptions = ()
    hands_on: Exceptions = ()
    remedies: Mapping[str, str] = _NONE
    asks_people: bool = True
    conceals: bool = False
