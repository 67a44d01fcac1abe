# Who may deploy what, where. The same file is evaluated in the process, and by an OPA server.
package example.deploys

default allow := false

targets := {"staging", "production"}

known if input.args.target in targets

# A fact of the application's. Without one, production counts as frozen.
thawed if input.freeze.active == false

allow if {
	input.action == "deploy"
	input.agent.name == "release-bot"
	known
}

# `not known` holds without a target, too, embedded and on the server. Written as
# `not input.args.target in targets` it would not on a server, and agentguard refuses it at load.
deny_reasons contains "the target is neither staging nor production" if {
	input.action == "deploy"
	not known
}

deny_reasons contains "production is frozen" if {
	input.action == "deploy"
	input.args.target == "production"
	not thawed
}
