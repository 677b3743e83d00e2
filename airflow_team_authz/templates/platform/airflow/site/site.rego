# METADATA
# title: The platform team's own rules
# description: |
#   `deny` here is a guardrail: nobody overrides it. `allow` adds rights to those of roles, for every
#   team. Both rules read lists in data.json beside this file. The lists are empty at first, so the
#   rules have no effect until you add names. Change or replace the rules as you like.
# scope: package
# schemas:
#   - input: schema.input
package airflow.site

import data.airflow.authz.standing

# METADATA
# title: Reasons to deny, for everyone
# scope: document
deny contains $"the connection {input.resource.id} is for the platform only" if {
	input.resource.type == "connection"
	input.resource.team_id == null
	input.resource.id in data.airflow.site.platform_connections
	not "admin" in standing.platform_roles
}

# METADATA
# title: Reasons to allow, for everyone
# scope: document
allow contains $"everyone may read the variable {input.resource.id}" if {
	input.action == "read"
	input.resource.type == "variable"
	input.resource.team_id == null
	input.resource.id in data.airflow.site.public_variables
}
