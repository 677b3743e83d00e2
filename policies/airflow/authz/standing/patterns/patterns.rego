# METADATA
# title: Names by their patterns
# description: |
#   What the directory's patterns, such as `airflow-<team>-<role>`, say of the subject's names.
# scope: package
# schemas:
#   - input: schema.input
#   - data.airflow.directory: schema.directory
#   - data.airflow.roles: schema.roles
package airflow.authz.standing.patterns

# METADATA
# title: All that they say
# description: "Each with where: `[\"group_patterns\", \"airflow-<team>\", {\"team_id\": \"alpha\"}]`."
said := [[table, pattern, entry] |
	some table, these in _names
	some [pattern, forms, name] in _fitting(table, these)
	some entry in _filled(table, pattern, forms, name)
]

# METADATA
# title: What they say of some teams
# description: "`team_ids`: the set of them."
said_of(team_ids) := [entry |
	some table, these in _names
	some [pattern, forms, name] in _meant(table, these, team_ids)
	some entry in _filled(table, pattern, forms, name)
	team_ids[entry.team_id]
]

_fitting(table, these) := [[pattern, _written(pattern), name] |
	some [pattern, name] in _of_one_shape(table, these)
] if {
	_indexed[table]
} else := array.concat(_looked_up(object.keys(_tried[table]), these, {""}), _alike(table, these))

# Without an index, it makes each name that could mean one of these teams, and looks these up. It tries all names
# instead if they are fewer. It always does for a pattern that means a team of its own, whichever one a name has.
_meant(table, these, team_ids) := _fitting(table, _naming(table, these, team_ids)) if {
	_indexed[table]
} else := array.concat(fixed, other) if {
	(count(team_ids) - 1) * count(_tried[table]) <= count(these)
	fixed := _looked_up(_meaning(table, team_ids | {"<team>", "<role>"}), these, team_ids)
	other := [[pattern, _written(pattern), name] |
		some pattern in _meaning(table, team_ids | {"<role>"})
		contains(pattern, "<team>")
		some name in these
	]
} else := _fitting(table, these)

# Tables of so many patterns that the bundle has an index of their shapes: what comes before and after the words that
# stand for others. An index of another number of patterns is that of another table.
_indexed contains table if {
	some table, index in data.airflow.pattern_shapes
	index.count == count(data.airflow.directory[table])
}

# Names with the patterns that begin and end as they do. The work grows with the names and with the lengths of what they
# begin and end with, and not with the patterns.
_of_one_shape(table, these) := [[pattern, name] |
	some name in these
	letters := split(name, "")
	length := count(letters)
	some [before, after] in data.airflow.pattern_shapes[table].lengths
	before + after <= length
	begins := concat("", array.slice(letters, 0, before))
	ends := concat("", array.slice(letters, length - after, length))
	some pattern in data.airflow.pattern_shapes[table].patterns[begins][ends]
]

# The names that may mean these teams. A name that means one team has its id, unless a pattern means the team whichever
# one a name has.
_naming(table, these, team_ids) := [name | some name in these; contains(name, team_id)] if {
	count(team_ids) == 1
	some team_id in team_ids
	is_string(team_id)
	not data.airflow.pattern_shapes[table].fixed[team_id]
} else := these

# The patterns, without those that no name begins like. With many names, it would take longer to find that out.
_tried[table][pattern] := templates if {
	some table, these in _names
	some pattern, templates in data.airflow.directory[table]
	_begun(split(pattern, "<")[0], these)
}

_begun(start, these) if {
	count(these) <= 20
	some name in these
	startswith(name, start)
}

_begun(_, these) if count(these) > 20

_names.group_patterns := input.subject.groups if data.airflow.directory.group_patterns

_names.role_patterns := input.subject.roles if data.airflow.directory.role_patterns

_meaning(table, words) := {pattern |
	some pattern, templates in _tried[table]
	some template in templates
	words[template.team_id]
}

# The names that a pattern makes with one of these ids in the place of `<team>`.
_looked_up(patterns, these, team_ids) := found if {
	possible := {name: true |
		some pattern in patterns
		some [_, parts] in _written(pattern)
		some team_id in team_ids
		name := concat(team_id, parts)
	}
	present := object.filter(possible, these)
	found := [[pattern, forms, name] |
		count(present) > 0
		some pattern in patterns
		forms := _written(pattern)
		names := {concat(team_id, parts) | some [_, parts] in forms; some team_id in team_ids}
		some name in names
		present[name]
	]
}

# The names that begin and end as a pattern with `<team>` does. If there are many patterns, each name is looked up among
# them, so that the work does not grow with the product.
_alike(table, these) := [[pattern, forms, name] |
	some [start, end], patterns in _shapes[table]
	some pattern in patterns
	forms := _written(pattern)
	some name in these
	startswith(name, start)
	endswith(name, end)
] if {
	count(_shapes[table]) <= 20
} else := [[pattern, _written(pattern), name] |
	lengths := {[count(start), count(end)] | some [start, end], _ in _shapes[table]}
	some name in these
	letters := split(name, "")
	some [start, end] in lengths
	end <= count(letters)
	first := concat("", array.slice(letters, 0, start))
	some pattern in _shapes[table][[first, concat("", array.slice(letters, count(letters) - end, count(letters)))]]
]

_shapes[table][[start, ends[count(ends) - 1]]] contains pattern if {
	some table, _ in _names
	some pattern, _ in _tried[table]
	contains(pattern, "<team>")
	start := split(pattern, "<")[0]
	ends := split(pattern, ">")
}

# The entries of a pattern for a name. What can be read in two ways says nothing, and nothing here is the platform's:
# that takes a name in full.
_filled(table, pattern, forms, name) := [entry |
	readings := [{"<team>": team, "<role>": role} |
		some [role, parts] in forms
		contains(name, role)
		team := _between(parts, name)
	]
	count(readings) == 1
	some template in data.airflow.directory[table][pattern]
	template.team_id != null
	entry := {key: object.get(readings[0], word, word) | some key, word in template}
]

# A pattern with each role, as what is before and after the team's id; or in full, where there is none.
_written(pattern) := [[role, split(replace(pattern, "<role>", role), "<team>")] | some role in _possible_roles(pattern)]

_possible_roles(pattern) := object.keys(data.airflow.roles.includes) if {
	contains(pattern, "<role>")
} else := {""}

_between([whole], name) := "" if whole == name

_between([before, after], name) := team if {
	startswith(name, before)
	rest := trim_prefix(name, before)
	endswith(rest, after)
	team := trim_suffix(rest, after)

	# As Airflow has it for team names. To compile a regular expression takes longer than a decision.
	count(team) >= 3
	count(team) <= 50
	trim(team, "0123456789-_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") == ""
}
