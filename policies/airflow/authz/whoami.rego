package airflow.authz

import data.airflow.authz.standing

# METADATA
# title: Who the subject is to the policy
# description: |
#   Teams, roles and the directory entries that they follow from, for people who ask; and the pool that each team has
#   its tasks use where their author names none, for who parses Dags.
# entrypoint: true
# schemas:
#   - input: schema.evaluations
whoami := {
	"team_roles": {team_id: sort(roles) | some team_id, roles in standing.team_roles},
	"platform_roles": sort(standing.platform_roles),
	"common_roles": sort(standing.common_roles),
	"default_pools": {team_id: pool |
		some team_id in standing.team_ids
		pool := data.teams[team_id].default_pool
		is_string(pool)
	},
	"entries": [{"table": table, "name": name, "entry": entry} | some [table, name, entry] in standing.entries],
}
