# METADATA
# title: The platform team's own rules
# description: |
#   `deny` here is a guardrail: nobody overrides it. `allow` adds to the baseline, for every team.
#   These two show the form; replace them by what your platform needs.
# scope: package
# schemas:
#   - input: schema.input
package airflow.site

# METADATA
# title: Reasons to deny, for everyone
# scope: document
deny contains "the audit connection is read by the platform only" if {
	input.resource.type == "connection"
	input.resource.id == "audit_store"
	not "admin" in data.airflow.authz.standing.platform_roles
}

# METADATA
# title: Reasons to allow, for everyone
# scope: document
allow contains "everyone may read the common variable 'announcement'" if {
	input.action == "read"
	input.resource.type == "variable"
	input.resource.id == "announcement"
	input.resource.team_id == null
}
