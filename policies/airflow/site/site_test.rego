package airflow.site_test

import data.airflow.authz

ask(id, roles, resource) := answer if {
	subject := {"type": "user", "id": id, "team_ids": ["alpha"], "roles": roles}
	answer := authz.decision with input as {"subject": subject, "action": "read", "resource": resource}
}

audit_store := {"type": "connection", "id": "audit_store", "team_id": "alpha"}

announcement := {"type": "variable", "id": "announcement", "team_id": null}

test_a_team_does_not_read_the_audit_store if {
	answer := ask("ann", ["op"], audit_store)
	answer == {"allow": false, "layer": "guardrail", "reasons": ["the audit connection is read by the platform only"]}
}

test_the_platform_reads_the_audit_store if ask("pat", ["admin"], audit_store).allow

test_everyone_reads_the_announcement if ask("eve", [], announcement).allow

test_not_everyone_reads_other_variables if not ask("eve", [], object.union(announcement, {"id": "secret"})).allow
