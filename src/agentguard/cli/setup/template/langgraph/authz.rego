# Which tool calls run. A call runs only if `allow` is true and there is no `deny_reasons`; whatever
# this file does not speak of is denied. Before it is asked, agentguard.toml has decided whether the
# scope suffices.
#
#   agentguard policy check               is it sound?
#   agentguard policy test                does it say what authz_test.toml expects?
#   agentguard policy eval call.json      what does it say of one call?
package agent.authz

default allow := false

allow if {
	input.agent.name == "assistant"
	input.action in {"close_account", "look_up_order"}
}

allow if {
	input.agent.name == "assistant"
	input.action == "refund"
	small
}

# A number is compared with is_number beside it: a text would be above every number.
small if {
	is_number(input.args.cents)
	input.args.cents > 0
	input.args.cents <= 5000
}

# A reason denies, whatever else is allowed. The agent is told it; keep secrets out of it.
# To have a person decide in its place, return an `approval`: see Approvals in agentguard's docs.
deny_reasons contains "a refund is of 1 to 5000 cents" if {
	input.action == "refund"
	not small
}
