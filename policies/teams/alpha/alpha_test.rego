package teams.alpha_test

import data.airflow.authz

bob := {"type": "user", "id": "bob", "team_ids": ["beta"], "roles": ["op"]}

ivy := {"type": "user", "id": "ivy", "team_ids": ["alpha"], "roles": ["op"]}

ann := {"type": "user", "id": "ann", "team_ids": ["alpha"], "roles": ["op"]}

warehouse := {"type": "connection", "id": "alpha_warehouse", "team_id": "alpha"}

production := {"type": "pool", "id": "alpha_production", "team_id": "alpha"}

ask(subject, action, resource) := answer if {
	answer := authz.decision with input as {"subject": subject, "action": action, "resource": resource}
}

test_beta_reads_the_lent_connection if {
	answer := ask(bob, "read", warehouse)
	answer == {"allow": true, "layer": "team", "reasons": ["alpha lends this connection to team beta"]}
}

test_beta_does_not_change_it if not ask(bob, "update", warehouse).allow

test_beta_reads_no_other_connection if not ask(bob, "read", object.union(warehouse, {"id": "alpha_pg"})).allow

test_a_connection_of_that_name_elsewhere_is_not_lent if {
	not ask(bob, "read", object.union(warehouse, {"team_id": "gamma"})).allow
}

test_interns_stay_away_from_production if {
	answer := ask(ivy, "read", production)
	answer == {"allow": false, "layer": "team", "reasons": ["interns stay away from alpha's production pool"]}
}

test_interns_use_other_pools if ask(ivy, "read", object.union(production, {"id": "alpha_lab"})).allow

test_others_use_production if ask(ann, "read", production).allow
