# Written by `team-authz import keycloak`: rights of roles in this team only, which imported/data.json lists.
package teams.example

import data.airflow.authz.standing

allow contains $"{role} of this team" if {
	some role in data.teams.example.imported.permissions[input.resource.type][input.action]
	role in object.get(standing.team_roles, input.resource.team_id, standing.platform_roles)
}
