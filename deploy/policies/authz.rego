# An example: assistants read below docs/, and a code agent's merge into main waits for a person. It is
# written so that it decides alike here and embedded (docs/reference/two-engines.md).
package agent.authz

default allow := false

allow if {
	input.agent.type == "assistant"
	input.action == "read_file"
	inside_docs
}

inside_docs if {
	is_string(input.args.path)
	parts := split(input.args.path, "/")
	parts[0] == "docs"
	every part in parts {
		part != ""
		not startswith(part, ".")
	}
}

allow if merges_into_main

approval := {"reason": "merges into main want a person"} if merges_into_main

merges_into_main if {
	input.agent.type == "code-agent"
	input.action == "merge_pr"
	input.args.base == "main"
}

deny_reasons contains "assistants read below docs/ alone" if {
	input.action == "read_file"
	not inside_docs
}
