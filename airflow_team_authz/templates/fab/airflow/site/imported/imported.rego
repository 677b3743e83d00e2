# METADATA
# title: Rights of FAB permissions that the role table cannot express
# description: |
#   Written by `team-authz import fab`, with data.json beside it. The role table has the rights of each single role.
#   This package has rights that need several roles at once, and rights on one Dag, one view or one page. If you take
#   a right from a role in the role table, take it from the role in data.json as well.
#   `permissions[name][verb]` and `dags[name][verb]` are roles of which one is enough; names and verbs are FAB's.
# scope: package
# schemas:
#   - input: schema.input
#   - data.airflow.roles: schema.roles
package airflow.site.imported

import data.airflow.authz.standing

# METADATA
# title: Reasons to allow
# scope: document
allow contains $"FAB permission {view_verb} on {name}" if {
	input.resource.type == "view"
	input.action in {"list", "read"}
	name := data.airflow.site.imported.views[input.resource.id]
	some role in data.airflow.site.imported.permissions[name][view_verb]
	role in held
}

allow contains $"FAB permission {verb} on {input.resource.id}" if {
	input.resource.type == "custom_view"
	verb := object.get(page_verbs, input.action, input.action)
	some role in data.airflow.site.imported.permissions[input.resource.id][verb]
	role in held
}

allow contains $"FAB permission menu_access on {name}" if {
	input.resource.type == "custom_view"
	input.action == "menu"
	name := data.airflow.site.imported.links[input.resource.id]
	some role in data.airflow.site.imported.permissions[name].menu_access
	role in held
}

# In FAB, roles have no effect on a task that waits for certain people.
allow contains "the task is assigned to them" if {
	input.resource.type == "hitl_task"
	input.action == "update"
	input.context.user_id in input.context.assigned_users
}

allow contains $"FAB permission {dag_verbs[input.action]} on {part}" if {
	count(wanted) == 0
	some part in data.airflow.site.imported.parts[input.resource.entity]
}

allow contains $"FAB permission {verb} on {name}" if {
	input.resource.team_id == null
	some [name, verb] in wanted
	every permission in wanted {
		some role in data.airflow.site.imported.dags[permission[0]][permission[1]]
		held[role]
	}
}

# METADATA
# title: Roles of the subject in the team of the resource
held := standing.common_roles if {
	input.resource.team_id == null
} else := object.get(standing.team_roles, input.resource.team_id, standing.platform_roles)

# METADATA
# title: Permissions on this one Dag that are still necessary to allow the action
# description: |
#   Pairs of name and verb. Empty, if roles allow it for every Dag. Undefined, if no permission on one Dag is enough.
#   The roles with these permissions are in `dags` beside this file for a common Dag, else in the team's data.
# scope: document
wanted := {[dag_name, dag_verbs[input.action]]} if {
	input.resource.type == "dag"
	not input.resource.entity
}

wanted := set() if {
	input.action == "list"
	entity_allowed
	some role in data.airflow.roles.permissions.dag.list
	role in held
}

# A change of a part, without the id of a Dag.
wanted := set() if {
	entity_allowed
	not input.action in {"list", "read"}
	not input.resource.id
}

wanted := dag_wanted | entity_wanted

# A part needs the right to read its Dag, or to change it.
dag_wanted := set() if {
	entity_action
	some role in data.airflow.roles.permissions.dag[entity_action]
	role in held
} else := {[dag_name, dag_verbs[entity_action]]}

entity_action := "read" if {
	input.resource.type == "dag"
	input.resource.entity
	input.action == "read"
} else := "update" if {
	input.resource.type == "dag"
	input.resource.entity
	input.action in {"create", "delete", "trigger", "update"}
}

entity_wanted := set() if {
	entity_allowed
} else := {[run_name, dag_verbs[input.action]]} if {
	input.resource.entity == "run"
}

entity_allowed if {
	input.resource.type == "dag"
	every part in data.airflow.site.imported.parts[input.resource.entity] {
		some role in data.airflow.site.imported.permissions[part][dag_verbs[input.action]]
		held[role]
	}
}

dag_name := concat("", [object.get({true: ""}, named_in_full, "DAG:"), input.resource.id])

run_name := concat("", [object.get({true: ""}, named_in_full, "DAG Run:"), input.resource.id])

# FAB reads such an id as the permission's name.
default named_in_full := false

named_in_full if {
	some prefix in {"DAG:", "DAG Run:"}
	startswith(input.resource.id, prefix)
}

dag_verbs := {
	"list": "can_read",
	"read": "can_read",
	"create": "can_create",
	"trigger": "can_create",
	"update": "can_edit",
	"delete": "can_delete",
}

# A page may have any verb. Only the verbs of a request's method have another word here.
page_verbs := {
	"read": "can_read",
	"create": "can_create",
	"update": "can_edit",
	"delete": "can_delete",
	"menu": "menu_access",
}

# The documentation is a link in the menu, not a page.
default view_verb := "can_read"

view_verb := "menu_access" if input.resource.id == "docs"
