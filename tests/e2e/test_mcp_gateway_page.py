"""The policies on the pages about MCP: a path stays in its folder, and the caller is known."""

from __future__ import annotations

import docs_pages
import pytest

from agentguard import Denied, Guard

PAGES = {
    page: docs_pages.blocks(docs_pages.text(page), "rego")[0]
    for page in ("how-to/mcp-gateway", "how-to/mcp-gateway-client")
}
TABLES = docs_pages.blocks(docs_pages.text("how-to/mcp-gateway"), "toml")[0]


def git_log(repo_path: str) -> str:
    return repo_path


def git_commit(repo_path: str) -> str:
    return repo_path


@pytest.mark.parametrize("page", PAGES)
def test_the_policy_of_a_page_allows_repositories_within_the_folder_alone(begun, monkeypatch, page):
    monkeypatch.setenv("HOME", str(begun.home))
    repositories = begun.folder / "repos"
    (repositories / "one").mkdir(parents=True)
    (begun.folder / "other").mkdir()
    (repositories / "link").symlink_to(begun.folder / "other")
    (begun.folder / "policies" / "authz.rego").write_text(PAGES[page])
    config = begun.allow_unlisted().folder / "agentguard.toml"
    assert 'path = "."\n' in config.read_text()
    added = TABLES.removeprefix("[paths]\n").replace("/srv/repos", str(repositories))
    config.write_text(config.read_text().replace('path = "."\n', added))
    with Guard.open(config) as guard:
        agent = guard.new_agent("assistant")
        read, commit = guard.tool(git_log), guard.tool(git_commit)
        assert agent.call(read, str(repositories / "one")) == str(repositories / "one")
        for outside in ("/../other", "/link", "/one/../../other", "-other"):
            with pytest.raises(Denied) as refused:
                agent.call(read, f"{repositories}{outside}")
            assert refused.value.code == "policy.denied"
        with pytest.raises(Denied):
            agent.call(commit, str(repositories / "one"))


def test_a_policy_that_reads_the_caller_is_told_who_gives_the_caller(begun):
    """A name that only looks like it is still taken for a mistake."""
    policy = begun.folder / "policies" / "authz.rego"
    text = 'package agent.authz\n\nallow if input.NAME.principal == "user:a"\n'
    policy.write_text(text.replace("NAME", "caller"))
    checked = begun.run("policy", "check")
    shown = " ".join((checked.stdout + checked.stderr).replace("|", " ").split())
    assert "input.caller, which a guarded MCP server gives" in shown
    assert "did you mean" not in shown
    checks = begun.json("doctor")["checks"]
    assert [one["status"] for one in checks if "input.caller" in one["what"]] == ["ok"]  # a note
    policy.write_text(text.replace("NAME", "callers"))
    checked = begun.run("policy", "check")
    assert "did you mean input.caller?" in " ".join(
        (checked.stdout + checked.stderr).replace("|", " ").split()
    )


def test_the_policy_of_the_page_on_rounds_passes_the_cases_of_the_page(begun):
    page = docs_pages.text("how-to/mcp-rounds")
    (policy,) = docs_pages.blocks(page, "rego")
    (begun.folder / "policies" / "authz.rego").write_text(policy)
    cases = docs_pages.blocks(page, "toml")[1]
    (begun.folder / "policies" / "authz_test.toml").write_text(cases)
    tested = begun.run("policy", "test")
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "passed: 4 tests" in tested.stdout
