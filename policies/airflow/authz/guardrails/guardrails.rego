# METADATA
# title: What nobody overrides
# description: Shipped with the package. A site adds its own in `data.airflow.site.deny`.
# scope: package
# schemas:
#   - input: schema.input
package airflow.authz.guardrails

import data.airflow.authz.standing

# METADATA
# title: Reasons to deny
# scope: document
deny contains $"a {input.subject.type} only reads" if {
	input.subject.type in {"dag_processor", "triggerer"}
	input.action in _writes
	not _kept_for_watchers
}

deny contains $"{input.resource.type} is for people, not for a {input.subject.type}" if {
	input.subject.type != "user"
	input.resource.type in {"configuration", "view", "custom_view", "platform_view", "route", "team", "hitl_task"}
}

deny contains "teams are created, changed and deleted by the platform's admins" if {
	input.resource.type == "team"
	input.action in _writes
	not "admin" in standing.platform_roles
}

# The triggerer runs watchers, which keep their place in an asset's state.
_kept_for_watchers if {
	input.subject.type == "triggerer"
	input.resource.type == "asset"
	input.resource.entity == "state"
}

_writes := {"create", "update", "delete", "trigger"}
