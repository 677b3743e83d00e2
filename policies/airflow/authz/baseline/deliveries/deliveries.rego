# METADATA
# title: Which asset events may start which Dags
# description: |
#   An event starts a Dag if two questions are answered with yes, each by who owns what it is about: of the Dag, whether
#   this event may start it; of the event, whether it may go there. Here is what the authors of both have consented to
#   in their code, as Airflow reads it; what a role allows besides is in the role table.
# scope: package
# schemas:
#   - input: schema.input
#   - data.airflow.roles: schema.roles
package airflow.authz.baseline.deliveries

import data.airflow.authz.standing

# METADATA
# title: Whether the author has consented
consents(resource) if {
	resource.delivery
	input.action == "trigger"
	text := _consent(resource)
	text != ""
}

# METADATA
# title: Who has consented
reason(resource) := _consent(resource)

# Of the Dag that would start: whose events it takes.
_consent(resource) := "a common Dag takes the events of all teams" if {
	resource.type == "dag"
	resource.team_id == null
	_machine
} else := concat("", ["the Dag's producer_teams name team ", team_id]) if {
	resource.type == "dag"
	some team_id in sort(_producing)
	team_id in resource.delivery.producer_teams
} else := "the Dag takes events of common Dags (allow_global)" if {
	resource.type == "dag"
	resource.delivery.global_producers
	_machine
	count(standing.team_ids) == 0
} else := "an event may go to Dags of its own team" if {
	# Of the event: where it may go.
	resource.type == "asset"
	resource.team_id != null
	resource.team_id == resource.delivery.team_id
} else := "the producing task lets its events go to common Dags" if {
	resource.type == "asset"
	resource.delivery.team_id == null
	resource.delivery.global_consumers
} else := concat("", ["the producing task lets its events go to team ", resource.delivery.team_id]) if {
	resource.type == "asset"
	not _kept(resource)
} else := ""

# The teams that the event counts as one of. A person is a producer only where that takes no more than the person's role
# there: to be in a team is not enough, nor is a role in another one.
_producing contains team_id if {
	_machine
	some team_id in standing.team_ids
}

_producing contains team_id if {
	some team_id, roles in standing.team_roles
	some role in roles
	role in data.airflow.roles.permissions.asset.create
}

# A person is bound by what this person may start, also where all teams share it.
_machine if input.subject.type != "user"

_kept(resource) if resource.delivery.team_id == null

_kept(resource) if {
	resource.delivery.consumer_teams
	not resource.delivery.team_id in resource.delivery.consumer_teams
}

# METADATA
# title: What is missing for the event to start the Dag
missing(resource) := concat("", [
	"an event of ", _whose, " starts it only if producer_teams or allow_global in the Dag's schedule, or a rule of ",
	"the Dag's team, says so",
]) if {
	resource.type == "dag"
} else := concat("", [
	"it starts dag ", resource.delivery.dag_id, " only if consumer_teams or allow_global of the producing task, or ",
	"a rule of its team, says so",
])

default _whose := "no team"

_whose := concat("", ["team ", concat(" and ", sort(_producing))]) if count(_producing) > 0
