# Which tool calls run. A call runs only if `allow` is true and there is no `deny_reasons`; whatever
# this file does not speak of is denied.
#
#   agentguard policy check               is it sound?
#   agentguard policy eval call.json      what does it say of one call?
#
# The input: input.agent {name, type, instance, id}, input.action (the tool), input.args,
# input.resource, input.task_id, and what `attributes` and `facts` in agentguard.toml add.
package agent.authz

default allow := false

# The tools that only read. Name yours.
reads := {"get_file", "list_files", "read_file", "search"}

allow if {
	input.agent.type == "assistant"
	input.action in reads
}

# A reason denies, whatever else is allowed. The agent is told it; keep secrets out.
deny_reasons contains "hidden files are not for agents" if {
	some name in ["path", "file"]
	contains(input.args[name], "/.")
}

deny_reasons contains "hidden files are not for agents" if {
	some name in ["path", "file"]
	startswith(input.args[name], ".")
}
