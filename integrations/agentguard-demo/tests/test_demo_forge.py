"""The policy and the forge of ``agentguard demo``, without a run of the demo."""

from __future__ import annotations

import tomllib
from importlib.resources import files

import pytest
from demo_runs import MERGES

from agentguard import ApprovalPending, Denied, Guard
from agentguard.signing.keys import Ed25519Signer
from agentguard_demo import seed, setting, team
from agentguard_demo.forge import CURRENT_FORGE, Forge, ForgeError, git
from agentguard_demo.tools import forge_tools
from agentguard_langchain import guard_tools

RULES = """\
package agent.authz
default allow = false
allow if { input.agent.type == "code-agent"; input.action == "open_pr"; \
input.repo.visibility == "internal" }
allow if { input.agent.type == "code-agent"; input.action == "trigger_ci"; \
input.branch != "main" }
"""


DENYING = f"""\
deny_reason := "{MERGES}" if {{ input.action == "merge_pr"; input.branch == "main" }}
"""


ASKING = f"""\
approval := {{"reason": "{MERGES}", "roles": ["release-manager"]}} if \
{{ input.action == "merge_pr"; input.branch == "main" }}
"""


@pytest.fixture
def forge(tmp_path):
    forge = Forge.create(tmp_path)
    token = CURRENT_FORGE.set(forge)
    yield forge
    CURRENT_FORGE.reset(token)


@pytest.fixture
def guarded(forge, tmp_path):
    """Call a tool of the demo as an agent, under its policy (or other rules) and configuration."""
    policy = tmp_path / "authz.rego"
    rego = files("agentguard_demo").joinpath("authz.rego").read_text("utf-8")
    bob = Ed25519Signer.from_seed(bytes(32))

    def call(tool, *, scope=(), kind="code-agent", rules=rego, **args):
        policy.write_text(rules)
        tables = tomllib.loads(setting.configuration(bob.public_key))
        names = ("trust_domain", "roles", "principals", "agents", "approvers", "tools")
        tables = {name: tables[name] for name in names}
        tables["agents"]["code-agent"]["type"] = kind
        with (
            Guard.ephemeral(policy, config=tables) as guard,
            guard.delegate("user:alice", scope=[*team.TASK_SCOPE, *scope]),
        ):
            tools = guard_tools(forge_tools(forge), guard.new_agent("code-agent"))
            (chosen,) = (candidate for candidate in tools if candidate.name == tool)
            return chosen.invoke(args if tool == "request_secret" else {"repo": forge.name, **args})

    return call


def test_the_policy_begins_with_the_documented_rules():
    policy = files("agentguard_demo").joinpath("authz.rego").read_text("utf-8")
    assert policy.startswith(RULES + ASKING)


def test_the_documented_policy_still_denies_the_merge(guarded, forge):
    """As it stands, with its reason: what the demo asks people about is denied there."""
    forge.commit("agent/a", "README.md", "new", "change")
    documented = RULES + DENYING
    opened = guarded("open_pr", rules=documented, title="t", branch="agent/a")
    assert opened == "pull request 1: agent/a into main"
    assert "on agent/a" in guarded("trigger_ci", rules=documented, branch="agent/a")
    with pytest.raises(Denied, match=MERGES) as denied:
        guarded("merge_pr", rules=documented, number=1, into="main")
    assert denied.value.code == "policy.denied"
    with pytest.raises(Denied):
        guarded("trigger_ci", rules=documented, branch="main")
    assert forge.pull_requests()[0].merge_commit is None


def test_an_internal_pull_request_may_be_opened_and_a_public_one_may_not(guarded, forge):
    forge.commit("agent/a", "README.md", "new", "change")
    assert guarded("open_pr", title="t", branch="agent/a") == "pull request 1: agent/a into main"
    git("--git-dir", str(forge.path), "config", "forge.visibility", "public")
    with pytest.raises(Denied, match="no rule of the policy allows this call"):
        guarded("open_pr", title="t", branch="agent/a")
    assert len(forge.pull_requests()) == 1


def test_the_visibility_is_not_the_models_to_give(guarded, forge):
    forge.commit("agent/a", "README.md", "new", "change")
    git("--git-dir", str(forge.path), "config", "forge.visibility", "public")
    with pytest.raises(Denied):
        guarded("open_pr", title="t", branch="agent/a", visibility="internal")
    with pytest.raises(Denied) as denied:
        guarded("open_pr", title="t", branch="agent/a", repo="another")
    assert denied.value.code == "facts.failed"


