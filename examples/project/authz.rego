# The policy of app.py: notes may be read, where they lie inside this folder.
package agent.authz

default allow := false

reads := {"count_words", "read_note"}

allow if {
    input.agent.type == "assistant"
    input.action in reads
    inside
}

# Where the path leads, links followed, below this folder: undefined for what leads out of it.
inside if {
    is_string(input.paths.path)
    every part in split(input.paths.path, "/") {
        not startswith(part, ".")
    }
}

deny_reasons contains "the path must lead into the project, and to no hidden file" if {
    input.action in reads
    not inside
}
