# Which tool calls run. A call runs only if `allow` is true and `deny_reasons` is empty. A call that
# no rule allows is denied.
#
#   agentguard policy check               check this policy for mistakes
#   agentguard policy test                run the test cases in authz_test.toml
#   agentguard policy eval call.json      decide one call
#
# The input: input.agent {name, type, instance, id}, input.action (the tool), input.args,
# input.resource, input.task_id, and the values of `paths`, `attributes` and `facts` in
# agentguard.toml.
package agent.authz

default allow := false

# The tools that only read. Each has an argument `path`. Replace these names by those of your tools.
reads := {"get_file", "list_files", "read_file"}

allow if {
	input.agent.type == "assistant"
	input.action in reads
	inside
}

# input.paths.path is the argument `path` with every link followed, relative to the project's folder
# ([paths] in agentguard.toml). No part of the path may be hidden. For a path that leaves the
# folder, and for a call without this argument, input.paths.path is undefined, and `inside` does not
# hold.
inside if {
	is_string(input.paths.path)
	every part in split(input.paths.path, "/") {
		not startswith(part, ".")
	}
}

# Check a number with is_number before you compare it: in Rego a text is above every number, and so
# are a Decimal and an integer beyond 2^53-1.
#
#   small if {
#       is_number(input.args.cents)
#       input.args.cents > 0
#       input.args.cents <= 5000
#   }

# A reason denies the call even if `allow` is true. The agent reads the reason: write no secrets.
deny_reasons contains "the argument path must lead into the project, and to no hidden file" if {
	input.action in reads
	not inside
}
