# The agent reads, and merges nothing into main.
package agent.authz

default allow := false

allow if input.action == "read_file"

allow if {
	input.action == "merge"
	input.args.into != "main"
}

deny_reasons contains "a person merges into main" if {
	input.action == "merge"
	input.args.into == "main"
}
