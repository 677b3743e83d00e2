# METADATA
# title: What team alpha decides about its own resources
# scope: package
# schemas:
#   - input: schema.input
package teams.alpha

import data.airflow.authz.standing

# METADATA
# title: Reasons to allow
# scope: document
allow contains $"alpha lends this connection to team {borrower}" if {
	input.resource.type == "connection"
	input.action in {"read", "use"}
	some borrower in data.teams.alpha.lent_connections[input.resource.id]
	borrower in standing.team_ids
}

# METADATA
# title: Reasons to deny
# scope: document
deny contains "interns stay away from alpha's production pool" if {
	input.resource.type == "pool"
	input.resource.id == data.teams.alpha.production_pool
	input.subject.id in data.teams.alpha.interns
}
