# What each agent does in its job. The guard has compared the scopes before it asks this policy.
package agent.authz

default allow := false

jobs := {
    # The two tools that CrewAI gives to a manager: handing work on is a tool call like any other.
    "manager": {"delegate_work_to_coworker", "ask_question_to_coworker"},
    "reader": {"read_invoice"},
    "bookkeeper": {"note_invoice", "pay_invoice"},
}

allow if input.action in jobs[input.agent.name]
