package airflow.authz.baseline_test

import data.airflow.authz.baseline

# Who holds what: op of alpha, by the identity's own role unless a case says otherwise.
subject(roles) := {"type": "user", "id": "sue", "team_ids": ["alpha"], "roles": roles}

ask(roles, action, resource) := {"subject": subject(roles), "action": action, "resource": resource}

# What each action on each type takes: in one's own team, in another's, and where it is common to all.
# "none": nobody but the platform, "platform": a role held for the platform.
table := {
	["dag", "list"]: {"own": "viewer", "common": "viewer"},
	["dag", "read"]: {"own": "viewer", "common": "viewer"},
	["dag", "create"]: {"own": "user", "common": "user"},
	["dag", "update"]: {"own": "user", "common": "user"},
	["dag", "delete"]: {"own": "user", "common": "user"},
	["dag", "trigger"]: {"own": "user", "common": "user"},
	["connection", "list"]: {"own": "op", "common": "op"},
	["connection", "read"]: {"own": "op", "common": "op"},
	["connection", "create"]: {"own": "op", "common": "admin"},
	["connection", "update"]: {"own": "op", "common": "admin"},
	["connection", "delete"]: {"own": "op", "common": "admin"},
	["variable", "list"]: {"own": "op", "common": "op"},
	["variable", "read"]: {"own": "op", "common": "op"},
	["variable", "create"]: {"own": "op", "common": "admin"},
	["variable", "update"]: {"own": "op", "common": "admin"},
	["variable", "delete"]: {"own": "op", "common": "admin"},
	["pool", "list"]: {"own": "viewer", "common": "viewer"},
	["pool", "read"]: {"own": "viewer", "common": "viewer"},
	["pool", "create"]: {"own": "op", "common": "admin"},
	["pool", "update"]: {"own": "op", "common": "admin"},
	["pool", "delete"]: {"own": "op", "common": "admin"},
	["asset", "list"]: {"own": "viewer", "common": "viewer"},
	["asset", "read"]: {"own": "viewer", "common": "viewer"},
	["asset", "create"]: {"own": "op", "common": "op"},
	["asset", "update"]: {"own": "op", "common": "op"},
	["asset", "delete"]: {"own": "op", "common": "op"},
	["asset_alias", "list"]: {"own": "viewer", "common": "viewer"},
	["asset_alias", "read"]: {"own": "viewer", "common": "viewer"},
	["asset_alias", "create"]: {"own": "op", "common": "op"},
	["asset_alias", "update"]: {"own": "op", "common": "op"},
	["asset_alias", "delete"]: {"own": "op", "common": "op"},
	["configuration", "list"]: {"own": "viewer", "common": "viewer"},
	["configuration", "read"]: {"own": "viewer", "common": "viewer"},
	["configuration", "create"]: {"own": "op", "common": "op"},
	["configuration", "update"]: {"own": "op", "common": "op"},
	["configuration", "delete"]: {"own": "op", "common": "op"},
	["view", "list"]: {"own": "viewer", "common": "viewer"},
	["view", "read"]: {"own": "viewer", "common": "viewer"},
	["team", "list"]: {"own": "viewer", "common": "viewer"},
	["team", "read"]: {"own": "viewer", "common": "viewer"},
	["team", "create"]: {"own": "admin", "common": "admin"},
	["team", "update"]: {"own": "admin", "common": "admin"},
	["team", "delete"]: {"own": "admin", "common": "admin"},
	["custom_view", "read"]: {"own": "admin", "common": "admin"},
	["custom_view", "can_do"]: {"own": "admin", "common": "admin"},
	["platform_view", "read"]: {"own": "admin", "common": "admin"},
	["route", "read"]: {"own": "admin", "common": "admin"},
	["route", "update"]: {"own": "admin", "common": "admin"},
}

rank := {"none": 0, "viewer": 1, "user": 2, "op": 3, "admin": 4}

owners := {"own": "alpha", "other": "beta", "common": null}

cases[$"{held} {action} {type} {place}"] := {"question": question, "allow": allow} if {
	some [type, action], needed in table
	some held, height in rank
	some place, team_id in owners
	question := ask({held} - {"none"}, action, {"type": type, "id": "x", "team_id": team_id})

	# An identity's own `admin` is the platform's, and reaches other teams too.
	enough := object.get(needed, place, "admin")
	allow := height >= rank[enough]
}

test_role_table[note] if {
	some note, case in cases
	allowed(case.question) == case.allow
}

test_number_of_cases if count(cases) == 720

allowed(question) if {
	baseline.allows(question.resource) with input as question
} else := false

