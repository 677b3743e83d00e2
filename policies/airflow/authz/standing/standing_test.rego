package airflow.authz.standing_test

import data.airflow.authz.standing

directory := {
	"groups": {
		"alpha-ops": [{"team_id": "alpha", "role": "op"}],
		"alpha-people": [{"team_id": "alpha"}],
		"both": [{"team_id": "alpha", "role": "viewer"}, {"team_id": "beta", "role": "admin"}],
		"platform": [{"team_id": null, "role": "op"}],
	},
	"roles": {"Beta Users": [{"team_id": "beta", "role": "user"}]},
	"claims": {"department": {"sales": [{"team_id": "beta", "role": "viewer"}]}},
	"group_patterns": {
		"airflow-<team>-<role>": [{"team_id": "<team>", "role": "<role>"}],
		"team:<team>": [{"team_id": "<team>"}],
		"<team> and friends": [{"team_id": "gamma", "role": "viewer"}, {"team_id": "<team>", "role": "op"}],
		"gamma/<role>s": [{"team_id": "gamma", "role": "<role>"}],
		"on call": [{"team_id": "gamma", "role": "op"}],
	},
	"role_patterns": {"<team>_developer": [{"team_id": "<team>", "role": "user"}]},
}

viewer := {"viewer"}

user := {"user", "viewer"}

op := {"op", "user", "viewer"}

admin := {"admin", "op", "user", "viewer"}

# team_roles holds the roles in each team; common and platform those for what is common and for all teams.
cases := {
	"nobody": {"subject": {}, "team_roles": {}, "common": set(), "platform": set()},
	"a member without a role": {
		"subject": {"team_ids": ["alpha"]},
		"team_roles": {"alpha": set()}, "common": set(), "platform": set(),
	},
	"a role without a team counts for what is common": {
		"subject": {"roles": ["op"]},
		"team_roles": {}, "common": op, "platform": set(),
	},
	"a role in a team": {
		"subject": {"team_ids": ["alpha"], "roles": ["user"]},
		"team_roles": {"alpha": user}, "common": user, "platform": set(),
	},
	"a role in two teams": {
		"subject": {"team_ids": ["alpha", "beta"], "roles": ["viewer"]},
		"team_roles": {"alpha": viewer, "beta": viewer}, "common": viewer, "platform": set(),
	},
	"an identity's own admin is the platform's": {
		"subject": {"team_ids": ["alpha"], "roles": ["admin"]},
		"team_roles": {"alpha": admin}, "common": admin, "platform": admin,
	},
	"roles in any case": {
		"subject": {"roles": ["OP", "Viewer"]},
		"team_roles": {}, "common": op, "platform": set(),
	},
	"an unknown role is worth nothing": {
		"subject": {"team_ids": ["alpha"], "roles": ["king"]},
		"team_roles": {"alpha": set()}, "common": set(), "platform": set(),
	},
	"a group with a role": {
		"subject": {"groups": ["alpha-ops"]},
		"team_roles": {"alpha": op}, "common": op, "platform": set(),
	},
	"a group without a role makes a member whose own roles count": {
		"subject": {"groups": ["alpha-people"], "roles": ["user"]},
		"team_roles": {"alpha": user}, "common": user, "platform": set(),
	},
	"a group with a role does not lend its team to other roles": {
		"subject": {"groups": ["both"], "roles": ["op"]},
		"team_roles": {"alpha": viewer, "beta": admin}, "common": op, "platform": set(),
	},
	"a team's admin is an op for what is common": {
		"subject": {"groups": ["both"]},
		"team_roles": {"alpha": viewer, "beta": admin}, "common": op, "platform": set(),
	},
	"a platform group counts in every team": {
		"subject": {"team_ids": ["alpha"], "groups": ["platform"]},
		"team_roles": {"alpha": op}, "common": op, "platform": op,
	},
	"a login role that the directory names": {
		"subject": {"roles": ["Beta Users"]},
		"team_roles": {"beta": user}, "common": user, "platform": set(),
	},
	"a claim": {
		"subject": {"claims": {"department": ["cooking", "sales"], "sales": ["department"]}},
		"team_roles": {"beta": viewer}, "common": viewer, "platform": set(),
	},
	"a group by its pattern": {
		"subject": {"groups": ["airflow-alpha-op"]},
		"team_roles": {"alpha": op}, "common": op, "platform": set(),
	},
	"a team whose id holds what separates": {
		"subject": {"groups": ["airflow-a-b-user"]},
		"team_roles": {"a-b": user}, "common": user, "platform": set(),
	},
	"a team's admin by its pattern is no platform admin": {
		"subject": {"groups": ["airflow-alpha-admin"]},
		"team_roles": {"alpha": admin}, "common": op, "platform": set(),
	},
	"a pattern without a role makes a member whose own roles count": {
		"subject": {"groups": ["team:alpha"], "roles": ["op"]},
		"team_roles": {"alpha": op}, "common": op, "platform": set(),
	},
	"a pattern of a team's own": {
		"subject": {"groups": ["gamma/viewers"]},
		"team_roles": {"gamma": viewer}, "common": viewer, "platform": set(),
	},
	"a pattern for whichever team": {
		"subject": {"groups": ["alpha and friends", "al and friends"]},
		"team_roles": {"alpha": op, "gamma": viewer}, "common": op, "platform": set(),
	},
	"a pattern that stands for nothing is a name": {
		"subject": {"groups": ["on call"]},
		"team_roles": {"gamma": op}, "common": op, "platform": set(),
	},
	"a role by its pattern": {
		"subject": {"roles": ["alpha_developer"]},
		"team_roles": {"alpha": user}, "common": user, "platform": set(),
	},
	"what is not of a pattern": {
		"subject": {"groups": [
			"airflow-alpha-king", "airflow--op", "airflow-op", "airflow-al-op", "airflow-al pha-op", "airflow-<team>-op",
			"airflow-alpha-Op", "Airflow-alpha-op", "airflow-alpha-op ", " airflow-alpha-op", "airflow-älpha-op",
			"airflow-alpha\n-op", "airflow-alpha/beta-op", "airflow-<team>-<role>", "team:", "team:alpha:beta", "gamma/s",
		]},
		"team_roles": {}, "common": set(), "platform": set(),
	},
	"a group that nobody knows": {
		"subject": {"groups": ["strangers"]},
		"team_roles": {}, "common": set(), "platform": set(),
	},
}

