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
} else := {team_id | some team_id in input.subject.team_ids} | ({entry.team_id | some entry in _entries} - {null})

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
} else := _held_in(_in_teams)

# METADATA
# title: The same of the teams that the question is about
asked_roles := _held_in(_in_asked_teams)

# METADATA
# title: Roles that count for what is common to all teams
# description: |
#   Those held anywhere, but a platform role (`data.airflow.roles.platform`) only if it is held for the platform:
#   the admin of one team is no admin of what all teams share.
common_roles := (platform_roles | _machine_roles) | (_included(_held_anywhere) - {role |
	some role in data.airflow.roles.platform
})

# METADATA
# title: What rules read of the subject, found out once for a list
# description: |
#   Undefined where it takes no longer to find it out for each resource. The caller puts it into
#   `data.airflow.authz.known`. A rule that reads what is not there finds it out itself: so what a bundle says of its
#   rules may make a list slow, but not wrong.
# scope: rule
# schemas:
#   - input: schema.evaluations
of_long_list := {name: value | some name, value in _for_rules} if {
	count(input.resources) > 1
	_takes_long
}

_for_rules.platform_roles := platform_roles

_for_rules.team_ids := team_ids if _is_read("team_ids")

_for_rules.team_roles := team_roles if _is_read("team_roles")

# The names that rules read, as the bundle says: rules of the platform, and of the teams that the question is about.
_is_read(name) if name in data.airflow.read_of_standing.site

_is_read(name) if {
	some team_id in _asked_teams
	name in data.airflow.read_of_standing.teams[team_id]
}

_is_read(_) if not data.airflow.read_of_standing

_takes_long if count(_named) > 20

_takes_long if {
	some part in ["team_ids", "groups", "roles", "claims"]
	count(input.subject[part]) > 20
}

_takes_long if count([value | some values in input.subject.claims; some value in values]) > 20

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
	some entry in _about_asked
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

# To find out which roles others include takes long. What is said of many teams is the same, so each different set of
# roles is looked at once.
_held_in(teams) := {team_id: _held_for(said) | some team_id, said in teams} if {
	count(teams) <= 1
} else := {team_id: held[said] | some team_id, said in teams} if {
	kinds := {said | some said in teams}
	held := {said: _held_for(said) | some said in kinds}
}

# Stands among the roles of a team for those that the identity carries. A set, which no directory can hold.
_its_own := set()

# For each of the subject's teams what is said of it.
_in_teams[team_id] contains _its_own if some team_id in input.subject.team_ids

_in_teams[entry.team_id] contains object.get(entry, "role", _its_own) if {
	some entry in _entries
	entry.team_id != null
}

# The same of the teams that the question is about.
_in_asked_teams[team_id] contains _its_own if some team_id in _asked_of_login

_in_asked_teams[entry.team_id] contains object.get(entry, "role", _its_own) if {
	some entry in array.concat(_about_asked, patterns.said_of(_asked_teams))
	entry.team_id != null
}

_asked_of_login := [team_id | some team_id in _asked_teams; team_id in input.subject.team_ids] if {
	count(_asked_teams) == 1
} else := object.keys(object.filter({team_id: true | some team_id in _asked_teams}, input.subject.team_ids))

_entries := array.concat(_named, [entry | some [_, _, entry] in patterns.said])

# What the directory says of names in full about these teams, and about the platform.
_about_asked := [entry | some entry in _named; _asked[entry.team_id]]

# Complete rules, because an OPA server would evaluate a partial set again for each look-up.
_asked_teams := _asked - {null}

# `null` stands for the platform, which every question is about.
default _asked := {null}

_asked := _asked_by_list if {
	count(_asked_by_list) > 1
} else := {null, input.resource.team_id}

# METADATA
# scope: rule
# schemas:
#   - input: schema.evaluations
_asked_by_list := {null} | {resource.team_id | some resource in input.resources}

# Airflow's managers write the same role as `Op`, `OP` and `op`. `lower` only sorts out what is no role at all: to it
# `ADMİN` is `admin`, and the engines know capitals of different Unicode versions. What counts is the case of A to Z.
_own_roles contains _in_small_letters(role) if {
	count(_machine_roles) == 0
	some role in input.subject.roles
	_role_names[lower(role)]
}

_in_small_letters(role) := role if role == lower(role)

else := concat("", [object.get(_small, letter, letter) | some letter in split(role, "")])

# A value, because an OPA server would compute a rule of its elements again for each role.
# regal ignore:prefer-set-or-object-rule
_role_names := {lower(role) | some role, _ in data.airflow.roles.includes}

_small := {
	"A": "a", "B": "b", "C": "c", "D": "d", "E": "e", "F": "f", "G": "g", "H": "h", "I": "i",
	"J": "j", "K": "k", "L": "l", "M": "m", "N": "n", "O": "o", "P": "p", "Q": "q", "R": "r",
	"S": "s", "T": "t", "U": "u", "V": "v", "W": "w", "X": "x", "Y": "y", "Z": "z",
}

# What the directory says of names in full. An array, because a set of thousands takes long. An OPA server copies a
# table that a built-in gets, but not one that has a local name.
_named := array.flatten(array.flatten([
	[found |
		table := data.airflow.directory.groups
		some name in input.subject.groups
		found := table[name]
	],
	[found |
		table := data.airflow.directory.roles
		some name in input.subject.roles
		found := table[name]
	],
	[found |
		some claim, values in input.subject.claims
		table := data.airflow.directory.claims[claim]
		some value in values
		found := table[value]
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
