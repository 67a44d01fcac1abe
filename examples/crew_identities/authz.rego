# What each agent does in its job. That its scope suffices was looked at before this is asked.
package agent.authz

default allow := false

jobs := {
    "researcher": {"search_notes", "read_note", "delegate_work_to_coworker", "ask_question_to_coworker"},
    "writer": {"write_report"},
}

allow if {
    input.action in jobs[input.agent.name]
    for_alice
}

# What is published can't be taken back, so it waits for bob.
approval := {"reason": "what is published stays published", "approvers": ["bob"]} if {
    input.action == "publish_report"
    input.agent.name == "writer"
    for_alice
}

for_alice if input.delegation.subject == "user:alice"

deny_reasons contains "a report's name is of small letters, digits and hyphens" if {
    input.action in {"write_report", "publish_report"}
    not named
}

named if {
    is_string(input.args.name)
    regex.match(`^[a-z0-9-]+$`, input.args.name)
}
