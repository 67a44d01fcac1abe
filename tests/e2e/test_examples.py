"""The examples that need no framework, run as a reader runs them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import docs_pages
import httpcore
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def output_of(programs):
    """Run an example in an empty folder, with warnings as errors; return its lines.

    It sees no policy server but one that is given as ``AGENTGUARD_OPA_URL``.
    """

    def output_of(example, folder, **variables):
        usual = {name: text for name, text in os.environ.items() if name != "AGENTGUARD_OPA_URL"}
        environment = {**usual, "HOME": str(folder), **variables}
        words = ("-W", "error", EXAMPLES / example)
        ran = programs.run(*words, cwd=folder, env=environment)
        assert ran.returncode == 0, ran.stderr
        assert list(folder.iterdir()) == []
        return ran.stdout.splitlines()

    return output_of


def test_plain_function(output_of, tmp_path):
    assert output_of("plain_function.py", tmp_path) == [
        "allowed: 42000 cents to rent",
        "denied:  more than 50000 cents at once [policy.denied]",
        "refused: transfer is guarded: run it with agent.call(transfer, ...)",
    ]


def test_idempotency(output_of, tmp_path):
    assert output_of("idempotency.py", tmp_path) == [
        "paid 4200 cents",
        "paid 4200 cents",
        "payments: 2, each under the id of its call in the log",
        "outside of a call there is no key",
    ]


def test_deploy_secret(output_of, tmp_path):
    assert output_of("deploy_secret.py", tmp_path) == [
        "deploy: 1.2 is live, by ghp_0815",
        "summarize: secret.refused",
        "deploy: secret.refused",
        "on record: DEPLOY_TOKEN for deploy",
        "the log has the value: False",
        "the log verifies: True",
    ]


@pytest.mark.slow("it starts several interpreters one after another")
def test_delegation(output_of, tmp_path):
    assert output_of("delegation.py", tmp_path) == [
        "user:alice lends pr:write repo:read through service:forge for issue-17",
        "coder: read_issue: discounts are wrong",
        "coder: open_pr: opened",
        (
            "coder: read_secret: DENIED: agent coder, acting for user:alice, lacks the scope "
            "secret:read [scope.exceeded]"
        ),
        "tester: read_issue: discounts are wrong",
        (
            "tester: open_pr: DENIED: agent tester, acting for user:alice, lacks the scope "
            "pr:write [scope.exceeded]"
        ),
        "resumed: coder: read_issue: discounts are wrong",
        (
            "revoked: coder: read_issue: DENIED: her delegation was revoked: every call that "
            "relies on her delegation is denied [delegation.revoked]"
        ),
        "the log verifies: True",
    ]


def test_custom_policy(output_of, tmp_path):
    lines = output_of("custom_policy/main.py", tmp_path)
    allowed = [line for line in lines if "denied" not in line]
    denied = [line.partition(": denied, ")[::2] for line in lines if "denied" in line]
    assert allowed == [
        "support-bot, 4900 cents of A-1: 4900 cents of A-1 refunded",
        "billing-bot, 9900 cents of A-1: 9900 cents of A-1 refunded",
    ]
    assert denied == [
        (
            "support-bot, 9900 cents of A-1",
            "support-bot may refund up to 5000 cents [policy.denied]",
        ),
        ("billing-bot, 9900 cents of A-2", "the order was never paid [policy.denied]"),
        (
            "billing-bot, 9900 cents of A-3",
            "the look-up of facts failed (KeyError) [facts.failed]",
        ),
        ("intern-bot, 1 cents of A-1", "no rule of the policy allows this call [policy.denied]"),
    ]


WORKS = [
    "  read_file README.md: the text of README.md",
    "  merge fix into next: fix is in next",
    "  merge fix into main: denied, a person merges into main",
    "  act for alice: user:alice",
    "  act for mallory: refused, principal.refused",
    "  be the agent releaser: refused, agent.refused",
]


def read_by_the_servers_user(isolation: str) -> list[str]:
    return [
        "The server's user reads the log:",
        f"  read_file: allow, isolation {isolation}",
        f"  merge: allow, isolation {isolation}",
        f"  merge: deny, isolation {isolation}",
        "  the log verifies: True",
    ]


@pytest.mark.slow("it starts several interpreters one after another")
def test_server_with_one_user(tmp_path):
    ran = run_server_example(tmp_path, [sys.executable], "--one-user")
    assert ran == [
        f"Both run as user {os.getuid()}, for you asked for one user.",
        *WORKS,
        "  list the keys and the log: done, some files",
        "  change the policy: done",
        # root reads every memory
        f"  read the server's memory: {'Permission denied' if os.getuid() else 'done'}",
        *read_by_the_servers_user("same-user"),
    ]


@pytest.mark.slow("it starts several interpreters one after another")
def test_server_with_two_users(tmp_path):
    page = (EXAMPLES / "server" / "README.md").read_text("utf-8")
    shown = page.partition("```text\n")[2].partition("```")[0].splitlines()
    assert run_server_example(tmp_path, interpreter_for_all()) == shown
    assert "  list the keys and the log: Permission denied" in shown


def run_server_example(folder: Path, python: list[str], *options: str) -> list[str]:
    usual = {**os.environ, "HOME": str(folder)}
    ran = subprocess.run(
        [*python, "-W", "error", EXAMPLES / "server" / "main.py", *options],
        cwd=folder,
        env=usual,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert list(folder.iterdir()) == []
    return ran.stdout.splitlines()


def interpreter_for_all() -> list[str]:
    """Return the words that start a Python which every user of this machine can run.

    This interpreter may be in the folder of one user. The system's own is taken then, if that one
    has the same version, with the modules of this interpreter.
    """
    if os.geteuid() != 0:
        pytest.skip("only root can start programs under other users")
    modules = os.pathsep.join(path for path in sys.path if path.endswith(("site-packages", "/src")))
    usual = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    for words in ([sys.executable], ["/usr/bin/env", f"PYTHONPATH={modules}", usual]):
        with suppress(OSError):
            tried = [*words, "-c", "import agentguard"]
            if not subprocess.run(
                tried, user=64_001, group=64_001, cwd="/", capture_output=True, check=False
            ).returncode:
                return words
    pytest.skip("no Python here can be run by every user")


EMBEDDED = [
    "embedded:",
    "  release-bot deploys web to staging: web is on staging",
    "  release-bot deploys web to production: denied, production is frozen [policy.denied]",
    (
        "  release-bot deploys web to laptop: denied, the target is neither staging nor "
        "production [policy.denied]"
    ),
    (
        "  intern-bot deploys web to staging: denied, no rule of the policy allows this call "
        "[policy.denied]"
    ),
]


def test_one_policy_embedded_and_on_opa(output_of, tmp_path, opa):
    alone = output_of("opa/main.py", tmp_path)
    assert alone[: len(EMBEDDED)] == EMBEDDED
    assert alone[len(EMBEDDED)].startswith("There is no AGENTGUARD_OPA_URL.")

    server = opa()
    (folder := tmp_path / "empty").mkdir()
    lines = output_of("opa/main.py", folder, AGENTGUARD_OPA_URL=server.url)
    assert lines == [
        *EMBEDDED,
        "on OPA:",
        *EMBEDDED[1:],
        "  decision ids on record, as in the log of OPA: 4",
        "the same answers: True",
    ]
    listed = httpcore.request("GET", f"{server.url}/v1/policies")
    assert json.loads(listed.content)["result"] == []


def test_cedar(output_of, tmp_path):
    lines = output_of("cedar/main.py", tmp_path)
    assert lines[:-1] == [
        "support-bot, 4900 cents of A-1: 4900 cents of A-1 refunded",
        (
            "support-bot, 9900 cents of A-1: denied, no rule of the policy allows this call "
            "[policy.denied]"
        ),
        "billing-bot, 9900 cents of A-1: 9900 cents of A-1 refunded",
        "billing-bot, 9900 cents of A-2: denied, the order was never paid [policy.denied]",
    ]
    assert lines[-1].startswith("refused at load: policy.cedar: the policy unpaid: ")


def policy_tests() -> list[tuple[str, str]]:
    """The ``policy test`` commands of the examples' pages, and the page of each."""
    return [
        (page.parent.name, line.removeprefix("$ agentguard "))
        for page in sorted(EXAMPLES.glob("*/README.md"))
        for line in page.read_text().splitlines()
        if line.startswith("$ agentguard policy test")
    ]


@pytest.mark.parametrize(
    ("example", "command"), policy_tests(), ids=[name for name, _ in policy_tests()]
)
def test_the_cases_of_an_example_hold(programs, example, command):
    words = ("-m", "agentguard.cli", *shlex.split(command))
    ran = programs.run(*words, cwd=EXAMPLES.parent)
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
    assert example in {"cedar", "opa"}


def test_platform_api(output_of, tmp_path):
    printed = output_of("platform_api.py", tmp_path)
    for line in printed[3:5]:
        assert f"`{line}`" in docs_pages.text("how-to/authorize")
    assert printed == [
        "grant types: urn:ietf:params:oauth:grant-type:token-exchange",
        "registered: spiffe://acme.example/agent/support",
        "exchanged for the scope: tickets:read",
        "read_ticket of ticket:42: allow",
        "close_ticket of ticket:42: deny scope.exceeded",
        (
            "refused: the token service refuses the request: invalid_scope: the agent may not have "
            "this scope: see max_scope in [agents]"
        ),
        "decided: close_ticket deny for user:alice",
        "verified: agent:support acts for user:alice",
        "active: True",
        "a request has the headers: Authorization DPoP",
    ]
