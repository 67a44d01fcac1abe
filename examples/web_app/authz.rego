package agent.authz

default allow := false

allow if input.action == "order_status"

allow if {
	input.action == "refund"
	is_refundable
	is_number(input.args.cents)
	input.args.cents <= 2000
}

approval := {"reason": "a refund over 20.00 needs a manager", "roles": ["manager"]} if {
	input.action == "refund"
	is_refundable
	is_number(input.args.cents)
	input.args.cents > 2000
}

is_refundable if {
	is_number(input.args.cents)
	input.args.cents > 0
	input.args.cents <= 50000
}

deny_reasons contains "a refund is between 0.01 and 500.00" if {
	input.action == "refund"
	not is_refundable
}
