# METADATA
# description: A team's rules read only the team's data
package custom.regal.rules.teams["foreign-data"]

import data.regal.ast

report contains violation if {
	input["package"].path[1].value == "teams"
	not endswith(input.regal.file.name, "_test.rego")
	some ref in ast.found.refs[_]
	ref.value[0].value == "data"
	not _own(ref)
	not _shared(ref)
	violation := _violation(ref.location)
}

report contains violation if {
	input["package"].path[1].value == "teams"
	not endswith(input.regal.file.name, "_test.rego")
	some imported in input.imports
	imported.path.value[0].value == "data"
	not _own(imported.path)
	not _shared(imported.path)
	[part.value | some part in imported.path.value] != ["data", "airflow", "authz", "standing"]
	violation := _violation(imported.path.location)
}

_own(ref) if {
	ref.value[1].value == "teams"
	ref.value[2].type == "string"
	ref.value[2].value == input["package"].path[2].value
}

_shared(ref) if {
	path := [part.value | some i, part in ref.value; i > 0]
	some allowed in [
		["airflow", "authz", "standing", "team_ids"],
		["airflow", "authz", "standing", "team_roles"],
		["airflow", "authz", "standing", "platform_roles"],
		["airflow", "roles"],
	]
	array.slice(path, 0, count(allowed)) == allowed
}

# Not by Regal's functions, because OPA also reads this file, and lacks them.
_violation(location) := {
	"category": "teams",
	"title": "foreign-data",
	"description": "A team's rules read only the team's data",
	"level": "error",
	"location": {"file": input.regal.file.name, "row": row, "col": column, "text": input.regal.file.lines[row - 1]},
} if {
	[row, column, _, _] := [to_number(part) | some part in split(location, ":")]
}
