# METADATA
# title: The platform team's own rules
# description: |
#   `deny` here is a guardrail: nobody overrides it. `allow` adds to what roles allow, for every team.
#   Both rules read lists in data.json beside this file, which are empty at first: so nothing is
#   denied or allowed until somebody names something. Change or replace them as you like.
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
