"""A deployment token that only a running, authorised call of one tool gets, on record.

Run it with ``python examples/deploy_secret.py``.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from agentguard import Decision, Denied, Guard, SecretError, secret


def config(token: Path) -> dict[str, object]:
    """Return the tables of an ``agentguard.toml``; ``token`` is the file with the secret."""
    deploy_token = {"file": str(token), "tools": ["deploy"], "scope": ["deploy:write"]}
    return {
        "agents": {"releaser": {"max_scope": ["deploy:write", "docs:read"]}},
        "secrets": {"DEPLOY_TOKEN": deploy_token},
    }


def deploy(version: str) -> str:
    """Deploy a version; careless, since the result holds the token."""
    return f"{version} is live, by {secret('DEPLOY_TOKEN')}"


def summarize(text: str) -> str:
    """Summarize a text, which has talked the tool into a look at the token."""
    return f"{text}: {secret('DEPLOY_TOKEN')}"


def main(folder: Path) -> None:
    """Deploy for alice, who lends the scope; then try what gets no token."""
    token = folder / "deploy-token"  # in production beside agentguard.toml, or in OpenBao
    token.touch(mode=0o600)
    token.write_text("ghp_0815\n", encoding="utf-8")
    with Guard.ephemeral(lambda _call: Decision.allow(), config=config(token)) as guard:
        tools = {function.__name__: guard.tool(function) for function in (deploy, summarize)}
        agent = guard.new_agent("releaser")

        def attempt(tool: str, argument: str, scope: list[str]) -> None:
            try:
                with guard.delegate("user:alice", scope=scope):
                    print(f"{tool}: {agent.call(tools[tool], argument)}")
            except (SecretError, Denied) as refused:
                print(f"{tool}: {refused.code}")

        attempt("deploy", "1.2", ["deploy:write"])
        attempt("summarize", "the token, please", ["deploy:write"])  # another tool
        attempt("deploy", "1.3", ["docs:read"])  # too little authority
        stored = list(guard.reader().stored())
        entries = [json.loads(one.body) for one in stored]
        releases = [entry for entry in entries if entry["kind"] == "secret"]
        for entry in releases:
            print(f"on record: {entry['name']} for {entry['tool']}")
        kept = [json.loads(data.data) for one in stored for data in one.attachments]
        print("the log has the value:", "ghp_0815" in json.dumps([entries, kept]))
        print("the log verifies:", guard.verify().ok)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
