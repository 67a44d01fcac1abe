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

# A reason denies, whatever else is allowed. The agent is told it; keep secrets out of it.
deny_reasons contains "hidden files and parent folders are not for agents" if {
	some part in split(input.args.path, "/")
	startswith(part, ".")
	part != "."
}
