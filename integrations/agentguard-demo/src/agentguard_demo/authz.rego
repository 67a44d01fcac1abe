package agent.authz
default allow = false
allow if { input.agent.type == "code-agent"; input.action == "open_pr"; input.repo.visibility == "internal" }
allow if { input.agent.type == "code-agent"; input.action == "trigger_ci"; input.branch != "main" }
approval := {"reason": "direct merges to main require human approval", "roles": ["release-manager"]} if { input.action == "merge_pr"; input.branch == "main" }

# The rules above are a team's own, but that the last of them only denied, as `deny_reason`, where it
# now asks a person. The rest covers the demo's other tools.

allow if { input.agent.type == "orchestrator"; input.action == "assign_task"; input.args.to == "code-agent" }
allow if { input.agent.type == "code-agent"; input.action == "read_file" }
allow if { input.agent.name == "code-agent"; input.action == "fix_tests"; startswith(input.branch, "agent/") }
allow if { input.agent.type == "code-agent"; input.action == "commit_file"; startswith(input.branch, "agent/") }

deny_reason := "CI on main is started by the release pipeline, not by agents" if { input.action == "trigger_ci"; input.branch == "main" }
deny_reason := "no agent is given a secret, whoever asks it to" if { input.action == "request_secret" }
