# The policy of app.py: notes may be read, where they lie inside this folder.
package agent.authz

default allow := false

reads := {"count_words", "read_note"}

allow if {
    input.agent.type == "assistant"
    input.action in reads
    inside
}

# What a path must be, so that a form nobody thought of is denied.
inside if {
    is_string(input.args.path)
    every part in split(input.args.path, "/") {
        part != ""
        not startswith(part, ".")
    }
}

deny_reasons contains "the path must be relative, without hidden files or parent folders" if {
    input.action in reads
    not inside
}
