# METADATA
# title: Where the subject stands
# description: |
#   Teams and roles that follow from what the identity carries and from `data.airflow.directory`.
#   Nothing here looks at the resource, so a list of resources pays for it once.
#   Team packages may read `team_ids`, `team_roles` and `platform_roles`.
# scope: package
# schemas:
#   - input: schema.input
#   - data.airflow.directory: schema.directory
#   - data.airflow.roles: schema.roles
package airflow.authz.standing

# METADATA
# title: Teams that the subject belongs to
# scope: document
team_ids contains team_id if some team_id in input.subject.team_ids

team_ids contains entry.team_id if {
	some [_, _, entry] in entries
	entry.team_id != null
}

# METADATA
# title: Roles held for the platform, with every role that they include
platform_roles := included(held_for_platform)

# METADATA
# title: Roles in each of the subject's teams, with every role that they include
# description: "`{team_id: {role}}`; what is held for the platform counts in every team."
team_roles[team_id] := included(held_for_platform | held_for(team_id)) | machine_roles if some team_id in team_ids

# METADATA
# title: Roles that count for what is common to all teams
# description: |
#   Those held anywhere, but a platform role (`data.airflow.roles.platform`) only if it is held for the platform:
#   the admin of one team is no admin of what all teams share.
common_roles := (platform_roles | machine_roles) | (included(held_anywhere) - {role |
	some role in data.airflow.roles.platform
})

# A task, a watcher and so on: what it is says what it holds, and nothing that an identity carries does.
machine_roles := {role | some role in data.airflow.roles.machines[situation][input.subject.type]}

default situation := "without_team"

situation := "in_team" if count(input.subject.team_ids) > 0

included(roles) := graph.reachable(data.airflow.roles.includes, roles)

held_for_platform contains role if {
	some role in own_roles
	role in data.airflow.roles.platform
}

held_for_platform contains entry.role if {
	some [_, _, entry] in entries
	entry.team_id == null
}

# An identity's own roles hold for the teams that it belongs to, unless the directory names a role
# for the team: then that one is meant.
held_for(team_id) := own | named if {
	own := {role | team_id in own_team_ids; some role in own_roles}
	named := {entry.role | some [_, _, entry] in entries; entry.team_id == team_id}
}

held_anywhere := own_roles | {entry.role | some [_, _, entry] in entries}

# Airflow's managers write the same role as `Op`, `OP` and `op`. `lower` only sorts out what is no role at all: to it
# `ADMİN` is `admin`, and the engines know capitals of different Unicode versions. What counts is the case of A to Z.
own_roles contains concat("", [object.get(small, letter, letter) | some letter in split(role, "")]) if {
	count(machine_roles) == 0
	some role in input.subject.roles
	lower(role) in known
}

known contains lower(role) if some role, _ in data.airflow.roles.includes

small := {
	"A": "a", "B": "b", "C": "c", "D": "d", "E": "e", "F": "f", "G": "g", "H": "h", "I": "i",
	"J": "j", "K": "k", "L": "l", "M": "m", "N": "n", "O": "o", "P": "p", "Q": "q", "R": "r",
	"S": "s", "T": "t", "U": "u", "V": "v", "W": "w", "X": "x", "Y": "y", "Z": "z",
}

own_team_ids contains team_id if some team_id in input.subject.team_ids

own_team_ids contains entry.team_id if {
	some [_, _, entry] in entries
	not entry.role
}

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

entries contains ["group_patterns", pattern, entry] if {
	some pattern, templates in data.airflow.directory.group_patterns
	some group in input.subject.groups
	some entry in filled(pattern, templates, group)
}

entries contains ["role_patterns", pattern, entry] if {
	some pattern, templates in data.airflow.directory.role_patterns
	some role in input.subject.roles
	some entry in filled(pattern, templates, role)
}

# The entries of a pattern such as `airflow-<team>-<role>` for a name. What can be read in two ways says nothing, and
# nothing here is the platform's: that takes a name in full.
filled(pattern, templates, name) := {entry |
	startswith(name, split(pattern, "<")[0])
	found := readings(pattern, name)
	count(found) == 1
	some reading in found
	some template in templates
	template.team_id != null
	entry := {key: object.get(reading, word, word) | some key, word in template}
}

readings(pattern, name) := {{"<team>": team, "<role>": role} |
	some role in possible_roles(pattern)
	team := between(split(replace(pattern, "<role>", role), "<team>"), name)
}

possible_roles(pattern) := object.keys(data.airflow.roles.includes) if {
	contains(pattern, "<role>")
} else := {""}

between([whole], name) := "" if whole == name

between([before, after], name) := team if {
	startswith(name, before)
	endswith(name, after)
	team := trim_suffix(trim_prefix(name, before), after)

	# As Airflow has it for team names.
	regex.match(`^[a-zA-Z0-9_-]{3,50}$`, team)
	name == concat("", [before, team, after])
}
