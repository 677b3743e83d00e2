package teams.example_test

import data.airflow.authz

connection := {"type": "connection", "id": "warehouse", "team_id": "example"}

pool := {"type": "pool", "id": "production", "team_id": "example"}

member := {"type": "user", "id": "ida", "roles": ["op"], "team_ids": ["example"]}

neighbour := {"type": "user", "id": "noor", "roles": ["op"], "team_ids": ["neighbours"]}

test_lent_connection_is_read_by_borrower if {
	decision := authz.decision with input as {"subject": neighbour, "action": "read", "resource": connection}
		with data.teams.example.lent_connections as {"warehouse": ["neighbours"]}
	decision.allow == true
	decision.layer == "team"
	decision.reasons == ["the connection warehouse is lent to team neighbours"]
}

test_lent_connection_is_not_changed_by_borrower if {
	decision := authz.decision with input as {"subject": neighbour, "action": "update", "resource": connection}
		with data.teams.example.lent_connections as {"warehouse": ["neighbours"]}
	decision.allow == false
}

test_other_connections_stay_with_the_team if {
	decision := authz.decision with input as {"subject": neighbour, "action": "read", "resource": connection}
		with data.teams.example.lent_connections as {}
	decision.allow == false
}

test_closed_pool_is_denied if {
	decision := authz.decision with input as {"subject": member, "action": "read", "resource": pool}
		with data.teams.example.closed_pools as {"production": ["ida"]}
	decision.allow == false
	decision.layer == "team"
	decision.reasons == ["ida stays away from the pool production"]
}

test_open_pool_is_as_roles_have_it if {
	decision := authz.decision with input as {"subject": member, "action": "read", "resource": pool}
		with data.teams.example.closed_pools as {}
	decision.allow == true
}
