package agent.authz
default allow = false
allow if { input.agent.type == "code-agent"; input.action == "open_pr"; input.repo.visibility == "internal" }
allow if { input.agent.type == "code-agent"; input.action == "trigger_ci"; input.branch != "main" }
deny_reason := "direct merges to main require human approval" if { input.action == "merge_pr"; input.branch == "main" }
