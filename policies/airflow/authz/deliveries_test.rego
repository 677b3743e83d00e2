package airflow.authz_test

import data.airflow.authz

producers := {
	"beta task": {"type": "task", "id": "beta_daily.load", "team_ids": ["beta"]},
	"common task": {"type": "task", "id": "cleanup.sweep", "team_ids": []},
	"beta watcher": {"type": "watcher", "id": "files", "team_ids": ["beta"]},
	"common watcher": {"type": "watcher", "id": "files", "team_ids": []},
	"beta user": {"type": "user", "id": "bob", "team_ids": ["beta"], "roles": ["user"]},
	"beta viewer": {"type": "user", "id": "vic", "team_ids": ["beta"], "roles": ["viewer"]},
	"beta op": {"type": "user", "id": "oda", "team_ids": ["beta"], "roles": ["op"]},
	"beta member, gamma op": {"type": "user", "id": "mel", "team_ids": ["beta"], "groups": ["gamma-ops"]},
	"beta viewer, gamma op": {"type": "user", "id": "vio", "groups": ["beta-viewers", "gamma-ops"]},
	"beta op by a group": {"type": "user", "id": "gus", "groups": ["beta-ops"]},
	"stranger": {"type": "user", "id": "nil", "team_ids": [], "roles": []},
	"platform admin": {"type": "user", "id": "pat", "roles": ["admin"]},
}

about(team_id) := {
	"dag_id": "report", "team_id": team_id, "asset": {"name": "orders", "uri": "s3://orders", "group": "asset"},
	"producer_teams": [], "global_producers": false, "global_consumers": false, "consumer_teams": [],
	"airflow_allows": false,
}

dag(team_id, consent) := {
	"type": "dag", "id": "report", "entity": "run", "team_id": team_id,
	"delivery": object.union(about(team_id), consent),
}

event(team_id, to, consent) := {
	"type": "asset", "id": "1", "name": "orders", "uri": "s3://orders", "entity": "event", "team_id": team_id,
	"delivery": object.union(about(to), consent),
}

directory := {"groups": {
	"beta-ops": [{"team_id": "beta", "role": "op"}],
	"beta-viewers": [{"team_id": "beta", "role": "viewer"}],
	"gamma-ops": [{"team_id": "gamma", "role": "op"}],
}}

trigger(who, resource) := {"subject": producers[who], "action": "trigger", "resource": resource}

# Which events may start the Dag of a team that has consented to nothing, and which the one of a team that has.
starts := {
	"its own team's": ["beta task", dag("beta", {})],
	"its own team's watcher's": ["beta watcher", dag("beta", {})],
	"a common Dag, from a team": ["beta task", dag(null, {})],
	"a common Dag, from a common task": ["common task", dag(null, {})],
	"another team's, with its consent": ["beta task", dag("alpha", {"producer_teams": ["gamma", "beta"]})],
	"another team's, watched for, with its consent": ["beta watcher", dag("alpha", {"producer_teams": ["beta"]})],
	"a team's, from a common task, with its consent": ["common task", dag("alpha", {"global_producers": true})],
	"a team's, from a common watcher, with its consent": ["common watcher", dag("alpha", {"global_producers": true})],
	"what a user may trigger": ["beta user", dag("beta", {})],
	"what a user may trigger for all": ["beta user", dag(null, {})],
	"what consents to a user's team": ["beta op", dag("alpha", {"producer_teams": ["beta"]})],
	"what consents to a user's team, by a group": ["beta op by a group", dag("alpha", {"producer_teams": ["beta"]})],
	"what consents to the team of the role": ["beta member, gamma op", dag("alpha", {"producer_teams": ["gamma"]})],
	"a platform admin's": ["platform admin", dag("alpha", {})],
	"the event, to its own team": ["beta task", event("beta", "beta", {})],
	"the event, to a team that it names": ["beta task", event("beta", "alpha", {"consumer_teams": ["alpha"]})],
	"the event, to common Dags": ["beta task", event("beta", null, {"global_consumers": true})],
	"the common event, to a team": ["common task", event(null, "alpha", {"consumer_teams": ["alpha"]})],
}

test_an_event_starts[note] if {
	some note, [who, resource] in starts
	answer := authz.decision with input as trigger(who, resource) with data.airflow.directory as directory
	answer.allow
	answer.layer == "baseline"
	count(answer.reasons) == 1
	answer.reasons[0] != ""
}

