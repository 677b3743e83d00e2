# METADATA
# description: Patterns are constants in the call itself
package custom.regal.rules.teams["constant-pattern"]

import data.regal.ast

report contains violation if {
	input["package"].path[1].value == "teams"
	some call in ast.function_calls[_]
	call.name in {"regex.match", "glob.match"}
	call.args[0].type != "string"
	violation := _violation(call.args[0].location)
}

# Not by Regal's functions, because OPA also reads this file, and lacks them.
_violation(location) := {
	"category": "teams",
	"title": "constant-pattern",
	"description": "Patterns are constants in the call itself",
	"level": "error",
	"location": {"file": input.regal.file.name, "row": row, "col": column, "text": input.regal.file.lines[row - 1]},
} if {
	[row, column, _, _] := [to_number(part) | some part in split(location, ":")]
}
