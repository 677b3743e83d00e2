# METADATA
# description: A team's allow and deny are sets of reasons
# schemas:
#   - input: schema.regal.ast
package custom.regal.rules.teams["entry-rule"]

import data.regal.result

report contains violation if {
	count(input["package"].path) == 3
	input["package"].path[1].value == "teams"
	not endswith(input.regal.file.name, "_test.rego")
	some rule in input.rules
	rule.head.ref[0].value in {"allow", "deny"}
	not _set(rule.head)
	violation := result.fail(rego.metadata.chain(), result.location(rule.head))
}

_set(head) if {
	head.key
	not head.value
	count(head.ref) == 1
}
