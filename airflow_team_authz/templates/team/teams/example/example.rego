# METADATA
# title: Rules of team example about its own resources
# description: |
#   The policy asks these rules only about the team's resources. `deny` overrides roles, and `allow` adds rights to
#   those of roles. A guardrail of the platform overrides both. Both rules read data.json beside this file. It is empty
#   at first, so the rules have no effect until you add names. Change or replace the rules as you like.
# scope: package
# schemas:
#   - input: schema.input
package teams.example

import data.airflow.authz.standing

# METADATA
# title: Reasons to deny
# scope: document
deny contains $"{input.subject.id} stays away from the pool {input.resource.id}" if {
	input.resource.type == "pool"
	input.subject.id in data.teams.example.closed_pools[input.resource.id]
}

# METADATA
# title: Reasons to allow
# scope: document
allow contains $"the connection {input.resource.id} is lent to team {borrower}" if {
	input.resource.type == "connection"
	input.action in {"read", "use"}
	some borrower in data.teams.example.lent_connections[input.resource.id]
	borrower in standing.team_ids
}
