package airflow.authz_test

import data.airflow.authz

machine(type, team_ids) := {
	"type": type, "id": "daily.load", "dag_id": "daily", "task_id": "load",
	"team_ids": team_ids,
}

# What a task may do: with its own team's, another's and the common; and what one without a team may do with the common.
cases := {
	["connection", "read"]: {"own", "common", "teamless"},
	["connection", "create"]: set(),
	["connection", "update"]: set(),
	["connection", "delete"]: set(),
	["variable", "read"]: {"own", "common", "teamless"},
	["variable", "create"]: {"own", "teamless"},
	["variable", "update"]: {"own", "teamless"},
	["variable", "delete"]: {"own", "teamless"},
	["pool", "use"]: {"own", "common", "teamless"},
	["pool", "update"]: set(),
	["dag", "read"]: {"own", "common", "teamless"},
	["dag.run", "read"]: {"own", "common", "teamless"},
	["dag.run", "trigger"]: {"own", "teamless"},
	["dag.run", "update"]: {"own", "teamless"},
	["dag.run", "delete"]: {"teamless"},
	["dag.task_instance", "read"]: {"own", "common", "teamless"},
	["dag.xcom", "read"]: {"own", "common", "teamless"},
	["dag.xcom", "create"]: {"own", "teamless"},
	["dag.xcom", "delete"]: {"own", "teamless"},
	["asset", "read"]: {"own", "common", "teamless"},
	["asset.event", "read"]: {"own", "common", "teamless"},
	["asset.state", "read"]: {"own", "common", "teamless"},
	["asset.state", "update"]: {"own", "common", "teamless"},
	["asset.state", "delete"]: {"own", "common", "teamless"},
	["asset", "update"]: set(),
	["asset_alias", "read"]: {"own", "common", "teamless"},
	["configuration", "read"]: set(),
	["view", "read"]: set(),
	["team", "read"]: set(),
	["hitl_task", "update"]: set(),
}

situations := {
	"own": [["alpha"], "alpha"],
	"other": [["beta"], "alpha"],
	"common": [["alpha"], null],
	"teamless": [[], null],
	"teamless with a team's": [[], "alpha"],
}

thing(kind, team_id) := {"type": type, "entity": entity, "id": "x", "team_id": team_id} if {
	[type, entity] := split(kind, ".")
} else := {"type": kind, "id": "x", "team_id": team_id}

asking(type, kind, action, situation) := {
	"subject": machine(type, situations[situation][0]),
	"action": action,
	"resource": thing(kind, situations[situation][1]),
}

test_what_a_task_may_do[note] if {
	some [kind, action], allowed in cases
	some situation, _ in situations
	note := concat(" ", [action, kind, situation])
	answer := authz.decision with input as asking("task", kind, action, situation) with data.teams as {}
	expected := situation in allowed
	answer.allow == expected
}

test_who_runs_parsing_and_triggers_reads_as_a_task_does[note] if {
	some type in ["dag_processor", "triggerer"]
	some [kind, action], allowed in cases
	action in {"read", "use"}
	some situation, _ in situations
	note := concat(" ", [type, action, kind, situation])
	answer := authz.decision with input as asking(type, kind, action, situation) with data.teams as {}
	expected := situation in allowed
	answer.allow == expected
}

test_who_runs_parsing_and_triggers_writes_nothing[note] if {
	some type in ["dag_processor", "triggerer"]
	some [kind, action], _ in cases
	action in {"create", "update", "delete", "trigger"}
	kind != "asset.state"
	some situation, _ in situations
	note := concat(" ", [type, action, kind, situation])
	answer := authz.decision with input as asking(type, kind, action, situation) with data.teams as {}
	not answer.allow
	answer.layer == "guardrail"
}

test_a_watcher_keeps_its_place_in_an_asset if {
	mine := authz.decision with input as asking("triggerer", "asset.state", "update", "own")
	mine.allow
	others := authz.decision with input as asking("triggerer", "asset.state", "update", "other") with data.teams as {}
	not others.allow
	parsing := authz.decision with input as asking("dag_processor", "asset.state", "update", "own")
	not parsing.allow
}

test_no_user_is_a_task_by_a_roles_name[role] if {
	some role in ["task", "common_task", "Task"]
	user := {"type": "user", "id": "sue", "team_ids": ["alpha"], "roles": [role]}
	question := {"subject": user, "action": "read", "resource": thing("connection", "alpha")}
	answer := authz.decision with input as question with data.teams as {}
	not answer.allow
}

test_a_task_holds_no_role_by_name if {
	boasting := object.union(machine("task", ["beta"]), {"roles": ["admin"]})
	question := {"subject": boasting, "action": "read", "resource": thing("connection", "alpha")}
	answer := authz.decision with input as question with data.teams as {}
	not answer.allow
}

told := {
	["connection", "read", "other"]: concat(" ", [
		"task daily.load may not read connection x of team alpha:",
		"that takes a task of team alpha",
	]),
	["variable", "update", "common"]: "task daily.load may not update variable x: that takes a task without a team",
	["connection", "update", "own"]: "task daily.load may not update connection x of team alpha: no task may do that",
}

test_a_refusal_says_what_it_takes[note] if {
	some note, text in told
	[kind, action, situation] := note
	answer := authz.decision with input as asking("task", kind, action, situation) with data.teams as {}
	answer.reasons == [text]
}
