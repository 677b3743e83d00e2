package airflow.authz_test

import data.airflow.authz

test_whoami_tells_teams_roles_and_where_they_come_from if {
	subject := {"type": "user", "id": "ann", "team_ids": [], "roles": ["viewer"], "groups": ["alpha-ops", "x-beta"]}
	directory := {
		"groups": {"alpha-ops": [{"team_id": "alpha", "role": "user"}]},
		"group_patterns": {"x-<team>": [{"team_id": "<team>"}]},
	}
	found := authz.whoami with input as {"subject": subject, "action": "list", "resources": []}
		with data.airflow.directory as directory
		with data.teams as {"alpha": {"default_pool": "slots"}, "beta": {"default_pool": 7}, "c": {"default_pool": "x"}}
	found == {
		"team_roles": {"alpha": ["user", "viewer"], "beta": ["viewer"]},
		"platform_roles": [],
		"common_roles": ["user", "viewer"],
		"default_pools": {"alpha": "slots"},
		"entries": [
			{"table": "group_patterns", "name": "x-<team>", "entry": {"team_id": "beta"}},
			{"table": "groups", "name": "alpha-ops", "entry": {"team_id": "alpha", "role": "user"}},
		],
	}
}

test_whoami_knows_nobody if {
	found := authz.whoami with input as {"subject": {"type": "user", "id": "ann"}, "action": "list", "resources": []}
	found == {"team_roles": {}, "platform_roles": [], "common_roles": [], "default_pools": {}, "entries": []}
}

test_whoami_tells_entries_of_roles_and_claims_too if {
	subject := {"type": "user", "id": "ann", "roles": ["Op"], "claims": {"dept": ["sales"]}}
	directory := {
		"roles": {"Op": [{"team_id": "alpha", "role": "op"}]},
		"claims": {"dept": {"sales": [{"team_id": "beta", "role": "viewer"}]}},
	}
	found := authz.whoami with input as {"subject": subject, "action": "list", "resources": []}
		with data.airflow.directory as directory
	found.entries == [
		{"table": "claims.dept", "name": "sales", "entry": {"team_id": "beta", "role": "viewer"}},
		{"table": "roles", "name": "Op", "entry": {"team_id": "alpha", "role": "op"}},
	]
}
