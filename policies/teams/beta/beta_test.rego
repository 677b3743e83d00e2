package teams.beta_test

import data.airflow.authz

test_members_read_by_their_role if {
	answer := authz.decision with input as {
		"subject": {"type": "user", "id": "bob", "roles": ["op"], "team_ids": ["beta"]},
		"action": "read",
		"resource": {"type": "connection", "id": "pg", "team_id": "beta"},
	}
	answer.layer == "baseline"
}
