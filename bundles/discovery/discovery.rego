# METADATA
# title: What an OPA is told to fetch
# description: By its labels, an OPA with a `team_id` gets that team's bundle, and any other one that of all teams.
# scope: package
package discovery

# METADATA
# title: The configuration
# entrypoint: true
configuration := {
	"bundles": {"airflow": {
		"service": "web",
		"resource": $"{name}.tar.gz",
		"persist": true,
		"signing": {"scope": $"bundles/{name}"},
		"size_limit_bytes": 67108864,
		"polling": {"min_delay_seconds": 2, "max_delay_seconds": 5},
	}},
	"default_decision": "airflow/authz/decision",
}

labels := opa.runtime().config.labels

name := $"{labels.environment}.team.{labels.team_id}" if {
	labels.team_id != ""
} else := labels.environment
