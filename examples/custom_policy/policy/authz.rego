# Who may refund how much stands in limits/data.json, which becomes data.limits: people change
# numbers there, and this file stays as it was reviewed.
package agent.authz

default allow = false

limit := data.limits.refund_cents[input.agent.name]

allow if {
    input.action == "refund"
    input.order.paid
    is_number(input.args.cents) # a text or an object would be above every number
    input.args.cents > 0
    input.args.cents <= limit
}

deny_reasons contains "the amount must be a plain number" if {
    input.action == "refund"
    not plain
}

# A rule of its own: `not is_number(...)` of a missing argument would not hold on an OPA server.
plain if is_number(input.args.cents)

deny_reasons contains sprintf("%s may refund up to %d cents", [input.agent.name, limit]) if {
    input.action == "refund"
    is_number(input.args.cents)
    input.args.cents > limit
}

deny_reasons contains "the order was never paid" if {
    input.action == "refund"
    not input.order.paid
}
