# METADATA
# title: What team example decides about its own resources
# description: |
#   Asked only about what the team owns. `deny` goes before what roles allow, `allow` adds to it; a guardrail of the
#   platform goes before both. Both rules read data.json beside this file, which is empty at first: so nothing changes
#   until somebody names something. Change or replace them as you like.
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
