# METADATA
# title: What Keycloak's permissions allow and the role table cannot say
# description: |
#   Written by `team-authz import keycloak`, with data.json beside it. `members[type][action][team]` are roles that
#   count for what is common to all teams if somebody who holds one is in that team.
# scope: package
# schemas:
#   - input: schema.input
package airflow.site.imported

import data.airflow.authz.standing

# METADATA
# title: Reasons to allow
# scope: document
allow contains $"{role} of team {team_id}" if {
	input.resource.team_id == null
	some team_id, roles in data.airflow.site.imported.members[input.resource.type][input.action]
	some role in roles
	role in standing.team_roles[team_id]
}

# Keycloak has no say in a task that waits for certain people.
allow contains "the task is assigned to them" if {
	input.resource.type == "hitl_task"
	input.action == "update"
	input.context.user_id in input.context.assigned_users
}
