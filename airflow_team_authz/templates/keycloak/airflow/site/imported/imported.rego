# METADATA
# title: Rights of Keycloak's permissions that the role table cannot express
# description: |
#   Written by `team-authz import keycloak`, with data.json beside it. `members[type][action][team]` are roles. They
#   apply to resources common to all teams, for people with such a role in that team.
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

# Keycloak does not decide about a task that waits for certain people.
allow contains "the task is assigned to them" if {
	input.resource.type == "hitl_task"
	input.action == "update"
	input.context.user_id in input.context.assigned_users
}
