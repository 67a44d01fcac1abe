"""A call that a policy server does not decide: what operators are told, and what a model reads.

What each failure of the server is called is tested in test_engine_opa_answers.py.
"""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from opa_calls import AUTHZ

from agentguard import Decision, Denied, Guard, adapters
from agentguard.call.reason_codes import responsibility_for
from agentguard.domain import config, domain
from agentguard.policy.opa import OpaEngine
from agentguard.policy.opa_server import Server

PASSPHRASE = b"a passphrase"
OF_THE_SERVER = [
    "engine.disconnected",
    "engine.failed",
    "engine.malformed",
    "engine.timeout",
    "engine.tls",
    "engine.too_large",
    "engine.unreachable",
    "engine.of_another_engine",
]
PASSING = ["engine.disconnected", "engine.timeout", "engine.unreachable"]
LASTING = ["engine.tls", "engine.unauthorized", "engine.malformed", "policy.denied"]


def test_the_warning_of_a_server_that_is_down_names_the_setting_and_the_address(
    opa, tmp_path, caplog
):
    server = opa(AUTHZ)
    toml = tmp_path / "agentguard.toml"
    toml.write_text(
        'trust_domain = "acme.example"\nstate = "state"\nanchor = ""\n\n'
        f'[policy]\nengine = "opa"\nurl = "{server.url}"\n\n'
        '[agents.code-agent]\nauthority = "own"\n'
    )
    domain.found(config.load(toml), PASSPHRASE, now=datetime.now(UTC))
    with Guard.open(toml, passphrase=PASSPHRASE) as guard:

        @guard.tool
        def trigger_ci(branch: str) -> str:
            return branch

        agent = guard.new_agent("code-agent")
        server.stop()
        caplog.clear()
        with pytest.raises(Denied) as down:
            agent.call(trigger_ci, branch="main")
        (said,) = [one.getMessage() for one in caplog.records if one.name == "agentguard"]
        assert said == (
            "trigger_ci was not run: the OPA server can't be reached [engine.unreachable]. For the "
            f"operator: start the policy server, or correct [policy] url ({server.url} was asked)"
        )
        told = adapters.denial_text("trigger_ci", down.value.decision)
        assert "try again" in told
        assert server.url not in told

        server.start()
        caplog.clear()
        with pytest.raises(Denied) as refused:
            agent.call(trigger_ci, branch="main")
        assert refused.value.code == "policy.denied"
        assert server.url not in caplog.text.partition("no rule of the policy")[0]
        assert "Do not retry" in adapters.denial_text("trigger_ci", refused.value.decision)


@pytest.mark.parametrize("code", OF_THE_SERVER)
def test_advice_names_settings_that_exist(code):
    remedy = responsibility_for(code).remedy
    settings = {"[policy] url", "[policy] timeout", "[policy] ca", "[policy] query"}
    assert any(setting in remedy for setting in settings)
    assert "[policy] server" not in remedy


def test_advice_fits_tls_and_a_long_answer():
    engine = OpaEngine(Server("https://127.0.0.1:1"))
    asked = "https://127.0.0.1:1 was asked for data.agent.authz: "
    for code, setting in (("engine.tls", "[policy] ca"), ("engine.too_large", "[policy] query")):
        advice = engine.explain(b"{}", code)
        assert advice == asked + responsibility_for(code).remedy
        assert setting in advice


@pytest.mark.parametrize("code", PASSING)
def test_a_model_is_told_to_try_later_while_a_server_is_down_or_slow(code):
    decision = Decision.refusal("no answer from opa.example", code=code)
    assert decision.may_pass_later
    assert not decision.is_final
    for shows_code in (True, False):
        told = adapters.denial_text("pay", decision, shows_code=shows_code)
        assert told.startswith("Not now: pay was not run. Reason: the application is not able to")
        assert told.endswith("The same call may work later: try again after a while.")
        assert "opa.example" not in told


@pytest.mark.parametrize("code", LASTING)
def test_a_model_is_told_not_to_repeat_a_call_that_somebody_must_mend_or_a_policy_denied(code):
    decision = Decision.refusal("no", code=code)
    assert not decision.may_pass_later
    assert "Do not retry" in adapters.denial_text("pay", decision)
