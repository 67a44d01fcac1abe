package agent.authz

import data.lib
import data.lib.paths.below as is_below

default allow := false

allow if {
	lib.owns(input.agent.name, input.repo.name)
	is_below(input.args.path, data.teams.payments.root)
}

deny_reasons contains sprintf("%s is frozen", [input.repo.name]) if input.repo.name in data.frozen
