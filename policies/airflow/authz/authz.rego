# METADATA
# title: The decision
# description: |
#   Composes guardrails, the owning team's package and the baseline. The order is the whole of the
#   security argument: what the platform denies nobody overrides, and a team's package is asked only
#   about what the team owns, because it is reached by the resource's `team_id` and by nothing else.
# scope: package
package airflow.authz

import data.airflow.authz.baseline
import data.airflow.authz.guardrails

# METADATA
# title: One question
# description: "Always defined: `{\"allow\": bool, \"reasons\": [string], \"layer\": string}`."
# entrypoint: true
# scope: document
# schemas:
#   - input: schema.input
default decision := {"allow": false, "reasons": ["the question lacks a part"], "layer": "default"}

decision := answer(input.resource, verdicts)

# METADATA
# title: Many questions that share subject, action and context
# description: |
#   `input.resources` in place of `input.resource`. The answer is a list in the same order, each
#   element what `decision` says of that resource alone.
# entrypoint: true
# schemas:
#   - input: schema.evaluations
decisions := [answer(resource, said[i]) | some i, resource in input.resources]

# METADATA
# title: Which of many are allowed
# description: The indices of `input.resources` that `decisions` allows; for lists, which need no reasons.
# entrypoint: true
# schemas:
#   - input: schema.evaluations
allowed := [i | some i, resource in input.resources; outcomes[decisive(resource, said[i])].allow]

# On its own, because what follows a `with` in the same body forgets what was computed before.
said := [verdict |
	some resource in input.resources
	verdict := verdicts with input as object.union(shared, {"resource": resource})
]

shared := object.remove(input, {"resources"})

# What the rules that people write say of `input.resource`. One document, so that a list pays for one `with` an
# element; the baseline is a function of the resource instead, and keeps what it knows of the subject.
verdicts := {
	"platform_denies": guardrails.deny | {reason | some reason in data.airflow.site.deny},
	"team_denies": {reason | some reason in data.teams[input.resource.team_id].deny},
	"platform_allows": {reason | some reason in data.airflow.site.allow},
	"team_allows": {reason | some reason in data.teams[input.resource.team_id].allow},
}

answer(resource, verdict) := object.union(outcomes[step], {"reasons": reasons(step, resource, verdict)}) if {
	step := decisive(resource, verdict)
}

# The first that has something to say decides.
decisive(resource, verdict) := "platform_denies" if {
	count(verdict.platform_denies) > 0
} else := "team_denies" if {
	count(verdict.team_denies) > 0
} else := "baseline_allows" if {
	baseline.allows(resource)
} else := "platform_allows" if {
	count(verdict.platform_allows) > 0
} else := "team_allows" if {
	count(verdict.team_allows) > 0
} else := "nothing_allows"

outcomes := {
	"platform_denies": {"allow": false, "layer": "guardrail"},
	"team_denies": {"allow": false, "layer": "team"},
	"baseline_allows": {"allow": true, "layer": "baseline"},
	"platform_allows": {"allow": true, "layer": "baseline"},
	"team_allows": {"allow": true, "layer": "team"},
	"nothing_allows": {"allow": false, "layer": "default"},
}

# Sorted, because sets have no order of their own and the two engines must say the same; as text,
# because a rule may have put anything into its set, and one such rule must not spoil a list.
reasons(step, resource, verdict) := sort({$"{reason}" | some reason in verdict[step]}) if {
	verdict[step]
} else := baseline.reasons(resource) if {
	step == "baseline_allows"
} else := [baseline.refusal(resource)]
