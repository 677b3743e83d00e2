# METADATA
# title: What roles allow
# description: |
#   Reads the role table `data.airflow.roles`: `permissions[type][action]` lists the roles of which one
#   is enough. `type.entity` (`dag.code`) goes before `type`, and for common resources `common` before both;
#   the action `*` stands for every other action.
# scope: package
# schemas:
#   - input: schema.input
#   - data.airflow.roles: schema.roles
package airflow.authz.baseline

import data.airflow.authz.baseline.deliveries
import data.airflow.authz.standing

# METADATA
# title: Whether a role or a consent allows the action on a resource
# scope: document
allows(resource) if {
	not _reserved(resource)
	some role in enough(resource)
	role in roles(resource)
}

allows(resource) if deliveries.consents(resource)

# METADATA
# title: The roles that do, and where they are held, or who has consented
reasons(resource) := held if {
	held := sort({concat("", [role, _place(resource)]) |
		some role in enough(resource)
		role in roles(resource)
	})
	count(held) > 0
} else := [deliveries.reason(resource)]

# METADATA
# title: Why nothing allowed it, and what would
refusal(resource) := concat("", [_asked, _name(resource), ": it is assigned to others"]) if {
	_reserved(resource)
} else := concat("", [_asked, _name(resource), ": ", deliveries.missing(resource)]) if {
	resource.delivery
} else := concat("", [_asked, _name(resource), ": ", told]) if {
	told := concat("", [_missing(resource), _elsewhere(resource), _nothing_held, _unverified])
}

_missing(resource) := concat("", ["that takes a ", input.subject.type, _owner(resource)]) if {
	some role in data.airflow.roles.machines.in_team[input.subject.type]
	role in enough(resource)
} else := concat("", ["that takes a ", input.subject.type, " without a team"]) if {
	some role in data.airflow.roles.machines.without_team[input.subject.type]
	role in enough(resource)
} else := concat("", ["no ", input.subject.type, " may do that"]) if {
	input.subject.type != "user"
} else := concat("", ["that takes the role ", concat(" or ", needed), _place(resource)]) if {
	needed := [role | some role in enough(resource); not role in for_machines]
	count(needed) > 0
} else := "no role allows that"

# Who leaves the team out, or names another one, learns where the same could be created.
_elsewhere(resource) := concat("", ["; name a team of yours (", _shown(teams), ") to create it there"]) if {
	input.subject.type == "user"
	_made_in_teams(resource)
	teams := sort({team_id |
		some team_id, held in standing.team_roles
		some role in data.airflow.roles.permissions[resource.type].create
		role in held
	})
	count(teams) > 0
} else := concat("", ["; in a team of yours (", _shown(teams), ") it takes the role ", concat(" or ", needed)]) if {
	input.subject.type == "user"
	_made_common(resource)
	teams := sort(standing.team_ids)
	count(teams) > 0
	needed := [role | some role in data.airflow.roles.permissions[resource.type].create; not role in for_machines]
	count(needed) > 0
} else := ""

_made_common(resource) if {
	resource.team_id == null
	_made_in_teams(resource)
}

# Common ones of these take more than those of a team.
_made_in_teams(resource) if {
	input.action == "create"
	not resource.entity
	data.airflow.roles.common[resource.type].create
}

default _nothing_held := ""

_nothing_held := concat("", ["; ", input.subject.id, " has no role in any team"]) if {
	input.subject.type == "user"
	not input.subject.unverified
	count(standing.common_roles | standing.platform_roles) == 0
}

# A person may be in very many.
_shown(names) := concat(", ", names) if {
	count(names) <= 5
} else := concat("", [concat(", ", array.slice(names, 0, 5)), $" and {count(names) - 5} more"])

default _unverified := ""

_unverified := concat("", ["; groups and roles of this login do not count: ", input.subject.unverified])

for_machines contains role if {
	some held in data.airflow.roles.machines
	some roles in held
	some role in roles
}

# A task that waits for certain people is answered by them, whatever roles others hold.
_reserved(resource) if {
	resource.type == "hitl_task"
	not _assigned
}

# A rule of its own: `not … in` of a context that is not there would be undefined, and nothing reserved.
_assigned if input.context.user_id in input.context.assigned_users

roles(resource) := standing.common_roles if {
	resource.team_id == null
} else := held if {
	held := standing.asked_roles[resource.team_id]
} else := standing.platform_roles

enough(resource) := data.airflow.roles.common[resource.type][input.action] if {
	resource.team_id == null
} else := data.airflow.roles.permissions[concat(".", [resource.type, resource.entity])][input.action] if {
	resource.entity
} else := data.airflow.roles.permissions[resource.type][input.action] if {
	resource.type
} else := data.airflow.roles.permissions[resource.type]["*"] if {
	resource.type
} else := _newer[resource.type]

# What a role table that was written before these types were known does not say.
_newer := {"platform_view": ["admin"], "route": ["admin"]}

_asked := concat("", [input.subject.type, " ", input.subject.id, " may not ", input.action, " "])

_name(resource) := concat("", [_article(resource), _kind(resource), _id(resource), _part(resource), _owner(resource)])

_id(resource) := concat("", [" ", resource.id]) if {
	resource.id
} else := ""

_part(resource) := concat("", [" (", resource.entity, ")"]) if {
	resource.entity
	not _listed_part(resource)
} else := ""

# Parts of which there are several.
_listed_part(resource) if {
	input.action == "list"
	not resource.id
	not resource.entity in {"code", "state"}
	resource.entity
}

_article(resource) := "a common " if {
	_made_common(resource)
} else := "an " if {
	_made_without_name(resource)
	startswith(resource.type, "a")
} else := "a " if {
	_made_without_name(resource)
} else := ""

_made_without_name(resource) if {
	input.action == "create"
	not resource.id
}

_kind(resource) := concat("", [resource.type, " ", trim_suffix(replace(resource.entity, "_", " "), "s"), "s"]) if {
	_listed_part(resource)
} else := concat("", [resource.type, "s"]) if {
	input.action == "list"
	not resource.entity
	not resource.id
	resource.type in {"asset", "connection", "dag", "pool", "team", "variable", "view"}
} else := resource.type

_owner(resource) := concat("", [" of team ", resource.team_id]) if {
	resource.team_id != null
} else := ""

_place(resource) := concat("", [" in team ", resource.team_id]) if {
	resource.team_id != null
} else := " on the platform" if {
	some role in enough(resource)
	role in data.airflow.roles.platform
} else := " in any team"
