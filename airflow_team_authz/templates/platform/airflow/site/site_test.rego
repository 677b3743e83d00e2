package airflow.site_test

import data.airflow.authz

connection := {"type": "connection", "id": "audit_store", "team_id": null}

variable := {"type": "variable", "id": "announcement", "team_id": null}

admin := {"type": "user", "id": "ada", "roles": ["admin"]}

operator := {"type": "user", "id": "oscar", "roles": ["op"], "team_ids": ["some_team"]}

guest := {"type": "user", "id": "gus"}

test_platform_connection_is_denied_to_operators if {
	decision := authz.decision with input as {"subject": operator, "action": "read", "resource": connection}
		with data.airflow.site.platform_connections as ["audit_store"]
	decision.allow == false
	decision.layer == "guardrail"
	decision.reasons == ["the connection audit_store is for the platform only"]
}

test_platform_connection_is_allowed_to_admins if {
	decision := authz.decision with input as {"subject": admin, "action": "read", "resource": connection}
		with data.airflow.site.platform_connections as ["audit_store"]
	decision.allow == true
}

test_other_connections_are_as_roles_have_it if {
	decision := authz.decision with input as {"subject": operator, "action": "read", "resource": connection}
		with data.airflow.site.platform_connections as []
	decision.allow == true
}

test_public_variable_is_read_by_everyone if {
	decision := authz.decision with input as {"subject": guest, "action": "read", "resource": variable}
		with data.airflow.site.public_variables as ["announcement"]
	decision.allow == true
	decision.reasons == ["everyone may read the variable announcement"]
}

test_public_variable_is_not_changed_by_everyone if {
	decision := authz.decision with input as {"subject": guest, "action": "update", "resource": variable}
		with data.airflow.site.public_variables as ["announcement"]
	decision.allow == false
}

test_other_variables_are_not_read_by_everyone if {
	decision := authz.decision with input as {"subject": guest, "action": "read", "resource": variable}
		with data.airflow.site.public_variables as []
	decision.allow == false
}