test_standing[note] if {
	some note, case in cases
	stands := found(case.subject)
	stands == {"team_roles": case.team_roles, "common": case.common, "platform": case.platform}
}

test_number_of_cases if count(cases) == 25

found(subject) := standing_with(subject, directory)

standing_with(subject, tables) := stands if {
	stands := {
		"team_roles": standing.team_roles,
		"common": standing.common_roles,
		"platform": standing.platform_roles,
	} with input as {"subject": subject} with data.airflow.directory as tables
}

letters := split("abcdefghijklmnopqrstuvwxyz", "")

many := [$"{letter} of a group whose name is rather long for a group" | some letter in letters]

# With more than 20 names and patterns, names are found in another way.
test_standing_with_many_names_and_patterns[note] if {
	other := {$"other{letter}-<team>": [{"team_id": "<team>", "role": "admin"}] | some letter in letters}
	tables := object.union(directory, {"group_patterns": other, "role_patterns": other})
	some note, case in cases
	subject := object.union(case.subject, {"groups": array.concat(object.get(case.subject, "groups", [""]), many)})
	standing_with(subject, tables) == found(case.subject)
}

# As a bundle has it of tables with many patterns.
index(patterns) := {
	"count": count(patterns),
	"fixed": {entry.team_id: true | some entries in patterns; some entry in entries},
	"lengths": {[count(shape[0]), count(shape[1])] | some shape in shapes(patterns)},
	"patterns": {start: {end: [pattern | some pattern, [start, end] in shapes(patterns)] |
		some [start, end] in shapes(patterns)
	} |
		some [start, _] in shapes(patterns)
	},
}

shapes(patterns) := {pattern: shape |
	some pattern, _ in patterns
	words := {place | some word in ["<team>", "<role>"]; contains(pattern, word); place := count(split(pattern, word)[0])}
	shape := [concat("", array.slice(split(pattern, ""), 0, min(words | {count(pattern)}))), ""]
}

indexed[table] := index(directory[table]) if some table in ["group_patterns", "role_patterns"]

test_an_index_of_patterns_changes_nothing[note] if {
	some note, case in cases
	stands := found(case.subject) with data.airflow.pattern_shapes as indexed
	stands == {"team_roles": case.team_roles, "common": case.common, "platform": case.platform}
}

# It would find nobody.
test_an_index_of_other_patterns_does_not_count[note] if {
	some note, case in cases
	other := {table: {"count": 1000, "lengths": [], "patterns": {}} | some table, _ in indexed}
	stands := found(case.subject) with data.airflow.pattern_shapes as other
	stands == {"team_roles": case.team_roles, "common": case.common, "platform": case.platform}
}

test_many_patterns_give_what_each_gives if {
	patterns := {$"{letter}.<team>.{letter}": [{"team_id": "<team>", "role": "op"}] | some letter in letters}
	groups := array.concat(["g.alpha.g", "z.beta.z", "g.gamma.h", ""], many)
	stands := standing_with({"groups": groups}, {"group_patterns": patterns})
	stands.team_roles == {"alpha": op, "beta": op}
}

# Questions about some teams find the same roles in these, however many names the subject has.
test_some_teams[note] if {
	some note, case in cases
	some team_ids in [["alpha", "beta", null], ["gamma", "a-b"], ["alpha", "alpha", ""], array.concat(["gamma"], letters)]
	some names in [[], many]
	subject := object.union(case.subject, {"groups": array.concat(object.get(case.subject, "groups", [""]), names)})
	resources := [{"type": "dag", "team_id": team_id} | some team_id in team_ids]
	every shapes in [{}, indexed] {
		held := standing.asked_roles with input as {"subject": subject, "action": "read", "resources": resources}
			with data.airflow.directory as directory
			with data.airflow.pattern_shapes as shapes
		held == {team: roles | some team, roles in case.team_roles; team in team_ids}
	}
}

