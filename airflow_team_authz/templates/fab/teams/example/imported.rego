# Written by `team-authz import fab`: FAB permissions on single Dags of this team, which imported/data.json lists.
package teams.example

import data.airflow.site.imported

allow contains $"FAB permission {verb} on {name}" if {
	some [name, verb] in imported.wanted
	every permission in imported.wanted {
		some role in data.teams.example.imported.dags[permission[0]][permission[1]]
		imported.held[role]
	}
}
