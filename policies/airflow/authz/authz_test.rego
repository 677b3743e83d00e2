package airflow.authz_test

import data.airflow.authz

ann := {"type": "user", "id": "ann", "team_ids": ["alpha"], "roles": ["op"]}

question := {"subject": ann, "action": "read", "resource": {"type": "connection", "id": "pg", "team_id": "alpha"}}

foreign := object.union(question, {"resource": {"team_id": "beta"}})

# What the three kinds of rules say, and who decides then. Ann may read alpha's connections by her role.
layers := {
	"the role table": {"allow": true, "layer": "baseline", "reasons": ["op in team alpha"]},
	"nothing": {
		"foreign": true, "allow": false, "layer": "default",
		"reasons": ["user ann may not read connection pg of team beta: that takes the role op in team beta"],
	},
	"a site denies": {
		"site": {"deny": {"closed"}},
		"allow": false, "layer": "guardrail", "reasons": ["closed"],
	},
	"a site denies what a team allows": {
		"foreign": true, "site": {"deny": {"closed"}}, "beta": {"allow": {"welcome"}},
		"allow": false, "layer": "guardrail", "reasons": ["closed"],
	},
	"a site denies before a team": {
		"site": {"deny": {"closed"}}, "alpha": {"deny": {"no"}},
		"allow": false, "layer": "guardrail", "reasons": ["closed"],
	},
	"the owning team denies what the role table allows": {
		"alpha": {"deny": {"no", "never"}},
		"allow": false, "layer": "team", "reasons": ["never", "no"],
	},
	"the owning team denies what the site allows": {
		"foreign": true, "site": {"allow": {"open day"}}, "beta": {"deny": {"no"}},
		"allow": false, "layer": "team", "reasons": ["no"],
	},
	"the owning team denies what it allows": {
		"foreign": true, "beta": {"allow": {"welcome"}, "deny": {"no"}},
		"allow": false, "layer": "team", "reasons": ["no"],
	},
	"a site allows": {
		"foreign": true, "site": {"allow": {"open day"}},
		"allow": true, "layer": "baseline", "reasons": ["open day"],
	},
	"the owning team allows": {
		"foreign": true, "beta": {"allow": {"welcome"}},
		"allow": true, "layer": "team", "reasons": ["welcome"],
	},
	"another team allows": {
		"foreign": true, "alpha": {"allow": {"mine"}},
		"allow": false, "layer": "default",
		"reasons": ["user ann may not read connection pg of team beta: that takes the role op in team beta"],
	},
	"another team denies": {
		"beta": {"deny": {"no"}},
		"allow": true, "layer": "baseline", "reasons": ["op in team alpha"],
	},
	"reasons of any kind are told as text": {
		"foreign": true, "beta": {"allow": {1, ["a"], true}},
		"allow": true, "layer": "team", "reasons": ["1", "[\"a\"]", "true"],
	},
	"a team that allows without a reason allows nothing": {
		"foreign": true, "beta": {"allow": true},
		"allow": false, "layer": "default",
		"reasons": ["user ann may not read connection pg of team beta: that takes the role op in team beta"],
	},
}

asked(case) := foreign if {
	case.foreign
} else := question

decided(case, asked_about) := answer if {
	answer := authz.decision with input as asked_about
		with data.airflow.site as object.get(case, "site", {})
		with data.teams as {"alpha": object.get(case, "alpha", {}), "beta": object.get(case, "beta", {})}
}

test_layers[note] if {
	some note, case in layers
	decided(case, asked(case)) == {"allow": case.allow, "layer": case.layer, "reasons": case.reasons}
}

test_number_of_cases if count(layers) == 14

test_guardrails_are_asked if {
	answer := authz.decision with input as {
		"subject": {"type": "triggerer", "id": "t", "team_ids": ["alpha"]},
		"action": "update",
		"resource": {"type": "variable", "id": "v", "team_id": "alpha"},
	}
	answer == {"allow": false, "layer": "guardrail", "reasons": ["a triggerer only reads"]}
}

# A list is the set of single checks.
resources := [resource |
	some team_id in ["alpha", "beta", null]
	some type in ["connection", "pool", "variable", "view", "spaceship"]
	some id in ["pg", "announcement"]
	resource := {"type": type, "id": id, "team_id": team_id}
]

# So many that a list finds out once what follows from them.
names := [$"group {letter}" | some letter in split("abcdefghijklmnopqrstuvwxyz", "")]