test_no_role_allows_what_the_table_does_not_know[note] if {
	some note, resource in {
		"unknown type": {"type": "spaceship", "id": "x", "team_id": "alpha"},
		"unknown action": {"type": "view", "id": "x", "team_id": null},
	}
	not allowed(ask(["admin"], "fly", resource))
}

test_a_role_table_from_before_a_type_was_known_leaves_it_to_the_platform if {
	older := object.remove(data.airflow.roles.permissions, {"platform_view"})
	question := ask(["op"], "read", {"type": "platform_view", "id": "audit_logs_all", "team_id": null})
	not allowed(question) with data.airflow.roles.permissions as older
	allowed(object.union(question, {"subject": {"roles": ["admin"]}})) with data.airflow.roles.permissions as older
}

test_an_entity_goes_before_its_dag if {
	question := ask(["viewer"], "read", {"type": "dag", "id": "etl", "entity": "code", "team_id": "alpha"})
	allowed(question)
	not allowed(question) with data.airflow.roles.permissions as {
		"dag": {"read": ["viewer"]},
		"dag.code": {"read": ["op"]},
	}
}

test_an_entity_without_an_entry_is_like_its_dag if {
	allowed(ask(["viewer"], "read", {"type": "dag", "id": "etl", "entity": "xcom", "team_id": "alpha"}))
	not allowed(ask(["viewer"], "update", {"type": "dag", "id": "etl", "entity": "xcom", "team_id": "alpha"}))
}

assigned(users) := {
	"subject": subject(["viewer"]),
	"action": "update",
	"resource": {"type": "hitl_task", "team_id": null},
	"context": {"user_id": "7", "assigned_users": users},
}

test_who_is_assigned_answers if allowed(assigned(["7"]))

test_who_is_not_assigned_does_not if not allowed(assigned(["8"]))

test_no_role_answers_for_others if {
	not allowed(object.union(assigned(["8"]), {"subject": {"roles": ["admin"]}}))
}

test_assigned_without_a_role_does_not_answer if {
	not allowed(object.union(assigned(["7"]), {"subject": {"roles": []}}))
}

test_nobody_is_assigned_where_the_context_is_missing if {
	not allowed(object.remove(assigned(["7"]), ["context"]))
}