# The roles in a team are the same for who asks about it alone.
test_one_team[note] if {
	some note, case in cases
	every team_id in {"alpha", "beta", "gamma", "a-b", "<team>", ""} {
		question := {"subject": case.subject, "action": "read", "resource": {"type": "dag", "team_id": team_id}}
		every shapes in [{}, indexed] {
			held := standing.asked_roles with input as question
				with data.airflow.directory as directory
				with data.airflow.pattern_shapes as shapes
			held == {team: roles | some team, roles in case.team_roles; team == team_id}
		}
	}
}

test_teams_that_a_list_asks_for if {
	resources := [{"type": "dag", "team_id": team_id} | some team_id in ["alpha", "beta", null]]
	question := {"subject": {"groups": ["both"]}, "action": "read", "resources": resources}
	held := standing.asked_roles with input as question with data.airflow.directory as directory
	held == {"alpha": viewer, "beta": admin}
}

test_what_a_list_knows_is_not_found_out_again if {
	known := {"team_ids": {"alpha"}, "team_roles": {"alpha": op}, "platform_roles": admin}
	found := {
		"team_ids": standing.team_ids,
		"team_roles": standing.team_roles,
		"platform_roles": standing.platform_roles,
	} with input as {"subject": {}} with data.airflow.authz.known as known
	found == known
}

some_letters := array.slice(letters, 0, 12)

# Of how much is told of the subject, and how much the directory says: whether a list knows it before.
lists := {
	"a short list": {"subject": {"groups": ["both"]}, "known": false},
	"many names": {"subject": {"groups": many}, "known": true},
	"a name that says much": {"subject": {"groups": ["all"]}, "known": true},
	"many claims": {"subject": {"claims": {letter: [] | some letter in letters}}, "known": true},
	"two claims of some values": {"subject": {"claims": {"a": some_letters, "b": some_letters}}, "known": true},
	"a claim of many values": {"subject": {"claims": {"department": letters}}, "known": true},
	"many patterns": {"subject": {}, "role_patterns": {$"{letter}<team>": [] | some letter in letters}, "known": true},
}

test_what_a_list_knows[note] if {
	entries := [{"team_id": $"team{letter}", "role": "op"} | some letter in array.concat(letters, letters)]
	some note, case in lists
	question := {"subject": case.subject, "action": "read", "resources": [{}, {}]}
	known := {found | found := standing.of_long_list} with input as question
		with data.airflow.directory.groups as object.union(directory.groups, {"all": entries})
		with data.airflow.directory.role_patterns as object.get(case, "role_patterns", {})
	count(known) == 1 == case.known
}

a_list := {"subject": {"groups": many}, "action": "read", "resources": [{"team_id": "alpha"}, {"team_id": "gamma"}]}

# What the bundle says that rules read, and what a list about team alpha knows then.
reads := [
	{"read": {"site": [], "teams": {}}, "known": {"platform_roles"}},
	{"read": {"site": ["team_ids"], "teams": {}}, "known": {"platform_roles", "team_ids"}},
	{"read": {"site": [], "teams": {"alpha": ["team_roles"]}}, "known": {"platform_roles", "team_roles"}},
	{"read": {"site": [], "teams": {"beta": ["team_roles"]}}, "known": {"platform_roles"}},
]

test_a_list_knows_what_rules_read[i] if {
	some i, case in reads
	known := standing.of_long_list with input as a_list with data.airflow.read_of_standing as case.read
	object.keys(known) == case.known
}

test_a_list_knows_all_where_nothing_is_said_of_rules if {
	object.keys(standing.of_long_list) == {"platform_roles", "team_ids", "team_roles"} with input as a_list
}

test_team_ids_come_from_identity_and_directory if {
	standing.team_ids == {"alpha", "beta", "gamma"} with input as {"subject": {"team_ids": ["gamma"], "groups": ["both"]}}
		with data.airflow.directory as directory
}

test_nobody_is_in_a_directory_that_is_not_there if {
	standing.team_ids == set() with input as {"subject": {"groups": ["alpha-ops"]}}
		with data.airflow.directory as {}
}

test_a_name_that_can_be_read_in_two_ways_says_nothing if {
	roles := {"op": [], "super-op": [], "viewer": []}
	ambiguous := {"subject": {"groups": ["airflow-alpha-super-op", "airflow-beta-viewer"]}}
	stands := standing.team_roles with input as ambiguous
		with data.airflow.directory as directory
		with data.airflow.roles.includes as roles
	stands == {"beta": viewer}
}

test_a_pattern_never_gives_the_platform if {
	everywhere := {"group_patterns": {"<role>s": [{"team_id": null, "role": "<role>"}]}}
	stands := standing.platform_roles with input as {"subject": {"groups": ["admins"]}}
		with data.airflow.directory as everywhere
	stands == set()
}
