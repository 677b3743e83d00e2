package airflow.authz.guardrails_test

import data.airflow.authz.guardrails

cases := {
	"a Dag processor that writes": {
		"question": question("dag_processor", [], "update", "variable"),
		"reasons": {"a dag_processor only reads"},
	},
	"a triggerer that triggers": {
		"question": question("triggerer", [], "trigger", "dag"),
		"reasons": {"a triggerer only reads"},
	},
	"a Dag processor that reads": {
		"question": question("dag_processor", [], "read", "variable"),
		"reasons": set(),
	},
	"a task that writes": {"question": question("task", [], "update", "variable"), "reasons": set()},
	"a task at the configuration": {
		"question": question("task", [], "read", "configuration"),
		"reasons": {"configuration is for people, not for a task"},
	},
	"a user at the configuration": {"question": question("user", [], "read", "configuration"), "reasons": set()},
	"an op who deletes a team": {
		"question": question("user", ["op"], "delete", "team"),
		"reasons": {"teams are created, changed and deleted by the platform's admins"},
	},
	"an op who reads a team": {"question": question("user", ["op"], "read", "team"), "reasons": set()},
	"an admin who deletes a team": {"question": question("user", ["admin"], "delete", "team"), "reasons": set()},
}

question(who, roles, action, type) := {
	"subject": {"type": who, "id": "sue", "team_ids": ["alpha"], "roles": roles},
	"action": action,
	"resource": {"type": type, "id": "x", "team_id": "alpha"},
}

test_guardrails[note] if {
	some note, case in cases
	guardrails.deny == case.reasons with input as case.question
}

test_number_of_cases if count(cases) == 9