subjects := {
	"op": ann,
	"nobody": {"type": "user", "id": "eve"},
	"admin": {"type": "user", "id": "pat", "roles": ["admin"]},
	"borrower": {"type": "user", "id": "bob", "team_ids": ["beta"], "roles": ["viewer"]},
	"borrower of many groups": {"type": "user", "id": "bob", "team_ids": ["beta"], "roles": ["viewer"], "groups": names},
	"admin of many groups": {"type": "user", "id": "pat", "roles": ["admin"], "groups": names},
	"task": {"type": "task", "id": "etl.load", "team_ids": ["alpha"]},
}

test_decisions_are_the_single_decisions[note] if {
	some note, subject in subjects
	answers := authz.decisions with input as {"subject": subject, "action": "read", "resources": resources}
	answers == [answer |
		some resource in resources
		answer := authz.decision with input as {"subject": subject, "action": "read", "resource": resource}
	]
}

test_allowed_are_the_allowed_decisions[note] if {
	some note, subject in subjects
	questions := {"subject": subject, "action": "read", "resources": resources}
	answers := authz.decisions with input as questions
	indices := authz.allowed with input as questions
	indices == [i | some i, answer in answers; answer.allow == true]
}

# What a bundle says of rules that read the subject's teams. An untruth makes a list slower, but changes no answer.
reads := {
	"none": {"site": [], "teams": {}},
	"some": {"site": ["team_ids"], "teams": {"alpha": ["team_ids"], "beta": ["team_roles"]}},
}

test_what_rules_read_changes_no_list[note] if {
	some who, subject in subjects
	some name, read in reads
	note := concat(", ", [who, name])
	questions := {"subject": subject, "action": "read", "resources": resources}
	answers := authz.decisions with input as questions with data.airflow.read_of_standing as read
	answers == authz.decisions with input as questions
}

# What a bundle says of rules that look at kinds only.
knowledge := {
	"all": {"site": true, "others": true, "teams": {}},
	"one team looks at ids": {"site": true, "others": true, "teams": {"alpha": false}},
	"others are unknown": {"site": true, "others": false, "teams": {"alpha": true}},
	"the site looks at ids": {"site": false, "others": true, "teams": {"alpha": true}},
}

listed := [resource | some resource in resources; resource.type in {"connection", "dag"}]

regardless_of_ids := {"alpha": {"allow": {"welcome"}, "deny": {"no"}}, "beta": {"allow": {"welcome"}}}

test_a_list_that_asks_once_about_each_kind_is_the_same[note] if {
	some known, regardless in knowledge
	some who in {"op", "borrower of many groups"}
	note := concat(", ", [known, who])
	questions := {"subject": subjects[who], "action": "read", "resources": listed}
	answers := authz.decisions with input as questions with data.teams as regardless_of_ids
	indices := authz.allowed with input as questions
		with data.teams as regardless_of_ids
		with data.airflow.regardless_of_id as regardless
	indices == [i | some i, answer in answers; answer.allow == true]
	count(indices) > 0
}

test_number_of_resources if count(resources) == 30

test_a_stray_resource_beside_resources_changes_nothing if {
	questions := {"subject": ann, "action": "read", "resource": {"team_id": "alpha"}, "resources": [foreign.resource]}
	indices := authz.allowed with input as questions
	indices == []
	answers := authz.decisions with input as questions
	answers[0].allow == false
}

incomplete := {
	"no input": {},
	"no subject": object.remove(question, ["subject"]),
	"no action": object.remove(question, ["action"]),
	"no resource": object.remove(question, ["resource"]),
	"no team": {"subject": ann, "action": "read", "resource": {"type": "connection", "id": "pg"}},
	"a resource that is a text": object.union(question, {"resource": "pg"}),
}

test_incomplete_questions_are_denied[note] if {
	some note, asked_about in incomplete
	answer := authz.decision with input as asked_about
	answer.allow == false
}

test_number_of_incomplete_questions if count(incomplete) == 6

test_answer_names_the_version_of_the_owning_team if {
	versions := {"serial": 9, "teams": {"alpha": 3}}
	own := authz.decision with input as question with data.airflow.revisions as versions
	own.team_version == 3
	others := {"type": "connection", "id": "pg", "team_id": "beta"}
	many := authz.decisions with input as {"subject": ann, "action": "read", "resources": [question.resource, others]}
		with data.airflow.revisions as versions
	[answer.team_version | some answer in many] == [3]
	many[0] == own
}