starts_not := {
	"another team's, without its consent": ["beta task", dag("alpha", {"producer_teams": ["gamma"]})],
	"another team's, though it takes common events": ["beta task", dag("alpha", {"global_producers": true})],
	"a team's, from a common task": ["common task", dag("alpha", {"producer_teams": ["beta"]})],
	"a team's, from a common watcher": ["common watcher", dag("alpha", {})],
	"another team's, watched for": ["beta watcher", dag("alpha", {})],
	"what consents to a team where a user only sees": ["beta viewer", dag("alpha", {"producer_teams": ["beta"]})],
	"what consents to a team where a user runs Dags": ["beta user", dag("alpha", {"producer_teams": ["beta"]})],
	"what consents to a member's team": ["beta member, gamma op", dag("alpha", {"producer_teams": ["beta"]})],
	"what consents to a viewer's team": ["beta viewer, gamma op", dag("alpha", {"producer_teams": ["beta"]})],
	"what a user may only see": ["beta viewer", dag("beta", {})],
	"what a user may only see, common": ["beta viewer", dag(null, {})],
	"another team's, by a user": ["beta user", dag("alpha", {})],
	"a stranger's, though common events are taken": ["stranger", dag("alpha", {"global_producers": true})],
	"a stranger's, common": ["stranger", dag(null, {})],
	"the event, to a team that it does not name": ["beta task", event("beta", "alpha", {"consumer_teams": ["gamma"]})],
	"the event, to common Dags": ["beta task", event("beta", null, {})],
	"the common event, to common Dags": ["common task", event(null, null, {})],
}

test_an_event_does_not_start[note] if {
	some note, [who, resource] in starts_not
	answer := authz.decision with input as trigger(who, resource) with data.airflow.directory as directory
	not answer.allow
	answer.layer == "default"
}

test_an_event_goes_to_every_team_unless_the_author_names_some if {
	closed := event("beta", "alpha", {})
	unnamed := {"delivery": object.remove(closed.delivery, ["consumer_teams"])}
	open := object.union(object.remove(closed, ["delivery"]), unnamed)
	answer := authz.decision with input as trigger("beta task", open)
	answer.allow
}

test_consent_is_for_events_only if {
	resource := object.remove(dag("alpha", {}), ["delivery"])
	answer := authz.decision with input as trigger("beta task", resource)
	not answer.allow
	reading := object.union(trigger("beta task", dag("alpha", {"producer_teams": ["beta"]})), {"action": "delete"})
	other := authz.decision with input as reading
	not other.allow
}

test_the_owning_teams_rules_go_before_consent if {
	deny := {"beta": {"deny": {"closed"}}, "alpha": {"deny": {"not from you"}}}
	consented := dag("alpha", {"producer_teams": ["beta"]})
	answer := authz.decision with input as trigger("beta task", consented) with data.teams as deny
	answer == {"allow": false, "layer": "team", "reasons": ["not from you"]}
	sent := authz.decision with input as trigger("beta task", event("beta", "beta", {})) with data.teams as deny
	sent == {"allow": false, "layer": "team", "reasons": ["closed"]}
	allow := {"alpha": {"allow": {"welcome"}}}
	opened := authz.decision with input as trigger("beta task", dag("alpha", {})) with data.teams as allow
	opened == {"allow": true, "layer": "team", "reasons": ["welcome"]}
}

refused := "may not trigger dag report (run) of team alpha:"

says := concat(" ", [
	"starts it only if producer_teams or allow_global in the Dag's schedule,",
	"or a rule of the Dag's team, says so",
])

refused_events := {
	"beta task": concat(" ", ["task beta_daily.load", refused, "an event of team beta", says]),
	"common task": concat(" ", ["task cleanup.sweep", refused, "an event of no team", says]),
}

test_a_refusal_says_what_is_missing[who] if {
	some who, text in refused_events
	answer := authz.decision with input as trigger(who, dag("alpha", {}))
	answer.reasons == [text]
}

test_a_refused_event_says_what_is_missing if {
	answer := authz.decision with input as trigger("beta task", event("beta", "alpha", {}))
	answer.reasons == [concat(" ", [
		"task beta_daily.load may not trigger asset 1 (event) of team beta: it starts dag report only if",
		"consumer_teams or allow_global of the producing task, or a rule of its team, says so",
	])]
}