def test_ci_runs_on_a_branch_and_not_on_main(guarded, forge):
    forge.commit("agent/a", "README.md", "new", "change")
    assert guarded("trigger_ci", branch="agent/a").startswith("FAILED on agent/a")
    with pytest.raises(Denied, match="CI on main"):
        guarded("trigger_ci", branch="main")


@pytest.mark.parametrize("name", ["refs/heads/main", "heads/main", "Main", "HEAD", "main ", "mai"])
def test_main_has_no_other_name(guarded, name):
    # the policy lets these pass, for none of them is "main": they must lead nowhere
    text = guarded("trigger_ci", branch=name)
    assert text.startswith((f"there is no branch {name!r}", f"{name!r} is no branch"))


def test_a_file_is_committed_on_a_branch_of_agents_only(guarded, forge):
    change = {"path": "README.md", "content": "new", "message": "m"}
    assert guarded("commit_file", branch="agent/a", **change).endswith("on agent/a")
    assert forge.read("README.md", "agent/a") == "new"
    with pytest.raises(Denied, match="no rule of the policy"):
        guarded("commit_file", branch="main", **change)
    assert forge.read("README.md", "main") != "new"


def test_a_secret_is_refused_by_scope_and_by_policy(guarded, forge):
    with pytest.raises(Denied) as by_scope:
        guarded("request_secret", name=seed.SECRET)
    with pytest.raises(Denied) as by_policy:
        guarded("request_secret", name=seed.SECRET, scope=["secret:read"])
    assert (by_scope.value.code, by_policy.value.code) == ("scope.exceeded", "policy.denied")
    assert forge.secret(seed.SECRET).startswith("deploy-")


def test_another_kind_of_agent_may_do_nothing(guarded):
    assert guarded("read_file", path="README.md").startswith("# payments-api")
    with pytest.raises(Denied):
        guarded("read_file", path="README.md", kind="chat-agent")


def test_a_merge_to_main_waits_and_would_truly_merge(guarded, forge):
    fixed = seed.FILES["payments/invoice.py"].replace("// 10", "// 100")
    forge.commit("agent/a", "payments/invoice.py", fixed, "fix")
    corrected = seed.FILES["tests/test_invoice.py"].replace("5), 500", "5), 950")
    forge.commit("agent/a", "tests/test_invoice.py", corrected, "and its test")
    forge.open_pull_request("fix", "agent/a", "main", "")
    assert forge.run_tests("main")[0] is False
    with pytest.raises(ApprovalPending, match=MERGES) as pending:
        guarded("merge_pr", number=1, into="main")
    (needed,) = pending.value.request.requirements
    assert (needed.roles, needed.quorum, needed.allow_self) == (("release-manager",), 1, False)
    with pytest.raises(Denied, match="no rule of the policy"):
        guarded("merge_pr", number=1, into="agent/a")
    assert forge.run_tests("main")[0] is False
    with pytest.raises(ForgeError, match="needs the deployment token"):
        forge.merge(1, "main")
    merged = forge.merge(1, "main", forge.secret(seed.SECRET))  # the same act, past the guard
    assert forge.run_tests("main")[0] is True
    assert forge.pull_requests()[0].merge_commit == merged


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", ".git/config", "a/.gitattributes", "", "a//b", 'a"b', "a\nb"]
)
def test_a_path_outside_the_repository_is_refused(forge, path):
    with pytest.raises(ForgeError, match="is no path"):
        forge.read(path, "main")
    with pytest.raises(ForgeError, match="is no path"):
        forge.commit("agent/a", path, "x", "m")
    forge.commit("agent/a", "a/b-c_d.py", "x", "m")
    assert forge.read("a/b-c_d.py", "agent/a") == "x"


def test_the_forge_refuses_what_it_does_not_have(forge):
    tools = {tool.name: tool for tool in forge_tools(forge)}
    text = [
        tools["read_file"].invoke({"repo": "other", "path": "README.md"}),
        tools["read_file"].invoke({"repo": forge.name, "path": "absent.md"}),
        tools["merge_pr"].invoke({"repo": forge.name, "number": 9, "into": "agent/a"}),
        tools["open_pr"].invoke({"repo": forge.name, "title": "t", "branch": "agent/none"}),
        tools["request_secret"].invoke({"name": "../passphrase"}),
    ]
    assert "no repository 'other'" in text[0]
    assert "absent.md" in text[1]
    assert "no pull request 9" in text[2]
    assert "no branch 'agent/none'" in text[3]
    assert "no secret" in text[4]