refusals := {
	"of a team": {
		"question": ask(["viewer"], "read", {"type": "connection", "id": "pg", "team_id": "alpha"}),
		"text": "user sue may not read connection pg of team alpha: that takes the role op in team alpha",
	},
	"common": {
		"question": ask(["viewer"], "read", {"type": "connection", "id": "pg", "team_id": null}),
		"text": "user sue may not read connection pg: that takes the role op in any team",
	},
	"of the platform": {
		"question": ask(["op"], "update", {"type": "connection", "id": "pg", "team_id": null}),
		"text": "user sue may not update connection pg: that takes the role admin on the platform",
	},
	"no resource in particular": {
		"question": ask([], "list", {"type": "pool", "team_id": null}),
		"text": "user sue may not list pools: that takes the role viewer in any team; sue has no role in any team",
	},
	"a common thing, where a team's could be made": {
		"question": ask(["op"], "create", {"type": "connection", "team_id": null}),
		"text": concat("; ", [
			"user sue may not create a common connection: that takes the role admin on the platform",
			"name a team of yours (alpha) to create it there",
		]),
	},
	"a common thing with a name, where a team's could be made": {
		"question": ask(["op"], "create", {"type": "pool", "id": "slots", "team_id": null}),
		"text": concat("; ", [
			"user sue may not create a common pool slots: that takes the role admin on the platform",
			"name a team of yours (alpha) to create it there",
		]),
	},
	"a common thing, where the role in the team does not do": {
		"question": ask(["user"], "create", {"type": "variable", "team_id": null}),
		"text": concat("; ", [
			"user sue may not create a common variable: that takes the role admin on the platform",
			"in a team of yours (alpha) it takes the role op",
		]),
	},
	"a common thing, by somebody without a role": {
		"question": ask([], "create", {"type": "variable", "team_id": null}),
		"text": concat("; ", [
			"user sue may not create a common variable: that takes the role admin on the platform",
			"in a team of yours (alpha) it takes the role op",
			"sue has no role in any team",
		]),
	},
	"a common thing, by somebody without a team": {
		"question": object.union(ask(["op"], "create", {"type": "pool", "team_id": null}), {"subject": {"team_ids": []}}),
		"text": "user sue may not create a common pool: that takes the role admin on the platform",
	},
	"another team's, by somebody who could make one in no team": {
		"question": ask(["viewer"], "create", {"type": "pool", "id": "x", "team_id": "beta"}),
		"text": "user sue may not create pool x of team beta: that takes the role op in team beta",
	},
	"a common thing that teams' people make": {
		"question": ask(["viewer"], "create", {"type": "asset", "team_id": null}),
		"text": "user sue may not create an asset: that takes the role op in any team",
	},
	"a part of a common thing": {
		"question": ask(["viewer"], "create", {"type": "dag", "id": "etl", "entity": "xcom", "team_id": null}),
		"text": "user sue may not create dag etl (xcom): that takes the role user in any team",
	},
	"a task's": {
		"question": {
			"subject": {"type": "task", "id": "etl.load", "team_ids": ["alpha"]},
			"action": "create",
			"resource": {"type": "variable", "id": "x", "team_id": null},
		},
		"text": "task etl.load may not create a common variable x: that takes a task without a team",
	},
	"another's": {
		"question": ask(["op"], "create", {"type": "connection", "team_id": "beta"}),
		"text": concat("; ", [
			"user sue may not create a connection of team beta: that takes the role op in team beta",
			"name a team of yours (alpha) to create it there",
		]),
	},
	"an entity": {
		"question": ask([], "trigger", {"type": "dag", "id": "etl", "entity": "run", "team_id": "alpha"}),
		"text": concat("; ", [
			"user sue may not trigger dag etl (run) of team alpha: that takes the role user in team alpha",
			"sue has no role in any team",
		]),
	},
	"entities": {
		"question": ask([], "list", {"type": "dag", "entity": "run", "team_id": null}),
		"text": "user sue may not list dag runs: that takes the role viewer in any team; sue has no role in any team",
	},
	"entities whose name is in the plural": {
		"question": ask(["x"], "list", {"type": "dag", "entity": "task_logs", "team_id": "alpha"}),
		"text": concat("; ", [
			"user sue may not list dag task logs of team alpha: that takes the role viewer in team alpha",
			"sue has no role in any team",
		]),
	},
	"what there is one of": {
		"question": ask([], "list", {"type": "dag", "entity": "code", "team_id": null}),
		"text": "user sue may not list dag (code): that takes the role viewer in any team; sue has no role in any team",
	},
	"no role": {
		"question": ask(["admin"], "create", {"type": "view", "id": "jobs", "team_id": null}),
		"text": "user sue may not create view jobs: no role allows that",
	},
	"a list of no role": {
		"question": ask([], "update", {"type": "audit", "id": "x", "team_id": "alpha"}),
		"text": "user sue may not update audit x of team alpha: no role allows that; sue has no role in any team",
	},
	"assigned to others": {
		"question": assigned(["8"]),
		"text": "user sue may not update hitl_task: it is assigned to others",
	},
	"one of several roles": {
		"question": ask([], "read", {"type": "audit", "id": "x", "team_id": "alpha"}),
		"text": concat("; ", [
			"user sue may not read audit x of team alpha: that takes the role op or auditor in team alpha",
			"sue has no role in any team",
		]),
	},
}

test_refusals[note] if {
	some note, case in refusals
	case.text == refusal(case.question)
}

refusal(question) := text if {
	audit := {"audit": {"read": ["op", "auditor"], "update": []}}
	text := baseline.refusal(question.resource) with input as question
		with data.airflow.roles.permissions as object.union(data.airflow.roles.permissions, audit)
}

# Who is in very many teams is told a few.
test_some_of_very_many_teams_are_named if {
	question := {
		"subject": object.union(subject(["op"]), {"team_ids": [$"team{i}" | some i in split("123456789", "")]}),
		"action": "create",
		"resource": {"type": "variable", "team_id": null},
	}
	endswith(refusal(question), "; name a team of yours (team1, team2, team3, team4, team5 and 4 more) to create it there")
}

test_reasons_name_role_and_place if {
	question := ask(["Op"], "read", {"type": "connection", "id": "pg", "team_id": "alpha"})
	reasons := baseline.reasons(question.resource) with input as question
	reasons == ["op in team alpha"]
}

test_a_refusal_tells_that_the_login_could_not_be_verified if {
	subject := {"type": "user", "id": "ann", "unverified": "the access token has expired"}
	resource := {"type": "pool", "id": "slots", "team_id": "alpha"}
	text := refusal({"subject": subject, "action": "read", "resource": resource})
	text == concat("; ", [
		"user ann may not read pool slots of team alpha: that takes the role viewer in team alpha",
		"groups and roles of this login do not count: the access token has expired",
	])
}
