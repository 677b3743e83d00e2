# METADATA
# description: Patterns are constants in the call itself
# schemas:
#   - input: schema.regal.ast
package custom.regal.rules.teams["constant-pattern"]

import data.regal.ast
import data.regal.result

report contains violation if {
	input["package"].path[1].value == "teams"
	some call in ast.function_calls[_]
	call.name in {"regex.match", "glob.match"}
	call.args[0].type != "string"
	violation := result.fail(rego.metadata.chain(), result.location(call.args[0]))
}
