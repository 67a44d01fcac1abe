# The agent reads, and merges into two branches, of which main is none.
package agent.authz

default allow := false

allow if input.action == "read_file"

allow if {
	input.action == "merge"
	input.args.into in {"next", "stable"}
}

deny_reasons contains "a person merges into main" if {
	input.action == "merge"
	input.args.into == "main"
}
