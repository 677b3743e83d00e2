# METADATA
# title: Where the subject stands
# description: |
#   Teams and roles that follow from what the identity carries and from `data.airflow.directory`.
#   Nothing here looks at a resource but for its team, so a list of resources pays for it once.
#   A person may have thousands of names, and the directory thousands of entries: the work grows with either, never with
#   their product, and a question about one team does not look at the roles of all others.
#   Team packages may read `team_ids`, `team_roles` and `platform_roles`.
# scope: package
# schemas:
#   - input: schema.input
#   - data.airflow.directory: schema.directory
#   - data.airflow.roles: schema.roles
package airflow.authz.standing

import data.airflow.authz.standing.patterns

# METADATA
# title: Teams that the subject belongs to
team_ids := known if {
	known := data.airflow.authz.known.team_ids
} else := object.keys(_in_teams)

# METADATA
# title: Roles held for the platform, with every role that they include
platform_roles := known if {
	known := data.airflow.authz.known.platform_roles
} else := _included(_held_for_platform)

# METADATA
# title: Roles in each of the subject's teams, with every role that they include
# description: "`{team_id: {role}}`; what is held for the platform counts in every team."
team_roles := known if {
	known := data.airflow.authz.known.team_roles
} else := {team_id: _held_by[said] | some team_id, said in _in_teams}

# METADATA
# title: The same, at least of the teams that the question is about
asked_roles := {team_id: _held_for(said) |
	some team_id in _asked_teams
	said := _said_of(team_id)
	count(said) > 0
} if {
	count(_asked_teams) == 1
} else := team_roles

# METADATA
# title: Roles that count for what is common to all teams
# description: |
#   Those held anywhere, but a platform role (`data.airflow.roles.platform`) only if it is held for the platform:
#   the admin of one team is no admin of what all teams share.
common_roles := (platform_roles | _machine_roles) | (_included(_held_anywhere) - {role |
	some role in data.airflow.roles.platform
})

# METADATA
# title: What rules may ask of the subject, who is the same for all of a list
# description: Undefined where it is as soon found out for each resource. Whoever asks for that has it known.
# scope: rule
# schemas:
#   - input: schema.evaluations
of_long_list := {"team_ids": team_ids, "team_roles": team_roles, "platform_roles": platform_roles} if {
	count(input.resources) > 1
	_takes_long
}

_takes_long if count(_named) > 20

_takes_long if count(json.marshal(input.subject)) > 1000

_takes_long if {
	some table in ["group_patterns", "role_patterns"]
	count(data.airflow.directory[table]) > 20
}

# A task, a watcher and so on: what it is says what it holds, and nothing that an identity carries does.
_machine_roles := {role | some role in data.airflow.roles.machines[_situation][input.subject.type]}

default _situation := "without_team"

_situation := "in_team" if count(input.subject.team_ids) > 0

_included(roles) := graph.reachable(data.airflow.roles.includes, roles)

_held_for_platform := {role | some role in _own_roles; role in data.airflow.roles.platform} | {entry.role |
	some entry in _named
	entry.team_id == null
}

_held_anywhere := (_own_roles | {entry.role | some entry in _named}) | {entry.role |
	some [_, _, entry] in patterns.said
}

# An identity's own roles hold for the teams that it belongs to, unless the directory names a role
# for the team: then that one is meant.
_held_for(said) := _included(((_held_for_platform | said) | own)) | _machine_roles if {
	own := {role | said[_its_own]; some role in _own_roles}
}

# Many teams, and few kinds of what is said of them: roles include others, and finding these out takes long.
# A value and not a rule of its elements, which would find it out for each team.
# regal ignore:prefer-set-or-object-rule
_held_by := {said: _held_for(said) | some said in {said | some said in _in_teams}}

# Stands among the roles of a team for those that the identity carries. A set, which no directory can hold.
_its_own := set()

# For each of the subject's teams what is said of it.
_in_teams[team_id] contains _its_own if some team_id in input.subject.team_ids

_in_teams[entry.team_id] contains object.get(entry, "role", _its_own) if {
	some entry in _named
	entry.team_id != null
}

_in_teams[entry.team_id] contains object.get(entry, "role", _its_own) if some [_, _, entry] in patterns.said

# The same of one team.
_said_of(team_id) := {object.get(entry, "role", _its_own) |
	some entry in array.concat(_named, patterns.said_of(team_id))
	entry.team_id == team_id
} | {_its_own | team_id in input.subject.team_ids}

_asked_teams contains input.resource.team_id

# METADATA
# scope: rule
# schemas:
#   - input: schema.evaluations
_asked_teams contains resource.team_id if some resource in input.resources

# Airflow's managers write the same role as `Op`, `OP` and `op`. `lower` only sorts out what is no role at all: to it
# `ADMİN` is `admin`, and the engines know capitals of different Unicode versions. What counts is the case of A to Z.
_own_roles contains concat("", [object.get(_small, letter, letter) | some letter in split(role, "")]) if {
	count(_machine_roles) == 0
	some role in input.subject.roles
	_role_names[lower(role)]
}

# A value, because an OPA server would compute a rule of its elements again for each role.
# regal ignore:prefer-set-or-object-rule
_role_names := {lower(role) | some role, _ in data.airflow.roles.includes}

_small := {
	"A": "a", "B": "b", "C": "c", "D": "d", "E": "e", "F": "f", "G": "g", "H": "h", "I": "i",
	"J": "j", "K": "k", "L": "l", "M": "m", "N": "n", "O": "o", "P": "p", "Q": "q", "R": "r",
	"S": "s", "T": "t", "U": "u", "V": "v", "W": "w", "X": "x", "Y": "y", "Z": "z",
}

# What the directory says of names in full: an array, because a set of thousands takes long, and by look-ups, because an
# OPA server would copy a table that is passed on as a whole.
_named := array.flatten(array.flatten([
	[found | some name in input.subject.groups; found := data.airflow.directory.groups[name]],
	[found | some name in input.subject.roles; found := data.airflow.directory.roles[name]],
	[found |
		some claim, values in input.subject.claims
		some value in values
		found := data.airflow.directory.claims[claim][value]
	],
]))

# METADATA
# title: What the directory says of the subject
# description: "Each with where it says so: `[\"groups\", \"alpha-ops\", {\"team_id\": \"alpha\", \"role\": \"op\"}]`."
# scope: document
entries contains ["groups", group, entry] if {
	some group in input.subject.groups
	some entry in data.airflow.directory.groups[group]
}

entries contains ["roles", role, entry] if {
	some role in input.subject.roles
	some entry in data.airflow.directory.roles[role]
}

entries contains [$"claims.{claim}", value, entry] if {
	some claim, values in input.subject.claims
	some value in values
	some entry in data.airflow.directory.claims[claim][value]
}

entries contains said if some said in patterns.said
