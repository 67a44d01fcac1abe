# Which tool calls run. A call runs only if `allow` is true and there is no `deny_reasons`; whatever
# this file does not speak of is denied.
#
#   agentguard policy check               is it sound?
#   agentguard policy test                does it say what authz_test.toml expects?
#   agentguard policy eval call.json      what does it say of one call?
#
# The input: input.agent {name, type, instance, id}, input.action (the tool), input.args,
# input.resource, input.task_id, and what `paths`, `attributes` and `facts` in agentguard.toml add.
package agent.authz

default allow := false

# The tools that only read, each with the file or folder in its argument `path`. Name yours.
reads := {"get_file", "list_files", "read_file"}

allow if {
	input.agent.type == "assistant"
	input.action in reads
	inside
}

# Where the argument `path` leads, with every link followed, as a path below the project's folder
# ([paths] in agentguard.toml): no part of it may be hidden. What leads out of the folder has no
# such path, nor has a call without an argument of this very name: undefined, so not inside.
inside if {
	is_string(input.paths.path)
	every part in split(input.paths.path, "/") {
		not startswith(part, ".")
	}
}

# A number is compared with is_number beside it: a text, a Decimal or an integer beyond 2^53-1 would
# be above every number.
#
#   small if {
#       is_number(input.args.cents)
#       input.args.cents > 0
#       input.args.cents <= 5000
#   }

# A reason denies, whatever else is allowed. The agent is told it; keep secrets out of it.
deny_reasons contains "the argument path must lead into the project, and to no hidden file" if {
	input.action in reads
	not inside
}
