"""Hostile hops, credentials and access tokens, made by generators: none is accepted.

A forger may hold any key but the key that the attack lacks. Where a rule of the format is attacked,
the forger holds that key as well, so that only the attack explains the refusal. Every forged chain
is offered by itself and inside an access token that the issuer has signed. Each family of cases
begins with its valid twin, and each case names the codes with which it may be refused. The
generators are in tests/support, in the modules ``forged_token_*``.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import forged_token_chains
import forged_token_claims
import forged_token_encodings
import forged_token_headers
import forged_token_signatures
import pytest
from forged_token_encodings import nested
from token_forgery import CREDENTIALS, FAMILIES, HOPS, dumps, encoded, forgery

from agentguard import AgentguardError
from agentguard.delegation import access_token
from agentguard.identity import credential
from agentguard.signing import canonical

BOUND = 2.0
"""Seconds that no refusal may take."""

MINIMUM = 8000
"""Cases that there are at least: a generator that has fallen silent is noticed."""

MODULES = (
    forged_token_headers,
    forged_token_encodings,
    forged_token_signatures,
    forged_token_claims,
    forged_token_chains,
)
"""Their generators register themselves in ``FAMILIES`` at import."""

SEEN: Counter[str] = Counter()
FULL = os.environ.get("AGENTGUARD_ROUNDS") == "full"


@pytest.mark.parametrize("name", FAMILIES)
def test_none_is_accepted_and_each_is_refused_for_what_it_is(world, name):
    wrong: list[str] = []
    twins = 0
    for number, case in enumerate(FAMILIES[name](world)):
        SEEN[name] += bool(case.codes)
        if case.codes and number % 3 and not FULL:  # the twins are always offered
            continue
        offer = case.ready()
        begun = time.thread_time()
        try:
            offer()
            found = None
        except AgentguardError as error:
            found = error.code
        except BaseException as error:  # noqa: BLE001  any other is a finding
            found = repr(error)[:200]
        took = time.thread_time() - begun
        if took > BOUND:
            wrong.append(f"{case.name}: it took {took:.1f} s")
        if not case.codes:
            twins += 1
            if found is not None:
                wrong.append(f"the valid twin {case.name!r} is refused with {found}")
        elif found not in case.codes:
            wrong.append(f"{case.name}: {found or 'ACCEPTED'}, not {' or '.join(case.codes)}")
    assert twins, "a family without a valid twin shows nothing"
    assert SEEN[name], "a generator without a case shows nothing"
    assert wrong == []


def test_there_are_as_many_as_were_meant(world):
    """Those that were just made; where this test runs by itself, they are made anew."""
    counts = SEEN if SEEN.keys() == FAMILIES.keys() else counted(world)
    assert sum(counts.values()) >= MINIMUM, counts
    assert min(counts.values()) >= 3, counts


def counted(world: Any) -> Mapping[str, int]:
    return {name: sum(bool(case.codes) for case in made(world)) for name, made in FAMILIES.items()}


def test_near_the_end_of_the_stack_it_is_still_a_refusal(world):
    """A verifier that is called from deep inside an application."""
    forged = forgery(world)
    forged.part("token").raw = lambda part: encoded(
        part, dumps(part.header), nested(dumps(part.claims), 64)
    )
    hostile, good = forged.token(), forgery(world).token()

    def deeper(pair: tuple[str, bytes], levels: int) -> str | None:
        if levels:
            return deeper(pair, levels - 1)
        try:
            access_token.verify(*pair, world.trust, at=world.now)
        except AgentguardError as error:
            return error.code
        return None

    for levels in range(0, 700, 100):
        assert deeper(hostile, levels) == "json.depth"
        assert deeper(good, levels) is None


def test_the_credentials_module_agrees(world):
    """A credential that a chain takes is one by itself, and none of another type is."""
    forged = forgery(world)
    for place in CREDENTIALS:
        credential.verify(forged.part(place).sign(), world.trust, at=world.now)
    for place in (*HOPS, "token"):
        with pytest.raises(AgentguardError):
            credential.verify(forged.part(place).sign(), world.trust, at=world.now)
    assert canonical.dumps(forged.chain())
