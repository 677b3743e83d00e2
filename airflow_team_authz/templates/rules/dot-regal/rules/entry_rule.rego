# METADATA
# description: A team's allow and deny are sets of reasons
package custom.regal.rules.teams["entry-rule"]

report contains violation if {
	count(input["package"].path) == 3
	input["package"].path[1].value == "teams"
	not endswith(input.regal.file.name, "_test.rego")
	some rule in input.rules
	rule.head.ref[0].value in {"allow", "deny"}
	not _set(rule.head)
	violation := _violation(rule.head.location)
}

_set(head) if {
	head.key
	not head.value
	count(head.ref) == 1
}

# Not by Regal's functions, because OPA also reads this file, and lacks them.
_violation(location) := {
	"category": "teams",
	"title": "entry-rule",
	"description": "A team's allow and deny are sets of reasons",
	"level": "error",
	"location": {"file": input.regal.file.name, "row": row, "col": column, "text": input.regal.file.lines[row - 1]},
} if {
	[row, column, _, _] := [to_number(part) | some part in split(location, ":")]
}
